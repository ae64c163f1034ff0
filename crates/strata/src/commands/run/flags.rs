//! Flags of whatever starts a command: the first of a workload, or one beside it.

/// How a command is started.
#[derive(clap::Args, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Set a variable for the command; without a value take the one from here
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    pub env: Vec<String>,
    /// Variables of the image that it does not have. For clients of the API.
    #[arg(skip)]
    #[serde(default)]
    pub unset: Vec<String>,
    /// Folder to run the command in; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User to run it as, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
}

fn parse_variable(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('=') {
        return Err("a variable has a name, e.g. NAME or NAME=value".to_owned());
    }
    Ok(text.to_owned())
}
