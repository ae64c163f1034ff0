//! Statements become instructions: checked as far as they can be before variables have values.
//!
//! Source: the Dockerfile reference. Known omissions, each an error that says so: `RUN --mount` other than none,
//! `RUN --security=insecure`, `COPY --parents` and `--exclude`, `ADD` of a URL or a repository, MAINTAINER is kept as the label
//! `maintainer` and no more.

use crate::source::{Heredoc, Statement, shown, split_word};

/// What an instruction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// Begins a stage.
    From {
        /// Image or stage, variables not expanded.
        base: String,
        /// The name of the new stage.
        name: Option<String>,
        /// `--platform`
        platform: Option<String>,
    },
    /// Runs a command.
    Run {
        /// The command.
        command: Command,
        /// Its here-documents.
        heredocs: Vec<Heredoc>,
    },
    /// Brings files.
    Copy(Copy),
    /// Sets variables of the image: words not expanded.
    Env(String),
    /// Sets labels.
    Label(String),
    /// Declares variables of the build: words not expanded.
    Arg(String),
    /// Where commands start.
    Workdir(String),
    /// Who they are run as.
    User(String),
    /// Ports: words not expanded.
    Expose(String),
    /// Folders that hold volumes.
    Volume(List),
    /// What the command line begins with.
    Entrypoint(Command),
    /// What follows it.
    Cmd(Command),
    /// What runs commands in shell form.
    Shell(Vec<String>),
    /// What asks the command to end.
    StopSignal(String),
    /// How to see whether it is well.
    Healthcheck(Option<Healthcheck>),
    /// An instruction for those who build on this.
    OnBuild(String),
    /// Who made it.
    Maintainer(String),
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A line for the shell.
    Shell(String),
    /// Words.
    Exec(Vec<String>),
}

/// Words in one of their two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum List {
    /// Not expanded or split.
    Text(String),
    /// As a JSON list has them, not expanded.
    Json(Vec<String>),
}

/// COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// ADD unpacks archives.
    pub unpacks: bool,
    /// Sources and destination.
    pub words: List,
    /// Image or stage they come from; the context if none.
    pub from: Option<String>,
    /// `user[:group]`
    pub chown: Option<String>,
    /// Octal digits.
    pub chmod: Option<String>,
    /// Files that stand in the Containerfile itself.
    pub heredocs: Vec<Heredoc>,
}

/// How to see whether a command is well; times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// The command.
    pub command: Command,
    /// `interval`, `timeout`, `start-period`, `start-interval`, as far as they are given.
    pub times: Vec<(&'static str, u64)>,
    /// Failures in a row that count.
    pub retries: Option<u32>,
}

impl Instruction {
    /// Reads one statement.
    ///
    /// # Errors
    /// What is wrong with it, without its line.
    pub fn parse(statement: &Statement) -> Result<Instruction, String> {
        let rest = statement.rest.trim();
        let need =
            || if rest.is_empty() { Err(format!("{} without arguments", statement.keyword)) } else { Ok(()) };
        // An empty CMD or ENTRYPOINT is one that takes away the base's.
        if !matches!(statement.keyword.as_str(), "CMD" | "ENTRYPOINT") {
            need()?;
        }
        let text = || rest.to_owned();
        Ok(match statement.keyword.as_str() {
            "FROM" => from(statement)?,
            "RUN" => run(statement)?,
            "COPY" => Instruction::Copy(copy(statement, false)?),
            "ADD" => Instruction::Copy(copy(statement, true)?),
            "ENV" => Instruction::Env(text()),
            "LABEL" => Instruction::Label(text()),
            "ARG" => Instruction::Arg(text()),
            "WORKDIR" => Instruction::Workdir(text()),
            "USER" => Instruction::User(text()),
            "EXPOSE" => Instruction::Expose(text()),
            "VOLUME" => Instruction::Volume(list(rest)),
            "ENTRYPOINT" => Instruction::Entrypoint(command(rest)),
            "CMD" => Instruction::Cmd(command(rest)),
            "SHELL" => match json(rest) {
                Some(words) if !words.is_empty() => Instruction::Shell(words),
                _ => return Err("SHELL wants a JSON list: SHELL [\"/bin/sh\", \"-c\"]".to_owned()),
            },
            "STOPSIGNAL" => Instruction::StopSignal(text()),
            "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(statement)?),
            "ONBUILD" => on_build(statement)?,
            "MAINTAINER" => Instruction::Maintainer(text()),
            other => return Err(format!("unknown instruction {:?}", shown(other))),
        })
    }
}

