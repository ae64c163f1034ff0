//! `cargo xtask containers`: what starting a container costs, beside the distribution's runtimes, and what many of them leave.
//!
//! Each round runs every contestant once, every other round in the opposite order, since the kernel still clears up after one
//! while the next runs: `true` of busybox in a bundle (`strata oci run`, runc, crun), and `true` of an image
//! (`strata run --isolation container`, podman). Then many containers run at the same time, and are removed; whatever
//! of theirs is left is a failure. It needs root.
//!
//! crun refuses hosts with both kinds of control groups. With `--v2-only` all bundles run where nothing but the v2 hierarchy is
//! to be seen, in a mount namespace of this program's own; images need limits, which such hosts have on v1, and are left out.
//! The bundles have no rules for devices there: on v2 those are programs in locked memory, of which crun wants more than some hosts
//! let anybody have.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::program::Program;

/// Workloads are named after it.
const NAME: &str = "containers-bench";
/// Where Strata keeps the states of containers that `run` makes.
const STATES: &str = "/run/strata/run";
/// What busybox is there for.
const TOOLS: [&str; 2] = ["true", "sh"];
/// What makes a host with both kinds of control groups look like one with v2 alone; `$0` runs there.
const V2_ONLY: &str =
    "umount --recursive /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" \"$@\"";

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    program: Program,
    /// Image to run
    #[arg(long, default_value = "debian")]
    image: String,
    /// Rounds of single starts
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// How many containers run at the same time
    #[arg(long, default_value_t = 500)]
    count: usize,
    /// How many of them are started at the same time
    #[arg(long, default_value_t = 100)]
    at_once: usize,
    /// Only bundles, where v2 control groups alone are to be seen
    #[arg(long)]
    v2_only: bool,
}

/// Measures, prints a table, and fails if anything is left.
pub fn run(options: &Options) -> Outcome {
    if options.v2_only && std::fs::read_to_string("/proc/self/mounts")?.contains(" cgroup rw") {
        return again_with_v2_only();
    }
    let folder = tempfile::tempdir()?;
    println!("| what | median | least | most memory of a process |\n|---|---|---|---|");
    single(options, folder.path())?;
    if options.v2_only { Ok(()) } else { many(options) }
}

/// This very program with the same arguments, where no other control groups are mounted.
fn again_with_v2_only() -> Outcome {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", V2_ONLY]);
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    if command.status()?.success() { Ok(()) } else { Err("it did not go well where v2 is alone".into()) }
}

/// A contestant: what it is called, and its command.
type Contestant = (String, Box<dyn Fn() -> Command>);

fn single(options: &Options, folder: &Path) -> Outcome {
    let mut contestants = bundles(options, folder)?;
    if !options.v2_only {
        contestants.extend(images(options, folder)?);
    }
    let mut times = vec![Vec::new(); contestants.len()];
    for round in 0..options.rounds {
        for n in 0..contestants.len() {
            let n = if round % 2 == 0 { n } else { contestants.len() - 1 - n };
            let begun = Instant::now();
            let good = contestants[n].1().stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
            times[n].push((begun.elapsed(), good));
        }
    }
    for ((name, command), mut times) in contestants.into_iter().zip(times) {
        if times.iter().any(|(_, good)| !good) {
            println!("| {name} | refuses this host | | |");
            continue;
        }
        times.sort();
        let memory = memory(&command(), folder)?;
        println!("| {name} | {} | {} | {memory} |", ms(times[times.len() / 2].0), ms(times[0].0));
    }
    Ok(())
}

