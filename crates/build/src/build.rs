//! A whole build: which stages are needed, and one after the other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use image::{Digest, Image, Incoming, Platform, Progress, Reference, Store};

use crate::error::{Error, Result};
use crate::files::Context;
use crate::instruction::Instruction;
use crate::run::Runner;
use crate::source::{self, Statement, shown};
use crate::stage::Stage;
use crate::words;

/// Stages of one Containerfile.
const MAX_STAGES: usize = 256;

/// Where images that a build begins with come from.
pub trait Images {
    /// The image, from the store or from elsewhere.
    ///
    /// # Errors
    /// It is not to be had.
    fn image(&self, name: &Reference)
    -> std::result::Result<Image, Box<dyn std::error::Error + Send + Sync>>;
}

/// What the user says about a build.
#[derive(Debug, Default)]
pub struct Options {
    /// The folder that files are copied from.
    pub context: PathBuf,
    /// The Containerfile; nothing for `Containerfile` or `Dockerfile` in the context.
    pub file: Option<PathBuf>,
    /// Names of the new image.
    pub tags: Vec<Reference>,
    /// Values of `ARG`s.
    pub args: BTreeMap<String, String>,
    /// Labels of the new image, beside those that the file sets.
    pub labels: BTreeMap<String, String>,
    /// The stage to stop at; nothing for the last one.
    pub target: Option<String>,
    /// Do everything again.
    pub no_cache: bool,
}

/// What all stages share.
pub(crate) struct Shared<'a> {
    pub(crate) store: &'a Store,
    pub(crate) incoming: &'a Incoming,
    pub(crate) context: &'a Context,
    pub(crate) images: &'a dyn Images,
    pub(crate) runner: &'a dyn Runner,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) options: &'a Options,
    /// The Containerfile, for messages.
    pub(crate) file: String,
    pub(crate) escape: char,
    /// `ARG`s before the first FROM.
    pub(crate) globals: BTreeMap<String, String>,
    /// Names an image without one in messages.
    pub(crate) name: Reference,
    /// `SOURCE_DATE_EPOCH`, if it is set.
    pub(crate) epoch: Option<u64>,
    /// The time of this build, seconds since 1970.
    pub(crate) now: u64,
}

/// The line and the words of an `ARG` before the first FROM.
type Head = (usize, String);

/// A stage as it stands in the file.
#[derive(Debug)]
struct Plan {
    line: usize,
    base: String,
    name: Option<String>,
    platform: Option<String>,
    steps: Vec<(Statement, Instruction)>,
}

