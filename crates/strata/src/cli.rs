//! The whole command line, declared once: parser, help, manual pages and completions come from here and from
//! the `Options` of each file under `commands/`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use crate::commands::{
    boot, changes, check, completions, cp, debug, files, fork, image, kernel, login, man, network, oci,
    registry, restore, run, serve, snapshot, snapshots, start, templates, usage, volume, workloads,
};
use crate::exit;

/// Run any workload at the layer of isolation you choose
///
/// `strata run debian -- uname -a` boots a microVM from the image `debian`, runs the command in it and returns
/// its exit code. No KVM, daemon or network is needed.
#[derive(Parser)]
#[command(name = "strata", version, after_long_help = exit::TABLE, propagate_version = false, max_term_width = 100)]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Folder that holds images and kernels [default: /var/lib/strata for root, else ~/.local/share/strata]
    #[arg(long, global = true, env = "STRATA_ROOT", value_name = "DIR", hide_env_values = true)]
    pub root: Option<PathBuf>,
    /// Say what is done on standard error; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The verbs.
#[derive(Subcommand)]
pub enum Command {
    // Text here would hide the longer one that stands with the options.
    Run(Box<run::Options>),
    Create(Box<start::CreateOptions>),
    Start(start::StartOptions),
    Restart(start::RestartOptions),
    Exec(run::exec::Options),
    Cp(cp::Options),
    Diff(changes::DiffOptions),
    Export(changes::ExportOptions),
    Commit(changes::CommitOptions),
    Ps(workloads::PsOptions),
    Logs(workloads::LogsOptions),
    Attach(workloads::AttachOptions),
    Stop(workloads::StopOptions),
    Kill(workloads::KillOptions),
    Wait(workloads::WaitOptions),
    Pause(workloads::PauseOptions),
    /// Let workloads that stand still go on
    Unpause(workloads::PauseOptions),
    Rm(workloads::RmOptions),
    Rename(workloads::RenameOptions),
    Update(run::update::UpdateOptions),
    Inspect(workloads::InspectOptions),
    Stats(usage::StatsOptions),
    Top(usage::TopOptions),
    Snapshot(snapshot::Options),
    #[command(subcommand)]
    Snapshots(snapshots::Command),
    Fork(fork::Options),
    Restore(restore::Options),
    Boot(boot::Options),
    Check(check::Options),
    /// Look into a machine: for developers of engines and kernels
    #[command(subcommand)]
    Debug(debug::Command),
    /// Kernels that microVMs boot
    #[command(subcommand)]
    Kernel(kernel::Command),
    /// Images that workloads are made from
    #[command(subcommand)]
    Image(image::Command),
    /// Folders that have names and outlive the workloads that see them
    #[command(subcommand)]
    Volume(volume::Command),
    /// Networks that workloads are connected to by name
    #[command(subcommand)]
    Network(network::Command),
    /// Saved machines that `strata run` starts from
    #[command(subcommand)]
    Templates(templates::Command),
    Pull(registry::PullOptions),
    Push(registry::PushOptions),
    Login(login::LoginOptions),
    Logout(login::LogoutOptions),
    Oci(oci::Options),
    Serve(serve::Options),
    /// Watch a workload in the background
    #[command(hide = true)]
    Monitor(run::InnerOptions),
    /// Run a workload in the background
    #[command(hide = true)]
    Worker(run::InnerOptions),
    /// Files of a workload as archives
    #[command(hide = true)]
    Files(files::Options),
    /// Serve folders to a machine
    #[command(hide = true)]
    ServeFolders(run::folders::ServeOptions),
    /// Keep a workload's cable to a network
    #[command(hide = true)]
    Cable,
    /// Serve the names of a network
    #[command(hide = true)]
    ServeNames(network::names::ServeOptions),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::Options),
    /// Write a completion script for a shell
    #[command(hide = true)]
    Completions(completions::Options),
}

/// The processes in the background alone. To describe all the other commands would take as long as the rest of their start, and
/// leave memory behind that they hold for as long as the workload runs.
#[derive(Parser)]
struct Background {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: BackgroundCommand,
}

/// Of [`Command`].
#[derive(Subcommand)]
enum BackgroundCommand {
    Monitor(run::InnerOptions),
    Worker(run::InnerOptions),
}

/// What the user wants. Ends the process if that cannot be, or is to be told how it would.
pub fn parse(arguments: Vec<OsString>) -> Cli {
    background(&arguments).unwrap_or_else(|| Cli::parse_from(with_volumes_spelled_out(arguments)))
}

