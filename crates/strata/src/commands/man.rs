//! `strata man DIR`, from the same declarations as the parser.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

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
    let page = clap_mangen::Man::new(command.clone()).title(name.to_uppercase());
    let path = dir.join(format!("{name}.1"));
    let mut bytes = Vec::new();
    page.render(&mut bytes)
        .and_then(|()| fs::write(&path, bytes))
        .while_trying(|| format!("write {}", path.display()))?;
    for inner in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        pages(inner, &format!("{name}-{}", inner.get_name()), dir)?;
    }
    Ok(())
}
