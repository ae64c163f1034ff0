//! Variables and quotes in the words of an instruction, as Docker's builder treats them.
//!
//! Source: the Dockerfile reference, "Environment replacement": `$x`, `${x}`, `${x:-y}`, `${x:+y}`, `${x:?y}` and without the
//! colon, `${x#p}`, `${x##p}`, `${x%p}`, `${x%%p}`, `${x/p/y}`, `${x//p/y}`; `'…'` is taken as it is, in `"…"` variables count,
//! the escape character takes the meaning of the next one.

/// What variables mean.
pub trait Variables {
    /// The value of a variable that is set.
    fn value(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Variables for F {
    fn value(&self, name: &str) -> Option<String> {
        self(name)
    }
}

/// Variables in words in variables. Attack: a line that costs the stack.
const MAX_DEPTH: u32 = 32;
/// Bytes of what a line expands to. Attack: a variable that is used a million times.
const MAX_BYTES: usize = 4 << 20;

/// Bytes of a value that patterns are looked for in. Attack: time that grows with the square of the length, and more.
const MAX_MATCHED_BYTES: usize = 4096;

/// Expands `text` as one word: white space stays, quotes go.
///
/// # Errors
/// A brace or quote that is not closed, or a variable that must be set and is not.
pub fn expand(text: &str, escape: char, variables: &dyn Variables) -> Result<String, String> {
    let words = Expander::new(text, escape, variables).words(false)?;
    Ok(words.into_iter().next().unwrap_or_default())
}

/// Expands `text` and splits it at white space outside quotes. What a variable holds is not split.
///
/// # Errors
/// As [`expand`].
pub fn split(text: &str, escape: char, variables: &dyn Variables) -> Result<Vec<String>, String> {
    Expander::new(text, escape, variables).words(true)
}

/// Expands the variables of a here-document, in which quotes are characters like others.
///
/// # Errors
/// As [`expand`].
pub fn expand_heredoc(text: &str, escape: char, variables: &dyn Variables) -> Result<String, String> {
    let mut expander = Expander::new(text, escape, variables);
    expander.raw_quotes = true;
    Ok(expander.words(false)?.into_iter().next().unwrap_or_default())
}

struct Expander<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    escape: char,
    variables: &'a dyn Variables,
    raw_quotes: bool,
    depth: u32,
    made: usize,
}

impl<'a> Expander<'a> {
    fn new(text: &'a str, escape: char, variables: &'a dyn Variables) -> Self {
        let rest = text.chars().peekable();
        Expander { rest, escape, variables, raw_quotes: false, depth: 0, made: 0 }
    }

    fn words(&mut self, splits: bool) -> Result<Vec<String>, String> {
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        while let Some(c) = self.rest.next() {
            if splits && c.is_ascii_whitespace() {
                words.extend(word.take());
                continue;
            }
            let word = word.get_or_insert_default();
            match c {
                '\'' if !self.raw_quotes => self.single_quoted(word)?,
                '"' if !self.raw_quotes => self.double_quoted(word)?,
                '$' => self.variable(word)?,
                c if c == self.escape && self.raw_quotes => self.escaped_in_quotes(word, &['$']),
                c if c == self.escape => word.extend(self.rest.next()),
                c => word.push(c),
            }
            if word.len() > MAX_BYTES {
                return Err(format!("it expands to more than {} MiB", MAX_BYTES >> 20));
            }
        }
        words.extend(word);
        Ok(words)
    }

    fn single_quoted(&mut self, word: &mut String) -> Result<(), String> {
        loop {
            match self.rest.next() {
                Some('\'') => return Ok(()),
                Some(c) => word.push(c),
                None => return Err("a quote ' without its end".to_owned()),
            }
        }
    }

    fn double_quoted(&mut self, word: &mut String) -> Result<(), String> {
        loop {
            match self.rest.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(word)?,
                Some(c) if c == self.escape => self.escaped_in_quotes(word, &['"', '$']),
                Some(c) => word.push(c),
                None => return Err("a quote \" without its end".to_owned()),
            }
        }
    }

    /// In quotes the escape character takes the meaning of few others and is a character before the rest.
    fn escaped_in_quotes(&mut self, word: &mut String, of: &[char]) {
        match self.rest.peek() {
            Some(c) if of.contains(c) || *c == self.escape => word.extend(self.rest.next()),
            _ => word.push(self.escape),
        }
    }