/// The flags of an instruction: each at most once, none unknown.
fn flags(statement: &Statement, known: &[&str]) -> Result<Vec<Option<String>>, String> {
    let mut values = vec![None; known.len()];
    for (name, value) in &statement.flags {
        let at = known.iter().position(|known| known == name);
        let at = at.ok_or_else(|| format!("{} does not know --{}", statement.keyword, shown(name)))?;
        if values[at].replace(value.clone()).is_some() {
            return Err(format!("--{name} twice"));
        }
    }
    Ok(values)
}

fn from(statement: &Statement) -> Result<Instruction, String> {
    let platform = flags(statement, &["platform"])?.remove(0);
    let words: Vec<&str> = statement.rest.split_ascii_whitespace().collect();
    let (base, name) = match words[..] {
        [base] => (base, None),
        [base, as_word, name] if as_word.eq_ignore_ascii_case("as") => {
            (base, Some(name.to_ascii_lowercase()))
        }
        _ => return Err("FROM wants IMAGE or IMAGE AS NAME".to_owned()),
    };
    let right = |name: &String| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    match name {
        Some(name) if !right(&name) => Err(format!("{:?} is no name for a stage", shown(&name))),
        name => Ok(Instruction::From { base: base.to_owned(), name, platform }),
    }
}

fn run(statement: &Statement) -> Result<Instruction, String> {
    let values = flags(statement, &["mount", "network", "security"])?;
    for (flag, value, fine) in
        [("mount", &values[0], ""), ("network", &values[1], "default"), ("security", &values[2], "sandbox")]
    {
        if value.as_ref().is_some_and(|value| value != fine) {
            return Err(format!("RUN --{flag} is not supported"));
        }
    }
    let command = command(&statement.rest);
    Ok(Instruction::Run { command, heredocs: statement.heredocs.clone() })
}

fn copy(statement: &Statement, unpacks: bool) -> Result<Copy, String> {
    // `link` asks for a way of storing that all layers here have.
    let mut values = flags(statement, &["from", "chown", "chmod", "link"])?;
    let words = list(&statement.rest);
    let count = match &words {
        List::Json(words) => words.len(),
        List::Text(text) => text.split_ascii_whitespace().count(),
    };
    if count < 2 {
        return Err(format!("{} wants sources and a destination", statement.keyword));
    }
    if unpacks && values[0].is_some() {
        return Err("ADD does not know --from".to_owned());
    }
    let mut take = |at: usize| values[at].take();
    let (from, chown, chmod) = (take(0), take(1), take(2));
    Ok(Copy { unpacks, words, from, chown, chmod, heredocs: statement.heredocs.clone() })
}

fn healthcheck(statement: &Statement) -> Result<Option<Healthcheck>, String> {
    const TIMES: [&str; 4] = ["interval", "timeout", "start-period", "start-interval"];
    let values = flags(statement, &[&TIMES[..], &["retries"]].concat())?;
    let (word, rest) = split_word(statement.rest.trim());
    if word.eq_ignore_ascii_case("none") && rest.is_empty() && statement.flags.is_empty() {
        return Ok(None);
    }
    if !word.eq_ignore_ascii_case("cmd") || rest.is_empty() {
        return Err("HEALTHCHECK wants NONE or CMD COMMAND".to_owned());
    }
    let mut times = Vec::new();
    for (name, value) in TIMES.into_iter().zip(&values) {
        if let Some(value) = value {
            let time = duration(value).ok_or_else(|| format!("--{name} wants a time such as 30s"))?;
            times.push((name, time));
        }
    }
    let retries =
        values[4].as_ref().map(|text| text.parse().map_err(|_| "--retries wants a number".to_owned()));
    Ok(Some(Healthcheck { command: command(rest), times, retries: retries.transpose()? }))
}

