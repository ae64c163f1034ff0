//! Flags that say what is kept of the output of a workload in the background.

use workload::LogLimits;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};

/// What is kept.
#[derive(clap::Args, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Flags {
    /// What keeps the output in the background: json-file, or none
    #[arg(long, value_name = "NAME")]
    #[serde(default)]
    pub log_driver: Option<String>,
    /// How much of it is kept: max-size=SIZE of a file, max-file=COUNT of them
    #[arg(long = "log-opt", value_name = "KEY=VALUE")]
    #[serde(default)]
    pub log_opts: Vec<String>,
}

impl Flags {
    /// What they come to.
    ///
    /// # Errors
    /// They make no sense.
    pub fn limits(&self) -> Outcome<LogLimits> {
        let driver = self.log_driver.as_deref().unwrap_or("json-file");
        LogLimits::parse(driver, self.log_opts.iter().map(String::as_str))
            .map_err(|text| Failure::new(text).exit(Exit::Usage))
    }
}
