//! A workload's cable to a network with a name: its addresses there, the host's end of the cable, and rules for its ports.
//!
//! A process of its own, the keeper (`strata cable`), makes all that and gives it back when whoever has the cable lets go of it
//! or is gone, however it ends: a machine's process may touch nothing any more by then, and one that was killed cannot.
//!
//! ```text
//! holder: container or machine          keeper
//!   | -- Ask, a namespace -------------> |   takes the address, makes the interface, sets the rules
//!   | <-- Answer, locks and a tap ------ |   keeps no copy of them: an address is its holder's as long as that lives
//!   | -- end of the connection --------> |
//!   | <------ end of the connection --   |   the address is free, the rules are gone
//! ```
//! A keeper that is killed leaves rules that go when the next workload comes or goes.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use container::network::Namespace;
use serde::{Deserialize, Serialize};
use workload::control::{self, Receiver, Sender};
use workload::networks::{Lease, LeaseInfo, Locked, Network, NetworkInfo, Networks, NewLease};

use super::container::explain;
use super::resolving::{self, RESOLV_CONF};
use crate::bridge;
use crate::cli::Global;
use crate::commands::network::{self as networks, names};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// What a cable ends in on the workload's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// A descriptor: the holder gets it.
    Tap,
    /// An interface in the namespace that comes along.
    Interface {
        /// What is for nobody on its networks leaves the namespace by it.
        is_way_out: bool,
    },
}

/// What a holder says.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    network: String,
    lease: NewLease,
    end: End,
}

/// Where a workload is on a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The network.
    pub network: NetworkInfo,
    /// What the workload has of it.
    pub lease: LeaseInfo,
    /// What its `/etc/resolv.conf` says behind the servers.
    pub resolving: String,
}

/// What a keeper says.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Plugged(Box<Place>),
    Refused { reason: String, hint: Option<String> },
}

/// A cable that is plugged in as long as this lives.
#[derive(Debug)]
pub struct Cable {
    place: Place,
    /// Locks, and a tap's other end until that is taken.
    files: Vec<OwnedFd>,
    tap: Option<OwnedFd>,
    keeper: UnixStream,
}

impl Cable {
    /// Connects a workload to `network` of the store at `root`.
    ///
    /// # Errors
    /// There is no such network, an address is taken, or the host is not as it should be.
    pub fn plug(
        root: &Path,
        network: &str,
        lease: NewLease,
        end: End,
        namespace: Option<BorrowedFd<'_>>,
    ) -> Outcome<Self> {
        let act = || format!("connect to network {network:?}");
        if !rustix::process::geteuid().is_root() {
            let failure = Failure::new(format!("{}: bridges are root's", act()));
            return Err(failure.hint("strata run --network user needs no root"));
        }
        let (keeper, theirs) = UnixStream::pair().while_trying(act)?;
        let mut command = store::again_as_it_is(root)?;
        command.arg("cable").stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        // Keys of a terminal are not for it: it goes when its holder has gone.
        command.process_group(0).spawn().while_trying(act)?;
        // The command has its copy of the other end until now; without it an end of the keeper is heard.
        drop(command);
        let twin = keeper.try_clone().while_trying(act)?;
        let (mut sender, mut receiver) =
            control::halves(twin, "the keeper of the cable").while_trying(act)?;
        let ask = Ask { network: network.to_owned(), lease, end };
        let namespaces: Vec<_> = namespace.into_iter().collect();
        sender.send(0, &ask, &namespaces).while_trying(act)?;
        let gone = || Failure::new(format!("{}: the process that keeps the cable ended", act()));
        let answer = receiver.receive::<Answer>().while_trying(act)?.ok_or_else(gone)?;
        match answer.body {
            Answer::Plugged(place) => {
                let mut files = answer.fds;
                let tap = if end == End::Tap { Some(files.pop().ok_or_else(gone)?) } else { None };
                Ok(Self { place: *place, files, tap, keeper })
            }
            Answer::Refused { reason, hint } => Err(match hint {
                Some(hint) => Failure::new(reason).hint(hint),
                None => Failure::new(reason),
            }),
        }
    }

    /// Where it leads to.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The end of one that is a tap, once.
    pub fn take_tap(&mut self) -> Option<OwnedFd> {
        self.tap.take()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // The address is nobody's before the keeper looks who has what.
        self.tap.take();
        self.files.clear();
        let _ = self.keeper.shutdown(Shutdown::Write);
        // Whoever comes next finds it done.
        let _ = self.keeper.read(&mut [0; 1]);
    }
}

