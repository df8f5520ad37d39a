//! When a certificate ends: the one field of it that is needed here, read from its DER (RFC 5280, section 4.1).

use crate::domain::{UnixMillis, days_since_1970};

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The version, which stands before the rest where it is not the first.
const EXPLICIT_0: u8 = 0xa0;

/// The end of a certificate's validity; `None` when it is none.
pub(super) fn not_after(certificate: &[u8]) -> Option<UnixMillis> {
    let (outer, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(outer, SEQUENCE)?;
    if fields.first() == Some(&EXPLICIT_0) {
        (_, fields) = element(fields, EXPLICIT_0)?;
    }
    // Serial number, signature algorithm, issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, fields) = element(fields, tag)?;
    }
    let (validity, _) = element(fields, SEQUENCE)?;
    let (_, rest) = time(validity)?;
    time(rest).map(|(end, _)| end)
}

/// The contents of the element with this tag that the bytes begin with, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(&[tag])?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = length
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// `YYMMDDHHMMSSZ`, where years below 50 are those of this century, or `YYYYMMDDHHMMSSZ`.
fn time(bytes: &[u8]) -> Option<(UnixMillis, &[u8])> {
    let (text, rest, century) = match element(bytes, UTC_TIME) {
        Some((text, rest)) => {
            let year = number(text.get(..2)?)?;
            (text, rest, Some(if year < 50 { 2000 } else { 1900 }))
        }
        None => {
            let (text, rest) = element(bytes, GENERALIZED_TIME)?;
            (text, rest, None)
        }
    };
    let digits = text.strip_suffix(b"Z")?;
    let year_digits = if century.is_some() { 2 } else { 4 };
    let (year, digits) = digits.split_at_checked(year_digits)?;
    let year = number(year)? + century.unwrap_or(0);
    let [month, day, hour, minute, second] = digits.as_chunks::<2>().0 else {
        return None;
    };
    let [month, day, hour, minute, second] =
        [month, day, hour, minute, second].map(|pair| number(pair));
    let days = days_since_1970(year, month?, day?)?;
    let secs = days * 86_400 + hour? * 3600 + minute? * 60 + second?;
    Some((UnixMillis(secs * 1000), rest))
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        Some(sum * 10 + u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(year: i32, month: u8, day: u8) -> Vec<u8> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(1975, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_forms_of_time() {
        for (year, month, day, secs) in [
            (1999, 12, 31, 946_598_400),
            (2026, 11, 30, 1_795_996_800),
            (2049, 12, 31, 2_524_521_600),
            (2050, 1, 1, 2_524_608_000),
            (4096, 2, 29, 67_095_216_000_u64),
        ] {
            let found = not_after(&certificate(year, month, day));
            assert_eq!(found, Some(UnixMillis(secs * 1000)), "{year}-{month}-{day}");
        }
    }

    #[test]
    fn what_is_cut_or_changed_is_no_certificate_and_does_no_harm() {
        let whole = certificate(2026, 1, 1);
        for length in 0..60 {
            assert_eq!(not_after(&whole[..length]), None, "{length}");
        }
        for place in 0..whole.len().min(400) {
            let mut changed = whole.clone();
            changed[place] ^= 0x80;
            let _ = not_after(&changed);
        }
    }
}