    fn variable(&mut self, word: &mut String) -> Result<(), String> {
        if self.rest.peek() != Some(&'{') {
            let name = self.name();
            if name.is_empty() {
                word.push('$');
            } else {
                word.push_str(&self.variables.value(&name).unwrap_or_default());
            }
            return Ok(());
        }
        self.rest.next();
        let name = self.name();
        if name.is_empty() {
            return Err("${} without a name".to_owned());
        }
        let value = self.variables.value(&name);
        let modified = match self.rest.next() {
            Some('}') => value.unwrap_or_default(),
            Some(':') => {
                let how = self.rest.next();
                self.alternative(&name, value.filter(|value| !value.is_empty()), how)?
            }
            how @ Some('-' | '+' | '?') => self.alternative(&name, value, how)?,
            Some('#' | '%' | '/') if value.as_ref().is_some_and(|value| value.len() > MAX_MATCHED_BYTES) => {
                return Err(format!(
                    "variable {name} is longer than {MAX_MATCHED_BYTES} bytes, too long for patterns"
                ));
            }
            Some(edge @ ('#' | '%')) => {
                let greedy = self.rest.next_if_eq(&edge).is_some();
                let pattern = self.operand(&['}'])?.0;
                strip(&value.unwrap_or_default(), &pattern, edge, greedy)
            }
            Some('/') => {
                let all = self.rest.next_if_eq(&'/').is_some();
                let (pattern, end) = self.operand(&['/', '}'])?;
                let new = if end == '/' { self.operand(&['}'])?.0 } else { String::new() };
                replace(&value.unwrap_or_default(), &pattern, &new, all)
            }
            Some(other) => return Err(format!("${{{name}{other}…}} is no way to use a variable")),
            None => return Err(format!("${{{name} without its end")),
        };
        // The sum, not each: `made` also grows where nothing is kept.
        self.made += modified.len();
        if self.made > MAX_BYTES {
            return Err(format!("it expands to more than {} MiB", MAX_BYTES >> 20));
        }
        word.push_str(&modified);
        Ok(())
    }

    /// `-`, `+` or `?` and what follows.
    fn alternative(
        &mut self,
        name: &str,
        value: Option<String>,
        how: Option<char>,
    ) -> Result<String, String> {
        let other = self.operand(&['}'])?.0;
        match (how, value) {
            (Some('-'), value) => Ok(value.unwrap_or(other)),
            (Some('+'), value) => Ok(value.map_or_else(String::new, |_| other)),
            (Some('?'), Some(value)) => Ok(value),
            (Some('?'), None) => {
                let text = if other.is_empty() { "it is not set".to_owned() } else { other };
                Err(format!("variable {name}: {text}"))
            }
            _ => Err(format!("${{{name}:…}} is no way to use a variable")),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            // `$1x` is the variable 1 and an x.
            let is_number = name.is_empty() && c.is_ascii_digit();
            name.push(c);
            if is_number {
                break;
            }
        }
        name
    }

    /// A word inside braces, up to one of `ends`, which is given too.
    fn operand(&mut self, ends: &[char]) -> Result<(String, char), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("variables inside each other without end".to_owned());
        }
        let mut word = String::new();
        loop {
            match self.rest.next() {
                Some(c) if ends.contains(&c) => {
                    self.depth -= 1;
                    return Ok((word, c));
                }
                Some('\'') if !self.raw_quotes => self.single_quoted(&mut word)?,
                Some('"') if !self.raw_quotes => self.double_quoted(&mut word)?,
                Some('$') => self.variable(&mut word)?,
                Some(c) if c == self.escape => word.extend(self.rest.next()),
                Some(c) => word.push(c),
                None => return Err("a brace { without its end".to_owned()),
            }
        }
    }
}

/// Takes the shortest, or the longest, beginning (`#`) or end (`%`) that a pattern of `*` and `?` fits.
fn strip(value: &str, pattern: &str, edge: char, greedy: bool) -> String {
    let cuts: Vec<usize> = value.char_indices().map(|(at, _)| at).chain([value.len()]).collect();
    let fits = |at: &&usize| {
        let part = if edge == '#' { &value[..**at] } else { &value[**at..] };
        fits(pattern, part)
    };
    // From the front the first cut is the shortest beginning and the longest end.
    let forward = (edge == '#') != greedy;
    let found = if forward { cuts.iter().find(fits) } else { cuts.iter().rev().find(fits) };
    match found {
        Some(at) if edge == '#' => value[*at..].to_owned(),
        Some(at) => value[..*at].to_owned(),
        None => value.to_owned(),
    }
}

