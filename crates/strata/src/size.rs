//! Sizes and times as people type them.

use std::time::Duration;

/// `512M`, `2G`, `64MiB`, `1073741824`: bytes; K, M, G, T are powers of 1024 as in QEMU and Docker.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("a size is a number and one of K, M, G, T, e.g. 512M".to_owned()),
    };
    let number: u64 =
        digits.parse().map_err(|_| "a size is a whole number with K, M, G or T, e.g. 512M".to_owned())?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(|| "out of range".to_owned())
}

/// `90`, `90s`, `1.5m`, `2h`, `500ms`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err("a time is a number and one of ms, s, m, h, d, e.g. 90s".to_owned()),
    };
    let value: f64 = number.parse().map_err(|_| "a time is a number and a unit, e.g. 90s".to_owned())?;
    Duration::try_from_secs_f64(value * unit)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        for text in ["", "M", "-1", "0", "1.5G", "99999999999T", "1X", "é"] {
            assert!(parse_size(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        for text in ["", "s", "-1s", "0", "inf", "nan", "1y", "1e300"] {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
    }
}
