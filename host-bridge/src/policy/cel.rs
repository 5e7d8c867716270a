//! The Common Expression Language, as far as rule files use it: a pure evaluator that cannot panic, loop or allocate
//! without bound.
//!
//! ```text
//! text ──lex──► tokens ──parse──► tree ──check──► code and facts          (at load; every mistake has its place)
//!                                                  │
//!                                   variables ──► eval ──► true, false, or why neither
//! ```
//!
//! Semantics are those of cel-go, with JSON numbers as doubles. What is not here on purpose: optionals, extension
//! libraries, `cel.bind`, two-variable macros.

mod arithmetic;
mod ast;
mod check;
mod eval;
mod functions;
mod lex;
mod parse;
pub(crate) mod text;
mod value;

pub(crate) use check::{Code, Facts, check};
pub(crate) use eval::{Context, Env, Rates, Verdict, evaluate};
pub(crate) use lex::{TokenKind, tokens};
pub(crate) use parse::parse;

/// Why an expression cannot be used, and where: an offset in bytes into its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Mistake {
    pub(crate) at: usize,
    pub(crate) text: String,
}

impl Mistake {
    pub(crate) fn new(at: usize, text: impl Into<String>) -> Self {
        Self { at, text: text.into() }
    }

    /// Its line and column in the expression, the line itself, and a caret below the place.
    pub(crate) fn shown(&self, expression: &str) -> String {
        let at = (0..=self.at.min(expression.len())).rev().find(|at| expression.is_char_boundary(*at));
        let (before, _) = expression.split_at(at.unwrap_or(0));
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = expression[start..].lines().next().unwrap_or("");
        let column = expression[start..before.len()].chars().count();
        let row = before.matches('\n').count() + 1;
        format!("{row}:{}: {}\n  | {line}\n  | {}^", column + 1, self.text, " ".repeat(column))
    }
}

/// Names that mean something by themselves, and so cannot be those of definitions.
pub(crate) const RESERVED: [&str; 41] = [
    "params",
    "context",
    "now",
    "size",
    "has",
    "matches",
    "startsWith",
    "endsWith",
    "contains",
    "exists",
    "all",
    "filter",
    "map",
    "exists_one",
    "containsAny",
    "estimateTokens",
    "inTimeWindow",
    "rateCount",
    "lower",
    "upper",
    "matchesDomain",
    "dayOfWeek",
    "hasSecrets",
    "int",
    "uint",
    "double",
    "bool",
    "string",
    "bytes",
    "list",
    "type",
    "null_type",
    "true",
    "false",
    "null",
    "in",
    "dyn",
    "timestamp",
    "duration",
    "_originalParams",
    "optional",
];

#[cfg(test)]
mod tests;
