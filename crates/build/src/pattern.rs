//! Patterns of file names: those of `COPY` and those of `.dockerignore`.
//!
//! Source: Go's `filepath.Match` (`*`, `?`, `[a-z]`, `[^a]`, `\x`), which knows no `/` but in itself; `.dockerignore` adds `**`
//! for any number of folders, `!` for exceptions, and comments. The last line that fits a path decides.

/// Whether a pattern is more than a name.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Whether `pattern` fits all of one component of a path. A malformed one fits nothing.
pub fn fits_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, n));
            p += 1;
            continue;
        }
        if p == pattern.len() && n == name.len() {
            return true;
        }
        if let (Some(length), true) = (fits_one(&pattern[p..], name.get(n).copied()), n < name.len()) {
            (p, n) = (p + length, n + 1);
            continue;
        }
        match star {
            Some((after, from)) if from < name.len() => {
                star = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// Whether the beginning of a pattern fits a byte, and how long that beginning is.
fn fits_one(pattern: &[u8], byte: Option<u8>) -> Option<usize> {
    let byte = byte?;
    match *pattern.first()? {
        b'?' => Some(1),
        b'\\' => (*pattern.get(1)? == byte).then_some(2),
        b'[' => {
            let negated = pattern.get(1) == Some(&b'^');
            let mut at = 1 + usize::from(negated);
            let mut found = false;
            let first = at;
            while at == first || *pattern.get(at)? != b']' {
                let (low, next) = class_byte(pattern, at)?;
                let (high, next) = match (pattern.get(next), pattern.get(next + 1)) {
                    (Some(b'-'), Some(end)) if *end != b']' => class_byte(pattern, next + 1)?,
                    _ => (low, next),
                };
                found |= (low..=high).contains(&byte);
                at = next;
            }
            (found != negated).then_some(at + 1)
        }
        literal => (literal == byte).then_some(1),
    }
}

fn class_byte(pattern: &[u8], at: usize) -> Option<(u8, usize)> {
    match *pattern.get(at)? {
        b'\\' => Some((*pattern.get(at + 1)?, at + 2)),
        byte => Some((byte, at + 1)),
    }
}

/// The lines of a `.dockerignore`.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    components: Vec<String>,
    /// What fits is kept after all.
    excepts: bool,
}

impl Ignore {
    /// Reads the file.
    pub fn parse(text: &str) -> Ignore {
        let rule = |line: &str| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (excepts, pattern) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            let mut components: Vec<String> = Vec::new();
            for part in pattern.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(components.pop()),
                    part => components.push(part.to_owned()),
                }
            }
            (!components.is_empty()).then_some(Rule { components, excepts })
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Ignore { rules: text.lines().filter_map(rule).collect() }
    }

    /// Whether the path, by its components, is left out. What lies in a folder that is left out is too.
    pub fn ignores(&self, path: &[&[u8]]) -> bool {
        let fits = |rule: &&Rule| {
            // A pattern that fits a folder above fits everything in it.
            (1..=path.len()).any(|length| fits_path(&rule.components, &path[..length]))
        };
        self.rules.iter().rev().find(fits).is_some_and(|rule| !rule.excepts)
    }

    /// Whether something below a folder that is left out may be kept after all.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|rule| rule.excepts)
    }
}

fn fits_path(pattern: &[String], path: &[&[u8]]) -> bool {
    // Row by row, so that many `**` cost no more than length times length.
    let mut fits = vec![false; path.len() + 1];
    fits[0] = true;
    for component in pattern {
        let mut next = vec![false; path.len() + 1];
        if component == "**" {
            let first = fits.iter().position(|fit| *fit).unwrap_or(path.len() + 1);
            next.iter_mut().skip(first).for_each(|fit| *fit = true);
        } else {
            for at in 0..path.len() {
                next[at + 1] = fits[at] && fits_name(component.as_bytes(), path[at]);
            }
        }
        fits = next;
    }
    fits[path.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_as_go_does() {
        for (pattern, name) in [
            ("*.txt", "a.txt"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[^a]", "b"),
            ("\\*", "*"),
            ("[]a]", "]"),
            ("*", ""),
        ] {
            assert!(fits_name(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in
            [("*.txt", "a.tx"), ("[a", "a"), ("[^a]", "a"), ("a", ""), ("\\", "\\"), ("?", "")]
        {
            assert!(!fits_name(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    #[test]
    fn the_last_line_that_fits_decides() {
        let ignore =
            Ignore::parse("# comment\n\n/node_modules\n*.log\n!keep.log\n**/*.tmp\nsrc/**/x\n./a/../b\n");
        let ignores = |path: &str| {
            let parts: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
            ignore.ignores(&parts)
        };
        for path in
            ["node_modules", "node_modules/a/b", "a.log", "a.tmp", "x/y/a.tmp", "src/x", "src/a/b/x", "b"]
        {
            assert!(ignores(path), "{path}");
        }
        for path in ["keep.log", "sub/a.log", "sub/node_modules", "a", "src/xy"] {
            assert!(!ignores(path), "{path}");
        }
        let only = Ignore::parse("*\n!keep\n");
        assert!(only.ignores(&[b"a"]) && !only.ignores(&[b"keep"]) && !only.ignores(&[b"keep", b"x"]));
        assert!(only.has_exceptions() && !Ignore::parse("a").has_exceptions());
    }
}
