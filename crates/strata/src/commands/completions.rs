//! `strata completions SHELL`, from the same declarations as the parser.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Outcome;
use crate::output;

/// Write a completion script for a shell
#[derive(clap::Args)]
pub struct Options {
    /// Which shell
    shell: Shell,
}

/// Writes the script to standard output.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(options: &Options) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "strata", &mut script);
    output::write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declarations_are_sound() {
        Cli::command().debug_assert();
    }
}
