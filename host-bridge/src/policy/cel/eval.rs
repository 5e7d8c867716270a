//! Evaluates checked code over one call. Pure but for the counters of `rateCount`.

use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};

use super::{
    arithmetic,
    ast::Operator,
    check::{Code, Fold, Variable},
    functions,
    functions::Function,
    value::{Cost, Value, View},
};
use crate::policy::json::Node;

/// Units that one evaluation may cost; about a unit for each step.
const LIMIT: u64 = 100_000;

/// How an evaluation ends without a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A key that is not there: the whole expression is false.
    Missing,
    /// It depends on what is not bound.
    Unknown,
    Error(String),
    /// Too expensive. Nothing absorbs it.
    Cost,
}

impl Stop {
    pub(super) fn error(text: impl Into<String>) -> Self {
        Self::Error(text.into())
    }

    pub(super) fn no_overload(name: &str, args: &[&Value<'_>]) -> Self {
        let types: Vec<&str> = args.iter().map(|arg| arg.type_name()).collect();
        Self::Error(format!("no such overload: {name}({})", types.join(", ")))
    }
}

/// What counts for `rateCount`.
pub(crate) trait Rates {
    /// Counts a hit, then says how many there are in the window.
    fn count(&self, key: &str, window: SignedDuration, now: Timestamp) -> Result<i64, String>;
}

/// What `context` holds. Strings are in the case that rules see.
#[derive(Debug, Default, Clone)]
pub(crate) struct Context {
    pub(crate) agent_id: String,
    pub(crate) user_id: String,
    pub(crate) scope: String,
    pub(crate) direction: &'static str,
    pub(crate) operation: String,
    pub(crate) timestamp: Option<Timestamp>,
    /// `run`, `server`, `method`.
    pub(crate) labels: Option<Rc<Node>>,
    /// Of the tool, as its server lists it; nothing where it is not known.
    pub(crate) annotations: Option<Rc<Node>>,
}

impl Context {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        let always = ["agent_id", "user_id", "scope", "direction", "operation", "labels", "annotations"];
        always.into_iter().chain(self.timestamp.map(|_| "timestamp"))
    }

    pub(super) fn field(&self, name: &str) -> Option<Value<'_>> {
        Some(match name {
            "agent_id" => Value::text(&self.agent_id),
            "user_id" => Value::text(&self.user_id),
            "scope" => Value::text(&self.scope),
            "direction" => Value::text(self.direction),
            "operation" => Value::text(&self.operation),
            "timestamp" => Value::Time(self.timestamp?),
            "labels" => below(self.labels.as_deref()),
            "annotations" => below(self.annotations.as_deref()),
            _ => return None,
        })
    }
}

fn below(node: Option<&Node>) -> Value<'_> {
    match node {
        // Made in the right case.
        Some(node) => Value::of_node(node, View::Original),
        None => Value::Map(Rc::from([])),
    }
}

/// What an expression sees. What is `None` is unknown, and so is what depends on it.
#[derive(Clone, Copy)]
pub(crate) struct Env<'a> {
    pub(crate) params: Option<&'a Node>,
    pub(crate) context: &'a Context,
    pub(crate) now: Option<Timestamp>,
    pub(crate) rates: Option<&'a dyn Rates>,
    /// Strings of params are seen in lower case.
    pub(crate) lowered: bool,
}

/// How an expression ends as a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    True,
    /// Also when a key is missing.
    False {
        missing: bool,
    },
    Unknown,
    Error(String),
}

/// Evaluates a condition.
pub(crate) fn evaluate(code: &Code, env: &Env<'_>) -> Verdict {
    let view = if env.lowered { View::Lower } else { View::Original };
    let mut evaluator = Evaluator { env, locals: Vec::new(), cost: Cost::new(LIMIT), view };
    match evaluator.value(code) {
        Ok(Value::Bool(true)) => Verdict::True,
        Ok(Value::Bool(false)) => Verdict::False { missing: false },
        Ok(other) => Verdict::Error(format!("the result is no bool, but {}", other.type_name())),
        Err(Stop::Missing) => Verdict::False { missing: true },
        Err(Stop::Unknown) => Verdict::Unknown,
        Err(Stop::Error(text)) => Verdict::Error(text),
        Err(Stop::Cost) => Verdict::Error("operation cancelled: actual cost limit exceeded".to_owned()),
    }
}

struct Evaluator<'e, 'a> {
    env: &'e Env<'a>,
    locals: Vec<Value<'a>>,
    cost: Cost,
    view: View,
}

type Evaluated<'a> = Result<Value<'a>, Stop>;

