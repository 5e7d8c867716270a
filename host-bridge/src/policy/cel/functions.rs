//! The functions that expressions may call: CEL's own, and those of rule files.

mod time;

use std::borrow::Cow;

use jiff::{Timestamp, tz::TimeZone};

pub(super) use self::time::{clock, window, zone};
use self::time::{duration, get, in_time_window, weekday};

use super::{
    check::Type,
    eval::{Env, Stop},
    text,
    value::{Cost, Value},
};
use crate::policy::{regexp, secrets};

/// What is counted for one key of `rateCount`.
pub(crate) const HITS_PER_KEY: i64 = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Contains,
    StartsWith,
    EndsWith,
    Matches,
    Size,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Bool,
    Time,
    Duration,
    Dyn,
    TypeOf,
    ContainsAny,
    EstimateTokens,
    InTimeWindow,
    RateCount,
    Lower,
    Upper,
    MatchesDomain,
    DayOfWeek,
    /// Its argument is evaluated over params in their own case (P20).
    HasSecrets,
    Get(Part),
}

/// A part of a time, or of a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    FullYear,
    Month,
    Date,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// Why there is no such call.
#[derive(Debug)]
pub(super) enum NotFound {
    /// With the names that there are.
    Name(Vec<&'static str>),
    Overload,
}

type Parameters = &'static [&'static [Type]];

/// Name, called as a method, parameters (the receiver first), result, function.
const TABLE: &[(&str, bool, Parameters, Type, Function)] = {
    use Function as F;
    use Type as T;
    const TEXTS: Parameters = &[&[T::Text], &[T::Text]];
    const SIZED: Parameters = &[&[T::Text, T::Bytes, T::List, T::Map]];
    const TIME: Parameters = &[&[T::Time]];
    const TIME_IN: Parameters = &[&[T::Time], &[T::Text]];
    const TIME_OR_DURATION: Parameters = &[&[T::Time, T::Duration]];
    const LISTED: Parameters = &[&[T::Text], &[T::List]];
    const ANY: Parameters = &[&[
        T::Null,
        T::Bool,
        T::Int,
        T::Uint,
        T::Double,
        T::Text,
        T::Bytes,
        T::Time,
        T::Duration,
        T::List,
        T::Map,
        T::Meta,
    ]];
    &[
        ("contains", true, TEXTS, T::Bool, F::Contains),
        ("startsWith", true, TEXTS, T::Bool, F::StartsWith),
        ("endsWith", true, TEXTS, T::Bool, F::EndsWith),
        ("matches", true, TEXTS, T::Bool, F::Matches),
        ("matches", false, TEXTS, T::Bool, F::Matches),
        ("size", true, SIZED, T::Int, F::Size),
        ("size", false, SIZED, T::Int, F::Size),
        ("int", false, &[&[T::Int, T::Uint, T::Double, T::Text, T::Time]], T::Int, F::Int),
        ("uint", false, &[&[T::Int, T::Uint, T::Double, T::Text]], T::Uint, F::Uint),
        ("double", false, &[&[T::Int, T::Uint, T::Double, T::Text]], T::Double, F::Double),
        (
            "string",
            false,
            &[&[T::Bool, T::Int, T::Uint, T::Double, T::Text, T::Bytes, T::Time, T::Duration]],
            T::Text,
            F::Text,
        ),
        ("bytes", false, &[&[T::Text, T::Bytes]], T::Bytes, F::Bytes),
        ("bool", false, &[&[T::Bool, T::Text]], T::Bool, F::Bool),
        ("timestamp", false, &[&[T::Text, T::Int, T::Time]], T::Time, F::Time),
        ("duration", false, &[&[T::Text, T::Duration]], T::Duration, F::Duration),
        ("dyn", false, ANY, T::Dyn, F::Dyn),
        ("type", false, ANY, T::Meta, F::TypeOf),
        ("containsAny", false, LISTED, T::Bool, F::ContainsAny),
        ("estimateTokens", false, &[&[T::Text]], T::Int, F::EstimateTokens),
        ("inTimeWindow", false, &[&[T::Time], &[T::Text], &[T::Text], &[T::Text]], T::Bool, F::InTimeWindow),
        ("rateCount", false, TEXTS, T::Int, F::RateCount),
        ("lower", false, &[&[T::Text]], T::Text, F::Lower),
        ("upper", false, &[&[T::Text]], T::Text, F::Upper),
        ("matchesDomain", false, LISTED, T::Bool, F::MatchesDomain),
        ("dayOfWeek", false, TIME, T::Text, F::DayOfWeek),
        ("dayOfWeek", false, TIME_IN, T::Text, F::DayOfWeek),
        ("hasSecrets", false, &[&[T::Text, T::List, T::Map]], T::Bool, F::HasSecrets),
        ("getFullYear", true, TIME, T::Int, F::Get(Part::FullYear)),
        ("getFullYear", true, TIME_IN, T::Int, F::Get(Part::FullYear)),
        ("getMonth", true, TIME, T::Int, F::Get(Part::Month)),
        ("getMonth", true, TIME_IN, T::Int, F::Get(Part::Month)),
        ("getDate", true, TIME, T::Int, F::Get(Part::Date)),
        ("getDate", true, TIME_IN, T::Int, F::Get(Part::Date)),
        ("getDayOfMonth", true, TIME, T::Int, F::Get(Part::DayOfMonth)),
        ("getDayOfMonth", true, TIME_IN, T::Int, F::Get(Part::DayOfMonth)),
        ("getDayOfWeek", true, TIME, T::Int, F::Get(Part::DayOfWeek)),
        ("getDayOfWeek", true, TIME_IN, T::Int, F::Get(Part::DayOfWeek)),
        ("getDayOfYear", true, TIME, T::Int, F::Get(Part::DayOfYear)),
        ("getDayOfYear", true, TIME_IN, T::Int, F::Get(Part::DayOfYear)),
        ("getHours", true, TIME_OR_DURATION, T::Int, F::Get(Part::Hours)),
        ("getHours", true, TIME_IN, T::Int, F::Get(Part::Hours)),
        ("getMinutes", true, TIME_OR_DURATION, T::Int, F::Get(Part::Minutes)),
        ("getMinutes", true, TIME_IN, T::Int, F::Get(Part::Minutes)),
        ("getSeconds", true, TIME_OR_DURATION, T::Int, F::Get(Part::Seconds)),
        ("getSeconds", true, TIME_IN, T::Int, F::Get(Part::Seconds)),
        ("getMilliseconds", true, TIME_OR_DURATION, T::Int, F::Get(Part::Milliseconds)),
        ("getMilliseconds", true, TIME_IN, T::Int, F::Get(Part::Milliseconds)),
    ]
};

