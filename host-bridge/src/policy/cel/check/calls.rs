//! Calls of functions and macros.

use super::{Checked, Checker, Code, Fold, MACROS, Type, no_overload};
use crate::{
    config::nearest,
    policy::{
        cel::{
            Mistake,
            ast::{Ast, Kind},
            functions::{self, Function},
        },
        regexp,
    },
};

impl Checker<'_> {
    pub(super) fn call(&mut self, tree: &Ast, target: Option<&Ast>, name: &str, args: &[Ast]) -> Checked {
        match (target, name, args) {
            (None, "has", [arg]) => return self.has(tree, arg),
            (None, "has", _) => return Err(Mistake::new(tree.at, "has() takes one field selection")),
            (Some(target), "all" | "exists" | "exists_one" | "filter" | "map", args) => {
                return self.fold(tree, target, name, args);
            }
            _ => {}
        }
        let mut codes = Vec::with_capacity(args.len() + 1);
        let mut types = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            let (code, ty) = self.expression(arg)?;
            codes.push(code);
            types.push(ty);
        }
        let (function, result) =
            functions::find(name, target.is_some(), &types).map_err(|reason| match reason {
                functions::NotFound::Name(known) => {
                    let near = nearest(name, &known).map(|near| format!(" (did you mean {near:?}?)"));
                    Mistake::new(
                        tree.at,
                        format!("undeclared reference to '{name}'{}", near.unwrap_or_default()),
                    )
                }
                functions::NotFound::Overload => no_overload(tree.at, name, &types),
            })?;
        let all: Vec<&Ast> = target.into_iter().chain(args).collect();
        self.literals(function, &all)?;
        self.facts.counts |= function == Function::RateCount;
        if let (Function::Matches, [_, Ast { at, kind: Kind::Text(pattern), .. }]) =
            (function, all.as_slice())
        {
            let regex = regexp::compile(pattern).map_err(|error| Mistake::new(*at, error.to_string()))?;
            // What a pattern's capitals mean is its own affair: `\W` is no upper-case literal.
            self.uppercase.retain(|literal| *literal != format!("'{pattern}'"));
            let text = codes.swap_remove(0);
            return Ok((Code::Matches(Box::new(text), regex), Type::Bool));
        }
        Ok((Code::Call(function, codes), result))
    }

    /// Arguments that are written down and can never work are mistakes now, not at every call.
    fn literals(&mut self, function: Function, args: &[&Ast]) -> Result<(), Mistake> {
        let text = |index: usize| match args.get(index).map(|arg| &arg.kind) {
            Some(Kind::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let at = |index: usize| args.get(index).map_or(0, |arg| arg.at);
        match function {
            Function::RateCount => {
                if let Some(window) = text(1) {
                    functions::window(window).map_err(|error| Mistake::new(at(1), error))?;
                }
            }
            Function::InTimeWindow => {
                let clock = |index: usize| {
                    text(index)
                        .map(|clock| {
                            functions::clock(clock).ok_or_else(|| {
                                Mistake::new(at(index), format!("{clock:?} is no time of day (HH:MM)"))
                            })
                        })
                        .transpose()
                };
                let (start, end) = (clock(1)?, clock(2)?);
                if let (Some(start), Some(end)) = (start, end)
                    && end <= start
                {
                    self.facts.warnings.push(
                        "inTimeWindow ends before it starts, so it is never true; for a window over midnight join \
                         two with ||"
                            .to_owned(),
                    );
                }
                self.zone(text(3), at(3))?;
            }
            Function::DayOfWeek => self.zone(text(1), at(1))?,
            Function::Get(_) => self.zone(text(1), at(1))?,
            _ => {}
        }
        // Names of zones and clock times have capitals by themselves.
        for index in 1..args.len() {
            if let (Function::InTimeWindow | Function::DayOfWeek | Function::Get(_), Some(literal)) =
                (function, text(index))
            {
                self.uppercase.retain(|known| *known != format!("'{literal}'"));
            }
        }
        Ok(())
    }

    fn zone(&self, name: Option<&str>, at: usize) -> Result<(), Mistake> {
        match name {
            Some(name) if functions::zone(name).is_none() => Err(Mistake::new(
                at,
                format!("{name:?} is no time zone (as in \"Europe/Zurich\" or \"UTC\")"),
            )),
            _ => Ok(()),
        }
    }

    fn has(&mut self, tree: &Ast, arg: &Ast) -> Checked {
        let Kind::Field(target, name) = &arg.kind else {
            return Err(Mistake::new(tree.at, "has() takes a field selection, as in has(params.team)"));
        };
        if let Some(path) = self.path(arg) {
            self.guarded.insert(path);
        }
        // Asking whether a field is there under a negation is the guard itself.
        let negations = std::mem::take(&mut self.negations);
        let code = self.target(target, arg);
        self.negations = negations;
        Ok((Code::Has(Box::new(code?), name.as_str().into()), Type::Bool))
    }

    fn fold(&mut self, tree: &Ast, range: &Ast, name: &str, args: &[Ast]) -> Checked {
        let (kind, result) = match name {
            "all" => (Fold::All, Type::Bool),
            "exists" => (Fold::Exists, Type::Bool),
            "exists_one" => (Fold::ExistsOne, Type::Bool),
            "filter" => (Fold::Filter, Type::List),
            _ => (Fold::Map, Type::List),
        };
        let (variable, filter, body) = match args {
            [variable, body] => (variable, None, body),
            [variable, filter, body] if kind == Fold::Map => (variable, Some(filter), body),
            _ => return Err(Mistake::new(tree.at, format!("{name}() takes a variable and an expression"))),
        };
        let Kind::Ident(variable) = &variable.kind else {
            return Err(Mistake::new(variable.at, format!("the first argument of {name}() must be a name")));
        };
        if self.scopes.len() == MACROS {
            return Err(Mistake::new(tree.at, format!("more than {MACROS} macros within one another")));
        }
        let (range_code, range_type) = self.expression(range)?;
        if !matches!(range_type, Type::List | Type::Map | Type::Dyn) {
            return Err(Mistake::new(
                range.at,
                format!("expression of type '{}' cannot be range of a comprehension", range_type.name()),
            ));
        }
        self.scopes.push(variable.clone());
        let inside = self.inside(kind, filter, body);
        self.scopes.pop();
        let (filter, body) = inside?;
        Ok((Code::Fold(kind, Box::new((range_code, filter, body))), result))
    }

    fn inside(
        &mut self,
        kind: Fold,
        filter: Option<&Ast>,
        body: &Ast,
    ) -> Result<(Option<Code>, Code), Mistake> {
        let filter = filter.map(|filter| self.bool(filter, "map")).transpose()?;
        let body = if kind == Fold::Map { self.expression(body)?.0 } else { self.bool(body, "macro")? };
        Ok((filter, body))
    }
}
