//! `strata man DIR`, from the same declarations as the parser.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::{Outcome, While};

/// Write the manual pages
#[derive(clap::Args)]
pub struct Options {
    /// Folder to write them to, e.g. /usr/local/share/man/man1
    dir: PathBuf,
}

/// Writes `strata.1` and a page for each command that is not hidden.
///
/// # Errors
/// The folder cannot be written.
pub fn run(options: &Options) -> Outcome {
    fs::create_dir_all(&options.dir).while_trying(|| format!("create {}", options.dir.display()))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, "strata", &options.dir)?;
    Ok(Exit::Success)
}

fn pages(command: &clap::Command, name: &str, dir: &Path) -> Outcome<()> {
    let path = dir.join(format!("{name}.1"));
    let mut bytes = Vec::new();
    page(command, name, &mut bytes)
        .and_then(|()| fs::write(&path, bytes))
        .while_trying(|| format!("write {}", path.display()))?;
    for inner in commands(command) {
        pages(inner, &format!("{name}-{}", inner.get_name()), dir)?;
    }
    Ok(())
}

/// One page, with the sections that readers of section 1 look for (man-pages(7)).
fn page(command: &clap::Command, name: &str, to: &mut dyn Write) -> io::Result<()> {
    let source = concat!("strata ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name.to_uppercase()).source(source);
    man.render_title(to)?;
    man.render_name_section(to)?;
    man.render_synopsis_section(to)?;
    man.render_description_section(to)?;
    man.render_options_section(to)?;
    if commands(command).next().is_some() {
        man.render_subcommands_section(to)?;
    }
    exit_status(command, to)?;
    environment(command, to)?;
    if name == "strata" { man.render_version_section(to) } else { see_also(name, to) }
}

fn commands(command: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
}

/// The table of exit codes that stands below the long help, its lines as they are.
fn exit_status(command: &clap::Command, to: &mut dyn Write) -> io::Result<()> {
    let Some(table) = command.get_after_long_help() else { return Ok(()) };
    let mut roff = Roff::default();
    roff.control("SH", ["EXIT STATUS"]).control("nf", []);
    for line in table.to_string().lines().skip(1) {
        roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
    }
    roff.control("fi", []).to_writer(to)
}

/// The variables that stand for options.
fn environment(command: &clap::Command, to: &mut dyn Write) -> io::Result<()> {
    let mut roff = Roff::default();
    for argument in command.get_arguments() {
        if let (Some(variable), Some(option)) = (argument.get_env(), argument.get_long()) {
            roff.control("SH", ["ENVIRONMENT"]).control("TP", []);
            roff.text([bold(variable.to_string_lossy())]);
            roff.text([roman(format!("Used where --{option} is not given."))]);
        }
    }
    roff.to_writer(to)
}

/// The page above this one.
fn see_also(name: &str, to: &mut dyn Write) -> io::Result<()> {
    let above = name.rsplit_once('-').map_or(name, |(above, _)| above);
    let mut roff = Roff::default();
    roff.control("SH", ["SEE ALSO"]).text([bold(above), roman("(1)")]).to_writer(to)
}
