//! What can be evaluated and does not do what it looks like: warnings, never mistakes.

use super::{Checker, Type, is_name};
use crate::policy::cel::{
    ast::{Ast, Kind},
    functions, text,
};

impl Checker<'_> {
    pub(super) fn note_case(&mut self, literal: &str) {
        let shown = format!("'{literal}'");
        if text::lower(literal) != literal && !self.uppercase.contains(&shown) {
            self.uppercase.push(shown);
        }
    }

    /// JSON numbers are doubles: with an integer next to them every call is an error.
    pub(super) fn note_arithmetic(&mut self, left: &Ast, a: Type, right: &Ast, b: Type) {
        for (field, other, ty) in [(left, right, b), (right, left, a)] {
            if let (Some(path), Type::Int | Type::Uint) = (self.path(field), ty) {
                let literal = match &other.kind {
                    Kind::Int(value) => format!("{value}.0"),
                    _ => "a double".to_owned(),
                };
                self.facts.warnings.push(format!(
                    "arithmetic of params.{} with an integer denies every call; write {literal}",
                    path.join(".")
                ));
            }
        }
    }

    pub(super) fn note_direction(&mut self, left: &Ast, right: &Ast) {
        for (field, literal) in [(left, right), (right, left)] {
            if let (Kind::Field(target, name), Kind::Text(value)) = (&field.kind, &literal.kind)
                && is_name(target, "context")
                && name == "direction"
                && !matches!(value.as_str(), "request" | "response")
            {
                self.facts
                    .warnings
                    .push(format!("context.direction is never '{value}'; it is 'request' or 'response'"));
            }
        }
    }

    pub(super) fn note_threshold(&mut self, left: &Ast, right: &Ast) {
        if let (Kind::Call { name, .. }, Kind::Int(limit)) = (&left.kind, &right.kind)
            && name == "rateCount"
            && *limit >= functions::HITS_PER_KEY
        {
            self.facts.warnings.push(format!(
                "rateCount stops counting at {}, so this threshold is never passed",
                functions::HITS_PER_KEY
            ));
        }
    }
}