/// The function of a call.
pub(super) fn find(name: &str, method: bool, types: &[Type]) -> Result<(Function, Type), NotFound> {
    let mut known = false;
    for (candidate, is_method, parameters, result, function) in TABLE {
        if *candidate != name || *is_method != method {
            continue;
        }
        known = true;
        let fits = |(ty, wanted): (&Type, &&[Type])| *ty == Type::Dyn || wanted.contains(ty);
        if parameters.len() == types.len() && types.iter().zip(*parameters).all(fits) {
            return Ok((*function, *result));
        }
    }
    if known {
        return Err(NotFound::Overload);
    }
    Err(NotFound::Name(TABLE.iter().filter(|entry| entry.1 == method).map(|entry| entry.0).collect()))
}

/// Calls a function with its evaluated arguments.
pub(super) fn call<'a>(
    function: Function,
    args: &[Value<'a>],
    env: &Env<'a>,
    cost: &mut Cost,
) -> Result<Value<'a>, Stop> {
    use Function as F;
    let none = || Stop::no_overload(function.name(), &args.iter().collect::<Vec<_>>());
    let text = |index: usize| match args.get(index) {
        Some(Value::Text(text)) => Ok(text.as_ref()),
        _ => Err(none()),
    };
    let first = args.first().ok_or_else(none)?;
    Ok(match function {
        F::Contains | F::StartsWith | F::EndsWith => {
            let (text, part) = (text(0)?, text(1)?);
            cost.spend_text(text.len())?;
            Value::Bool(match function {
                F::Contains => memchr::memmem::find(text.as_bytes(), part.as_bytes()).is_some(),
                F::StartsWith => text.starts_with(part),
                _ => text.ends_with(part),
            })
        }
        F::Matches => {
            let (text, pattern) = (text(0)?, text(1)?);
            cost.spend(1000)?;
            matched(text, &regexp::cached(pattern).map_err(|error| Stop::error(error.to_string()))?, cost)?
        }
        F::Size => match first {
            Value::Text(text) => {
                cost.spend_text(text.len())?;
                size(text.chars().count())
            }
            Value::Bytes(bytes) => size(bytes.len()),
            other => size(other.list_len().or_else(|| other.map_len()).ok_or_else(none)?),
        },
        F::Int => Value::Int(to_int(first).ok_or_else(none)??),
        F::Uint => Value::Uint(to_uint(first).ok_or_else(none)??),
        F::Double => Value::Double(match first {
            Value::Double(value) => *value,
            #[expect(clippy::cast_precision_loss, reason = "what the conversion means")]
            Value::Int(value) => *value as f64,
            #[expect(clippy::cast_precision_loss, reason = "what the conversion means")]
            Value::Uint(value) => *value as f64,
            Value::Text(text) => text.parse().map_err(|_| Stop::error("type conversion error"))?,
            _ => return Err(none()),
        }),
        F::Text => Value::Text(to_text(first).ok_or_else(none)??),
        F::Bytes => match first {
            Value::Bytes(_) => first.clone(),
            Value::Text(text) => {
                cost.spend_text(text.len().saturating_mul(8))?;
                Value::Bytes(text.as_bytes().into())
            }
            _ => return Err(none()),
        },
        F::Bool => match first {
            Value::Bool(value) => Value::Bool(*value),
            Value::Text(text) => Value::Bool(match text.as_ref() {
                "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
                "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
                _ => return Err(Stop::error("type conversion error")),
            }),
            _ => return Err(none()),
        },
        F::Time => match first {
            Value::Time(_) => first.clone(),
            Value::Int(seconds) => Value::Time(
                Timestamp::from_second(*seconds).map_err(|_| Stop::error("timestamp out of range"))?,
            ),
            Value::Text(text) => {
                // Lower-cased arguments say `t` and `z`.
                Value::Time(text.to_ascii_uppercase().parse().map_err(|_| Stop::error("invalid timestamp"))?)
            }
            _ => return Err(none()),
        },
        F::Duration => match first {
            Value::Duration(_) => first.clone(),
            Value::Text(text) => {
                Value::Duration(duration(text).ok_or_else(|| Stop::error("invalid duration"))?)
            }
            _ => return Err(none()),
        },
        F::Dyn => first.clone(),
        F::TypeOf => Value::Type(first.type_name()),
        F::ContainsAny => {
            let (within, list) = (text(0)?, args.get(1).ok_or_else(none)?);
            let length = list.list_len().ok_or_else(none)?;
            let within = text::lower(within);
            for index in 0..length {
                cost.spend(1)?;
                cost.spend_text(within.len())?;
                let Some(Value::Text(part)) = list.item(index) else { return Err(none()) };
                if memchr::memmem::find(within.as_bytes(), text::lower(&part).as_bytes()).is_some() {
                    return Ok(Value::Bool(true));
                }
            }
            Value::Bool(false)
        }
        F::EstimateTokens => {
            let text = text(0)?;
            cost.spend_text(text.len())?;
            size(text.chars().count() / 4)
        }
        F::InTimeWindow => {
            let Value::Time(time) = first else { return Err(none()) };
            Value::Bool(in_time_window(*time, text(1)?, text(2)?, text(3)?))
        }
        F::RateCount => {
            let (key, span) = (text(0)?, text(1)?);
            let (Some(rates), Some(now)) = (env.rates, env.now) else { return Err(Stop::Unknown) };
            let window = window(span).map_err(Stop::error)?;
            Value::Int(rates.count(key, window, now).map_err(Stop::error)?)
        }
        F::Lower => {
            let text = text(0)?;
            cost.spend_text(text.len())?;
            Value::Text(Cow::Owned(text::lower(text).into_owned()))
        }
        F::Upper => {
            let text = text(0)?;
            cost.spend_text(text.len())?;
            Value::Text(text::upper(text).into())
        }
        F::MatchesDomain => {
            let (address, list) = (text(0)?, args.get(1).ok_or_else(none)?);
            let length = list.list_len().ok_or_else(none)?;
            let domain = address.rsplit_once('@').map(|(_, domain)| text::lower(domain));
            let Some(domain) = domain.filter(|domain| !domain.is_empty()) else {
                return Ok(Value::Bool(false));
            };
            for index in 0..length {
                cost.spend(1)?;
                let Some(Value::Text(listed)) = list.item(index) else { return Err(none()) };
                let listed = text::lower(&listed);
                let below = domain.strip_suffix(listed.as_ref()).is_some_and(|rest| rest.ends_with('.'));
                if domain == listed || below {
                    return Ok(Value::Bool(true));
                }
            }
            Value::Bool(false)
        }
        F::DayOfWeek => {
            let Value::Time(time) = first else { return Err(none()) };
            let zone = if args.len() > 1 { zone(text(1)?) } else { Some(TimeZone::UTC) };
            Value::text(zone.map_or("", |zone| weekday(time.to_zoned(zone).weekday())))
        }
        F::HasSecrets => Value::Bool(has_secrets(first, cost).ok_or_else(none)??),
        F::Get(part) => get(part, args).ok_or_else(none)??,
    })
}

