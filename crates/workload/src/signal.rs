//! Signals by their names on Linux x86.

/// Names of signals by number, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A signal of Linux on x86 by its name, with or without SIG, or its number.
pub fn signal_number(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |rest: &str| rest.parse::<u8>().ok().filter(|n| *n <= 30);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return if rest.is_empty() { Some(34) } else { Some(34 + offset(rest.strip_prefix('+')?)?) };
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return if rest.is_empty() { Some(64) } else { Some(64 - offset(rest.strip_prefix('-')?)?) };
    }
    NAMES.iter().position(|known| *known == name).map(|at| at as u8 + 1)
}

#[cfg(test)]
mod tests {
    use super::signal_number as number;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, expected) in [("SIGTERM", 15), ("kill", 9), ("2", 2), ("SIGRTMIN+3", 37), ("SIGSYS", 31)] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
        for text in ["", "0", "65", "SIGNONE", "RTMIN+40", "-1"] {
            assert_eq!(number(text), None, "{text}");
        }
        let known = ["9", "KILL", "SIGKILL", "sigterm", "RTMIN", "SIGRTMIN+2", "RTMAX-1"].map(number);
        assert_eq!(known, [9, 9, 9, 15, 34, 36, 63].map(Some));
        assert_eq!(["", "0", "65", "NONE", "RTMIN+x", "RTMIN+31"].map(number), [None; 6]);
    }
}
