//! A guest's errand from start to end, and what to do with a guest that does not come to one.
//!
//! The guest says `BENCH-UP`, then for each row `BENCH-ROW name` and `BENCH name seconds checksum`, then
//! `BENCH-DONE`. A row that takes too long is noted as that, its machine is killed, and another one is started for
//! the rows after it: one bad row must not cost the whole run.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::classes::{FIRST_LINE, OVERHEAD};
use super::contenders::MEMORY_MIB;
use super::figures::{Row, Value};
use super::overhead;
use crate::{Outcome, lines};

/// How often a machine that says nothing is started before it is given up.
const ATTEMPTS: usize = 2;

/// How long to wait.
#[derive(Clone, Copy)]
pub struct Patience {
    /// From the start to the first line, in seconds.
    pub boot_s: u64,
    /// For one row, in seconds.
    pub row_s: u64,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Timeout,
    Died,
}

/// What came out of one machine.
struct Heard {
    rows: Vec<Row>,
    /// The row that had begun and not ended.
    open: Option<String>,
    up: bool,
    end: End,
}

/// Runs `rows` in machines that `start` makes, and gives a row for each, with the figures of the first boot.
pub fn run(
    rows: &[&str],
    patience: Patience,
    mut start: impl FnMut(&[&str]) -> Command,
) -> Outcome<Vec<Row>> {
    let mut all: Vec<Row> = Vec::new();
    let mut left = rows;
    let mut silent = 0;
    while !left.is_empty() {
        let heard = listen(start(left), patience)?;
        let again = !all.is_empty();
        all.extend(heard.rows.into_iter().filter(|row| !again || rows.contains(&row.name.as_str())));
        let value = if heard.end == End::Timeout { Value::Timeout } else { Value::Failed };
        if let Some(open) = &heard.open {
            all.push(Row::new(open, value));
        }
        let before = left.len();
        while left.first().is_some_and(|name| all.iter().any(|row| row.name == *name)) {
            left = &left[1..];
        }
        silent = if left.len() < before { 0 } else { silent + 1 };
        if silent == ATTEMPTS || (heard.end == End::Done && !left.is_empty()) {
            let state = if heard.up { "ended" } else { "never came up" };
            eprintln!("bench: the guest {state} before {}", left.join(", "));
            all.extend(left.iter().map(|name| Row::new(name, Value::Failed)));
            break;
        }
    }
    Ok(all)
}

/// Starts a machine and takes down what its guest says until it is done, silent for too long, or gone.
fn listen(mut command: Command, patience: Patience) -> Outcome<Heard> {
    let started = Instant::now();
    let mut machine = Machine::start(&mut command)?;
    let mut heard = Heard { rows: Vec::new(), open: None, up: false, end: End::Died };
    loop {
        let wait = Duration::from_secs(if heard.up { patience.row_s } else { patience.boot_s });
        let line = match machine.lines.recv_timeout(wait) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                heard.end = End::Timeout;
                return Ok(heard);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(heard),
        };
        match line.trim() {
            "BENCH-UP" => {
                heard.up = true;
                heard.rows.push(Row::new(FIRST_LINE, Value::Is(started.elapsed().as_secs_f64())));
                heard.rows.extend(machine.overhead(OVERHEAD[0]));
            }
            "BENCH-DONE" => {
                heard.rows.extend(machine.overhead(OVERHEAD[1]));
                heard.end = End::Done;
                machine.end();
                return Ok(heard);
            }
            line => match line.strip_prefix("BENCH-ROW ") {
                Some(name) => {
                    // The one before ended without a word.
                    let before = heard.open.replace(name.to_owned());
                    heard.rows.extend(before.map(|open| Row::new(&open, Value::Failed)));
                }
                None => {
                    if let Some(row) = Row::parse(line) {
                        heard.open = None;
                        heard.rows.push(row);
                    }
                }
            },
        }
    }
}

/// Seconds from the start of `command` to its first line; it must then end by itself.
pub fn first_line(mut command: Command, patience: Patience) -> Outcome<Value> {
    let started = Instant::now();
    let mut machine = Machine::start(&mut command)?;
    Ok(match machine.lines.recv_timeout(Duration::from_secs(patience.boot_s)) {
        Ok(_) => {
            let seconds = started.elapsed().as_secs_f64();
            machine.end();
            Value::Is(seconds)
        }
        Err(RecvTimeoutError::Timeout) => Value::Timeout,
        Err(RecvTimeoutError::Disconnected) => Value::Failed,
    })
}

