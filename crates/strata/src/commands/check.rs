//! `strata check`: what this host offers for each layer, and what to do about each gap.

mod hardware;
mod host;
mod os;
mod repair;

use serde::Serialize;

use super::run::container;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::Outcome;
use crate::output::{self, Table};

/// Say what this host offers for each layer of isolation
///
/// Every gap comes with what to do about it. Exit code 1 means that microVMs cannot run here yet. What killed programs left of
/// their containers is removed.
#[derive(clap::Args)]
pub struct Options {
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Read everything in the store instead, and mend what is broken
    ///
    /// Bytes that are not those of their name are removed, and so are the names of images that are not whole any more: what
    /// is left of them serves whoever pulls or loads them again. Exit code 1 means that something is still broken.
    #[arg(long)]
    store: bool,
    /// Say what is broken and change nothing
    #[arg(long, requires = "store")]
    dry_run: bool,
}

/// What a finding belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Layer {
    Hardware,
    Os,
    Store,
    Tools,
}

/// How good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// There and usable.
    Ok,
    /// There with a limit, or missing and only nice to have.
    Limited,
    /// Missing, and microVMs need it.
    Missing,
}

/// One fact about the host.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    layer: Layer,
    item: &'static str,
    state: State,
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(layer: Layer, item: &'static str, detail: impl Into<String>) -> Self {
        Self { layer, item, state: State::Ok, detail: detail.into(), advice: None }
    }

    fn limited(
        layer: Layer,
        item: &'static str,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { layer, item, state: State::Limited, detail: detail.into(), advice: Some(advice.into()) }
    }

    fn missing(
        layer: Layer,
        item: &'static str,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { state: State::Missing, ..Self::limited(layer, item, detail, advice) }
    }
}

/// Looks, and prints what was found.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(global: &Global, options: &Options) -> Outcome {
    container::bury_orphans();
    if options.store {
        return repair::run(global, options);
    }
    let (mut findings, kvm) = hardware::look();
    let os = os::look();
    let containers = os::is_ready(&os);
    findings.extend(os);
    findings.extend(host::store(global));
    findings.extend(host::tools());
    let ready = findings.iter().all(|finding| finding.state != State::Missing);
    if options.json {
        output::json(
            &serde_json::json!({ "microvms": ready, "containers": containers, "kvm": kvm, "findings": findings }),
        )?;
    } else {
        print_table(&findings, ready, containers)?;
    }
    Ok(if ready { Exit::Success } else { Exit::Missing })
}

fn print_table(findings: &[Finding], ready: bool, containers: bool) -> Outcome<()> {
    let mut table = Table::new(&["LAYER", "ITEM", "STATE", "DETAIL"]);
    for finding in findings {
        let layer = format!("{:?}", finding.layer).to_lowercase();
        let state = format!("{:?}", finding.state).to_lowercase();
        table.row([layer, finding.item.to_owned(), state, finding.detail.clone()]);
    }
    table.print()?;
    let mut text = String::from("\n");
    for finding in findings {
        if let Some(advice) = &finding.advice {
            text.push_str(&format!("{}: {advice}\n", finding.item));
        }
    }
    text.push_str(if containers {
        "Containers of images can run on this host.\n"
    } else {
        "Containers of images cannot run on this host yet.\n"
    });
    text.push_str(if ready {
        "microVMs can run on this host.\n"
    } else {
        "microVMs cannot run on this host yet.\n"
    });
    output::write(&text)
}