fn background(arguments: &[OsString]) -> Option<Cli> {
    // What cannot be one of them is not even looked at.
    let is_named = |word: &OsString| word == "monitor" || word == "worker";
    arguments.iter().find(|word| is_named(word))?;
    let Background { global, command } = Background::try_parse_from(arguments).ok()?;
    let command = match command {
        BackgroundCommand::Monitor(options) => Command::Monitor(options),
        BackgroundCommand::Worker(options) => Command::Worker(options),
    };
    Some(Cli { global, command })
}

/// `-v` is `--verbose` everywhere, and other programs' letter for `--volume`. After `run` and `create`, and before the image,
/// one that stands before what can be nothing else is the latter: no image and no flag begins with a slash or has `:/` in it.
fn with_volumes_spelled_out(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let text = |argument: &OsStr| argument.to_str().map(str::to_owned).unwrap_or_default();
    let names_place = |text: &[u8]| text.starts_with(b"/") || text.windows(2).any(|w| w == b":/");
    let is_volume = |pair: &[OsString]| pair[0] == "-v" && names_place(pair[1].as_encoded_bytes());
    if !arguments.windows(2).any(is_volume) {
        return arguments;
    }
    let mut all = Cli::command();
    all.build();
    let mut verb: Option<&clap::Command> = None;
    let mut index = 1;
    while index < arguments.len() {
        let argument = text(&arguments[index]);
        if argument == "--" || (verb.is_some() && !argument.starts_with('-')) {
            break;
        }
        if !argument.starts_with('-') {
            verb = all.find_subcommand(&argument).filter(|_| matches!(&*argument, "run" | "create"));
            if verb.is_none() {
                break;
            }
        } else if verb.is_some() && arguments.get(index..index + 2).is_some_and(is_volume) {
            arguments[index] = "--volume".into();
            index += 1;
        } else if wants_value(verb.unwrap_or(&all), &argument) {
            index += 1;
        }
        index += 1;
    }
    arguments
}

/// Whether the next argument is the value of this flag of `command`, or of the last one of these letters.
fn wants_value(command: &clap::Command, flags: &str) -> bool {
    let takes = |is_it: &dyn Fn(&clap::Arg) -> bool| {
        command.get_arguments().any(|argument| is_it(argument) && argument.get_action().takes_values())
    };
    if let Some(long) = flags.strip_prefix("--") {
        return takes(&|argument| argument.get_long() == Some(long));
    }
    let letters = flags.trim_start_matches('-');
    let first =
        letters.char_indices().find(|(_, letter)| takes(&|argument| argument.get_short() == Some(*letter)));
    first.is_some_and(|(at, letter)| at + letter.len_utf8() == letters.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled_out(line: &str) -> String {
        let arguments = line.split(' ').map(OsString::from).collect();
        with_volumes_spelled_out(arguments).join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn processes_in_the_background_are_parsed_by_themselves_and_nothing_else_is() {
        let parsed = |line: &str| background(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let cli = parsed("strata --root /store -v monitor 0123 --saved").unwrap();
        assert_eq!((cli.global.root, cli.global.verbose), (Some(PathBuf::from("/store")), 1));
        assert!(
            matches!(cli.command, Command::Monitor(run::InnerOptions { id, saved: true }) if id == "0123")
        );
        let cli = parsed("strata --root /store worker 0123").unwrap();
        assert!(matches!(cli.command, Command::Worker(run::InnerOptions { saved: false, .. })));
        for line in
            ["strata run monitor worker", "strata ps", "strata --root monitor ps", "strata monitor", "strata"]
        {
            assert!(parsed(line).is_none(), "{line}");
        }
    }

    #[test]
    fn v_before_a_volume_is_a_volume_and_before_anything_else_it_is_not() {
        for line in [
            "strata run -v debian:12 -- ls",
            "strata run debian cmd -v /a:/b",
            "strata run -- debian -v /a:/b",
            "strata run --name -v /a:/b",
            "strata run -e -v /a:/b",
            "strata exec -v /a:/b",
            "strata -v /a:/b",
        ] {
            assert_eq!(spelled_out(line), line);
        }
        let line = "strata -v --root /r run -it -v /a:/b --cpus 2 -v ./c:/d:ro -v /g -v debian cmd -v /e:/f";
        let expected = "strata -v --root /r run -it --volume /a:/b --cpus 2 --volume ./c:/d:ro --volume /g -v debian cmd -v /e:/f";
        assert_eq!(spelled_out(line), expected);
    }
}
