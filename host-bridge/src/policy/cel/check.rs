//! Names, types and bounds, before anything runs; and what a rule reads, for warnings and for the relay.

mod calls;
mod notes;

use std::collections::BTreeSet;

use super::{
    Mistake, RESERVED,
    ast::{Ast, Kind, Operator},
    functions::Function,
    value::Constant,
};
use crate::config::nearest;

/// Macros within macros.
const MACROS: usize = 3;

/// An expression that can be evaluated.
#[derive(Debug)]
pub(crate) enum Code {
    Constant(Constant),
    Variable(Variable),
    /// A macro's variable: its place on the stack of variables.
    Local(usize),
    Field(Box<Self>, Box<str>),
    Has(Box<Self>, Box<str>),
    Index(Box<(Self, Self)>),
    List(Vec<Self>),
    Map(Vec<(Self, Self)>),
    Not(Box<Self>),
    Negate(Box<Self>),
    And(Vec<Self>),
    Or(Vec<Self>),
    If(Box<(Self, Self, Self)>),
    Binary(Operator, Box<(Self, Self)>),
    Call(Function, Vec<Self>),
    /// `matches` with a pattern that was compiled at load.
    Matches(Box<Self>, regex::Regex),
    Fold(Fold, Box<(Self, Option<Self>, Self)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variable {
    Params,
    /// Params in their own case, whatever the rules' case is.
    Original,
    Context,
    Now,
    Type(&'static str),
}

/// What a macro makes of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fold {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

/// What is known of an expression without a call.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Fields of params that are read, as paths.
    pub(crate) fields: BTreeSet<Vec<String>>,
    /// Params are read as a whole, or by a computed key.
    pub(crate) whole: bool,
    /// Fields of the context that are read.
    pub(crate) context: BTreeSet<String>,
    /// It can change or read counters.
    pub(crate) counts: bool,
    /// What its author should know.
    pub(crate) warnings: Vec<String>,
}

impl Facts {
    /// Does it read this path of params, or something below it?
    pub(crate) fn reads(&self, first: &str) -> bool {
        self.fields.iter().any(|path| path.first().is_some_and(|name| name == first))
    }
}

/// Small types: what is not known is `Dyn`, which fits everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Time,
    Duration,
    List,
    Map,
    Meta,
}

impl Type {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Dyn => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::Time => "timestamp",
            Self::Duration => "duration",
            Self::List => "list",
            Self::Map => "map",
            Self::Meta => "type",
        }
    }

    const fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    const fn is_dyn(self) -> bool {
        matches!(self, Self::Dyn)
    }
}

/// Checks a whole expression, whose result must be a bool. `sensitive`: strings are seen in their own case.
pub(crate) fn check(tree: &Ast, source: &str, sensitive: bool) -> Result<(Code, Facts), Mistake> {
    let mut checker = Checker {
        source,
        scopes: Vec::new(),
        facts: Facts::default(),
        guarded: BTreeSet::new(),
        negations: 0,
        unguarded: Vec::new(),
        uppercase: Vec::new(),
    };
    let (code, ty) = checker.expression(tree)?;
    if !matches!(ty, Type::Bool | Type::Dyn) {
        return Err(Mistake::new(
            tree.at,
            format!("the result must be true or false, found type {}", ty.name()),
        ));
    }
    let Checker { mut facts, guarded, unguarded, uppercase, .. } = checker;
    if !sensitive && !uppercase.is_empty() {
        facts.warnings.push(format!(
            "when expression contains uppercase string literal(s) {}; inputs are lowered by default, so these will \
             never match (use lowercase or set case_sensitive: true)",
            uppercase.join(", ")
        ));
    }
    for (path, text) in unguarded {
        let missing: Vec<String> = (1..=path.len())
            .filter(|length| !guarded.contains(&path[..*length]))
            .map(|length| format!("!has(params.{})", path[..length].join(".")))
            .collect();
        if guarded.contains(&path) || missing.is_empty() {
            continue;
        }
        let warning = format!(
            "does not fire when params.{} is absent; write {} || {text}",
            path.join("."),
            missing.join(" || ")
        );
        if !facts.warnings.contains(&warning) {
            facts.warnings.push(warning);
        }
    }
    Ok((code, facts))
}

