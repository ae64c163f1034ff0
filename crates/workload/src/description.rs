//! What a workload is: decided once, when it is made.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{self, Durable};
use crate::folder::{Folder, Workloads, parse_name};
use crate::mount::Mount;
use crate::networks::Endpoint;

/// The version of [`Description`] that this build writes and reads.
pub(crate) const VERSION: u32 = 1;

/// What a workload is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Of this very type: 1.
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among the workloads of a store.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// What the user decided.
    #[serde(flatten)]
    pub wanted: Wanted,
}

/// What the user decides about a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What stands between it and the host.
    pub isolation: Isolation,
    /// The image, as the user named it.
    pub image: String,
    /// What runs in it: for lists; the worker finds it in `options`.
    pub command: Vec<String>,
    /// It is removed when it has ended.
    pub remove: bool,
    /// When it is started again.
    pub restart: Restart,
    /// How much of its output is kept.
    pub log: LogLimits,
    /// How to see whether it is well.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// The signal that asks it to end, by its number on Linux x86.
    pub stop_signal: u8,
    /// Its command runs on a terminal.
    pub tty: bool,
    /// Its command has a standard input.
    pub interactive: bool,
    /// Free text by key, for those who look for it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Ports of the host that lead to it, `[HOSTIP:]HOSTPORT:PORT[/PROTOCOL]`: for lists.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Networks with a name that it is on whenever it runs, for lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Endpoint>,
    /// What it sees beside its image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// How a client of the API described it, in that client's words: it is told them back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<serde_json::Value>,
    /// All that the worker needs to know, in its own words.
    pub options: serde_json::Value,
}

impl Wanted {
    /// The names of the volumes that it sees.
    pub fn volumes(&self) -> Vec<String> {
        self.mounts.iter().filter_map(Mount::volume).map(str::to_owned).collect()
    }
}

impl Workloads {
    /// Gives a workload another name, also on the networks it is on. Who watches it goes on with the old one in its messages.
    ///
    /// # Errors
    /// The name is none or another's, or the folder cannot be written.
    pub fn rename(&self, folder: &Folder, name: String) -> Result<()> {
        let lock = self.lock()?;
        let name = parse_name(&name).map_err(|reason| Error::BadName { name, reason })?;
        self.check_free(&name)?;
        let old = folder.description();
        let description = Description { name, ..old.clone() };
        files::replace(&folder.path().join("workload.json"), &description, Durable::Now)?;
        Folder::open(folder.path())?.tell("rename", &[("oldName", old.name.clone())]);
        // Those of networks are never waited for with this one.
        drop(lock);
        if description.wanted.networks.is_empty() {
            return Ok(());
        }
        self.networks()?.rename(&old.id, &old.name, &description.name)
    }

    /// Decides something else about a workload. Whoever watches it has been told some of it already.
    ///
    /// # Errors
    /// It is gone, or its folder cannot be written.
    pub fn change(&self, folder: &Folder, change: impl FnOnce(&mut Wanted)) -> Result<()> {
        let _lock = self.lock()?;
        let mut description = Folder::open(folder.path())?.description().clone();
        change(&mut description.wanted);
        files::replace(&folder.path().join("workload.json"), &description, Durable::Now)?;
        folder.tell("update", &[]);
        Ok(())
    }
}

/// What stands between a workload and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A virtual machine.
    Vm,
    /// Name spaces of the host's kernel.
    Container,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isolation::Vm => "vm",
            Isolation::Container => "container",
        })
    }
}

/// How to see whether a workload is well. Docker's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// A command that is run in the workload; 0 is well.
    pub command: Vec<String>,
    /// Milliseconds from one check to the next.
    pub interval_ms: u64,
    /// A check that takes longer has failed.
    pub timeout_ms: u64,
    /// How long after the start failures do not count.
    pub start_period_ms: u64,
    /// Failures in a row that count.
    pub retries: u32,
}

impl HealthCheck {
    /// From one check to the next, and how long one may take, where nobody says anything.
    pub const PERIOD: Duration = Duration::from_secs(30);
    /// Failures in a row that count, where nobody says anything.
    pub const RETRIES: u32 = 3;
}

/// What the words of an image or a client say about a health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthTest {
    /// Nothing.
    Unsaid,
    /// There is to be none.
    Off,
    /// This command.
    Command(Vec<String>),
}

impl HealthTest {
    /// Understands `NONE`, `CMD` and a command line, or `CMD-SHELL` and a line for the shell; nothing if it is none of them.
    pub fn parse(words: &[String]) -> Option<HealthTest> {
        match words {
            [] => Some(HealthTest::Unsaid),
            [kind, ..] if kind == "NONE" => Some(HealthTest::Off),
            [kind, words @ ..] if kind == "CMD" && !words.is_empty() => {
                Some(HealthTest::Command(words.to_vec()))
            }
            [kind, line] if kind == "CMD-SHELL" => Some(HealthTest::shell(line)),
            _ => None,
        }
    }

    /// A line for the shell in the workload.
    pub fn shell(line: &str) -> HealthTest {
        HealthTest::Command(["/bin/sh", "-c", line].map(str::to_owned).to_vec())
    }
}

/// How much of a workload's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// A file that is longer is set aside.
    pub max_bytes: u64,
    /// Files that are kept, the current one among them; 0 keeps nothing of what is written.
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        LogLimits { max_bytes: 20 << 20, files: 5 }
    }
}

