//! One stage: a config, layers, and one instruction after the other.
//!
//! Every instruction has a key: a digest of the key before it and of all that went into it (words with variables expanded,
//! fingerprints of files, variables a command can see). Under that key the store remembers the image it led to.

mod command;

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::io;

use image::{Digest, Image, LayerPart, NodeInfo, NodeKind, Reference, View};
use serde_json::Value;

use crate::build::{Shared, absolute};
use crate::config::Config;
use crate::copy::{Changes, Copying, Fingerprint, Sink};
use crate::error::{Error, Result};
use crate::files::{Files, split_last};
use crate::instruction::{Copy, Instruction, List, parse_one};
use crate::run::Root;
use crate::source::{Heredoc, Statement};
use crate::{users, words};

/// Variables that every stage knows without declaring them, and that no image remembers.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Finds a stage that is made already, by name or number.
pub(crate) type Find<'f, 'a> = &'f dyn Fn(&str) -> Option<&'f Stage<'a>>;

/// A stage being made, or made.
pub(crate) struct Stage<'a> {
    shared: &'a Shared<'a>,
    label: String,
    config: Config,
    layers: Vec<LayerPart>,
    key: Digest,
    /// `ARG`s of this stage.
    args: BTreeMap<String, String>,
    /// CMD was set in this stage.
    own_cmd: bool,
    /// What the last instruction led to.
    digest: Option<Digest>,
    /// The files as they are now, once somebody looked at them.
    view: OnceCell<View>,
    /// Those before the last layers.
    older: Cell<Option<View>>,
    /// The image it began with, if it did with one.
    base: Option<Image>,
    /// Where commands run, until something else changes the files.
    root: Cell<Option<Root>>,
}

/// What an instruction made.
enum Made {
    /// A change of the config alone.
    Config,
    Layer(LayerPart),
}

