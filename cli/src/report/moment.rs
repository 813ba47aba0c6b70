//! Times on the command line.

use crate::config::parse::duration;
use std::time::{SystemTime, UNIX_EPOCH};

const SECOND_US: u64 = 1_000_000;

/// Microseconds since the Unix epoch, now.
pub(super) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// A time as microseconds since the Unix epoch: RFC 3339, Unix seconds, or before now.
pub(super) fn moment(text: &str) -> Result<u64, String> {
    moment_at(text, now_us())
}

fn moment_at(text: &str, now_us: u64) -> Result<u64, String> {
    let wrong = || "expected a time such as 2026-11-26T10:00:00Z, Unix seconds such as 1790000000.5, or -5m".to_owned();
    if let Some(ago) = text.strip_prefix('-') {
        let ago = duration(ago).map_err(|_| wrong())?;
        return Ok(now_us.saturating_sub(u64::try_from(ago.as_micros()).map_err(|_| wrong())?));
    }
    unix_seconds(text).or_else(|| rfc_3339(text)).ok_or_else(wrong)
}

/// Seconds; of the digits behind the point the first six.
fn unix_seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let micros: u64 = format!("{fraction:0<6.6}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(SECOND_US)?.checked_add(micros)
}

/// With Z or an offset; a date alone is its beginning, in UTC.
fn rfc_3339(text: &str) -> Option<u64> {
    const DATE: usize = "2026-11-26".len();
    const OFFSET: usize = "+01:00".len();
    if text.len() == DATE {
        return rfc_3339(&format!("{text}T00:00:00Z"));
    }
    let at = text.len().checked_sub(OFFSET).filter(|at| *at > DATE && text.is_char_boundary(*at));
    let (local, ahead_s) = match at.map(|at| text.split_at(at)) {
        Some((local, offset)) if offset.starts_with(['+', '-']) => (format!("{local}Z"), Some(offset_s(offset)?)),
        _ => (text.to_owned(), None),
    };
    let time = humantime::parse_rfc3339(&local.to_ascii_uppercase().replace(' ', "T")).ok()?;
    let us = i128::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()?;
    u64::try_from(us - i128::from(ahead_s.unwrap_or(0)) * i128::from(SECOND_US)).ok()
}

/// Seconds that `+HH:MM` is ahead of UTC.
fn offset_s(offset: &str) -> Option<i64> {
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let two = |digits: &str, below: i64| {
        let is_two = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse::<i64>().ok().filter(|n| is_two && *n < below)
    };
    let seconds = (two(hours, 24)? * 60 + two(minutes, 60)?) * 60;
    Some(if offset.starts_with('-') { -seconds } else { seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form() {
        let now_us = 1_790_000_000_000_000;
        for (text, us) in [
            ("2026-09-21T14:13:20Z", now_us),
            ("2026-09-21T14:13:20.000001Z", now_us + 1),
            ("1790000000.0000019", now_us + 1),
            ("2026-09-21 14:13:20z", now_us),
            ("2026-09-21T16:13:20+02:00", now_us),
            ("2026-09-21T08:43:20-05:30", now_us),
            ("2026-09-21", 1_789_948_800_000_000),
            ("1790000000", now_us),
            ("1790000000.5", now_us + 500_000),
            ("0.000001", 1),
            ("-5m", now_us - 300_000_000),
            ("-1h 30m", now_us - 5_400_000_000),
            ("-1d", now_us - 86_400_000_000),
        ] {
            assert_eq!(moment_at(text, now_us), Ok(us), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "-", "-5", "5m", "1.", ".5", "2026-13-01", "2026-09-21T14:13:20", "2026-09-21T14:13:20+2:00"] {
            assert!(moment_at(text, 0).is_err(), "{text}");
        }
        assert!(moment_at("2026-09-21T14:13:20é02:00", 0).is_err());
        assert!(moment_at("99999999999999999999", 0).is_err());
        assert_eq!(moment_at("-1d", 5), Ok(0), "nothing is older than the epoch");
    }
}