impl LogLimits {
    /// What keeps the output, in docker's word: one that keeps it in files of JSON, or `none`.
    #[must_use]
    pub fn driver(self) -> &'static str {
        if self.files == 0 { "none" } else { "json-file" }
    }

    /// From docker's words: the driver, of which `local` has the files of `json-file` here, and its options, `KEY=VALUE`:
    /// `max-size`, in bytes or with k, m or g behind it, -1 for any, and `max-file`.
    ///
    /// # Errors
    /// A driver or a key that is not known, or a value that makes no sense.
    pub fn parse<'a>(
        driver: &str,
        options: impl IntoIterator<Item = &'a str>,
    ) -> std::result::Result<Self, String> {
        let mut limits = match driver {
            "json-file" | "local" => Self::default(),
            "none" => Self { files: 0, ..Self::default() },
            _ => return Err(format!("log driver {driver:?}: json-file, local and none are there")),
        };
        for option in options {
            if limits.files == 0 {
                return Err(format!("log option {option:?}: nothing is kept"));
            }
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let known = match key {
                "max-size" => log_bytes(value).map(|bytes| limits.max_bytes = bytes),
                "max-file" => value.parse().ok().filter(|files| *files > 0).map(|files| limits.files = files),
                _ => return Err(format!("log option {key:?}: max-size and max-file are there")),
            };
            known.ok_or_else(|| format!("log option {option:?}: it makes no sense"))?;
        }
        Ok(limits)
    }
}

fn log_bytes(text: &str) -> Option<u64> {
    if text == "-1" {
        return Some(u64::MAX);
    }
    let text = text.to_ascii_lowercase();
    let text = text.trim_end_matches('b');
    let mut units = [('k', 10), ('m', 20), ('g', 30)].into_iter();
    let found = units.find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = found.unwrap_or((text, 0));
    number.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

/// When a workload that has ended is started again. Docker's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When its exit code is not 0, at most so many times; nothing is without end.
    OnFailure(Option<u32>),
    /// Always, unless the user stopped it.
    Always,
}

impl Restart {
    /// Whether to start again after `restarts` times, now that it has ended with `code`.
    pub fn again(self, code: u8, restarts: u32) -> bool {
        match self {
            Restart::No => false,
            Restart::OnFailure(most) => code != 0 && most.is_none_or(|most| restarts < most),
            Restart::Always => true,
        }
    }
}

impl FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || "it is no, on-failure[:TIMES], always or unless-stopped".to_owned();
        Ok(match text.split_once(':') {
            None => match text {
                "no" => Restart::No,
                "on-failure" => Restart::OnFailure(None),
                // What the user stopped has ended, and is not started again with a server, so both mean the same.
                "always" | "unless-stopped" => Restart::Always,
                _ => return Err(wrong()),
            },
            Some(("on-failure", times)) => Restart::OnFailure(Some(times.parse().map_err(|_| wrong())?)),
            Some(_) => return Err(wrong()),
        })
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Restart::No => f.write_str("no"),
            Restart::OnFailure(None) => f.write_str("on-failure"),
            Restart::OnFailure(Some(times)) => write!(f, "on-failure:{times}"),
            Restart::Always => f.write_str("always"),
        }
    }
}

impl TryFrom<String> for Restart {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<Restart> for String {
    fn from(restart: Restart) -> String {
        restart.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_logs_are_dockers() {
        let of = |options: &[&str]| LogLimits::parse("local", options.iter().copied()).ok();
        assert_eq!(LogLimits::parse("none", []).map(LogLimits::driver), Ok("none"));
        assert!(LogLimits::parse("none", ["max-file=2"]).is_err() && LogLimits::parse("syslog", []).is_err());
        let limits = |max_bytes, files| Some(LogLimits { max_bytes, files });
        assert_eq!(of(&[]), Some(LogLimits::default()));
        assert_eq!(of(&["max-size=10m", "max-file=3"]), limits(10 << 20, 3));
        assert_eq!(of(&["max-size=5000", "max-file=1"]), limits(5000, 1));
        assert_eq!(of(&["max-size=1GB"]), limits(1 << 30, 5));
        assert_eq!(of(&["max-size=-1"]), limits(u64::MAX, 5));
        for wrong in [
            "max-size",
            "max-size=0",
            "max-size=m",
            "max-size=99999999999g",
            "max-file=0",
            "max-file=x",
            "mode=a",
        ] {
            assert_eq!(of(&[wrong]), None, "{wrong}");
        }
    }

    #[test]
    fn restart_policies_are_dockers() {
        for text in ["no", "on-failure", "on-failure:3", "always"] {
            assert_eq!(text.parse::<Restart>().unwrap().to_string(), text);
        }
        for text in ["", "yes", "on-failure:", "on-failure:-1", "always:3"] {
            assert!(text.parse::<Restart>().is_err(), "{text:?}");
        }
        let again = |text: &str, code, restarts| text.parse::<Restart>().unwrap().again(code, restarts);
        assert!(!again("no", 1, 0) && again("always", 0, 1000));
        assert!(!again("on-failure", 0, 0) && again("on-failure", 1, 1000));
        assert!(again("on-failure:2", 1, 1) && !again("on-failure:2", 1, 2));
    }
}
