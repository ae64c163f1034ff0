//! The text of a Containerfile becomes statements: continued lines joined, comments gone, here-documents taken out.
//!
//! Source: the Dockerfile reference (docs.docker.com/reference/dockerfile): parser directives, comments, line continuation,
//! here-documents. Known omissions: `# check` is read over; `# syntax` too, for there is no other front end here.

/// Bytes of a Containerfile. Attack: a build service that is given gigabytes of text.
pub const MAX_BYTES: usize = 1 << 20;

/// One instruction as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The line it begins in, from 1.
    pub line: usize,
    /// The first word, in capitals.
    pub keyword: String,
    /// `--name=value` behind it, in order; the value is empty for a mere `--name`.
    pub flags: Vec<(String, String)>,
    /// The rest, continued lines joined.
    pub rest: String,
    /// Here-documents that the rest names, in order.
    pub heredocs: Vec<Heredoc>,
}

/// Lines that stand below an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word it ends with.
    pub name: String,
    /// Its lines.
    pub text: String,
    /// Variables in it are those of the build: the word had no quotes.
    pub expands: bool,
}

/// A whole Containerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The character that continues a line and takes the meaning of the next: `\` or `` ` ``.
    pub escape: char,
    /// The instructions.
    pub statements: Vec<Statement>,
}

/// A line and what is wrong in it.
pub type Fault = (usize, String);

/// Reads a Containerfile.
///
/// # Errors
/// The line that makes no sense.
pub fn parse(text: &str) -> Result<Source, Fault> {
    if text.len() > MAX_BYTES {
        return Err((1, format!("a file of {} bytes, more than {MAX_BYTES}", text.len())));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let escape = escape(&lines)?;
    let mut parser = Parser { lines: &lines, at: 0, escape };
    let mut statements = Vec::new();
    while let Some(statement) = parser.statement()? {
        statements.push(statement);
    }
    Ok(Source { escape, statements })
}

/// What the parser directives at the top say.
fn escape(lines: &[&str]) -> Result<char, Fault> {
    for (number, line) in lines.iter().enumerate() {
        let directive = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('='));
        let Some((name, value)) = directive else { break };
        let name = name.trim().to_ascii_lowercase();
        if !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            break;
        }
        if name == "escape" {
            return match value.trim() {
                "\\" => Ok('\\'),
                "`" => Ok('`'),
                other => Err((number + 1, format!("the escape character is \\ or `, not {other:?}"))),
            };
        }
    }
    Ok('\\')
}

struct Parser<'t> {
    lines: &'t [&'t str],
    at: usize,
    escape: char,
}

impl Parser<'_> {
    fn statement(&mut self) -> Result<Option<Statement>, Fault> {
        while self.lines.get(self.at).is_some_and(|line| is_empty(line)) {
            self.at += 1;
        }
        if self.at >= self.lines.len() {
            return Ok(None);
        }
        let line = self.at + 1;
        let text = self.logical_line();
        let text = text.trim();
        let (keyword, rest) = split_word(text);
        if !keyword.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err((line, format!("{:?} is no instruction", shown(keyword))));
        }
        let keyword = keyword.to_ascii_uppercase();
        let (flags, rest) = flags(rest, &keyword).map_err(|reason| (line, reason))?;
        let mut heredocs = Vec::new();
        // ONBUILD has those of the instruction behind it.
        let inner =
            if keyword == "ONBUILD" { split_word(&rest).0.to_ascii_uppercase() } else { keyword.clone() };
        if matches!(inner.as_str(), "RUN" | "COPY" | "ADD") && !rest.trim_start().starts_with('[') {
            for (name, strips_tabs, expands) in heredoc_words(&rest) {
                let text = self
                    .heredoc(&name, strips_tabs)
                    .ok_or_else(|| (line, format!("the here-document {:?} has no end", shown(&name))))?;
                heredocs.push(Heredoc { name, text, expands });
            }
        }
        Ok(Some(Statement { line, keyword, flags, rest, heredocs }))
    }

    /// The line here and those that continue it.
    fn logical_line(&mut self) -> String {
        let mut joined = String::new();
        let mut first = true;
        while let Some(line) = self.lines.get(self.at) {
            self.at += 1;
            if !first && is_empty(line) {
                continue;
            }
            first = false;
            let end = line.trim_end_matches([' ', '\t']);
            match end.strip_suffix(self.escape) {
                // An escape character that is itself escaped ends the line.
                Some(rest) if !ends_escaped(rest, self.escape) => joined.push_str(rest),
                _ => {
                    joined.push_str(line);
                    break;
                }
            }
        }
        joined
    }

    fn heredoc(&mut self, name: &str, strips_tabs: bool) -> Option<String> {
        let mut text = String::new();
        loop {
            let line = self.lines.get(self.at)?;
            self.at += 1;
            let line = if strips_tabs { line.trim_start_matches('\t') } else { line };
            if line == name {
                return Some(text);
            }
            text.push_str(line);
            text.push('\n');
        }
    }
}