struct Checker<'s> {
    source: &'s str,
    /// Variables of the macros around.
    scopes: Vec<String>,
    facts: Facts,
    /// Paths of params that a `has` asks for.
    guarded: BTreeSet<Vec<String>>,
    negations: usize,
    unguarded: Vec<(Vec<String>, String)>,
    uppercase: Vec<String>,
}

type Checked = Result<(Code, Type), Mistake>;

impl Checker<'_> {
    fn expression(&mut self, tree: &Ast) -> Checked {
        match &tree.kind {
            Kind::Null => Ok((Code::Constant(Constant::Null), Type::Null)),
            Kind::Bool(value) => Ok((Code::Constant(Constant::Bool(*value)), Type::Bool)),
            Kind::Int(value) => Ok((Code::Constant(Constant::Int(*value)), Type::Int)),
            Kind::Uint(value) => Ok((Code::Constant(Constant::Uint(*value)), Type::Uint)),
            Kind::Double(value) => Ok((Code::Constant(Constant::Double(*value)), Type::Double)),
            Kind::Text(value) => {
                self.note_case(value);
                Ok((Code::Constant(Constant::Text(value.as_str().into())), Type::Text))
            }
            Kind::Bytes(value) => Ok((Code::Constant(Constant::Bytes(value.as_slice().into())), Type::Bytes)),
            Kind::Ident(name) => self.name(tree, name),
            Kind::Field(target, name) => self.field(tree, target, name),
            Kind::Index(target, index) => self.index(tree, target, index),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => {
                let mut checked = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    checked.push((self.expression(key)?.0, self.expression(value)?.0));
                }
                Ok((Code::Map(checked), Type::Map))
            }
            Kind::Not(inner) => {
                self.negations += 1;
                let checked = self.bool(inner, "!_");
                self.negations -= 1;
                Ok((Code::Not(Box::new(checked?)), Type::Bool))
            }
            Kind::Negate(inner) => {
                let (code, ty) = self.expression(inner)?;
                match ty {
                    Type::Int | Type::Double | Type::Dyn => Ok((Code::Negate(Box::new(code)), ty)),
                    _ => Err(no_overload(tree.at, "-_", &[ty])),
                }
            }
            Kind::And(parts) => Ok((Code::And(self.bools(parts, "_&&_")?), Type::Bool)),
            Kind::Or(parts) => Ok((Code::Or(self.bools(parts, "_||_")?), Type::Bool)),
            Kind::If(parts) => {
                let condition = self.bool(&parts.0, "_?_:_")?;
                let (yes, a) = self.expression(&parts.1)?;
                let (no, b) = self.expression(&parts.2)?;
                if a != b && !a.is_dyn() && !b.is_dyn() {
                    return Err(no_overload(tree.at, "_?_:_", &[Type::Bool, a, b]));
                }
                Ok((Code::If(Box::new((condition, yes, no))), if a.is_dyn() { b } else { a }))
            }
            Kind::Binary(operator, sides) => self.binary(tree, *operator, &sides.0, &sides.1),
            Kind::Call { target, name, args } => self.call(tree, target.as_deref(), name, args),
        }
    }

    fn bool(&mut self, tree: &Ast, operator: &str) -> Result<Code, Mistake> {
        match self.expression(tree)? {
            (code, Type::Bool | Type::Dyn) => Ok(code),
            (_, ty) => Err(no_overload(tree.at, operator, &[ty])),
        }
    }

    fn bools(&mut self, parts: &[Ast], operator: &str) -> Result<Vec<Code>, Mistake> {
        parts.iter().map(|part| self.bool(part, operator)).collect()
    }

    fn name(&mut self, tree: &Ast, name: &str) -> Checked {
        if let Some(index) = self.scopes.iter().rposition(|local| local == name) {
            return Ok((Code::Local(index), Type::Dyn));
        }
        let variable = match name {
            "params" | "_originalParams" => {
                self.facts.whole = true;
                let variable = if name == "params" { Variable::Params } else { Variable::Original };
                return Ok((Code::Variable(variable), Type::Map));
            }
            "context" => return Ok((Code::Variable(Variable::Context), Type::Map)),
            "now" => return Ok((Code::Variable(Variable::Now), Type::Time)),
            "int" => "int",
            "uint" => "uint",
            "double" => "double",
            "bool" => "bool",
            "string" => "string",
            "bytes" => "bytes",
            "list" => "list",
            "map" => "map",
            "type" => "type",
            "null_type" => "null_type",
            _ => return Err(undeclared(tree.at, name, self.scopes.iter().map(String::as_str))),
        };
        Ok((Code::Variable(Variable::Type(variable)), Type::Meta))
    }

    fn field(&mut self, tree: &Ast, target: &Ast, name: &str) -> Checked {
        let code = self.target(target, tree)?;
        Ok((Code::Field(Box::new(code), name.into()), self.field_type(target, name)))
    }

    /// What a field is taken from; notes what is read of params and context.
    fn target(&mut self, target: &Ast, whole: &Ast) -> Result<Code, Mistake> {
        let before = self.facts.whole;
        let (code, ty) = self.expression(target)?;
        if !matches!(ty, Type::Map | Type::Dyn) {
            return Err(Mistake::new(
                whole.at,
                format!("type '{}' does not support field selection", ty.name()),
            ));
        }
        if let Some(path) = self.path(whole) {
            self.facts.whole = before;
            // Only the longest counts.
            self.facts.fields.remove(&path[..path.len() - 1]);
            if self.negations > 0 {
                let text = self.source.get(whole.at..whole.end).unwrap_or("...");
                self.unguarded.retain(|(known, _)| *known != path[..path.len() - 1]);
                self.unguarded.push((path.clone(), format!("!(... {text} ...)")));
            }
            self.facts.fields.insert(path);
        }
        if let (true, Some(name)) = (is_name(target, "context"), last_of(whole)) {
            self.facts.context.insert(name.to_owned());
        }
        Ok(code)
    }

    fn field_type(&self, target: &Ast, name: &str) -> Type {
        if !is_name(target, "context") || self.scopes.iter().any(|local| local == "context") {
            return Type::Dyn;
        }
        match name {
            "timestamp" => Type::Time,
            "labels" | "annotations" => Type::Map,
            "agent_id" | "user_id" | "scope" | "direction" | "operation" => Type::Text,
            _ => Type::Dyn,
        }
    }

    /// `params.a.b` and `params["a"]["b"]` as names.
    fn path(&self, tree: &Ast) -> Option<Vec<String>> {
        let (target, name) = match &tree.kind {
            Kind::Field(target, name) => (target, name),
            Kind::Index(target, index) => match &index.kind {
                Kind::Text(name) => (target, name),
                _ => return None,
            },
            _ => return None,
        };
        let is_params = |tree: &Ast| is_name(tree, "params") || is_name(tree, "_originalParams");
        let mut path = if is_params(target) && !self.scopes.iter().any(|local| local == "params") {
            Vec::new()
        } else {
            self.path(target)?
        };
        path.push(name.clone());
        Some(path)
    }

    fn index(&mut self, tree: &Ast, target: &Ast, index: &Ast) -> Checked {
        if matches!(index.kind, Kind::Text(_)) && (self.path(tree).is_some() || is_name(target, "context")) {
            let code = self.target(target, tree)?;
            let (index, _) = self.expression(index)?;
            return Ok((Code::Index(Box::new((code, index))), Type::Dyn));
        }
        let (code, ty) = self.expression(target)?;
        let (key, key_ty) = self.expression(index)?;
        let fits = match ty {
            Type::Dyn | Type::Map => true,
            Type::List => key_ty.is_number() || key_ty.is_dyn(),
            _ => false,
        };
        if !fits {
            return Err(no_overload(tree.at, "_[_]", &[ty, key_ty]));
        }
        Ok((Code::Index(Box::new((code, key))), Type::Dyn))
    }

    fn list(&mut self, items: &[Ast]) -> Checked {
        let mut codes = Vec::with_capacity(items.len());
        for item in items {
            codes.push(self.expression(item)?.0);
        }
        let constant = |code: &Code| match code {
            Code::Constant(constant) => Some(constant.clone()),
            _ => None,
        };
        // A list of constants is made once.
        let code = match codes.iter().map(constant).collect::<Option<Vec<_>>>() {
            Some(constants) => Code::Constant(Constant::List(constants.into())),
            None => Code::List(codes),
        };
        Ok((code, Type::List))
    }

    fn binary(&mut self, tree: &Ast, operator: Operator, left: &Ast, right: &Ast) -> Checked {
        use Operator as O;
        // `x != 'a'` does not fire without x, as a negation does not.
        let negates = usize::from(operator == O::NotEqual);
        self.negations += negates;
        let sides = self.expression(left).and_then(|a| Ok((a, self.expression(right)?)));
        self.negations -= negates;
        let ((a, a_type), (b, b_type)) = sides?;
        let fits = match operator {
            O::Equal | O::NotEqual => {
                self.note_direction(left, right);
                a_type == b_type
                    || a_type.is_dyn()
                    || b_type.is_dyn()
                    || a_type.is_number() && b_type.is_number()
                    || a_type == Type::Null
                    || b_type == Type::Null
            }
            O::In => matches!(b_type, Type::List | Type::Map | Type::Dyn),
            O::Less | O::LessEqual | O::Greater | O::GreaterEqual => {
                let ordered = |ty| !matches!(ty, Type::List | Type::Map | Type::Null | Type::Meta);
                ordered(a_type)
                    && ordered(b_type)
                    && (a_type == b_type
                        || a_type.is_dyn()
                        || b_type.is_dyn()
                        || a_type.is_number() && b_type.is_number())
            }
            _ => result(operator, a_type, b_type).is_some(),
        };
        if !fits {
            return Err(no_overload(tree.at, &format!("_{}_", operator.as_str()), &[a_type, b_type]));
        }
        let ty = match operator {
            O::Add | O::Subtract | O::Multiply | O::Divide | O::Remainder => {
                self.note_arithmetic(left, a_type, right, b_type);
                result(operator, a_type, b_type).unwrap_or(Type::Dyn)
            }
            _ => Type::Bool,
        };
        if operator == O::Greater || operator == O::GreaterEqual {
            self.note_threshold(left, right);
        }
        Ok((Code::Binary(operator, Box::new((a, b))), ty))
    }
}

