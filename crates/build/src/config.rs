//! The config of the image that a stage makes, as JSON, so that what this does not know of a base stays in it.
//!
//! Source: OCI image specification 1.1, `config.md`, with Docker's `Healthcheck`, `OnBuild` and `Shell` beside it.

use serde_json::{Map, Value, json};

use crate::instruction::{Command, Healthcheck};

/// What commands in shell form are run by when nothing says otherwise.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Where commands are looked for when nothing says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A config that changes.
#[derive(Debug, Clone)]
pub struct Config(Value);

impl Config {
    /// For an image that begins with nothing.
    pub fn scratch(architecture: &str) -> Config {
        Config(json!({ "architecture": architecture, "os": "linux", "config": {}, "history": [] }))
    }

    /// For an image that begins with another's.
    pub fn of(base: Value) -> Config {
        let mut config = Config(base);
        if !config.0["config"].is_object() {
            config.0["config"] = json!({});
        }
        if !config.0["history"].is_array() {
            config.0["history"] = json!([]);
        }
        config
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }

    fn inner(&self) -> &Value {
        &self.0["config"]
    }

    fn set(&mut self, key: &str, value: Value) {
        self.0["config"][key] = value;
    }

    fn remove(&mut self, key: &str) {
        if let Some(map) = self.0["config"].as_object_mut() {
            map.remove(key);
        }
    }

    fn strings(&self, key: &str) -> Vec<String> {
        let list = self.inner()[key].as_array().into_iter().flatten();
        list.filter_map(|value| value.as_str().map(str::to_owned)).collect()
    }

    /// Notes a step, and when the config was last changed.
    pub fn note(&mut self, created: &str, by: &str, empty: bool) {
        let mut step = json!({ "created": created, "created_by": by });
        if empty {
            step["empty_layer"] = true.into();
        }
        if let Some(history) = self.0["history"].as_array_mut() {
            history.push(step);
        }
        self.0["created"] = created.into();
    }

    /// The environment, `NAME=value`.
    pub fn env(&self) -> Vec<String> {
        self.strings("Env")
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<String> {
        self.env().into_iter().find_map(|entry| Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    }

    /// Sets a variable where it stands, or at the end.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        let mut env = self.env();
        let entry = format!("{name}={value}");
        match env.iter_mut().find(|have| have.split('=').next() == Some(name)) {
            Some(have) => *have = entry,
            None => env.push(entry),
        }
        self.set("Env", json!(env));
    }

    /// The environment gets a PATH if it has none: what Docker gives an image that begins with nothing.
    pub fn default_path(&mut self) {
        if self.variable("PATH").is_none() {
            self.set_variable("PATH", PATH);
        }
    }

    /// Sets a label.
    pub fn set_label(&mut self, name: &str, value: &str) {
        self.entry("Labels", name, value.into());
    }

    fn entry(&mut self, key: &str, name: &str, value: Value) {
        if !self.inner()[key].is_object() {
            self.set(key, json!({}));
        }
        self.0["config"][key][name] = value;
    }

    /// Says that a port is served.
    pub fn expose(&mut self, port: &str) {
        self.entry("ExposedPorts", port, json!({}));
    }

    /// Says that a folder is a volume.
    pub fn add_volume(&mut self, path: &str) {
        self.entry("Volumes", path, json!({}));
    }

    /// Where commands start: absolute.
    pub fn workdir(&self) -> String {
        let text = self.inner()["WorkingDir"].as_str().unwrap_or_default();
        if text.is_empty() { "/".to_owned() } else { text.to_owned() }
    }

    /// Sets it.
    pub fn set_workdir(&mut self, path: &str) {
        self.set("WorkingDir", path.into());
    }

    /// Who commands are run as.
    pub fn user(&self) -> String {
        self.inner()["User"].as_str().unwrap_or_default().to_owned()
    }

    /// Sets it.
    pub fn set_user(&mut self, user: &str) {
        self.set("User", user.into());
    }

    /// Sets the signal that asks for the end.
    pub fn set_stop_signal(&mut self, signal: &str) {
        self.set("StopSignal", signal.into());
    }

    /// What runs commands in shell form.
    pub fn shell(&self) -> Vec<String> {
        let own = self.strings("Shell");
        if own.is_empty() { SHELL.map(str::to_owned).to_vec() } else { own }
    }

    /// Sets it.
    pub fn set_shell(&mut self, words: &[String]) {
        self.set("Shell", json!(words));
    }

    /// The words of a command in either form.
    pub fn words(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) if text.is_empty() => Vec::new(),
            Command::Shell(text) => self.shell().into_iter().chain([text.clone()]).collect(),
        }
    }

    /// Sets the command.
    pub fn set_cmd(&mut self, command: &Command) {
        let words = self.words(command);
        self.set("Cmd", json!(words));
    }

    /// Sets the entrypoint. A command that the base gave belonged to the base's entrypoint and goes.
    pub fn set_entrypoint(&mut self, command: &Command, own_cmd: bool) {
        let words = self.words(command);
        self.set("Entrypoint", json!(words));
        if !own_cmd {
            self.remove("Cmd");
        }
    }

    /// Sets how to see whether the command is well.
    pub fn set_healthcheck(&mut self, check: Option<&Healthcheck>) {
        let Some(check) = check else {
            self.set("Healthcheck", json!({ "Test": ["NONE"] }));
            return;
        };
        let test: Vec<String> = match &check.command {
            Command::Exec(words) => ["CMD".to_owned()].into_iter().chain(words.clone()).collect(),
            Command::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
        };
        let mut value = Map::from_iter([("Test".to_owned(), json!(test))]);
        for (name, time) in &check.times {
            let key = match *name {
                "interval" => "Interval",
                "timeout" => "Timeout",
                "start-period" => "StartPeriod",
                _ => "StartInterval",
            };
            value.insert(key.to_owned(), json!(time));
        }
        if let Some(retries) = check.retries {
            value.insert("Retries".to_owned(), json!(retries));
        }
        self.set("Healthcheck", Value::Object(value));
    }

    /// Adds an instruction for those who build on this.
    pub fn add_trigger(&mut self, text: &str) {
        let mut all = self.strings("OnBuild");
        all.push(text.to_owned());
        self.set("OnBuild", json!(all));
    }

    /// Takes those of the base.
    pub fn take_triggers(&mut self) -> Vec<String> {
        let all = self.strings("OnBuild");
        self.remove("OnBuild");
        all
    }

    /// Sets who made it.
    pub fn set_author(&mut self, author: &str) {
        self.0["author"] = author.into();
    }
}
