//! The verbs that make a process: create, run, exec.

use std::os::fd::AsFd;
use std::path::PathBuf;

use container::spec::{Capabilities, Process, User};
use container::{CreateOptions, ExecOptions, Running, Runtime, Signals, Source, Streams};

use super::cli;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::terminal::{self, Raw};

/// An error of the runtime with the code to end with.
pub fn explain(error: container::Error) -> Failure {
    let code = match &error {
        container::Error::Command { code, .. } => *code,
        // What those who drive a runtime take for its failure.
        _ => 1,
    };
    with_next_step(&error, Failure::new(error.chain()).exit(Exit::Workload(code)))
}

/// Where the host lacks something, what it has is told by another command.
pub fn with_next_step(error: &container::Error, failure: Failure) -> Failure {
    match error {
        container::Error::Host { .. } => failure
            .hint("strata check: it says what this host has for containers, and how to get what it lacks"),
        _ => failure,
    }
}

fn options(options: &cli::CreateOptions) -> CreateOptions {
    CreateOptions {
        console_socket: options.console_socket.clone(),
        pid_file: options.pid_file.clone(),
        preserve_fds: options.preserve_fds,
        pivot: !options.no_pivot,
        ..CreateOptions::new(
            &options.id,
            Source::Bundle(options.bundle.clone().unwrap_or_else(|| PathBuf::from("."))),
        )
    }
}

/// `create`
pub fn create(runtime: &Runtime, from: &cli::CreateOptions) -> Outcome {
    container::own_binary::protect().map_err(explain)?;
    runtime.create(&options(from)).map_err(explain)?;
    Ok(Exit::Success)
}

/// `run`
pub fn run(runtime: &Runtime, from: &cli::RunOptions) -> Outcome {
    container::own_binary::protect().map_err(explain)?;
    let options = options(&from.create);
    if from.detach {
        if options.console_socket.is_none() && has_terminal(&options) {
            return Err(Failure::new("run detached: the process has a terminal: name a console socket")
                .exit(Exit::Workload(1)));
        }
        runtime.run(&options).map_err(explain)?;
        return Ok(Exit::Success);
    }
    // What reading the command line took, before as much again is taken.
    sandbox::give_back_memory();
    let signals = Signals::block().map_err(explain)?;
    let running = runtime.run(&options).map_err(explain)?;
    let exit = attend(&running, &signals, true);
    if !from.keep {
        running.delete().map_err(explain)?;
    }
    exit
}

fn has_terminal(options: &CreateOptions) -> bool {
    let Source::Bundle(folder) = &options.source else { return false };
    let text = std::fs::read(folder.join("config.json")).unwrap_or_default();
    let spec: Option<container::spec::Spec> = serde_json::from_slice(&text).ok();
    spec.and_then(|spec| spec.process).is_some_and(|process| process.terminal)
}

/// Carries signals and the terminal until the process ends.
///
/// # Errors
/// It cannot be waited for.
pub fn attend(running: &Running, signals: &Signals, keys: bool) -> Outcome {
    let raw = running.console().is_some() && keys && terminal::stdin_is_terminal();
    let _raw = raw.then(Raw::enter).transpose()?;
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let streams = Streams { input: keys.then(|| input.as_fd()), output: output.as_fd() };
    // It may be there for long, and beside many others.
    let exit = running.attend(signals, &streams, sandbox::give_back_memory).map_err(explain)?;
    Ok(Exit::Workload(exit.shell_code()))
}

/// `exec`
pub fn exec(runtime: &Runtime, from: &cli::ExecOptions) -> Outcome {
    container::own_binary::protect().map_err(explain)?;
    let options = ExecOptions {
        id: from.id.clone(),
        process: process(runtime, from)?,
        user: None,
        groups: Vec::new(),
        console_socket: from.console_socket.clone(),
        pid_file: from.pid_file.clone(),
        preserve_fds: from.preserve_fds,
        ignore_paused: from.ignore_paused,
    };
    if from.detach {
        runtime.exec(&options).map_err(explain)?;
        return Ok(Exit::Success);
    }
    let signals = Signals::block().map_err(explain)?;
    let running = runtime.exec(&options).map_err(explain)?;
    attend(&running, &signals, true)
}

/// The process of a file, or the container's own with what the flags change.
fn process(runtime: &Runtime, from: &cli::ExecOptions) -> Outcome<Process> {
    if let Some(path) = &from.process {
        let act = || format!("read process {}", path.display());
        let text = std::fs::read(path).while_trying(act)?;
        let mut process: Process = serde_json::from_slice(&text).while_trying(act)?;
        process.terminal |= from.tty;
        return Ok(process);
    }
    let mut process = runtime.process_of(&from.id).map_err(explain)?;
    process.args = from.command.clone();
    process.terminal = from.tty;
    process.env.extend(from.env.iter().cloned());
    process.no_new_privileges |= from.no_new_privs;
    if let Some(cwd) = &from.cwd {
        process.cwd = cwd.clone();
    }
    if let Some(user) = &from.user {
        process.user = parse_user(user)?;
    }
    process.user.additional_gids.extend(&from.additional_gids);
    process.apparmor_profile = from.apparmor.clone().or(process.apparmor_profile);
    process.selinux_label = from.process_label.clone().or(process.selinux_label);
    let capabilities = process.capabilities.get_or_insert_with(Capabilities::default);
    for name in &from.cap {
        for set in [&mut capabilities.bounding, &mut capabilities.effective, &mut capabilities.permitted] {
            set.push(name.clone());
        }
    }
    Ok(process)
}

fn parse_user(text: &str) -> Outcome<User> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let number = |text: &str| text.parse::<u32>().while_trying(|| format!("user {text:?} is no number"));
    Ok(User { uid: number(uid)?, gid: number(gid)?, ..User::default() })
}