fn is_name(tree: &Ast, wanted: &str) -> bool {
    matches!(&tree.kind, Kind::Ident(name) if name == wanted)
}

fn last_of(tree: &Ast) -> Option<&str> {
    match &tree.kind {
        Kind::Field(_, name) => Some(name),
        Kind::Index(_, index) => match &index.kind {
            Kind::Text(name) => Some(name),
            _ => None,
        },
        _ => None,
    }
}

/// The type of an arithmetic operation, if there is one for these types.
fn result(operator: Operator, a: Type, b: Type) -> Option<Type> {
    use Operator as O;
    use Type as T;
    Some(match (operator, a, b) {
        (_, T::Dyn, T::Dyn) => T::Dyn,
        (O::Add, T::Dyn, other) | (O::Add, other, T::Dyn)
            if !matches!(other, T::Bool | T::Map | T::Null | T::Meta) =>
        {
            T::Dyn
        }
        (O::Subtract, T::Dyn, other) | (O::Subtract, other, T::Dyn)
            if other.is_number() || matches!(other, T::Time | T::Duration) =>
        {
            T::Dyn
        }
        (O::Multiply | O::Divide, T::Dyn, other) | (O::Multiply | O::Divide, other, T::Dyn)
            if other.is_number() =>
        {
            T::Dyn
        }
        (O::Remainder, T::Dyn, T::Int | T::Uint) | (O::Remainder, T::Int | T::Uint, T::Dyn) => T::Dyn,
        (O::Remainder, T::Double, _) => return None,
        (_, T::Int, T::Int) => T::Int,
        (_, T::Uint, T::Uint) => T::Uint,
        (_, T::Double, T::Double) => T::Double,
        (O::Add, T::Text, T::Text) => T::Text,
        (O::Add, T::Bytes, T::Bytes) => T::Bytes,
        (O::Add, T::List, T::List) => T::List,
        (O::Add | O::Subtract, T::Duration, T::Duration) | (O::Subtract, T::Time, T::Time) => T::Duration,
        (O::Add | O::Subtract, T::Time, T::Duration) | (O::Add, T::Duration, T::Time) => T::Time,
        _ => return None,
    })
}

fn no_overload(at: usize, name: &str, types: &[Type]) -> Mistake {
    let types: Vec<&str> = types.iter().map(|ty| ty.name()).collect();
    Mistake::new(at, format!("found no matching overload for '{name}' applied to '({})'", types.join(", ")))
}

fn undeclared<'n>(at: usize, name: &str, locals: impl Iterator<Item = &'n str>) -> Mistake {
    let known: Vec<&str> = RESERVED.iter().copied().chain(locals).collect();
    let near = nearest(name, &known).map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default();
    Mistake::new(at, format!("undeclared reference to '{name}'{near}"))
}
