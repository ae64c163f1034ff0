//! `cargo xtask soak`: an hour of mixed load in a guest with two vCPUs, without a difference or a leak.
//!
//! The load (`load.sh`) is run once natively in the same image, then over and over in a microVM. Every checksum must
//! be the native one; meanwhile memory, threads and files of Strata's process are watched.
//! Reading order: [`native`], what is expected; [`heard`], what the guest says; [`watch`]; [`report`].

mod heard;
mod native;
mod report;
mod watch;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use crate::{Outcome, lines};
use heard::{Heard, Line};
use watch::Sample;

/// The script that both sides run.
const LOAD: &str = include_str!("load.sh");
/// How often the process is looked at.
const SAMPLE_EVERY: Duration = Duration::from_secs(15);
/// How long the last round may take beyond the time: a kernel's build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// What to run, and for how long.
#[derive(clap::Args)]
pub struct Options {
    /// Store with the kernel and the image
    #[arg(long)]
    store: PathBuf,
    /// Image with a compiler and a kernel's source
    #[arg(long, default_value = "soak")]
    image: String,
    /// The program to watch
    #[arg(long)]
    strata: PathBuf,
    /// Its engine
    #[arg(long, default_value = "auto")]
    engine: String,
    /// How long new rounds are begun
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Virtual processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// The guest's memory; a kernel's tree and what is built of it must fit into half of it
    #[arg(long, default_value_t = 3072)]
    memory_mib: u64,
    /// Folder for what is kept [default: soak below the target folder]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What came of a machine.
struct Run {
    heard: Heard,
    samples: Vec<Sample>,
    elapsed: Duration,
    /// How the program ended.
    end: String,
    ended_well: bool,
}

/// Runs the load natively and in a guest, and says what differs.
pub fn run(top: &Path, options: Options) -> Outcome {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from);
    let folder = options.out.clone().unwrap_or_else(|| target.join("soak"));
    fs::create_dir_all(&folder)?;
    let expected = native::results(&options.store, &options.image, &folder)?;
    let run = in_guest(&options, &folder)?;
    let faults = report::faults(&run, expected.as_ref());
    report::write(&folder, &options, &run, expected.as_ref(), &faults)?;
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ").into()) }
}

fn in_guest(options: &Options, folder: &Path) -> Outcome<Run> {
    let log = folder.join("strata.log");
    let mut command = Command::new(&options.strata);
    command.arg("--root").arg(&options.store).args(["run", "-v", "--engine", &options.engine]);
    command.args(["--cpus", &options.cpus.to_string(), "--memory", &format!("{}M", options.memory_mib)]);
    command.args([&options.image, "--", "sh", "-c", LOAD, "load"]);
    command.args([&(options.minutes * 60).to_string(), "guest"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
    eprintln!("soak: {} minutes in a guest with {} vCPUs", options.minutes, options.cpus);
    let mut child =
        command.spawn().map_err(|error| format!("start {}: {error}", options.strata.display()))?;
    let outcome = follow(&mut child, options);
    if outcome.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let (heard, samples, elapsed) = outcome?;
    let account = fs::read_to_string(&log)?.lines().last().unwrap_or_default().to_owned();
    Ok(Run { heard, samples, elapsed, end: format!("{status}; {account}"), ended_well: status.success() })
}

/// Listens to the guest and looks at the process until it has said everything.
fn follow(child: &mut Child, options: &Options) -> Outcome<(Heard, Vec<Sample>, Duration)> {
    let began = Instant::now();
    let lines = lines::of(child)?;
    let (mut heard, mut samples) = (Heard::default(), Vec::new());
    let mut next = SAMPLE_EVERY;
    let end = Duration::from_secs(options.minutes * 60) + PATIENCE;
    loop {
        let elapsed = began.elapsed();
        if elapsed > end {
            return Err(format!("the guest did not end within {} minutes", end.as_secs() / 60).into());
        }
        if elapsed >= next {
            samples.extend(watch::sample(child.id(), options.memory_mib << 10, elapsed));
            next = elapsed + SAMPLE_EVERY;
        }
        match lines.recv_timeout(next.saturating_sub(began.elapsed())) {
            Ok(line) => {
                eprintln!("soak: {:>5} s: {line}", began.elapsed().as_secs());
                heard.add(Line::parse(&line), began.elapsed());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok((heard, samples, began.elapsed())),
        }
    }
}