/// The most memory that a process of a command had, of those that were waited for: the median of some runs.
fn memory(command: &Command, folder: &Path) -> Outcome<String> {
    const RUNS: usize = 5;
    let report = folder.join("memory");
    let mut all = Vec::new();
    for _ in 0..RUNS {
        let mut time = Command::new("time");
        time.args(["--format", "%M", "--output"])
            .arg(&report)
            .arg(command.get_program())
            .args(command.get_args());
        time.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        match time.stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => {}
            _ => return Ok("unknown (package time)".to_owned()),
        }
        let kib: u64 = std::fs::read_to_string(&report)?.trim().parse()?;
        all.push(kib);
    }
    all.sort_unstable();
    Ok(format!("{:.1} MiB", all[RUNS / 2] as f64 / 1024.0))
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Runtimes on one bundle.
fn bundles(options: &Options, folder: &Path) -> Outcome<Vec<Contestant>> {
    let bin = folder.join("rootfs/bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::copy("/bin/busybox", bin.join("busybox"))?;
    for tool in TOOLS {
        std::os::unix::fs::symlink("busybox", bin.join(tool))?;
    }
    let spec =
        Command::new(&options.program.strata).args(["oci", "spec", "--bundle"]).arg(folder).output()?;
    if !spec.status.success() {
        return Err(String::from_utf8_lossy(&spec.stderr).into_owned().into());
    }
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["args"] = serde_json::json!(["/bin/true"]);
    config["process"]["terminal"] = serde_json::json!(false);
    // Older runtimes know no newer one, and nothing of it is used.
    config["ociVersion"] = serde_json::json!("1.0.2");
    if let (true, Some(resources)) = (options.v2_only, config["linux"]["resources"].as_object_mut()) {
        resources.remove("devices");
    }
    std::fs::write(&path, config.to_string())?;
    let programs = [
        (options.program.strata.clone(), vec!["oci"]),
        (PathBuf::from("runc"), vec![]),
        (PathBuf::from("crun"), vec![]),
    ];
    let installed = |program: &Path| Command::new(program).arg("--version").output().is_ok();
    let contestants = programs.into_iter().filter(|(program, _)| installed(program));
    Ok(contestants
        .map(|(program, verbs)| {
            let bundle = folder.to_owned();
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = [&[name.as_str()], &verbs[..], &["run: true of busybox"]].concat().join(" ");
            let command = move || {
                let mut command = Command::new(&program);
                command.args(&verbs).args(["run", "--bundle"]).arg(&bundle).arg(NAME);
                command
            };
            (name, Box::new(command) as Box<dyn Fn() -> Command>)
        })
        .collect())
}

/// Whole paths, from an image.
fn images(options: &Options, folder: &Path) -> Outcome<Vec<Contestant>> {
    let (program, image) = (options.program.clone(), options.image.clone());
    let strata = move || program.command(&["run", "--isolation", "container", &image, "true"]);
    let name = format!("strata run --isolation container: true of {}", options.image);
    let mut contestants: Vec<Contestant> = vec![(name, Box::new(strata))];
    let folder = folder.to_owned();
    let podman = move |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", folder.join("containers.conf"));
        command.arg("--root").arg(folder.join("storage")).arg("--runroot").arg(folder.join("run"));
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]).args(arguments);
        (command, folder.clone())
    };
    let (mut import, folder) = podman(&["import", "-", "box"]);
    // Hosts where limits cannot be raised, and whose networks are not podman's to change.
    let conf =
        "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nnetns = \"none\"\n";
    std::fs::write(folder.join("containers.conf"), conf)?;
    let tar = Command::new("tar").arg("-C").arg(folder.join("rootfs")).args(["-c", "."]).output()?.stdout;
    std::fs::write(folder.join("root.tar"), tar)?;
    import.stdin(std::fs::File::open(folder.join("root.tar"))?);
    if import.output().is_ok_and(|output| output.status.success()) {
        let run = move || podman(&["run", "--rm", "box", "true"]).0;
        contestants.push(("podman run --rm with runc: true of busybox".to_owned(), Box::new(run)));
    }
    Ok(contestants)
}

/// What there is that containers might leave.
fn traces() -> Outcome<[usize; 3]> {
    let folders = Command::new("find").args(["/sys/fs/cgroup", "-type", "d"]).output()?.stdout;
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    let states = std::fs::read_dir(STATES).map_or(0, Iterator::count);
    Ok([lines(&folders), lines(&std::fs::read("/proc/self/mounts")?), states])
}

fn many(options: &Options) -> Outcome {
    let before = traces()?;
    let begun = Instant::now();
    let mut failed = 0;
    let names: Vec<String> = (0..options.count).map(|n| format!("{NAME}-{n}")).collect();
    for batch in names.chunks(options.at_once.max(1)) {
        let start = |name: &String| {
            let flags = ["run", "-d", "--isolation", "container", "--name", name, &options.image];
            let mut command = options.program.command(&[&flags[..], &["sleep", "100000"]].concat());
            command.stdout(Stdio::null()).spawn()
        };
        let children: Vec<_> = batch.iter().map(start).collect::<Result<_, _>>()?;
        for mut child in children {
            failed += usize::from(!child.wait()?.success());
        }
    }
    let started = begun.elapsed();
    let begun = Instant::now();
    let listed = options.program.command(&["ps", "-q"]).output()?.stdout;
    let (list, count) = (begun.elapsed(), listed.split(|byte| *byte == b'\n').count() - 1);
    let begun = Instant::now();
    for batch in names.chunks(50) {
        let names = batch.iter().map(String::as_str);
        options
            .program
            .command(&["rm", "--force"].into_iter().chain(names).collect::<Vec<_>>())
            .stdout(Stdio::null())
            .status()?;
    }
    let removed = begun.elapsed();
    let each = |time: Duration| ms(time / u32::try_from(options.count.max(1)).unwrap_or(u32::MAX));
    println!(
        "| {} containers, {} at once: start, each | {} | | |",
        options.count,
        options.at_once,
        each(started)
    );
    println!("| a list of {count} workloads | {} | | |", ms(list));
    println!("| removal, each | {} | | |", each(removed));
    let after = traces()?;
    if failed > 0 || after != before {
        let left = "control groups, mounts, states";
        return Err(format!("{failed} did not start; {left}: {before:?} before, {after:?} after").into());
    }
    Ok(())
}
