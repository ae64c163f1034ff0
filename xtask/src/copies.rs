//! `cargo xtask copies`: what copies of a running machine cost: time, and memory that nobody shares.
//!
//! A machine with one command that waits is started, copied once, and copied many times; then every copy must answer. It is
//! also saved and restored. All processes and folders are gone afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Outcome;
use crate::program::Program;

/// The workload; its copies are named after it.
const NAME: &str = "copies-bench";
/// Answers whenever it is asked, and otherwise does nothing.
const IDLE: &str =
    "trap 'echo answered' USR1; trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait; done";
/// Later than machines that have little to do give back what is kept for their speed.
const IDLE_AFTER: Duration = Duration::from_secs(25);
/// How long all copies together may take to answer.
const PATIENCE: Duration = Duration::from_secs(600);

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    program: Program,
    /// Engine of the program
    #[arg(long, default_value = "auto")]
    engine: String,
    /// Image to run
    #[arg(long, default_value = "debian")]
    image: String,
    /// Guest memory
    #[arg(long, default_value = "256M")]
    memory: String,
    /// How many copies run at the same time
    #[arg(long, default_value_t = 200)]
    copies: usize,
}

/// The program on the store.
struct Strata<'a>(&'a Options);

impl Strata<'_> {
    /// What it writes, and to standard error.
    fn run(&self, arguments: &[&str]) -> Outcome<(String, String)> {
        let output = self.0.program.command(arguments).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        if output.status.success() {
            Ok((stdout, stderr))
        } else {
            Err(format!("{arguments:?}: {stderr}").into())
        }
    }

    fn json(&self, arguments: &[&str]) -> Outcome<Vec<Value>> {
        let value: Value = serde_json::from_str(&self.run(arguments)?.0)?;
        Ok(value.as_array().cloned().unwrap_or_default())
    }

    fn names(&self) -> Outcome<Vec<String>> {
        let all = self.json(&["ps", "--all", "--json"])?;
        let name = |one: &Value| one["workload"]["name"].as_str().map(str::to_owned);
        Ok(all.iter().filter_map(name).filter(|name| name.starts_with(NAME)).collect())
    }

    fn remove_all(&self) -> Outcome {
        for names in self.names()?.chunks(50) {
            let names = names.iter().map(String::as_str);
            self.run(&["rm", "--force"].into_iter().chain(names).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Measures, prints a table, and removes what it made.
pub fn run(options: &Options) -> Outcome {
    let strata = Strata(options);
    strata.remove_all()?;
    let folder = options.program.store.join(format!("{NAME}.snapshot"));
    let measured = measure(&strata, options, &folder);
    let removed = strata.remove_all();
    let _ = std::fs::remove_dir_all(&folder);
    for (what, value) in measured? {
        println!("| {what} | {value} |");
    }
    removed
}

type Table = Vec<(String, String)>;

fn measure(strata: &Strata<'_>, options: &Options, folder: &Path) -> Outcome<Table> {
    let memory = &options.memory;
    let start =
        ["run", "--detach", "--engine", &options.engine, "--memory", memory, "--name", NAME, &options.image];
    strata.run(&[&start[..], &["--", "sh", "-c", IDLE]].concat())?;
    await_log(strata, NAME, "up")?;
    // Its start has work left over.
    std::thread::sleep(Duration::from_secs(3));
    let mut table = restore(strata, folder)?;

    let ms = |time: Duration, count: usize| format!("{:.1} ms", time.as_secs_f64() * 1e3 / count as f64);
    let (time, (_, said)) = timed(|| strata.run(&["fork", NAME, "--verbose"]))?;
    table.push((format!("one copy of a machine of {memory}, pause of the original included"), ms(time, 1)));
    table
        .push(("the original stands still".to_owned(), after(&said, "stood still for ").unwrap_or_default()));
    let before = available_kib()?;
    let count = options.copies.saturating_sub(1).max(1);
    let (time, made) = timed(|| strata.json(&["fork", NAME, "--json", "--count", &count.to_string()]))?;
    table.push((format!("{} copies, each", made.len()), ms(time, made.len().max(1))));
    std::thread::sleep(Duration::from_secs(5));
    let taken = before.saturating_sub(available_kib()?);
    table.push((
        format!("memory of the host that {} idle copies take, each", made.len()),
        mib(taken / made.len() as u64),
    ));
    table.push((
        "memory that no other process shares, median of a copy's process".to_owned(),
        mib(own_kib(strata)?),
    ));

    let copies: Vec<String> = strata.names()?.into_iter().filter(|name| name != NAME).collect();
    let (time, answered) = timed(|| ask_all(strata, &copies))?;
    table.push((format!("copies that answer a command, of {}", copies.len()), answered.to_string()));
    table.push(("until all have answered".to_owned(), ms(time, 1)));
    let taken = before.saturating_sub(available_kib()?);
    table.push(("memory that they take then, each".to_owned(), mib(taken / made.len() as u64)));
    std::thread::sleep(IDLE_AFTER);
    let what = format!("memory that no other process shares, median, {} s later", IDLE_AFTER.as_secs());
    table.push((what, mib(own_kib(strata)?)));
    if answered == copies.len() {
        Ok(table)
    } else {
        Err(format!("{answered} of {} answer", copies.len()).into())
    }
}

/// Saves the workload and restores it: from the start of the process to the guest's next instruction.
fn restore(strata: &Strata<'_>, folder: &Path) -> Outcome<Table> {
    let at = folder.to_string_lossy();
    let (_, said) = strata.run(&["snapshot", NAME, &at, "--verbose"])?;
    let mut table = vec![(
        "snapshot: the machine stands still".to_owned(),
        after(&said, "stood still for ").unwrap_or_default(),
    )];
    let mut times = Vec::new();
    for round in 0..5 {
        let name = format!("{NAME}-restored-{round}");
        let restored = strata.0.program.command(&["restore", "--verbose", "--name", &name, &at]);
        let child =
            { restored }.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn()?;
        while !strata.names()?.contains(&name) {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Once it answers, its first instruction is past.
        while strata.run(&["kill", "--signal", "TERM", &name]).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = String::from_utf8_lossy(&child.wait_with_output()?.stderr).into_owned();
        let ms = after(&said, "command goes on after ").ok_or_else(|| format!("restore says {said}"))?;
        times.push(ms.trim_end_matches(" ms").parse::<u64>()?);
    }
    times.sort_unstable();
    table.push((
        "restore, process start to the guest's next instruction, median of 5".to_owned(),
        format!("{} ms", times[2]),
    ));
    Ok(table)
}

fn timed<T>(act: impl FnOnce() -> Outcome<T>) -> Outcome<(Duration, T)> {
    let began = Instant::now();
    let done = act()?;
    Ok((began.elapsed(), done))
}

/// The number, with its unit, that follows `mark` in `text`.
fn after(text: &str, mark: &str) -> Option<String> {
    let rest = text.split_once(mark)?.1;
    let end = rest.find(" ms")?;
    Some(rest[..end + 3].to_owned())
}

fn await_log(strata: &Strata<'_>, name: &str, line: &str) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while !strata.run(&["logs", name])?.0.lines().any(|said| said == line) {
        if Instant::now() >= deadline {
            return Err(format!("{name} never said {line:?}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Asks every copy, and counts those that answer.
fn ask_all(strata: &Strata<'_>, copies: &[String]) -> Outcome<usize> {
    let names = copies.iter().map(String::as_str);
    strata.run(&["kill", "--signal", "USR1"].into_iter().chain(names).collect::<Vec<_>>())?;
    Ok(copies.iter().filter(|name| await_log(strata, name, "answered").is_ok()).count())
}

fn available_kib() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The median of what copies have for themselves.
fn own_kib(strata: &Strata<'_>) -> Outcome<u64> {
    let stats = strata.json(&["stats", "--json"])?;
    let is_copy =
        |one: &&Value| one["name"].as_str().is_some_and(|name| name.starts_with(NAME) && name != NAME);
    let mut own: Vec<u64> = stats
        .iter()
        .filter(is_copy)
        .filter_map(|one| one["own_memory_bytes"].as_u64())
        .map(|bytes| bytes >> 10)
        .collect();
    own.sort_unstable();
    Ok(own.get(own.len() / 2).copied().unwrap_or_default())
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_what_the_program_says() {
        let said =
            " INFO saved in 82 ms; the machine stood still for 80 ms\n INFO command goes on after 15 ms\n";
        assert_eq!(after(said, "stood still for ").as_deref(), Some("80 ms"));
        assert_eq!(after(said, "command goes on after ").as_deref(), Some("15 ms"));
        assert_eq!(after(said, "nothing of the kind "), None);
    }
}
