//! Times for people: ages, and clock times of the local time zone.

use jiff::{Timestamp, tz::TimeZone};

/// `just now`, `5m ago`, `3h ago`, `2d ago`.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    match now.as_second().saturating_sub(then.as_second()) {
        ..60 => "just now".to_owned(),
        seconds @ 60..3600 => format!("{}m ago", seconds / 60),
        seconds @ 3600..86400 => format!("{}h ago", seconds / 3600),
        seconds => format!("{}d ago", seconds / 86400),
    }
}

/// `42s`, `42m`, `3h`, `2d`.
pub(crate) fn span(time: jiff::SignedDuration) -> String {
    match time.as_secs() {
        seconds @ ..60 => format!("{}s", seconds.max(0)),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

/// `[15:04:05.000]`, in this time zone.
pub(crate) fn clock(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("[%H:%M:%S%.3f]").to_string()
}

/// `2026-01-25 15:04:05`, in this time zone.
pub(crate) fn date(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(-5 => "just now"; "a clock that went back")]
    #[test_case(59 => "just now")]
    #[test_case(60 => "1m ago")]
    #[test_case(3599 => "59m ago")]
    #[test_case(3 * 3600 => "3h ago")]
    #[test_case(2 * 86400 + 5 => "2d ago")]
    fn ages(seconds: i64) -> String {
        age(Timestamp::UNIX_EPOCH, Timestamp::from_second(seconds).unwrap())
    }

    #[test_case("2026-01-25T10:23:44.5Z" => "[10:23:44.500]")]
    #[test_case("2026-01-25T10:23:44Z" => "[10:23:44.000]"; "always three digits")]
    fn clocks(time: &str) -> String {
        clock(time.parse().unwrap(), &TimeZone::UTC)
    }
}