/// `matches` for a compiled pattern. Linear, but slower than a plain search.
pub(super) fn matched<'a>(text: &str, regex: &regex::Regex, cost: &mut Cost) -> Result<Value<'a>, Stop> {
    cost.spend(text.len() as u64 / 64)?;
    Ok(Value::Bool(regex.is_match(text)))
}

impl Function {
    const fn name(self) -> &'static str {
        match self {
            Self::Contains => "contains",
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
            Self::Matches => "matches",
            Self::Size => "size",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::Bool => "bool",
            Self::Time => "timestamp",
            Self::Duration => "duration",
            Self::Dyn => "dyn",
            Self::TypeOf => "type",
            Self::ContainsAny => "containsAny",
            Self::EstimateTokens => "estimateTokens",
            Self::InTimeWindow => "inTimeWindow",
            Self::RateCount => "rateCount",
            Self::Lower => "lower",
            Self::Upper => "upper",
            Self::MatchesDomain => "matchesDomain",
            Self::DayOfWeek => "dayOfWeek",
            Self::HasSecrets => "hasSecrets",
            Self::Get(_) => "get",
        }
    }
}

fn size<'a>(length: usize) -> Value<'a> {
    Value::Int(i64::try_from(length).unwrap_or(i64::MAX))
}

type Converted<T> = Option<Result<T, Stop>>;