/// A machine's process; killed if it has not ended when this is dropped.
struct Machine {
    child: Child,
    lines: Receiver<String>,
}

impl Machine {
    fn start(command: &mut Command) -> Outcome<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command
            .spawn()
            .map_err(|error| format!("run {}: {error}", command.get_program().to_string_lossy()))?;
        let lines = lines::of(&mut child)?;
        Ok(Self { child, lines })
    }

    fn overhead(&self, name: &str) -> Option<Row> {
        let kib = overhead::kib(self.child.id(), MEMORY_MIB * 1024)?;
        Some(Row::new(name, Value::Is(kib as f64)))
    }

    /// Waits for the end; a machine that does not come to one is killed.
    fn end(&mut self) {
        let patience = Instant::now() + Duration::from_secs(20);
        while Instant::now() < patience {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended already is no error worth telling.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last word of the line that `strata -v` ends with, before ` guest instructions`; and the rows of the guest.
pub fn counted(mut command: Command, patience: Patience) -> Outcome<(u64, Vec<Row>)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut output = child.stdout.take().ok_or("no output")?;
    let mut account = child.stderr.take().ok_or("no account")?;
    // What the program says of itself is a line or two: it cannot fill a pipe and stop.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + Duration::from_secs(patience.boot_s + patience.row_s);
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    child.wait()?;
    let said = reader.join().map_err(|_| "the reader of the console panicked")??;
    let mut text = String::new();
    account.read_to_string(&mut text)?;
    let before = text.split(" guest instructions").next().unwrap_or_default();
    let count = before.split_whitespace().next_back().and_then(|word| word.parse().ok());
    let count = count.ok_or_else(|| format!("no count of instructions in {text:?}"))?;
    Ok((count, said.lines().filter_map(Row::parse).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { boot_s: 20, row_s: 1 };

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn values(rows: &[Row]) -> Vec<(&str, Value)> {
        let programs = rows.iter().filter(|row| row.name.len() == 1);
        programs.map(|row| (row.name.as_str(), row.value)).collect()
    }

    #[test]
    fn a_row_that_takes_too_long_costs_itself_only() {
        let mut starts = Vec::new();
        let rows = run(&["a", "b", "c"], PATIENCE, |left| {
            starts.push(left.join(","));
            shell(match starts.len() {
                1 => "echo BENCH-UP; echo BENCH-ROW a; echo BENCH a 1 x; echo BENCH-ROW b; exec sleep 100",
                _ => "echo BENCH-UP; echo BENCH-ROW c; echo BENCH c 3 x; echo BENCH-DONE",
            })
        });
        let rows = rows.unwrap();
        assert_eq!(values(&rows), [("a", Value::Is(1.0)), ("b", Value::Timeout), ("c", Value::Is(3.0))]);
        assert_eq!(starts, ["a,b,c", "c"]);
        assert_eq!(rows.iter().filter(|row| row.name == FIRST_LINE).count(), 1);
    }

    #[test]
    fn a_program_that_crashes_costs_its_own_row_only() {
        let script =
            "echo BENCH-UP; for r in a b c; do echo BENCH-ROW $r; [ $r = b ] || echo BENCH $r 1 x; done
            echo BENCH-ROW d; echo BENCH-DONE";
        let rows = run(&["a", "b", "c", "d"], PATIENCE, |_| shell(script)).unwrap();
        let (ok, failed) = (Value::Is(1.0), Value::Failed);
        assert_eq!(values(&rows), [("a", ok), ("b", failed), ("c", ok), ("d", failed)]);
    }

    #[test]
    fn a_guest_that_never_comes_up_fails_every_row() {
        let rows = run(&["a", "b"], PATIENCE, |_| shell("echo hello")).unwrap();
        assert_eq!(values(&rows), [("a", Value::Failed), ("b", Value::Failed)]);
    }

    #[test]
    fn instructions_are_in_the_account() {
        let script = "echo BENCH a 2 x; echo ' INFO engine e: 123 guest instructions on 1 vCPU in 2 s' >&2";
        let (count, rows) = counted(shell(script), PATIENCE).unwrap();
        assert_eq!((count, values(&rows)), (123, vec![("a", Value::Is(2.0))]));
    }
}
