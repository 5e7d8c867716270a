//! Values while an expression is evaluated. What comes from the call is borrowed from it.

use std::{borrow::Cow, rc::Rc};

use jiff::{SignedDuration, Timestamp};

use super::eval::{Context, Stop};
use crate::policy::json::{Data, Node, Text};

/// Which case strings of the call are seen in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Original,
    Lower,
}

impl View {
    pub(crate) fn of(self, text: &Text) -> &str {
        match self {
            Self::Original => text.original(),
            Self::Lower => text.lower(),
        }
    }
}

/// A constant of an expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Constant {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    List(Box<[Self]>),
}

#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, str>),
    Bytes(Rc<[u8]>),
    Time(Timestamp),
    Duration(SignedDuration),
    List(Rc<[Self]>),
    Constants(&'a [Constant]),
    Map(Rc<[(Self, Self)]>),
    /// A list or map of the call.
    Json(&'a Node, View),
    Context(&'a Context),
    Type(&'static str),
}

impl<'a> Value<'a> {
    pub(crate) fn of_constant(constant: &'a Constant) -> Self {
        match constant {
            Constant::Null => Self::Null,
            Constant::Bool(value) => Self::Bool(*value),
            Constant::Int(value) => Self::Int(*value),
            Constant::Uint(value) => Self::Uint(*value),
            Constant::Double(value) => Self::Double(*value),
            Constant::Text(text) => Self::Text(Cow::Borrowed(text)),
            Constant::Bytes(bytes) => Self::Bytes(Rc::from(&**bytes)),
            Constant::List(items) => Self::Constants(items),
        }
    }

    pub(crate) fn of_node(node: &'a Node, view: View) -> Self {
        match &node.data {
            Data::Null => Self::Null,
            Data::Bool(value) => Self::Bool(*value),
            Data::Number(value) => Self::Double(*value),
            Data::Text(text) => Self::Text(Cow::Borrowed(view.of(text))),
            Data::List(_) | Data::Map(_) => Self::Json(node, view),
        }
    }

    pub(crate) fn text(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Time(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::List(_) | Self::Constants(_) => "list",
            Self::Json(node, _) if node.is_map() => "map",
            Self::Json(..) => "list",
            Self::Map(_) | Self::Context(_) => "map",
            Self::Type(_) => "type",
        }
    }

    /// The number of items of a list, if it is one.
    pub(crate) fn list_len(&self) -> Option<usize> {
        match self {
            Self::List(items) => Some(items.len()),
            Self::Constants(items) => Some(items.len()),
            Self::Json(node, _) => match &node.data {
                Data::List(items) => Some(items.len()),
                _ => None,
            },
            _ => None,
        }
    }

    /// An item of a list.
    pub(crate) fn item(&self, index: usize) -> Option<Self> {
        match self {
            Self::List(items) => items.get(index).cloned(),
            Self::Constants(items) => items.get(index).map(Value::of_constant),
            Self::Json(node, view) => node.items().get(index).map(|item| Value::of_node(item, *view)),
            _ => None,
        }
    }

    /// The number of entries of a map, if it is one.
    pub(crate) fn map_len(&self) -> Option<usize> {
        match self {
            Self::Map(entries) => Some(entries.len()),
            Self::Context(context) => Some(context.names().count()),
            Self::Json(node, _) => match &node.data {
                Data::Map(entries) => Some(entries.len()),
                _ => None,
            },
            _ => None,
        }
    }

    /// A key of a map, by position.
    pub(crate) fn key(&self, index: usize) -> Option<Self> {
        match self {
            Self::Map(entries) => entries.get(index).map(|(key, _)| key.clone()),
            Self::Context(context) => context.names().nth(index).map(Value::text),
            Self::Json(node, _) => node.entries().get(index).map(|(key, _)| Value::text(key)),
            _ => None,
        }
    }

    /// A field of a map by its name; `Ok(None)`: a map without it. `Err`: no map.
    pub(crate) fn field(&self, name: &str) -> Result<Option<Self>, ()> {
        match self {
            Self::Map(entries) => {
                let is = |key: &Value<'_>| matches!(key, Value::Text(text) if text == name);
                Ok(entries.iter().find(|(key, _)| is(key)).map(|(_, value)| value.clone()))
            }
            Self::Context(context) => Ok(context.field(name)),
            Self::Json(node, view) if node.is_map() => {
                Ok(node.get(name).map(|value| Value::of_node(value, *view)))
            }
            _ => Err(()),
        }
    }

    /// Equality across types: never an error. Counts into `cost`.
    pub(crate) fn equals(&self, other: &Value<'_>, cost: &mut Cost) -> Result<bool, Stop> {
        cost.spend(1)?;
        if let (Some(a), Some(b)) = (Number::of(self), Number::of(other)) {
            return Ok(a.compare(b) == Some(std::cmp::Ordering::Equal));
        }
        Ok(match (self, other) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(a), Value::Bool(b)) => a == b,
            (Self::Text(a), Value::Text(b)) => {
                cost.spend_text(a.len().min(b.len()))?;
                a == b
            }
            (Self::Bytes(a), Value::Bytes(b)) => a == b,
            (Self::Time(a), Value::Time(b)) => a == b,
            (Self::Duration(a), Value::Duration(b)) => a == b,
            (Self::Type(a), Value::Type(b)) => a == b,
            _ => return self.equals_inside(other, cost),
        })
    }

    fn equals_inside(&self, other: &Value<'_>, cost: &mut Cost) -> Result<bool, Stop> {
        if let (Some(a), Some(b)) = (self.list_len(), other.list_len()) {
            if a != b {
                return Ok(false);
            }
            for index in 0..a {
                let (Some(a), Some(b)) = (self.item(index), other.item(index)) else { return Ok(false) };
                if !a.equals(&b, cost)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let (Some(a), Some(b)) = (self.map_len(), other.map_len()) else { return Ok(false) };
        if a != b {
            return Ok(false);
        }
        for index in 0..a {
            let Some(key) = self.key(index) else { return Ok(false) };
            let (Some(a), Some(b)) = (self.at_key(&key, cost)?, other.at_key(&key, cost)?) else {
                return Ok(false);
            };
            if !a.equals(&b, cost)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A map's value at any key.
    pub(crate) fn at_key(&self, key: &Value<'_>, cost: &mut Cost) -> Result<Option<Self>, Stop> {
        cost.spend(1 + self.map_len().unwrap_or(0) as u64 / 16)?;
        if let Value::Text(name) = key {
            return Ok(self.field(name).unwrap_or(None));
        }
        if let Self::Map(entries) = self {
            for (candidate, value) in entries.iter() {
                if candidate.equals(key, cost)? {
                    return Ok(Some(value.clone()));
                }
            }
        }
        Ok(None)
    }
}

/// A number of any type.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Number {
    Int(i64),
    Uint(u64),
    Double(f64),
}

impl Number {
    pub(crate) fn of(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Int(value) => Some(Self::Int(*value)),
            Value::Uint(value) => Some(Self::Uint(*value)),
            Value::Double(value) => Some(Self::Double(*value)),
            _ => None,
        }
    }

    /// By value, whatever the types. `None`: one is not a number.
    pub(crate) fn compare(self, other: Self) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(&b),
            (Self::Double(a), b) => double_to_integer(a, b.integer()?),
            (a, Self::Double(b)) => double_to_integer(b, a.integer()?).map(std::cmp::Ordering::reverse),
            (a, b) => Some(a.integer()?.cmp(&b.integer()?)),
        }
    }

    fn integer(self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(value.into()),
            Self::Uint(value) => Some(value.into()),
            Self::Double(_) => None,
        }
    }
}

/// Exactly, without rounding the integer.
fn double_to_integer(a: f64, b: i128) -> Option<std::cmp::Ordering> {
    if a.is_nan() {
        return None;
    }
    // Every 64-bit integer lies well within.
    if a >= 1e30 {
        return Some(std::cmp::Ordering::Greater);
    }
    if a <= -1e30 {
        return Some(std::cmp::Ordering::Less);
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded just above")]
    let whole = a.floor() as i128;
    let fraction = if a.fract() == 0.0 { std::cmp::Ordering::Equal } else { std::cmp::Ordering::Greater };
    Some(whole.cmp(&b).then(fraction))
}

/// What an evaluation may still cost.
#[derive(Debug)]
pub(crate) struct Cost {
    left: u64,
}

impl Cost {
    pub(crate) fn new(limit: u64) -> Self {
        Self { left: limit }
    }

    pub(crate) fn spend(&mut self, units: u64) -> Result<(), Stop> {
        self.left = self.left.checked_sub(units).ok_or(Stop::Cost)?;
        Ok(())
    }

    /// For a pass over a text of so many bytes.
    pub(crate) fn spend_text(&mut self, bytes: usize) -> Result<(), Stop> {
        self.spend(bytes as u64 / 256)
    }
}
