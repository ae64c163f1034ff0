//! `strata`: the program. It parses flags, calls the crates that do the work, prints, and ends with a code.
//!
//! Reading order: [`cli`] (every flag), [`commands`] (a file per verb), [`exit`] (what the codes mean),
//! [`failure`] (how errors are shown), [`engines`] (the only place that names one), [`terminal`] (raw mode,
//! and how it is always undone).
//!
//! Deliberately absent: anything that decides how a machine, an image or a container works.
#![forbid(unsafe_code)]

mod bridge;
mod children;
mod cli;
mod commands;
mod confine;
mod engines;
mod exit;
mod failure;
mod host_cpu;
mod output;
mod progress;
mod signals;
mod size;
mod store;
mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use cli::{Cli, Command};
use failure::Outcome;

fn main() -> ExitCode {
    terminal::restore_on_panic();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().map(PathBuf::from);
    let linked = name.as_ref().and_then(|path| path.file_name()).is_some_and(|n| n == commands::oci::LINK);
    // Its --root is another: it must not be taken for ours.
    let outcome = if linked || arguments.get(1).is_some_and(|verb| verb == "oci") {
        let rest = &arguments[if linked { 1 } else { 2 }..];
        commands::oci::protect(rest);
        start_log(0);
        commands::oci::run_with(rest)
    } else {
        let cli = cli::parse(arguments);
        start_log(cli.global.verbose);
        dispatch(&cli)
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.print();
            failure.exit_code().into()
        }
    }
}

fn dispatch(cli: &Cli) -> Outcome {
    match &cli.command {
        Command::Run(options) => commands::run::run(&cli.global, options),
        Command::Create(options) => commands::start::create(&cli.global, options),
        Command::Start(options) => commands::start::start(&cli.global, options),
        Command::Restart(options) => commands::start::restart(&cli.global, options),
        Command::Exec(options) => commands::run::exec::run(&cli.global, options),
        Command::Cp(options) => commands::cp::run(&cli.global, options),
        Command::Update(options) => commands::run::update::run(&cli.global, options),
        Command::Diff(options) => commands::changes::diff(&cli.global, options),
        Command::Export(options) => commands::changes::export(&cli.global, options),
        Command::Commit(options) => commands::changes::commit(&cli.global, options),
        Command::Files(options) => commands::files::run(&cli.global, options),
        Command::Ps(options) => commands::workloads::ps(&cli.global, options),
        Command::Logs(options) => commands::workloads::logs(&cli.global, options),
        Command::Attach(options) => commands::workloads::attach(&cli.global, options),
        Command::Stop(options) => commands::workloads::stop(&cli.global, options),
        Command::Kill(options) => commands::workloads::kill(&cli.global, options),
        Command::Wait(options) => commands::workloads::wait(&cli.global, options),
        Command::Pause(options) => commands::workloads::pause(&cli.global, options),
        Command::Unpause(options) => commands::workloads::unpause(&cli.global, options),
        Command::Rm(options) => commands::workloads::rm(&cli.global, options),
        Command::Rename(options) => commands::workloads::rename(&cli.global, options),
        Command::Inspect(options) => commands::workloads::inspect(&cli.global, options),
        Command::Stats(options) => commands::usage::stats(&cli.global, options),
        Command::Top(options) => commands::usage::top(&cli.global, options),
        Command::Serve(options) => commands::serve::run(&cli.global, options),
        Command::Monitor(options) => commands::run::monitor(&cli.global, options),
        Command::Worker(options) => commands::run::work(&cli.global, options),
        Command::ServeFolders(options) => commands::run::folders::run(options),
        Command::Cable => commands::run::cable::keep(&cli.global),
        Command::ServeNames(options) => commands::network::names::serve(&cli.global, options),
        Command::Snapshot(options) => commands::snapshot::run(&cli.global, options),
        Command::Snapshots(command) => commands::snapshots::run(&cli.global, command),
        Command::Fork(options) => commands::fork::run(&cli.global, options),
        Command::Restore(options) => commands::restore::run(&cli.global, options),
        Command::Boot(options) => commands::boot::run(options),
        Command::Check(options) => commands::check::run(&cli.global, options),
        Command::Debug(command) => commands::debug::run(&cli.global, command),
        Command::Kernel(command) => commands::kernel::run(&cli.global, command),
        Command::Image(command) => commands::image::run(&cli.global, command),
        Command::Volume(command) => commands::volume::run(&cli.global, command),
        Command::Network(command) => commands::network::run(&cli.global, command),
        Command::Templates(command) => commands::templates::run(&cli.global, command),
        Command::Pull(options) => commands::registry::pull(&cli.global, options),
        Command::Push(options) => commands::registry::push(&cli.global, options),
        Command::Login(options) => commands::login::login(options),
        Command::Logout(options) => commands::login::logout(options),
        Command::Oci(options) => commands::oci::run(options),
        Command::Man(options) => commands::man::run(options),
        Command::Completions(options) => commands::completions::run(options),
    }
}

/// Warnings always; with `-v` what is done, with `-vv` how, with `-vvv` everything.
fn start_log(verbose: u8) {
    use tracing_subscriber::filter::LevelFilter;
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(terminal::LogWriter::new)
        .with_target(false)
        .with_ansi(false)
        .without_time()
        .init();
}
