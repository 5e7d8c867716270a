//! Times, durations, zones and windows, as expressions write them.

use jiff::{
    SignedDuration, Timestamp,
    civil::{Time, Weekday},
    tz::{Offset, TimeZone, TimeZoneDatabase},
};

use super::{Converted, Part};
use crate::policy::cel::{eval::Stop, value::Value};

/// `1h30m`, `1.5s`, `-20ms`: Go's notation.
pub(super) fn duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = SignedDuration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..letters] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(SignedDuration::try_from_secs_f64(value * seconds).ok()?)?;
    }
    if negative { total.checked_neg() } else { Some(total) }
}

/// The window of `rateCount`, in words of its own when it is none.
pub(in crate::policy::cel) fn window(text: &str) -> Result<SignedDuration, String> {
    let bad = |why: &str| format!("rate: invalid window {text:?}: {why}");
    let unit = text.chars().last().ok_or_else(|| bad("too short"))?;
    let number = &text[..text.len() - unit.len_utf8()];
    if number.is_empty() {
        return Err(bad("too short"));
    }
    let scale = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        other => return Err(bad(&format!("unknown unit '{other}' (want s, m, or h)"))),
    };
    let count: i64 = number.parse().map_err(|_| bad("not a whole number"))?;
    match count.checked_mul(scale) {
        Some(seconds @ 1..=86_400) => Ok(SignedDuration::from_secs(seconds)),
        Some(..=0) => Err(format!("rate: window {text:?} is below minimum 1s")),
        _ => Err(format!("rate: window {text:?} exceeds maximum 24h")),
    }
}

/// Minutes since midnight of `HH:MM`; `9:0` is read, `24:00` is not.
pub(in crate::policy::cel) fn clock(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |part: &str, limit: u16| {
        let plain = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse::<u16>().ok()).flatten().filter(|value| *value < limit)
    };
    Some(number(hours, 24)? * 60 + number(minutes, 60)?)
}

/// A time zone by its name, from the table that is built in: what the host has changes nothing.
pub(in crate::policy::cel) fn zone(name: &str) -> Option<TimeZone> {
    if name.is_empty() || name == "UTC" {
        return Some(TimeZone::UTC);
    }
    if let Some(rest) = name.strip_prefix(['+', '-']) {
        let minutes = i32::from(clock(rest)?);
        let sign = if name.starts_with('-') { -1 } else { 1 };
        return Offset::from_seconds(sign * minutes * 60).ok().map(TimeZone::fixed);
    }
    let zone = TimeZoneDatabase::bundled().get(name).ok()?;
    // Names have a case.
    (zone.iana_name() == Some(name)).then_some(zone)
}

pub(super) fn in_time_window(time: Timestamp, start: &str, end: &str, zone_name: &str) -> bool {
    let (Some(start), Some(end), Some(zone)) = (clock(start), clock(end), zone(zone_name)) else {
        return false;
    };
    let local: Time = time.to_zoned(zone).time();
    let minutes = u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
    start <= minutes && minutes < end
}

pub(super) const fn weekday(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => "monday",
        Weekday::Tuesday => "tuesday",
        Weekday::Wednesday => "wednesday",
        Weekday::Thursday => "thursday",
        Weekday::Friday => "friday",
        Weekday::Saturday => "saturday",
        Weekday::Sunday => "sunday",
    }
}

pub(super) fn get<'a>(part: Part, args: &[Value<'a>]) -> Converted<Value<'a>> {
    let time = match (args.first()?, args.get(1)) {
        (Value::Duration(duration), None) => {
            return Some(Ok(Value::Int(match part {
                Part::Hours => duration.as_hours(),
                Part::Minutes => duration.as_mins(),
                Part::Seconds => duration.as_secs(),
                Part::Milliseconds => i64::from(duration.subsec_millis()),
                _ => return None,
            })));
        }
        (Value::Time(time), None) => time.to_zoned(TimeZone::UTC),
        (Value::Time(time), Some(Value::Text(name))) => match zone(name) {
            Some(zone) => time.to_zoned(zone),
            None => return Some(Err(Stop::error("unknown time zone"))),
        },
        _ => return None,
    };
    let value = match part {
        Part::FullYear => i64::from(time.year()),
        Part::Month => i64::from(time.month()) - 1,
        Part::Date => i64::from(time.day()),
        Part::DayOfMonth => i64::from(time.day()) - 1,
        Part::DayOfWeek => i64::from(time.weekday().to_sunday_zero_offset()),
        Part::DayOfYear => i64::from(time.day_of_year()) - 1,
        Part::Hours => i64::from(time.hour()),
        Part::Minutes => i64::from(time.minute()),
        Part::Seconds => i64::from(time.second()),
        Part::Milliseconds => i64::from(time.millisecond()),
    };
    Some(Ok(Value::Int(value)))
}