/// Builds the image that a Containerfile describes. Gives its manifest's digest, and the image under its first tag.
///
/// # Errors
/// The file makes no sense, a file or image is missing, a command failed, or the store cannot be written. No name has changed
/// then.
pub fn build(
    store: &Store,
    options: &Options,
    images: &dyn Images,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Digest> {
    let (path, file) = containerfile(options)?;
    let bytes = std::fs::read(&path).map_err(Error::file("open", &path))?;
    let at = |(line, reason)| Error::Line { file: file.clone(), line, reason };
    let text = String::from_utf8(bytes).map_err(|_| at((1, "it is not UTF-8".to_owned())))?;
    let source = source::parse(&text).map_err(at)?;
    let (heads, mut plans) = plan(&source.statements, &file)?;
    let context = Context::open(&options.context, options.file.as_deref())?;
    let incoming = store.incoming()?;
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let mut shared = Shared {
        store,
        incoming: &incoming,
        context: &context,
        images,
        runner,
        progress,
        options,
        file: file.clone(),
        escape: source.escape,
        globals: platform_variables(),
        name: options.tags.first().cloned().map_or_else(|| "build".parse(), Ok)?,
        epoch,
        now: image::source_date(),
    };
    shared.globals = globals(&shared, &heads)?;
    let target = target(&plans, options.target.as_deref(), &file)?;
    plans[target].steps.extend(labels(&options.labels));
    let done = stages(&shared, &plans, target)?;
    let digest = done[target].as_ref().and_then(Stage::digest).expect("the target is needed, and an image");
    drop(done);
    for tag in &options.tags {
        store.incoming()?.commit(tag, &digest)?;
    }
    Ok(digest)
}

/// Where the Containerfile is, and how messages call it.
fn containerfile(options: &Options) -> Result<(PathBuf, String)> {
    if let Some(file) = &options.file {
        return Ok((file.clone(), file.display().to_string()));
    }
    for name in ["Containerfile", "Dockerfile"] {
        let path = options.context.join(name);
        if path.is_file() {
            return Ok((path, name.to_owned()));
        }
    }
    let context = options.context.display();
    Err(Error::Invalid(format!("{context} has neither a Containerfile nor a Dockerfile")))
}

/// `ARG`s before the first FROM, and the stages.
fn plan(statements: &[Statement], file: &str) -> Result<(Vec<Head>, Vec<Plan>)> {
    let mut heads = Vec::new();
    let mut plans: Vec<Plan> = Vec::new();
    for statement in statements {
        let at = |reason: String| Error::Line { file: file.to_owned(), line: statement.line, reason };
        let instruction = Instruction::parse(statement).map_err(at)?;
        match (instruction, plans.last_mut()) {
            (Instruction::From { base, name, platform }, _) => {
                if plans.len() >= MAX_STAGES {
                    return Err(at(format!("more than {MAX_STAGES} stages")));
                }
                plans.push(Plan { line: statement.line, base, name, platform, steps: Vec::new() });
            }
            (Instruction::Arg(text), None) => heads.push((statement.line, text)),
            (_, None) => return Err(at(format!("{} before FROM", shown(&statement.keyword)))),
            (instruction, Some(plan)) => plan.steps.push((statement.clone(), instruction)),
        }
    }
    if plans.is_empty() {
        return Err(Error::Line { file: file.to_owned(), line: 1, reason: "there is no FROM".to_owned() });
    }
    Ok((heads, plans))
}

/// What FROM may use without declaring it, and a stage when it declares it.
fn platform_variables() -> BTreeMap<String, String> {
    let platform = Platform::host().to_string();
    let (os, arch) = platform.split_once('/').unwrap_or(("linux", ""));
    let mut all = BTreeMap::new();
    for side in ["TARGET", "BUILD"] {
        for (what, value) in [("PLATFORM", platform.as_str()), ("OS", os), ("ARCH", arch), ("VARIANT", "")] {
            all.insert(format!("{side}{what}"), value.to_owned());
        }
    }
    all
}

fn globals(shared: &Shared<'_>, heads: &[Head]) -> Result<BTreeMap<String, String>> {
    let mut all = shared.globals.clone();
    for (line, text) in heads {
        let at = |reason| Error::Line { file: shared.file.clone(), line: *line, reason };
        let known = all.clone();
        let words = words::split(text, shared.escape, &|name: &str| known.get(name).cloned()).map_err(at)?;
        for word in words {
            let (name, default) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
            let value = shared.options.args.get(name).cloned().or(default.map(str::to_owned));
            all.extend(value.map(|value| (name.to_owned(), value)));
        }
    }
    Ok(all)
}

/// The labels that the caller wants, as the last instruction of the file.
fn labels(labels: &BTreeMap<String, String>) -> Option<(Statement, Instruction)> {
    // Nothing is a variable between single quotes.
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\"'\"'"));
    let words: Vec<String> = labels.iter().map(|(k, v)| format!("{}={}", quoted(k), quoted(v))).collect();
    let rest = words.join(" ");
    let statement = Statement {
        line: 0,
        keyword: "LABEL".to_owned(),
        flags: Vec::new(),
        rest: rest.clone(),
        heredocs: Vec::new(),
    };
    (!labels.is_empty()).then_some((statement, Instruction::Label(rest)))
}