#[expect(clippy::cast_possible_truncation, reason = "bounded before")]
fn to_int(value: &Value<'_>) -> Converted<i64> {
    let range = || Stop::error("range error converting to int");
    Some(match value {
        Value::Int(value) => Ok(*value),
        Value::Uint(value) => i64::try_from(*value).map_err(|_| range()),
        Value::Double(value) if value.abs() < 9.2e18 => Ok(*value as i64),
        Value::Double(_) => Err(range()),
        Value::Text(text) => text.parse().map_err(|_| Stop::error("type conversion error")),
        Value::Time(time) => Ok(time.as_second()),
        _ => return None,
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before")]
fn to_uint(value: &Value<'_>) -> Converted<u64> {
    let range = || Stop::error("range error converting to uint");
    Some(match value {
        Value::Uint(value) => Ok(*value),
        Value::Int(value) => u64::try_from(*value).map_err(|_| range()),
        Value::Double(value) if *value > -1.0 && *value < 1.8e19 => Ok(*value as u64),
        Value::Double(_) => Err(range()),
        Value::Text(text) => text.parse().map_err(|_| Stop::error("type conversion error")),
        _ => return None,
    })
}

fn to_text<'a>(value: &Value<'a>) -> Converted<Cow<'a, str>> {
    Some(Ok(match value {
        Value::Text(text) => text.clone(),
        Value::Bool(value) => value.to_string().into(),
        Value::Int(value) => value.to_string().into(),
        Value::Uint(value) => value.to_string().into(),
        Value::Double(value) => value.to_string().into(),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned().into(),
            Err(_) => return Some(Err(Stop::error("invalid UTF-8 in bytes, cannot convert to string"))),
        },
        Value::Time(time) => time.to_string().into(),
        Value::Duration(duration) => format!("{}s", duration.as_secs_f64()).into(),
        _ => return None,
    }))
}

/// Every string at and below a value.
fn has_secrets(value: &Value<'_>, cost: &mut Cost) -> Converted<bool> {
    match value {
        Value::Text(text) => {
            // A pass of many patterns behind a filter.
            if let Err(stop) = cost.spend(text.len() as u64 / 64) {
                return Some(Err(stop));
            }
            Some(Ok(secrets::has(text)))
        }
        Value::Json(..) | Value::List(_) | Value::Constants(_) | Value::Map(_) => {
            if let Some(length) = value.list_len() {
                for index in 0..length {
                    if let Err(stop) = cost.spend(1) {
                        return Some(Err(stop));
                    }
                    match value.item(index).and_then(|item| has_secrets(&item, cost)) {
                        Some(Ok(false)) | None => {}
                        found => return found,
                    }
                }
                return Some(Ok(false));
            }
            for index in 0..value.map_len().unwrap_or(0) {
                let item = value.key(index).map(|key| value.at_key(&key, cost));
                match item {
                    Some(Ok(Some(item))) => match has_secrets(&item, cost) {
                        Some(Ok(false)) | None => {}
                        found => return found,
                    },
                    Some(Err(stop)) => return Some(Err(stop)),
                    _ => {}
                }
            }
            Some(Ok(false))
        }
        _ => None,
    }
}