impl<'a> Stage<'a> {
    /// Begins with an image, or with nothing.
    pub(crate) fn from(shared: &'a Shared<'a>, base: &str) -> Result<Stage<'a>> {
        let mut stage = Stage {
            shared,
            label: String::new(),
            config: Config::scratch(
                image::Platform::host().to_string().split('/').nth(1).unwrap_or_default(),
            ),
            layers: Vec::new(),
            key: Digest::of(b"scratch"),
            args: BTreeMap::new(),
            own_cmd: false,
            digest: None,
            view: OnceCell::new(),
            older: Cell::new(None),
            base: None,
            root: Cell::new(None),
        };
        if base == "scratch" {
            return Ok(stage);
        }
        let name: Reference = base.parse()?;
        let outside = |source| Error::Outside { act: format!("get image {name}"), source };
        let image = shared.images.image(&name).map_err(outside)?;
        let host = image::Platform::host().to_string();
        let own = image.config();
        if format!("{}/{}", own.os, own.architecture) != host {
            let text =
                format!("image {name} is for {}/{}, only {host} can be built here", own.os, own.architecture);
            return Err(Error::Invalid(text));
        }
        let value: Value = image::document::parse(image.config_bytes())
            .map_err(|error| Error::Invalid(format!("config of image {name}: {error}")))?;
        stage.config = Config::of(value);
        stage.layers = image.layer_parts()?;
        stage.key = Digest::of(format!("from {}", image.digest()).as_bytes());
        stage.digest = Some(image.digest());
        stage.base = Some(image);
        Ok(stage)
    }

    /// A new stage that begins where this one ended.
    pub(crate) fn follow(&self) -> Result<Stage<'a>> {
        Ok(Stage {
            shared: self.shared,
            label: String::new(),
            config: self.config.clone(),
            layers: self.layers.clone(),
            key: self.key,
            args: BTreeMap::new(),
            own_cmd: false,
            digest: self.digest,
            view: OnceCell::new(),
            older: Cell::new(None),
            base: None,
            root: Cell::new(None),
        })
    }

    /// What the last instruction led to.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Gives the stage its name for messages, and does what its base wants of those who build on it.
    pub(crate) fn begin(&mut self, label: String, line: usize) -> Result<()> {
        self.label = label;
        self.config.default_path();
        for text in self.config.take_triggers() {
            let at = |reason| Error::Line {
                file: self.shared.file.clone(),
                line,
                reason: format!("{text}: {reason}"),
            };
            let instruction = parse_one(&text).map_err(at)?;
            let (keyword, rest) = crate::source::split_word(&text);
            let (keyword, rest) = (keyword.to_owned(), rest.to_owned());
            let statement = Statement { line, keyword, flags: Vec::new(), rest, heredocs: Vec::new() };
            self.step(&statement, &instruction, &|_| None)?;
        }
        Ok(())
    }

    /// A stage without instructions is an image too.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if self.digest.is_none() {
            self.digest = Some(self.shared.incoming.add_image(&self.config.to_bytes(), &self.layers)?);
        }
        Ok(())
    }

    /// The files as they are now.
    fn view(&self) -> Result<&View> {
        if let Some(view) = self.view.get() {
            return Ok(view);
        }
        let new = || self.shared.incoming.add_image(&self.config.to_bytes(), &self.layers);
        let digest = self.digest.map_or_else(new, Ok)?;
        let image = self.shared.incoming.image(&digest, &self.shared.name)?;
        let (store, progress) = (self.shared.store, self.shared.progress);
        let made = match self.older.take() {
            Some(mut view) => {
                // It may be what the root's file is of.
                self.root.set(None);
                store.extend_view(&mut view, &image, progress)?;
                view
            }
            None => store.view(&image, progress)?,
        };
        Ok(self.view.get_or_init(|| made))
    }

    /// The stage has these layers from now on.
    fn set_layers(&mut self, layers: Vec<LayerPart>) {
        if layers == self.layers {
            return;
        }
        let older = self.view.take().or_else(|| self.older.take());
        self.older.set(older.filter(|_| layers.starts_with(&self.layers)));
        self.layers = layers;
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.config.variable(name).or_else(|| self.args.get(name).cloned()).or_else(|| {
            let given = PREDEFINED.contains(&name).then(|| self.shared.options.args.get(name));
            given.flatten().cloned()
        })
    }

    fn expand(&self, text: &str) -> Result<String> {
        words::expand(text, self.shared.escape, &|name: &str| self.variable(name)).map_err(Error::Invalid)
    }

    fn split(&self, text: &str) -> Result<Vec<String>> {
        words::split(text, self.shared.escape, &|name: &str| self.variable(name)).map_err(Error::Invalid)
    }

    fn list(&self, list: &List) -> Result<Vec<String>> {
        match list {
            List::Text(text) => self.split(text),
            List::Json(words) => words.iter().map(|word| self.expand(word)).collect(),
        }
    }

    /// Carries out one instruction, or takes what it led to before.
    pub(crate) fn step(
        &mut self,
        statement: &Statement,
        step: &Instruction,
        find: Find<'_, 'a>,
    ) -> Result<()> {
        let text = format!("{} {}", statement.keyword, statement.rest.lines().next().unwrap_or_default());
        self.shared.progress.step(&format!("[{}] {}", self.label, text.trim()));
        if let Instruction::Arg(text) = step {
            // What it comes to counts where it is used; that it stands there is a step of the image's history.
            self.declare(text)?;
        }
        let work = self.prepare(step, find)?;
        let input = format!("{}\n{}\n{}", self.key, statement.keyword, work.input);
        self.key = Digest::of(input.as_bytes());
        let known = self.shared.incoming.remembered(&self.key, &self.shared.name);
        if let Some(image) = known.filter(|_| !self.shared.options.no_cache) {
            let value: Value = image::document::parse(image.config_bytes())
                .map_err(|error| Error::Invalid(format!("a remembered config: {error}")))?;
            self.set_layers(image.layer_parts()?);
            self.config = Config::of(value);
            self.root.set(None);
            self.own_cmd |= matches!(step, Instruction::Cmd(_));
            self.digest = Some(image.digest());
            self.shared.progress.note(&format!("[{}] {}: as before", self.label, text.trim()));
            return Ok(());
        }
        let made = self.act(step, work, find)?;
        let created = image::rfc3339(self.shared.now);
        let by = format!("{} {}", statement.keyword, statement.rest.trim());
        self.config.note(&created, &by, matches!(made, Made::Config));
        if let Made::Layer(layer) = made {
            self.set_layers(self.layers.iter().cloned().chain([layer]).collect());
        }
        let digest = self.shared.incoming.add_image(&self.config.to_bytes(), &self.layers)?;
        self.shared.incoming.remember(&self.key, &digest)?;
        self.digest = Some(digest);
        Ok(())
    }

    /// ARG: what the user says, else what stands here, else what stands before the first FROM.
    fn declare(&mut self, text: &str) -> Result<()> {
        for word in self.split(text)? {
            let (name, default) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
            if name.is_empty() {
                return Err(Error::Invalid("ARG wants NAME or NAME=VALUE".to_owned()));
            }
            let given = self.shared.options.args.get(name).cloned();
            let value =
                given.or(default.map(str::to_owned)).or_else(|| self.shared.globals.get(name).cloned());
            self.args.extend(value.map(|value| (name.to_owned(), value)));
        }
        Ok(())
    }

    /// Expands what is to be expanded. What comes of it is all that the instruction depends on beside what was before.
    fn prepare(&self, step: &Instruction, find: Find<'_, 'a>) -> Result<Work> {
        let mut work = Work::default();
        match step {
            Instruction::Env(text) | Instruction::Label(text) => work.words = self.pairs(text)?,
            Instruction::Expose(text) => work.words = self.split(text)?,
            Instruction::Volume(list) => work.words = self.list(list)?,
            Instruction::Workdir(text) | Instruction::User(text) | Instruction::StopSignal(text) => {
                work.words = vec![self.expand(text)?];
            }
            Instruction::Run { .. } => work.words = self.run_env(),
            Instruction::Copy(copy) => {
                work.words = self.list(&copy.words)?;
                work.owner = copy.chown.as_deref().map(|text| self.owner(text)).transpose()?;
                work.mode = copy.chmod.as_deref().map(|text| self.mode(text)).transpose()?;
                let mut print = Fingerprint::default();
                self.copy(copy, &work, &mut print, find)?;
                work.files = print.finish();
            }
            _ => {}
        }
        work.input = format!("{step:?}\n{:?}\n{:?} {:?}\n{}", work.words, work.owner, work.mode, work.files);
        Ok(work)
    }

    /// `NAME=value …` or `NAME value`, as NAME and value by turns.
    fn pairs(&self, text: &str) -> Result<Vec<String>> {
        let (first, rest) = crate::source::split_word(text);
        if !first.contains('=') {
            if rest.is_empty() {
                return Err(Error::Invalid(format!("{first} has no value")));
            }
            return Ok(vec![self.expand(first)?, self.expand(rest)?]);
        }
        let mut pairs = Vec::new();
        for word in self.split(text)? {
            let (name, value) =
                word.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                    Error::Invalid(format!("{:?} is not NAME=VALUE", crate::source::shown(&word)))
                })?;
            pairs.extend([name.to_owned(), value.to_owned()]);
        }
        Ok(pairs)
    }

    fn owner(&self, text: &str) -> Result<(u32, u32)> {
        let text = self.expand(text)?;
        users::owner(self.view()?, &text)
            .map_err(|reason| Error::Invalid(format!("--chown={text}: {reason}")))
    }

    fn mode(&self, text: &str) -> Result<u16> {
        let text = self.expand(text)?;
        let mode = u16::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| Error::Invalid(format!("--chmod={text}: it is not octal digits such as 0755")))
    }

    /// What a command of RUN sees: declared ARGs, unless ENV says otherwise, and ENV.
    fn run_env(&self) -> Vec<String> {
        let own = self.config.env();
        let hidden = |name: &str| own.iter().any(|entry| entry.split('=').next() == Some(name));
        let predefined =
            PREDEFINED.iter().filter_map(|name| Some((*name, self.shared.options.args.get(*name)?.as_str())));
        let declared = self.args.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let args = declared.chain(predefined).filter(|(name, _)| !hidden(name));
        args.map(|(name, value)| format!("{name}={value}")).chain(own.iter().cloned()).collect()
    }

    fn act(&mut self, step: &Instruction, work: Work, find: Find<'_, 'a>) -> Result<Made> {
        let config = &mut self.config;
        let first = || work.words.first().map(String::as_str).unwrap_or_default();
        match step {
            Instruction::Env(_) => work.pairs().for_each(|(name, value)| config.set_variable(name, value)),
            Instruction::Label(_) => work.pairs().for_each(|(name, value)| config.set_label(name, value)),
            Instruction::Expose(_) => {
                for word in &work.words {
                    ports(word).map_err(Error::Invalid)?.iter().for_each(|port| config.expose(port));
                }
            }
            Instruction::Volume(_) => work.words.iter().for_each(|path| config.add_volume(path)),
            Instruction::User(_) => config.set_user(first()),
            Instruction::StopSignal(_) => config.set_stop_signal(first()),
            Instruction::Entrypoint(command) => config.set_entrypoint(command, self.own_cmd),
            Instruction::Cmd(command) => {
                config.set_cmd(command);
                self.own_cmd = true;
            }
            Instruction::Shell(words) => config.set_shell(words),
            Instruction::Healthcheck(check) => config.set_healthcheck(check.as_ref()),
            Instruction::OnBuild(text) => config.add_trigger(text),
            Instruction::Maintainer(text) => config.set_author(text),
            Instruction::Workdir(_) => return self.workdir(first()),
            Instruction::Run { command, heredocs } => return self.run(command, heredocs, &work.words),
            Instruction::Copy(copy) => {
                let mut layer = self.shared.incoming.layer_writer()?;
                self.copy(copy, &work, &mut layer, find)?;
                self.root.set(None);
                return Ok(Made::Layer(layer.finish()?));
            }
            Instruction::Arg(_) | Instruction::From { .. } => {}
        }
        Ok(Made::Config)
    }

    fn changes(&self, work: &Work) -> Changes {
        Changes { owner: work.owner, mode: work.mode, latest: self.shared.epoch, now: self.shared.now }
    }

    /// WORKDIR: also makes the folder if it is not there.
    fn workdir(&mut self, path: &str) -> Result<Made> {
        let path = absolute(&self.config.workdir(), path);
        let mut layer = self.shared.incoming.layer_writer()?;
        let changes = self.changes(&Work::default());
        Copying::new(self.view()?, &mut layer, changes).make_folder(path.as_bytes())?;
        self.config.set_workdir(&path);
        if layer.entries() == 0 {
            return Ok(Made::Config);
        }
        self.root.set(None);
        Ok(Made::Layer(layer.finish()?))
    }

    /// COPY and ADD, into whatever takes the entries.
    fn copy(&self, copy: &Copy, work: &Work, sink: &mut dyn Sink, find: Find<'_, 'a>) -> Result<()> {
        let Some((dest, sources)) = work.words.split_last() else { return Ok(()) };
        let into = dest.ends_with('/') || dest.ends_with("/.") || dest == "." || sources.len() > 1;
        let dest = absolute(&self.config.workdir(), dest);
        let mut copying = Copying::new(self.view()?, sink, self.changes(work));
        let other;
        let files: &dyn Files = match copy.from.as_deref() {
            None => self.shared.context,
            Some(name) => match find(name) {
                Some(stage) => stage.view()?,
                None => {
                    other = Stage::from(self.shared, name)?;
                    other.view()?
                }
            },
        };
        for source in sources {
            if let Some(heredoc) = copy.heredocs.iter().find(|heredoc| names_heredoc(source, heredoc)) {
                let text = self.heredoc(heredoc)?;
                copying.write(heredoc.name.as_bytes(), text.as_bytes(), dest.as_bytes(), into)?;
                continue;
            }
            self.copy_source(copy, files, source, &dest, into, &mut copying)?;
        }
        Ok(())
    }

    fn copy_source(
        &self,
        copy: &Copy,
        files: &dyn Files,
        source: &str,
        dest: &str,
        into: bool,
        copying: &mut Copying<'_>,
    ) -> Result<()> {
        if copy.unpacks && (source.contains("://") || source.starts_with("git@")) {
            let text = format!(
                "ADD {source}: nothing is fetched here; bring it into the context, or fetch it with RUN"
            );
            return Err(Error::Invalid(text));
        }
        let found = files.glob(source)?;
        if found.is_empty() {
            let place = if copy.from.is_some() { "where it is copied from" } else { "the context" };
            return Err(Error::Invalid(format!(
                "{source:?} is not in {place}, or left out by .dockerignore"
            )));
        }
        let into = into || found.len() > 1;
        for path in found {
            let real = files.resolve(&path)?.ok_or_else(|| {
                Error::Invalid(format!("{source:?} is a link that leads to nothing in the context"))
            })?;
            let name = split_last(&path).1;
            if copy.unpacks && is_archive(files, &real)? {
                match self.shared.store.view_archive(files.open(&real)?, source) {
                    Ok(archive) => {
                        copying.unpack(&archive, dest.as_bytes())?;
                        continue;
                    }
                    // Compressed, and not an archive: a file like others.
                    Err(image::Error::Archive { source: image::TarError::NotTar, .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            copying.copy(files, &real, name, dest.as_bytes(), into)?;
        }
        Ok(())
    }

    fn heredoc(&self, heredoc: &Heredoc) -> Result<String> {
        if !heredoc.expands {
            return Ok(heredoc.text.clone());
        }
        words::expand_heredoc(&heredoc.text, self.shared.escape, &|name: &str| self.variable(name))
            .map_err(Error::Invalid)
    }
}

/// What an instruction comes to once variables have values.
#[derive(Debug, Default)]
struct Work {
    words: Vec<String>,
    owner: Option<(u32, u32)>,
    mode: Option<u16>,
    files: String,
    input: String,
}

impl Work {
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.words.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str()))
    }
}