/// The number of the stage to stop at.
fn target(plans: &[Plan], wanted: Option<&str>, file: &str) -> Result<usize> {
    let Some(wanted) = wanted else { return Ok(plans.len() - 1) };
    let found = stage_number(plans, plans.len(), wanted);
    found.ok_or_else(|| Error::Invalid(format!("{file} has no stage {wanted:?}")))
}

/// The stage before number `before` that a name or number means.
fn stage_number(plans: &[Plan], before: usize, name: &str) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    let named = plans[..before].iter().rposition(|plan| plan.name.as_deref() == Some(&lower));
    named.or_else(|| name.parse().ok().filter(|number| *number < before))
}

/// Makes the stages that number `target` needs, in their order.
fn stages<'a>(shared: &'a Shared<'a>, plans: &[Plan], target: usize) -> Result<Vec<Option<Stage<'a>>>> {
    let mut bases = Vec::new();
    for plan in plans {
        let at = |reason| Error::Line { file: shared.file.clone(), line: plan.line, reason };
        let expand = |text: &str| {
            words::expand(text, shared.escape, &|name: &str| shared.globals.get(name).cloned()).map_err(at)
        };
        let platform = plan.platform.as_deref().map(expand).transpose()?;
        check_platform(platform.as_deref()).map_err(at)?;
        bases.push(expand(&plan.base)?);
    }
    let mut needed = vec![false; plans.len()];
    needed[target] = true;
    for number in (0..=target).rev() {
        if needed[number] {
            let sources = plans[number].steps.iter().filter_map(|(_, step)| match step {
                Instruction::Copy(copy) => copy.from.as_deref(),
                _ => None,
            });
            for name in sources.chain([bases[number].as_str()]) {
                if let Some(other) = stage_number(plans, number, name) {
                    needed[other] = true;
                }
            }
        }
    }
    let mut done: Vec<Option<Stage<'a>>> = Vec::new();
    for (number, plan) in plans.iter().enumerate().take(target + 1) {
        if !needed[number] {
            done.push(None);
            continue;
        }
        let find = |name: &str| stage_number(plans, number, name);
        let step = |source| step_error(shared, plan.line, &format!("FROM {}", plan.base), source);
        let base = match find(&bases[number]).filter(|_| bases[number].parse::<usize>().is_err()) {
            Some(other) => done[other].as_ref().expect("it was needed").follow(),
            None => Stage::from(shared, &bases[number]),
        };
        let mut stage = base.map_err(step)?;
        let label = plan.name.clone().unwrap_or_else(|| number.to_string());
        stage.begin(label, plan.line)?;
        for (statement, instruction) in &plan.steps {
            let what = format!("{} {}", statement.keyword, statement.rest.lines().next().unwrap_or_default());
            let source_stage = |name: &str| find(name).and_then(|other| done[other].as_ref());
            stage
                .step(statement, instruction, &source_stage)
                .map_err(|source| step_error(shared, statement.line, &what, source))?;
        }
        stage.finish()?;
        done.push(Some(stage));
    }
    Ok(done)
}

fn step_error(shared: &Shared<'_>, line: usize, instruction: &str, source: Error) -> Error {
    let (file, instruction) = (shared.file.clone(), shown(instruction.trim()));
    match source {
        Error::Line { .. } | Error::Step { .. } => source,
        Error::Invalid(reason) => Error::Line { file, line, reason },
        source => Error::Step { file, line, instruction, source: Box::new(source) },
    }
}

/// Machines and containers here run what the host runs.
fn check_platform(wanted: Option<&str>) -> std::result::Result<(), String> {
    let host = Platform::host().to_string();
    match wanted {
        None => Ok(()),
        Some(wanted) if wanted == host || wanted.starts_with(&format!("{host}/")) => Ok(()),
        Some(wanted) => Err(format!("--platform={}: only {host} can be built here", shown(wanted))),
    }
}

/// The absolute form of a path in an image: `.` and `..` gone, seen from `cwd`.
pub(crate) fn absolute(cwd: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let start = if path.starts_with('/') { "" } else { cwd };
    for part in [start, path].into_iter().flat_map(|text| text.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