fn on_build(statement: &Statement) -> Result<Instruction, String> {
    let (word, rest) = split_word(statement.rest.trim());
    let inner = word.to_ascii_uppercase();
    if matches!(inner.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
        return Err(format!("ONBUILD {inner} is not allowed"));
    }
    if !statement.heredocs.is_empty() {
        return Err("ONBUILD has no here-documents".to_owned());
    }
    let text = format!("{inner} {rest}");
    parse_one(&text)?;
    Ok(Instruction::OnBuild(text))
}

/// Reads one instruction that stands alone, as ONBUILD keeps them.
///
/// # Errors
/// It is none.
pub fn parse_one(text: &str) -> Result<Instruction, String> {
    let source = crate::source::parse(text).map_err(|(_, reason)| reason)?;
    match &source.statements[..] {
        [statement] => Instruction::parse(statement),
        _ => Err(format!("{:?} is not one instruction", shown(text))),
    }
}

/// A time as Go writes it: `1m30s`, `500ms`, `1.5h`, in nanoseconds.
fn duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    (!text.is_empty() && total < 9e18).then_some(total as u64)
}

fn json(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    if text.starts_with('[') { serde_json::from_str(text).ok() } else { None }
}

fn command(text: &str) -> Command {
    json(text).map_or_else(|| Command::Shell(text.trim().to_owned()), Command::Exec)
}

fn list(text: &str) -> List {
    json(text).map_or_else(|| List::Text(text.trim().to_owned()), List::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str) -> Command {
        Command::Shell(text.to_owned())
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn instructions_are_read_in_both_forms() {
        let parse = |text: &str| parse_one(text).unwrap();
        assert_eq!(parse("CMD [\"a\", \"b c\"]"), Instruction::Cmd(Command::Exec(words(&["a", "b c"]))));
        assert_eq!(parse("CMD [a"), Instruction::Cmd(shell("[a")));
        assert_eq!(parse("CMD []"), Instruction::Cmd(Command::Exec(Vec::new())));
        assert_eq!(parse("volume /a /b"), Instruction::Volume(List::Text("/a /b".to_owned())));
        let from = Instruction::From {
            base: "a:1".to_owned(),
            name: Some("builder".to_owned()),
            platform: Some("linux/amd64".to_owned()),
        };
        assert_eq!(parse("FROM --platform=linux/amd64 a:1 AS Builder"), from);
        let check = "HEALTHCHECK --interval=1m30s --retries=3 CMD true";
        let times = vec![("interval", 90_000_000_000)];
        let want = Healthcheck { command: shell("true"), times, retries: Some(3) };
        assert_eq!(parse(check), Instruction::Healthcheck(Some(want)));
        assert_eq!(parse("HEALTHCHECK none"), Instruction::Healthcheck(None));
        assert_eq!(parse("ONBUILD  run  x"), Instruction::OnBuild("RUN x".to_owned()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, want) in [
            ("FROM", "without arguments"),
            ("FROM a b", "FROM wants"),
            ("FROM a AS 1x", "no name for a stage"),
            ("COPY a", "wants sources"),
            ("COPY --parents a b", "does not know --parents"),
            ("COPY --from=a --from=b a b", "twice"),
            ("ADD --from=x a b", "does not know --from"),
            ("RUN --mount=type=cache,target=/x true", "--mount is not supported"),
            ("SHELL /bin/sh", "JSON list"),
            ("HEALTHCHECK CMD", "wants NONE or CMD"),
            ("HEALTHCHECK --interval=x CMD true", "wants a time"),
            ("ONBUILD FROM a", "not allowed"),
            ("ONBUILD FLY a", "unknown instruction"),
            ("FLY a", "unknown instruction"),
        ] {
            let message = parse_one(text).unwrap_err();
            assert!(message.contains(want), "{text}: {message}");
        }
    }

    #[test]
    fn times_are_gos() {
        for (text, want) in
            [("5s", Some(5_000_000_000)), ("1h0.5s", Some(3_600_500_000_000)), ("100ms", Some(100_000_000))]
        {
            assert_eq!(duration(text), want);
        }
        for text in ["", "5", "s", "5x", "-5s", "999999999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