/// Replaces the first, or every, longest part that a pattern fits.
fn replace(value: &str, pattern: &str, new: &str, all: bool) -> String {
    let mut made = String::new();
    let mut rest = value;
    while !rest.is_empty() && !pattern.is_empty() {
        let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8());
        match ends.rev().find(|end| fits(pattern, &rest[..*end])) {
            Some(end) => {
                made.push_str(new);
                rest = &rest[end..];
                if !all {
                    break;
                }
            }
            None => {
                let first = rest.chars().next().map_or(0, char::len_utf8);
                made.push_str(&rest[..first]);
                rest = &rest[first..];
            }
        }
    }
    made + rest
}

/// Whether a pattern of `*`, `?` and characters that stand for themselves, perhaps behind a `\`, fits all of `text`.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what came after the last star did not fit.
    let mut star: Option<(usize, usize)> = None;
    loop {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some('?') if t < text.len() => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            Some('\\') if pattern.get(p + 1).is_some_and(|c| text.get(t) == Some(c)) => {
                (p, t) = (p + 2, t + 1);
                continue;
            }
            Some(c) if *c != '\\' && *c != '?' && text.get(t) == Some(c) => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            None if t == text.len() => return true,
            _ => {}
        }
        match star {
            Some((after, from)) if from < text.len() => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(name: &str) -> Option<String> {
        let value = match name {
            "x" => "foo.tar.gz",
            "empty" => "",
            "spaces" => "a  b",
            "path" => "/usr/local/bin",
            "1" => "one",
            _ => return None,
        };
        Some(value.to_owned())
    }

    fn expanded(text: &str) -> String {
        expand(text, '\\', &variables).unwrap_or_else(|error| format!("error: {error}"))
    }

    #[test]
    fn variables_are_used_in_every_way_docker_knows() {
        for (text, want) in [
            ("a$x.b", "afoo.tar.gz.b"),
            ("${x}", "foo.tar.gz"),
            ("$none|${none}", "|"),
            ("${none:-d$x}", "dfoo.tar.gz"),
            ("${empty:-d}${empty-d}${none-e}", "de"),
            ("${x:+set}${empty:+set}${empty+set}${none+set}", "setset"),
            ("${x#*.}|${x##*.}|${x%.*}|${x%%.*}|${x#z}", "tar.gz|gz|foo.tar|foo|foo.tar.gz"),
            ("${x/o/0}|${x//o/0}|${x//.*}|${x/f?o/b\\/r}", "f0o.tar.gz|f00.tar.gz|foo|b/r.tar.gz"),
            ("${path##*/}", "bin"),
            ("$1x $ $- $", "onex $ $- $"),
            ("\\$x '$x' \"\\$x $x \\a\"", "$x $x $x foo.tar.gz \\a"),
            ("${none:-'a}b'}", "a}b"),
            ("${none:-${none:-${x}}}", "foo.tar.gz"),
        ] {
            assert_eq!(expanded(text), want, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (text, want) in [
            ("${x", "without its end"),
            ("${", "without a name"),
            ("${none:-a", "brace"),
            ("'a", "quote"),
            ("\"a", "quote"),
            ("${x!a}", "no way"),
            ("${x:!a}", "no way"),
            ("${none:?must be}", "variable none: must be"),
            ("${none?}", "variable none: it is not set"),
        ] {
            assert!(expanded(text).contains(want), "{text}: {}", expanded(text));
        }
        let deep = "${a:-".repeat(100) + &"}".repeat(100);
        assert!(expanded(&deep).contains("without end"));
        let long = |_: &str| Some("x".repeat(1 << 20));
        assert!(expand(&"$a".repeat(10), '\\', &long).unwrap_err().contains("more than"));
        assert!(expand(&"${a%%y}".repeat(10), '\\', &|_: &str| Some("x".repeat(1 << 10))).is_ok());
    }

    #[test]
    fn words_are_split_outside_quotes_and_variables() {
        let words = split(" a  \"b c\"'d' $spaces \\  '' e\\ f ", '\\', &variables).unwrap();
        assert_eq!(words, ["a", "b cd", "a  b", " ", "", "e f"]);
        assert_eq!(
            expand_heredoc("'$x' \"a\" \\$x \\n", '\\', &variables).unwrap(),
            "'foo.tar.gz' \"a\" $x \\n"
        );
    }

    #[test]
    fn patterns_fit_whole_words() {
        for (pattern, text) in [("*", ""), ("a*b*c", "aXbYbZc"), ("??", "ab"), ("\\*", "*"), ("é*", "éa")] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("?", ""), ("a*b", "ac"), ("\\*", "a"), ("", "a")] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }
}