impl<'a, 'e: 'a> Evaluator<'e, 'a> {
    fn value(&mut self, code: &'a Code) -> Evaluated<'a> {
        self.cost.spend(1)?;
        match code {
            Code::Constant(constant) => Ok(Value::of_constant(constant)),
            Code::Variable(variable) => self.variable(*variable),
            Code::Local(index) => self.locals.get(*index).cloned().ok_or(Stop::Unknown),
            Code::Field(target, name) => {
                let target = self.value(target)?;
                self.select(&target, name)
            }
            Code::Has(target, name) => {
                let target = self.value(target)?;
                self.cost.spend(1 + target.map_len().unwrap_or(0) as u64 / 16)?;
                match target.field(name) {
                    Ok(found) => Ok(Value::Bool(found.is_some())),
                    Err(()) if target.list_len().is_some() => Err(Stop::no_overload("_._", &[&target])),
                    // On something that is no map nothing is there.
                    Err(()) => Ok(Value::Bool(false)),
                }
            }
            Code::Index(sides) => {
                let target = self.value(&sides.0)?;
                let index = self.value(&sides.1)?;
                self.index(&target, &index)
            }
            Code::List(items) => {
                let items: Result<Vec<_>, _> = items.iter().map(|item| self.value(item)).collect();
                Ok(Value::List(items?.into()))
            }
            Code::Map(entries) => {
                let entry = |(key, value): &'a (Code, Code)| Ok((self.value(key)?, self.value(value)?));
                let entries: Result<Vec<_>, Stop> = entries.iter().map(entry).collect();
                Ok(Value::Map(entries?.into()))
            }
            Code::Not(inner) => match self.value(inner)? {
                Value::Bool(value) => Ok(Value::Bool(!value)),
                other => Err(Stop::no_overload("!_", &[&other])),
            },
            Code::Negate(inner) => match self.value(inner)? {
                Value::Int(value) => {
                    value.checked_neg().map(Value::Int).ok_or_else(|| Stop::error("integer overflow"))
                }
                Value::Double(value) => Ok(Value::Double(-value)),
                other => Err(Stop::no_overload("-_", &[&other])),
            },
            Code::And(parts) => self.absorbing(parts, false),
            Code::Or(parts) => self.absorbing(parts, true),
            Code::If(parts) => match self.value(&parts.0)? {
                Value::Bool(true) => self.value(&parts.1),
                Value::Bool(false) => self.value(&parts.2),
                other => Err(Stop::no_overload("_?_:_", &[&other])),
            },
            Code::Binary(operator, sides) => {
                let left = self.value(&sides.0)?;
                let right = self.value(&sides.1)?;
                self.binary(*operator, left, right)
            }
            Code::Call(function, args) => self.call(*function, args),
            Code::Matches(text, regex) => match self.value(text)? {
                Value::Text(text) => functions::matched(&text, regex, &mut self.cost),
                other => Err(Stop::no_overload("matches", &[&other])),
            },
            Code::Fold(fold, parts) => self.fold(*fold, &parts.0, parts.1.as_ref(), &parts.2),
        }
    }

    fn variable(&self, variable: Variable) -> Evaluated<'a> {
        Ok(match variable {
            Variable::Params => Value::of_node(self.env.params.ok_or(Stop::Unknown)?, self.view),
            Variable::Original => Value::of_node(self.env.params.ok_or(Stop::Unknown)?, View::Original),
            Variable::Context => Value::Context(self.env.context),
            Variable::Now => Value::Time(self.env.now.ok_or(Stop::Unknown)?),
            Variable::Type(name) => Value::Type(name),
        })
    }

    fn select(&mut self, target: &Value<'a>, name: &str) -> Evaluated<'a> {
        self.cost.spend(target.map_len().unwrap_or(0) as u64 / 16)?;
        match target.field(name) {
            Ok(Some(value)) => Ok(value),
            // Of the context nothing is missing for good: what is not bound yet is unknown.
            Ok(None) if matches!(target, Value::Context(_)) && name == "timestamp" => Err(Stop::Unknown),
            Ok(None) => Err(Stop::Missing),
            Err(()) if is_scalar(target) => Err(Stop::Missing),
            Err(()) => Err(Stop::no_overload("_._", &[target])),
        }
    }

    fn index(&mut self, target: &Value<'a>, index: &Value<'a>) -> Evaluated<'a> {
        if let Some(length) = target.list_len() {
            let position = match index {
                Value::Int(index) => usize::try_from(*index).ok(),
                Value::Uint(index) => usize::try_from(*index).ok(),
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a small whole number"
                )]
                Value::Double(index) if index.fract() == 0.0 && (0.0..1e9).contains(index) => {
                    Some(*index as usize)
                }
                Value::Double(_) => None,
                _ => return Err(Stop::no_overload("_[_]", &[target, index])),
            };
            let item =
                position.filter(|position| *position < length).and_then(|position| target.item(position));
            return item.ok_or_else(|| Stop::error("index out of bounds"));
        }
        if target.map_len().is_some() {
            return target.at_key(index, &mut self.cost)?.ok_or(Stop::Missing);
        }
        if is_scalar(target) { Err(Stop::Missing) } else { Err(Stop::no_overload("_[_]", &[target, index])) }
    }

    /// `&&` (decided by false) and `||` (decided by true): whatever decides absorbs errors, else the first error
    /// stands (P16).
    fn absorbing(&mut self, parts: &'a [Code], decides: bool) -> Evaluated<'a> {
        let mut stopped = None;
        for part in parts {
            let stop = match self.value(part) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => continue,
                Ok(other) => Stop::no_overload(if decides { "_||_" } else { "_&&_" }, &[&other]),
                Err(Stop::Cost) => return Err(Stop::Cost),
                Err(stop) => stop,
            };
            stopped.get_or_insert(stop);
        }
        stopped.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn binary(&mut self, operator: Operator, left: Value<'a>, right: Value<'a>) -> Evaluated<'a> {
        match operator {
            Operator::Equal => Ok(Value::Bool(left.equals(&right, &mut self.cost)?)),
            Operator::NotEqual => Ok(Value::Bool(!left.equals(&right, &mut self.cost)?)),
            Operator::In => self.within(&left, &right).map(Value::Bool),
            _ => arithmetic::apply(operator, left, right, &mut self.cost),
        }
    }

    fn within(&mut self, item: &Value<'a>, of: &Value<'a>) -> Result<bool, Stop> {
        if let Some(length) = of.list_len() {
            for index in 0..length {
                let Some(candidate) = of.item(index) else { break };
                if candidate.equals(item, &mut self.cost)? {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        if of.map_len().is_some() {
            return Ok(of.at_key(item, &mut self.cost)?.is_some());
        }
        Err(Stop::no_overload("@in", &[item, of]))
    }

    fn call(&mut self, function: Function, args: &'a [Code]) -> Evaluated<'a> {
        let view = self.view;
        if function == Function::HasSecrets {
            self.view = View::Original;
        }
        let values: Result<Vec<_>, _> = args.iter().map(|arg| self.value(arg)).collect();
        self.view = view;
        functions::call(function, &values?, self.env, &mut self.cost)
    }

    fn fold(
        &mut self,
        fold: Fold,
        range: &'a Code,
        filter: Option<&'a Code>,
        body: &'a Code,
    ) -> Evaluated<'a> {
        let range = self.value(range)?;
        let (length, of_map) = match (range.list_len(), range.map_len()) {
            (Some(length), _) => (length, false),
            (None, Some(length)) => (length, true),
            (None, None) => return Err(Stop::no_overload("comprehension", &[&range])),
        };
        let (mut kept, mut matches, mut stopped) = (Vec::new(), 0_usize, None);
        for index in 0..length {
            let item = if of_map { range.key(index) } else { range.item(index) };
            let Some(item) = item else { break };
            self.locals.push(item);
            let step = self.step(filter, body);
            let item = self.locals.pop();
            match (fold, step) {
                (_, Err(Stop::Cost)) => return Err(Stop::Cost),
                (_, Ok(None)) => {}
                (Fold::Map, Ok(Some(value))) => kept.push(value),
                (Fold::All, Ok(Some(Value::Bool(false)))) => return Ok(Value::Bool(false)),
                (Fold::Exists, Ok(Some(Value::Bool(true)))) => return Ok(Value::Bool(true)),
                (Fold::ExistsOne, Ok(Some(Value::Bool(true)))) => matches += 1,
                (Fold::Filter, Ok(Some(Value::Bool(true)))) => kept.extend(item),
                (_, Ok(Some(Value::Bool(_)))) => {}
                (_, Ok(Some(other))) => {
                    stopped.get_or_insert_with(|| Stop::no_overload("macro", &[&other]));
                }
                // What decides later absorbs it; the others do not go on.
                (Fold::All | Fold::Exists, Err(stop)) => {
                    stopped.get_or_insert(stop);
                }
                (_, Err(stop)) => return Err(stop),
            }
        }
        if let Some(stop) = stopped {
            return Err(stop);
        }
        Ok(match fold {
            Fold::All => Value::Bool(true),
            Fold::Exists => Value::Bool(false),
            Fold::ExistsOne => Value::Bool(matches == 1),
            Fold::Filter | Fold::Map => Value::List(kept.into()),
        })
    }

    /// A macro's body for one item; `None` where its filter says no.
    fn step(&mut self, filter: Option<&'a Code>, body: &'a Code) -> Result<Option<Value<'a>>, Stop> {
        if let Some(filter) = filter {
            match self.value(filter)? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(None),
                other => return Err(Stop::no_overload("filter", &[&other])),
            }
        }
        self.value(body).map(Some)
    }
}

fn is_scalar(value: &Value<'_>) -> bool {
    matches!(
        value,
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Text(_)
    )
}
