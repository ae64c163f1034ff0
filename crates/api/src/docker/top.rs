//! `GET /containers/NAME/top`: the processes of a workload, as `ps` shows them.
//!
//! Those of a container are the host's, whose `ps` is run with the client's arguments and of whose lines those count that are about
//! them. Those of a machine only its guest knows: its agent has a list of its own, and for other arguments the image's `ps` is run.

use std::io;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use workload::log::rfc3339;
use workload::{Folder, Isolation};

use super::params::Params;
use super::{App, Shared, json};
use crate::backend::{CommandOptions, Process};
use crate::error::{ApiError, Result};

/// What docker's command asks for.
const USUAL: &str = "-ef";

/// `GET /containers/NAME/top`
pub(super) async fn top(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    let arguments = params.get("ps_args").filter(|text| !text.is_empty()).unwrap_or(USUAL).to_owned();
    let look = folder.clone();
    let (runs, seen) =
        app.blocking(move |backend| Ok((look.state()?.status.is_active(), backend.processes(&look)))).await?;
    if !runs {
        return Err(ApiError::conflict(format!("container {} is not running", folder.description().id)));
    }
    folder.tell("top", &[]);
    let is_container = folder.description().wanted.isolation == Isolation::Container;
    let table = match seen {
        Some(processes) if is_container => app.blocking(move |_| of_host(&processes, &arguments)).await?,
        Some(processes) if arguments == USUAL => table(&processes),
        _ => in_guest(&app, &folder, &arguments).await?,
    };
    Ok(json(StatusCode::OK, &table))
}

/// What the host's `ps` says of these processes.
fn of_host(processes: &[Process], arguments: &str) -> Result<Value> {
    check_arguments(arguments)?;
    let pids: Vec<String> = processes.iter().map(|process| process.pid.to_string()).collect();
    let run = |more: Option<String>| {
        Command::new("ps").args(arguments.split_whitespace()).args(more).stdin(Stdio::null()).output()
    };
    // Not all arguments go together with a list of processes.
    let output = match run(Some(format!("-q{}", pids.join(",")))) {
        Ok(output) if !output.status.success() => run(None),
        other => other,
    };
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound && arguments == USUAL => {
            return Ok(table(processes));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ApiError::not_offered(format!(
                "top {arguments}: this host has no ps, and without it {USUAL} is all there is"
            )));
        }
        output => output.map_err(|error| ApiError::failed(format!("run ps: {error}")))?,
    };
    let mut table = parse_table(&said(output)?);
    let titles = table["Titles"].as_array().into_iter().flatten();
    let column = titles.into_iter().position(|title| title == "PID");
    let column = column.ok_or_else(|| ApiError::failed("Couldn't find PID field in ps output"))?;
    if let Some(rows) = table["Processes"].as_array_mut() {
        rows.retain(|row| row[column].as_str().is_some_and(|pid| pids.iter().any(|own| own == pid)));
    }
    Ok(table)
}

/// Another column that is called `PID` would have others' processes shown.
fn check_arguments(arguments: &str) -> Result<()> {
    let renames = |word: &str| word.split_once('=').is_some_and(|(_, title)| title.trim().starts_with("PID"));
    if arguments.split([' ', '\t', ',']).any(renames) {
        return Err(ApiError::bad(format!("specifying \"{arguments}\" is not allowed")));
    }
    Ok(())
}

/// What `ps` wrote, if it went well.
fn said(output: Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(ApiError::failed(format!("error running ps: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn table(processes: &[Process]) -> Value {
    let row = |process: &Process| {
        let seconds = process.cpu_ms / 1000;
        let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let started = rfc3339(process.started_ms).get(11..16).unwrap_or_default().to_owned();
        [
            process.uid.to_string(),
            process.pid.to_string(),
            process.ppid.to_string(),
            "0".to_owned(),
            started,
            "?".to_owned(),
            time,
            process.command.clone(),
        ]
    };
    json!({
        "Titles": ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
        "Processes": processes.iter().map(row).collect::<Vec<_>>(),
    })
}

/// What the workload's own `ps` says.
async fn in_guest(app: &Arc<Shared>, folder: &Folder, arguments: &str) -> Result<Value> {
    let words = arguments.split_whitespace().map(str::to_owned);
    let options = CommandOptions {
        command: std::iter::once("ps".to_owned()).chain(words).collect(),
        ..CommandOptions::default()
    };
    let folder = folder.clone();
    let output = app
        .blocking(move |backend| {
            let output = backend.command(&folder, &options)?.stdin(Stdio::null()).output();
            output.map_err(|error| ApiError::failed(format!("run ps in the guest: {error}")))
        })
        .await?;
    Ok(parse_table(&said(output)?))
}

/// A table whose last column may have spaces.
fn parse_table(text: &str) -> Value {
    let mut lines = text.lines();
    let titles: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let row = |line: &str| {
        let mut rest = line.trim_start();
        let mut fields = Vec::new();
        while fields.len() + 1 < titles.len() {
            let (field, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            fields.push(field.to_owned());
            rest = after.trim_start();
        }
        fields.push(rest.trim_end().to_owned());
        fields
    };
    json!({ "Titles": titles, "Processes": lines.map(row).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_keeps_its_spaces() {
        let table = parse_table("PID TTY   CMD\n  1 ?     sh -c a b\n 20 pts/0 ps\n");
        assert_eq!(table["Titles"], json!(["PID", "TTY", "CMD"]));
        assert_eq!(table["Processes"], json!([["1", "?", "sh -c a b"], ["20", "pts/0", "ps"]]));
    }

    #[test]
    fn the_hosts_ps_shows_no_other_processes() {
        let own = Process {
            pid: std::process::id() as i32,
            ppid: 0,
            uid: 0,
            started_ms: 0,
            cpu_ms: 0,
            command: String::new(),
        };
        for arguments in ["-ef", "aux", "-eo pid,comm"] {
            match of_host(std::slice::from_ref(&own), arguments) {
                Ok(table) => assert_eq!(table["Processes"].as_array().map(Vec::len), Some(1), "{arguments}"),
                Err(error) => assert_eq!(error.status.as_u16(), 501, "{arguments}"),
            }
        }
        for wrong in ["-o ppid=PID", "-o pid,ppid=PID"] {
            assert_eq!(of_host(&[], wrong).unwrap_err().status.as_u16(), 400, "{wrong}");
        }
    }
}
