//! What Docker's API has no words for: the other commands, as processes of their own. What one of them does, or how it ends, is
//! what a user of the command line would see.

use std::process::{Command, Output, Stdio};

use api::{AfterSnapshot, Machines, Refusal, RefusalKind, SavedWorkload, Traffic};
use serde_json::Value;
use workload::Folder;

use super::{Host, refusal};
use crate::commands::{snapshots, usage};
use crate::exit::Exit;

impl Host {
    /// Runs one of the other commands to its end.
    fn output(&self, verb: &str, arguments: &[&str]) -> Result<Output, Refusal> {
        let mut command: Command = self.again(verb)?;
        let ran = command.args(arguments).stdin(Stdio::null()).output();
        ran.map_err(|error| Refusal::new(RefusalKind::Failed, format!("run strata {verb}: {error}")))
    }

    /// What it wrote, unless it failed.
    fn run(&self, verb: &str, arguments: &[&str]) -> Result<String, Refusal> {
        let output = self.output(verb, arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let kind = match output.status.code() {
            Some(code) if code == i32::from(Exit::Usage.code()) => RefusalKind::Invalid,
            _ => RefusalKind::Failed,
        };
        Err(Refusal::new(kind, reason(&said).unwrap_or_else(|| format!("strata {verb}: {}", output.status))))
    }

    fn json(&self, verb: &str, arguments: &[&str]) -> Result<Value, Refusal> {
        parse(verb, self.run(verb, arguments)?.as_bytes())
    }
}

fn parse(verb: &str, text: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(text)
        .map_err(|error| Refusal::new(RefusalKind::Failed, format!("what strata {verb} wrote: {error}")))
}

/// What a command said last about why it failed, and what to do about it.
fn reason(said: &str) -> Option<String> {
    let at = said.lines().rev().position(|line| line.starts_with("strata: "))?;
    let mut lines = said.lines().rev().take(at + 1).collect::<Vec<_>>().into_iter().rev();
    let line = lines.next()?.trim_start_matches("strata: ").to_owned();
    Some(match lines.find_map(|line| line.trim().strip_prefix("next: ")) {
        Some(next) => format!("{line} (next: {next})"),
        None => line,
    })
}

impl Machines for Host {
    fn check(&self) -> Result<Value, Refusal> {
        // What is missing makes it end with another code; it has written what that is.
        parse("check", &self.output("check", &["--json"])?.stdout)
    }

    fn templates(&self) -> Result<Value, Refusal> {
        self.json("templates", &["ls", "--json"])
    }

    fn remove_template(&self, id: &str) -> Result<(), Refusal> {
        let found = self.templates()?;
        let is_there = found.as_array().is_some_and(|rows| rows.iter().any(|row| row["id"] == id));
        if !is_there {
            return Err(Refusal::new(RefusalKind::NotFound, format!("No such template: {id}")));
        }
        self.run("templates", &["rm", "--", id]).map(drop)
    }

    fn snapshots(&self) -> Result<Vec<SavedWorkload>, Refusal> {
        snapshots::all(self.root()).map_err(refusal)
    }

    fn snapshot(&self, folder: &Folder, name: &str, after: AfterSnapshot) -> Result<(), Refusal> {
        let path = snapshots::path(self.root(), name).map_err(refusal)?;
        let path = path.to_string_lossy();
        let stop = (after == AfterSnapshot::Stop).then_some("--stop");
        let mut arguments: Vec<&str> = stop.into_iter().collect();
        arguments.extend(["--", folder.description().id.as_str(), &path]);
        self.run("snapshot", &arguments).map(drop)
    }

    fn restore(&self, snapshot: &str, name: Option<&str>) -> Result<String, Refusal> {
        let path = snapshots::path(self.root(), snapshot).map_err(refusal)?;
        if !path.is_dir() {
            return Err(Refusal::new(RefusalKind::NotFound, format!("No such snapshot: {snapshot}")));
        }
        if let Some(other) = name.and_then(|name| self.workloads.find(name).ok()) {
            let other = other.description();
            if name == Some(other.name.as_str()) {
                return Err(Refusal::name_taken(&other.name, &other.id));
            }
        }
        let path = path.to_string_lossy();
        let mut arguments = vec!["--detach"];
        arguments.extend(name.iter().flat_map(|name| ["--name", name]));
        arguments.extend(["--", &path]);
        Ok(self.run("restore", &arguments)?.trim().to_owned())
    }

    fn remove_snapshot(&self, name: &str) -> Result<(), Refusal> {
        let path = snapshots::path(self.root(), name).map_err(refusal)?;
        if !path.is_dir() {
            return Err(Refusal::new(RefusalKind::NotFound, format!("No such snapshot: {name}")));
        }
        snapshots::remove(self.root(), name).map_err(refusal)
    }

    fn fork(&self, folder: &Folder, count: u32) -> Result<Value, Refusal> {
        let count = count.to_string();
        self.json("fork", &["--json", "--count", &count, "--", &folder.description().id])
    }

    fn traffic(&self, folder: &Folder) -> Option<Traffic> {
        usage::traffic(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_says_why_and_what_next() {
        let said = "pulling\nstrata: fork \"a\": it can write to its disk x\n  next: strata snapshot --stop moves it\n";
        assert_eq!(
            reason(said).as_deref(),
            Some("fork \"a\": it can write to its disk x (next: strata snapshot --stop moves it)")
        );
        assert_eq!(reason("strata: one\nstrata: two\n").as_deref(), Some("two"));
        assert_eq!(reason("nothing of ours\n"), None);
    }
}
