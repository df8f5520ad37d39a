//! Durations (`250ms`, `10s`, `5m`, `1h`) and sizes (`512`, `64KiB`, `1MiB`) as people write them.
//!
//! Whole numbers with a unit only: a fraction or a sum would have two spellings for one value.

use std::time::Duration;

/// Reads a duration; a unit is required, except that `0` may stand alone.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    const WANTED: &str =
        "a duration such as `250ms`, `10s`, `5m` or `1h` (a whole number with its unit)";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (number, unit) = split(text).ok_or(WANTED)?;
    let millis = match unit {
        "us" => return Ok(Duration::from_micros(number)),
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(WANTED),
    };
    millis.map(Duration::from_millis).ok_or(WANTED)
}

/// Reads a size; a plain number is bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, &'static str> {
    const WANTED: &str =
        "a size such as `512`, `64KiB` or `1MiB` (a whole number of bytes, KiB, MiB or GiB)";
    let (number, unit) = split(text).ok_or(WANTED)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(WANTED),
    };
    number.checked_mul(factor).ok_or(WANTED)
}

/// Writes a duration the way [`duration`] reads it.
pub(crate) fn show_duration(value: Duration) -> String {
    let micros = value.as_micros();
    for (unit, size) in [
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
    ] {
        if micros > 0 && micros.is_multiple_of(size) {
            return format!("{}{unit}", micros / size);
        }
    }
    if micros == 0 {
        "0s".into()
    } else {
        format!("{micros}us")
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        for (text, millis) in [
            ("10s", 10_000),
            ("250ms", 250),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("0", 0),
            ("0s", 0),
        ] {
            let value = duration(text).unwrap();
            assert_eq!(value, Duration::from_millis(millis), "{text}");
            assert_eq!(duration(&show_duration(value)), Ok(value), "{text}");
        }
        assert_eq!(duration("300us"), Ok(Duration::from_micros(300)));
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "1d",
            "10 seconds",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read() {
        for (text, expected) in [
            ("0", 0),
            ("512", 512),
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
            ("1 GiB", 1 << 30),
            ("3kB", 3_000),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "KiB", "1.5MiB", "-1", "1TiB", "18446744073709551615KiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