/// Whether a line says nothing: blank, or a comment.
fn is_empty(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// Whether an odd number of escape characters stands at the end.
fn ends_escaped(text: &str, escape: char) -> bool {
    text.chars().rev().take_while(|c| *c == escape).count() % 2 == 1
}

pub(crate) fn split_word(text: &str) -> (&str, &str) {
    match text.find([' ', '\t']) {
        Some(at) => (&text[..at], text[at..].trim_start()),
        None => (text, ""),
    }
}

/// Takes `--name[=value]` from the beginning. Instructions whose words may begin so have none.
fn flags(mut text: &str, keyword: &str) -> Result<(Vec<(String, String)>, String), String> {
    let mut flags = Vec::new();
    let has_flags = matches!(keyword, "FROM" | "COPY" | "ADD" | "RUN" | "HEALTHCHECK");
    while has_flags && text.starts_with("--") {
        let (word, rest) = split_word(text);
        if word == "--" {
            text = rest;
            break;
        }
        let (name, value) = word[2..].split_once('=').unwrap_or((&word[2..], ""));
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
            return Err(format!("{:?} is no flag", shown(word)));
        }
        flags.push((name.to_owned(), value.trim_matches('"').to_owned()));
        text = rest;
    }
    Ok((flags, text.to_owned()))
}

/// The words of here-documents in a line: name, whether tabs are stripped, whether variables are expanded.
fn heredoc_words(text: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    let mut quote = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '\\') => drop(chars.next()),
            (None, '<') if text[at..].starts_with("<<") => {
                chars.next();
                let mut rest = &text[at + 2..];
                let tabs = rest.starts_with('-');
                rest = rest.strip_prefix('-').unwrap_or(rest);
                // `<<<` is a here-string of the shell.
                if let Some((name, expands)) = heredoc_name(rest) {
                    found.push((name, tabs, expands));
                }
                while chars.peek().is_some_and(|(_, c)| *c == '<') {
                    chars.next();
                }
            }
            _ => {}
        }
    }
    found
}

fn heredoc_name(text: &str) -> Option<(String, bool)> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let body = quote.map_or(text, |_| &text[1..]);
    let end = match quote {
        Some(quote) => body.find(quote)?,
        None => body.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(body.len()),
    };
    let name = &body[..end];
    let right = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    (right && name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_'))
        .then(|| (name.to_owned(), quote.is_none()))
}

/// As much of a text as a message shows.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(text: &str) -> Vec<Statement> {
        parse(text).unwrap().statements
    }

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let text = "# a comment\n\nfrom  scratch as x\nRUN a \\\n  # inside\n\n  b\\\n c\n";
        let found = statements(text);
        let brief: Vec<_> = found.iter().map(|s| (s.line, s.keyword.as_str(), s.rest.as_str())).collect();
        assert_eq!(brief, [(3, "FROM", "scratch as x"), (4, "RUN", "a   b c")]);
        assert_eq!(statements("RUN echo \\\\\nUSER a")[0].rest, "echo \\\\");
        assert_eq!(statements("# escape=`\r\nRUN a `\r\n b c\\\r\n")[0].rest, "a  b c\\");
        assert_eq!(statements("RUN a \\").len(), 1);
    }

    #[test]
    fn flags_stand_before_the_rest() {
        let found = statements("COPY --from=x --chown=1:2 --link a --b c\nENV --x=1");
        let flag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(found[0].flags, [flag("from", "x"), flag("chown", "1:2"), flag("link", "")]);
        assert_eq!(found[0].rest, "a --b c");
        assert_eq!((found[1].flags.len(), found[1].rest.as_str()), (0, "--x=1"));
        assert!(parse("COPY --A=1 a b").is_err());
    }

    #[test]
    fn here_documents_end_with_their_word() {
        let text = "RUN <<A cat <<-'B-x' > f\none $x\nA\n\ttwo\n\tB-x\nCOPY <<E /x\nE\nUSER u";
        let found = statements(text);
        let heredoc =
            |name: &str, text: &str, expands| Heredoc { name: name.into(), text: text.into(), expands };
        assert_eq!(found[0].heredocs, [heredoc("A", "one $x\n", true), heredoc("B-x", "two\n", false)]);
        assert_eq!(found[1].heredocs, [heredoc("E", "", true)]);
        assert_eq!((found[2].line, found[2].keyword.as_str()), (8, "USER"));
        for text in ["RUN cat <<< x", "RUN echo '<<A'", "RUN echo $((1<<2))", "CMD <<A"] {
            assert!(statements(text)[0].heredocs.is_empty(), "{text}");
        }
        assert_eq!(parse("RUN <<A\nb").unwrap_err(), (1, "the here-document \"A\" has no end".to_owned()));
    }

    #[test]
    fn nonsense_names_its_line() {
        assert_eq!(parse("\n\n@x y").unwrap_err().0, 3);
        assert_eq!(parse("# escape=x\nFROM a").unwrap_err().0, 1);
        assert!(parse(&" ".repeat(MAX_BYTES + 1)).is_err());
    }
}