/// Whether a word is `<<NAME` of this here-document.
fn names_heredoc(word: &str, heredoc: &Heredoc) -> bool {
    let name = word.trim().strip_prefix("<<").map(|rest| rest.trim_start_matches('-'));
    name.is_some_and(|name| name.trim_matches(['"', '\'']) == heredoc.name)
}

/// `80`, `80/udp`, `8000-8010/tcp` as a list of `port/protocol`.
fn ports(text: &str) -> std::result::Result<Vec<String>, String> {
    let wrong = || format!("{:?} is no port such as 80 or 53/udp", crate::source::shown(text));
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong());
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// Whether a regular file begins as a tar archive does, or as something compressed.
fn is_archive(files: &dyn Files, path: &[u8]) -> Result<bool> {
    if !matches!(files.stat(path)?, Some(NodeInfo { kind: NodeKind::File(_), .. })) {
        return Ok(false);
    }
    let mut head = Vec::new();
    let full = || String::from_utf8_lossy(path).into_owned();
    io::Read::read_to_end(&mut io::Read::take(files.open(path)?, 512), &mut head)
        .map_err(Error::file("read", full()))?;
    let compressed: [&[u8]; 4] = [&[0x1f, 0x8b], b"\xfd7zXZ", &[0x28, 0xb5, 0x2f, 0xfd], b"BZh"];
    Ok(head.get(257..262) == Some(b"ustar") || compressed.iter().any(|magic| head.starts_with(magic)))
}
