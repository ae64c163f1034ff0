//! `strata restore`: a workload goes on from where `strata snapshot` saved it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use machine::snapshot::folder;
use machine::workload::{AgentSession, Origin};
use machine::{Backends, Machine};

use super::run::session::{self, Session};
use super::sizing::account;
use crate::cli::Global;
use crate::failure::{Failure, Outcome};
use crate::size::parse_duration;
use crate::{confine, engines, running, store};

/// Go on with a workload that was saved
///
/// It goes on under any engine whose processor is the same. What it writes from now on comes here, and its exit code is ours.
/// Its disk, the image, must be in the store still.
#[derive(clap::Args)]
#[command(after_long_help = crate::exit::OF_RUN)]
pub struct Options {
    /// What executes the guest's instructions
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(engines::names()))]
    engine: String,
    /// Name for strata snapshot
    #[arg(long, value_parser = running::parse_name)]
    name: Option<String>,
    /// Hand on standard input, if the command still read its own
    #[arg(short, long)]
    interactive: bool,
    /// Kill the command after this time, e.g. 90s or 5m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Keep all privileges and system calls of this process
    #[arg(long)]
    no_sandbox: bool,
    /// Folder of the snapshot
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs the command to its end; its exit code is ours.
///
/// # Errors
/// The snapshot is damaged or of another kind of machine, or something it needs is not there.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let started = Instant::now();
    let act = || format!("restore {}", options.folder.display());
    let wishes =
        engines::Wishes { count: tracing::enabled!(tracing::Level::INFO), ..engines::Wishes::default() };
    let engine = engines::open(&options.engine, wishes)?;
    let store = store::open(global)?;
    let snapshot = folder::open(&options.folder).map_err(|error| Failure::because(act(), error))?;
    let Some(saved) = snapshot.workload.clone() else {
        return Err(Failure::new(format!("{}: no command runs in it: it is a template", act())));
    };
    let named = options.name.as_deref().map(|name| running::claim(store.root(), name)).transpose()?;
    let agent = AgentSession::resume(saved.clone());
    let backends = Backends {
        console: None,
        vsock: Some(agent.host()),
        confine: (!options.no_sandbox).then(confine::while_building),
    };
    let machine = Machine::restore(snapshot, backends, engine.as_ref());
    let machine = machine.map_err(|error| Failure::because(act(), error))?;
    tracing::info!("restored in {} ms", started.elapsed().as_millis());
    let session = Session {
        origin: Origin::Restored,
        interactive: options.interactive,
        tty: saved.tty,
        timeout: options.timeout,
        link: None,
        named,
        enter_sandbox: &|| {
            if options.no_sandbox { Ok(()) } else { confine::before_start(engine.host_requests()) }
        },
    };
    let outcome = session::resume(agent, &machine, &saved, session, started);
    account(engine.name(), &machine, started);
    outcome
}
