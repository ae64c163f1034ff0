//! `strata boot`: a bare machine, its serial console on this terminal.

mod keys;

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use machine::config::{ConsoleConfig, DiskConfig, Source};
use machine::{Backends, Machine, MachineEvent};

use super::sizing::{Sizing, account, explain};
use crate::exit::{self, Exit};
use crate::failure::{Failure, Outcome, While};
use crate::signals::{ENDING, Watch};
use crate::terminal::{self, Raw};
use keys::{Act, Keys};

/// How long the last output may take to reach a slow terminal.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// Boot a bare machine with its serial console on this terminal
///
/// Ctrl-] x leaves, Ctrl-] ? lists the other keys.
#[derive(clap::Args)]
#[command(after_long_help = exit::OF_BOOT)]
pub struct Options {
    #[command(flatten)]
    sizing: Sizing,
    /// Kernel: bzImage, ELF vmlinux, or any PVH program
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk; may be repeated
    #[arg(long, value_name = "FILE")]
    initrd: Vec<PathBuf>,
    /// Kernel command line; console=ttyS0 is added unless it names a console, panic=-1 unless it says what a panic
    /// does; console=hvc0 makes it a virtio console
    #[arg(long, value_name = "STRING", default_value = "", hide_default_value = true)]
    append: String,
    /// Disk image or block device; ,ro refuses writes; may be repeated
    #[arg(long = "disk", value_name = "FILE[,ro]", value_parser = parse_disk)]
    disks: Vec<DiskConfig>,
}

fn parse_disk(text: &str) -> Result<DiskConfig, String> {
    let (path, read_only) = text.strip_suffix(",ro").map_or((text, false), |path| (path, true));
    if path.is_empty() {
        return Err("a disk is a file, e.g. disk.img or disk.img,ro".to_owned());
    }
    Ok(DiskConfig { path: path.into(), read_only, serial: String::new(), rate: None })
}

/// Boots it, and waits until it ends or the user leaves.
///
/// # Errors
/// The machine cannot be built.
pub fn run(options: &Options) -> Outcome {
    let started = Instant::now();
    let engine = options.sizing.open_engine()?;
    let mut config = options.sizing.machine(Source::File(options.kernel.clone()), engine.as_ref());
    config.boot.initrd = options.initrd.iter().cloned().map(Source::File).collect();
    config.boot.cmdline = command_line(&options.append);
    config.console = console(&options.append);
    config.disks.clone_from(&options.disks);
    let confine = options.sizing.confine();
    let backends = Backends {
        console: Some(Box::new(io::stdout())),
        confine,
        when_idle: Some(Box::new(sandbox::give_back_memory)),
        ..Backends::default()
    };
    let machine = Machine::build(&config, backends, engine.as_ref());
    let machine = machine.map_err(|error| explain("boot".to_owned(), error))?;
    let machine = Arc::new(machine);
    let signal = Arc::new(AtomicI32::new(0));
    let _signals = {
        let (machine, signal) = (Arc::downgrade(&machine), signal.clone());
        Watch::start(&ENDING, move |number| {
            signal.store(number, Ordering::Relaxed);
            machine.upgrade().inspect(|machine| machine.stop());
        })?
    };
    let raw = terminal::stdin_is_terminal().then(Raw::enter).transpose()?;
    options.sizing.enter_sandbox(engine.as_ref(), sandbox::Network::None)?;
    machine.start();
    type_into(&machine, raw.is_some())?;
    let event = machine.wait();
    machine.console().flush(LAST_OUTPUT);
    drop(raw);
    account(engine.name(), &machine, started);
    conclude(event, signal.load(Ordering::Relaxed))
}

/// A kernel that panics would stand still for ever, which nobody who is not looking can tell from one that works.
fn command_line(append: &str) -> String {
    let names = |start| append.split_whitespace().any(|word| word.starts_with(start));
    let console = if names("console=") { "" } else { "console=ttyS0 " };
    let panic = if names("panic=") { "" } else { "panic=-1 " };
    format!("{console}{panic}{append}").trim_end().to_owned()
}

/// The serial port, unless the kernel is told to speak to a virtio console only: some have no serial driver.
fn console(append: &str) -> ConsoleConfig {
    let names = |start| append.split_whitespace().any(|word| word.starts_with(start));
    if names("console=hvc") && !names("console=ttyS") { ConsoleConfig::Virtio } else { ConsoleConfig::Serial }
}

/// Hands what is typed to the console, on a thread that ends with the program: reading a terminal cannot be
/// called off.
fn type_into(machine: &Arc<Machine>, on_terminal: bool) -> Outcome<()> {
    let console = machine.console_input();
    let machine = Arc::downgrade(machine);
    let work = move || {
        let mut keys = Keys::default();
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            // What comes from a pipe is for the guest as it is.
            if !on_terminal {
                if !console.push(&buffer[..count]) {
                    return;
                }
                continue;
            }
            for act in keys.typed(&buffer[..count]) {
                match (act, machine.upgrade()) {
                    (Act::Type(bytes), _) => drop(console.push(&bytes)),
                    (Act::Leave, Some(machine)) => machine.stop(),
                    (Act::PowerButton, Some(machine)) => machine.press_power_button(),
                    // Nothing can be done about a terminal that is gone.
                    (Act::Help, _) => drop(io::stdout().write_all(keys::HELP.as_bytes())),
                    (_, None) => return,
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("keyboard".to_owned());
    thread.spawn(work).map(drop).while_trying(|| "read the keyboard".to_owned())
}

fn conclude(event: MachineEvent, signal: i32) -> Outcome {
    let exit = match &event {
        MachineEvent::PowerOff => return Ok(Exit::Success),
        MachineEvent::Stopped => {
            // Nothing but the user or a signal stops this machine.
            return Ok(u8::try_from(signal).ok().filter(|n| *n > 0).map_or(Exit::Success, Exit::Signal));
        }
        MachineEvent::Reset => Exit::GuestReset,
        MachineEvent::GuestPanic { .. } => Exit::GuestPanic,
        MachineEvent::TripleFault { .. } => Exit::TripleFault,
        MachineEvent::Fatal { .. } => Exit::MachineFault,
    };
    Err(Failure::new(format!("boot: {event}")).exit(exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_may_be_read_only() {
        let disk = parse_disk("a,b.img,ro").unwrap();
        assert_eq!((disk.path.as_path(), disk.read_only), ("a,b.img".as_ref(), true));
        assert!(!parse_disk("a.img").unwrap().read_only);
        assert!(parse_disk(",ro").is_err());
    }

    #[test]
    fn the_console_and_the_end_of_a_panic_are_named_unless_the_user_names_them() {
        assert_eq!(command_line(""), "console=ttyS0 panic=-1");
        assert_eq!(command_line("quiet panic=0"), "console=ttyS0 quiet panic=0");
        assert_eq!(command_line("console=hvc0 quiet"), "panic=-1 console=hvc0 quiet");
    }

    #[test]
    fn each_end_has_its_code() {
        let code = |event, signal| match conclude(event, signal) {
            Ok(exit) => exit.code(),
            Err(failure) => failure.exit_code().code(),
        };
        assert_eq!(code(MachineEvent::PowerOff, 0), 0);
        assert_eq!(code(MachineEvent::Stopped, 0), 0);
        assert_eq!(code(MachineEvent::Stopped, 15), 143);
        assert_eq!(code(MachineEvent::Reset, 0), 3);
        assert_eq!(code(MachineEvent::GuestPanic { message: String::new() }, 0), 4);
        assert_eq!(code(MachineEvent::TripleFault { reason: String::new() }, 0), 5);
    }
}