/// Keeps a cable for the process at the other end of standard input.
///
/// # Errors
/// Nobody is there.
pub fn keep(global: &Global) -> Outcome {
    let act = || "keep a cable".to_owned();
    // Whoever started us may end, and its terminal with it.
    let _ = rustix::process::setsid();
    let socket: UnixStream = std::io::stdin().as_fd().try_clone_to_owned().while_trying(act)?.into();
    let (mut sender, mut receiver) = control::halves(socket, "who has the cable").while_trying(act)?;
    let nobody = || Failure::new("keep a cable: nobody says which");
    let message = receiver.receive::<Ask>().while_trying(act)?.ok_or_else(nobody)?;
    let (network, end) = (message.body.network.clone(), message.body.end);
    let made = make(global, message.body, message.fds.into_iter().next());
    let (lease, info) = match made {
        Ok(Made { place, files, network, served }) => {
            names::stand_by(&store::root(global)?, network, served);
            let kept = (place.lease.clone(), place.network.clone());
            tell(&mut sender, Answer::Plugged(Box::new(place)), &files);
            kept
        }
        Err(failure) => {
            let hint = failure.next_step().map(str::to_owned);
            tell(&mut sender, Answer::Refused { reason: failure.to_string(), hint }, &[]);
            return Err(failure);
        }
    };
    wait(&mut receiver);
    give_back(global, &info, &lease).map_err(|failure| {
        Failure::because(format!("give back a cable of {network} ({end:?})"), failure.to_string())
    })?;
    Ok(Exit::Success)
}

fn tell(sender: &mut Sender, answer: Answer, files: &[OwnedFd]) {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    // One who is gone is noticed by what comes next.
    let _ = sender.send(0, &answer, &files);
}

/// Until the holder lets go.
fn wait(receiver: &mut Receiver) {
    while let Ok(Some(_)) = receiver.receive::<serde_json::Value>() {}
}

/// A cable that is plugged in, for its holder.
struct Made {
    place: Place,
    files: Vec<OwnedFd>,
    network: Network,
    /// The server of names, if this process started it.
    served: Option<names::Started>,
}

/// Takes the address and plugs the cable in; all of it, or nothing.
fn make(global: &Global, mut ask: Ask, namespace: Option<OwnedFd>) -> Outcome<Made> {
    let act = || format!("connect to network {:?}", ask.network);
    resolving::settle(&mut ask.lease, &std::fs::read_to_string(RESOLV_CONF).unwrap_or_default());
    let all = networks::open(global)?;
    let locked = all.lock().while_trying(act)?;
    let network = networks::find(&all, &ask.network)?;
    let lease = all.lease(&locked, &network, ask.lease.clone()).while_trying(act)?;
    let root = store::root(global)?;
    let plugged = plug_in(&locked, &network, &lease, ask.end, namespace);
    let made = plugged.and_then(|tap| Ok((tap, names::ensure(&root, &network)?))).map_err(|failure| {
        let text = failure.to_string();
        match failure.next_step() {
            Some(hint) => Failure::because(act(), text).hint(hint),
            None => Failure::because(act(), text),
        }
    });
    match made {
        Ok((tap, served)) => {
            let (info, resolving) = (network.info().clone(), resolving::lines(&ask.lease));
            let files = lease.files.into_iter().map(OwnedFd::from).chain(tap).collect();
            let place = Place { network: info, lease: lease.info, resolving };
            Ok(Made { place, files, network, served })
        }
        Err(failure) => {
            let info = lease.info.clone();
            drop((lease, locked));
            // What went wrong first is what counts.
            let _ = give_back(global, network.info(), &info);
            Err(failure)
        }
    }
}

fn plug_in(
    locked: &Locked,
    network: &Network,
    lease: &Lease,
    end: End,
    namespace: Option<OwnedFd>,
) -> Outcome<Option<OwnedFd>> {
    let act = || "make the cable".to_owned();
    bridge::clear(&lease.info).while_trying(act)?;
    let (info, own) = (network.info().clone(), lease.info.clone());
    let tap = match (end, namespace) {
        (End::Tap, _) => {
            let tap = container::network::tap(&own.interface).map_err(explain)?;
            bridge::set_up_tap(&info, &own).while_trying(act)?;
            Some(tap)
        }
        (End::Interface { is_way_out }, Some(namespace)) => {
            Namespace::enter(namespace, move || bridge::connect(&info, &own, is_way_out)).map_err(explain)?;
            None
        }
        (End::Interface { .. }, None) => return Err(Failure::new("no namespace came along")),
    };
    bridge::restore(network.info(), &network.leases(locked).while_trying(act)?)?;
    Ok(tap)
}

/// Makes of the network what it is to be without this cable.
fn give_back(global: &Global, info: &NetworkInfo, lease: &LeaseInfo) -> Outcome<()> {
    let act = || format!("leave network {}", info.name);
    let all: Networks = networks::open(global)?;
    let locked = all.lock().while_trying(act)?;
    // It may be gone already.
    let Ok(network) = all.find(&info.id) else { return Ok(()) };
    let leases = network.settle(&locked).while_trying(act)?;
    // Somebody else may have the address, and with it the interface's name.
    if leases.iter().all(|other| other.interface != lease.interface) {
        bridge::clear(lease).while_trying(act)?;
    }
    all.tell(info, "disconnect", Some(&lease.id));
    bridge::restore(info, &leases)
}
