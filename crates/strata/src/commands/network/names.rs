//! The server of names of a network: a process of its own, which nobody's end takes along but that of the last who is connected.
//!
//! ```text
//! keeper of a cable                       server of names (`strata serve-names`)
//!   | takes the lock `names`: nobody serves   |
//!   | -- starts it, with the lock ----------> |  opens its sockets, gives up all else
//!   | <------------------------------ "" --   |  or why it cannot
//!   | keeps waiting for `names`               |  waits for `users`, of which everybody who is connected has a share
//! ```
//! When it has `users` nobody is connected: it lets go of its sockets, of `names` and then of `users`. Whoever comes meanwhile waits
//! for a share of that and finds nobody serving. One that is killed lets go of `names`, and one of the keepers starts another.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use names::{Asker, Member, Sockets, Subnets, Zone, Zones};
use rustix::fs::{AtFlags, Mode, OFlags};
use sandbox::Violation;
use workload::networks::{CONNECTED, LeaseInfo, Link, Network, NetworkInfo};

use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::store;

/// The port of servers of names.
const PORT: u16 = 53;
/// Before another is started for one that ended: whatever ends them may go on.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a file about a network.
const MAX_BYTES: u64 = 8 << 20;

/// A server that this process started.
pub struct Started(Child);

/// Starts the server of names of a network if it has none.
///
/// # Errors
/// Somebody else has the port, or the host is not as it should be.
pub fn ensure(root: &Path, network: &Network) -> Outcome<Option<Started>> {
    let act = || format!("serve the names of network {}", network.info().name);
    let lock = network.names_lock().while_trying(act)?;
    match lock.try_lock() {
        Ok(()) => start(root, network.info(), lock).map(Some),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(Failure::because(act(), error)),
    }
}

/// `lock` is its standard input, which it has as long as it runs.
fn start(root: &Path, info: &NetworkInfo, lock: File) -> Outcome<Started> {
    let act = || format!("serve the names of network {}", info.name);
    let mut command = store::again_as_it_is(root)?;
    command.args(["serve-names", &info.id]).stdin(lock).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().while_trying(act)?;
    drop(command);
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said).while_trying(act)?;
    }
    match said.split_once('\n') {
        Some(("ready", _)) => Ok(Started(child)),
        Some((reason, hint)) => {
            let _ = child.wait();
            Err(Failure::because(act(), reason.to_owned()).hint(hint.to_owned()))
        }
        None => {
            let status = child.wait().while_trying(act)?;
            Err(Failure::because(act(), format!("its process ended: {status}")))
        }
    }
}

/// Has another server started whenever one is killed, as long as this process lives and somebody is connected.
pub fn stand_by(root: &Path, network: Network, started: Option<Started>) {
    let root = root.to_owned();
    let work = move || {
        if let Err(failure) = stand_by_until_the_end(&root, &network, started) {
            tracing::warn!("{failure}");
        }
    };
    // Without a thread there is no other server before somebody else is connected.
    let _ = std::thread::Builder::new().name("names".into()).spawn(work);
}

fn stand_by_until_the_end(root: &Path, network: &Network, mut started: Option<Started>) -> Outcome<()> {
    let act = || format!("serve the names of network {}", network.info().name);
    loop {
        if let Some(Started(mut child)) = started.take() {
            child.wait().while_trying(act)?;
            std::thread::sleep(PAUSE);
        }
        let lock = network.names_lock().while_trying(act)?;
        lock.lock().while_trying(act)?;
        // If it ended because nobody is connected, nobody needs another.
        let users = network.users_lock().while_trying(act)?;
        if users.try_lock().is_ok() {
            // Before the users: as the server does it.
            drop(lock);
            return Ok(());
        }
        started = Some(start(root, network.info(), lock)?);
    }
}

/// Serve the names of a network: for those who are connected to it.
#[derive(clap::Args)]
pub struct ServeOptions {
    /// Its id
    network: String,
}

/// Serves until nobody is connected any more. Standard input is the lock, standard output hears that it serves.
///
/// # Errors
/// There is no such network, or somebody else has the port; who started this process is told.
pub fn serve(global: &Global, options: &ServeOptions) -> Outcome {
    // Whoever started us may end, and its terminal with it.
    let _ = rustix::process::setsid();
    let (sockets, zones, users) = match open(global, &options.network) {
        Ok(opened) => opened,
        Err(failure) => {
            let hint = failure.next_step().unwrap_or_default().to_owned();
            say(&format!("{}\n{hint}", failure.to_string().replace('\n', " ")));
            return Err(failure);
        }
    };
    let act = || "serve names".to_owned();
    let (end, ended) = names::end();
    // It shares the sandbox: threads do with those who start them.
    let wait = move || {
        let locked = users.lock();
        end.now();
        locked.map(|()| users)
    };
    let waiting = std::thread::Builder::new().name("users".into()).spawn(wait).while_trying(act)?;
    say("ready\n");
    let served = names::serve(sockets, zones, ended);
    let users = waiting.join().ok().and_then(Result::ok);
    // In this order: whoever gets a share of the users finds that nobody serves.
    rustix::fs::flock(rustix::stdio::stdin(), rustix::fs::FlockOperation::Unlock)
        .map_err(std::io::Error::from)
        .while_trying(act)?;
    drop(users);
    served.while_trying(act)?;
    Ok(Exit::Success)
}

/// Tells who started this process, and closes the way.
fn say(text: &str) {
    let _ = rustix::io::write(rustix::stdio::stdout(), text.as_bytes());
    // What standard error is goes nowhere.
    let _ = rustix::stdio::dup2_stdout(rustix::stdio::stderr());
}

/// Everything that the sandbox leaves.
fn open(global: &Global, id: &str) -> Outcome<(Sockets, Files, File)> {
    let networks = super::open(global)?;
    let network = super::find(&networks, id)?;
    let info = network.info();
    let act = || format!("serve the names of network {}", info.name);
    let users = network.users_lock().while_trying(act)?;
    let six = info.six.map(|(_, gateway)| IpAddr::from(gateway));
    let own: Vec<IpAddr> = std::iter::once(info.gateway.into()).chain(six).collect();
    let sockets = Sockets::bind(&own, PORT).map_err(|(address, error)| {
        let hint = "ss -lnp 'sport = 53' shows who has it; one that listens on some addresses only leaves this one free";
        Failure::because(format!("listen on {address}"), error).hint(hint)
    })?;
    let folder = store::root(global)?.join("networks");
    let folder = sandbox::confine_names(&folder, refuse)
        .map_err(|error| Failure::because("confine the server of names", error))?;
    Ok((sockets, Files { folder, name: info.name.clone(), own, known: HashMap::new() }, users))
}

/// In a signal handler: no allocation, no waiting.
fn refuse(violation: &Violation) -> i32 {
    let name = violation.name.unwrap_or("?").as_bytes();
    for part in [b"server of names: system call ", name, b" is not allowed\n"] {
        let _ = rustix::io::write(rustix::stdio::stdout(), part);
    }
    i32::from(Exit::Strata.code())
}

/// The networks of the store, which are read anew when they have changed.
struct Files {
    folder: OwnedFd,
    /// The network that is served, and the addresses it is served at.
    name: String,
    own: Vec<IpAddr>,
    known: HashMap<String, Known>,
}

/// A network as it was read.
struct Known {
    /// Open as long as this lives, so that no other file has its number.
    _file: File,
    number: u64,
    info: NetworkInfo,
    leases: Vec<LeaseInfo>,
    zone: Arc<Zone>,
}

impl Zones for Files {
    fn of(&mut self, address: IpAddr) -> Option<Asker> {
        let name = self.name.clone();
        let own = self.read(&name).ok()?;
        if !own.zone.subnets.contain(address) {
            return None;
        }
        let mut asker = Asker { zones: vec![own.zone.clone()], servers: Vec::new() };
        let is_it = |lease: &&LeaseInfo| {
            IpAddr::from(lease.address) == address || lease.address6.map(IpAddr::from) == Some(address)
        };
        // One of the host's own, or one that a workload gave itself, knows the network and no more.
        let Some(lease) = own.leases.iter().find(is_it).cloned() else { return Some(asker) };
        asker.zones.extend(own.linked(&lease));
        let mut leads_out = !own.info.internal;
        for other in self.others() {
            let Ok(other) = self.read(&other) else { continue };
            if !lease.id.is_empty() && other.leases.iter().any(|its| its.id == lease.id) {
                leads_out |= !other.info.internal;
                asker.zones.push(other.zone.clone());
            }
        }
        if leads_out {
            let is_other = |server: &IpAddr| !self.own.contains(server);
            asker.servers = lease.dns.iter().copied().filter(is_other).collect();
        }
        Some(asker)
    }

    fn is_there(&mut self, zone: &Zone, member: &Member) -> bool {
        let Some(IpAddr::V4(address)) = member.addresses.first() else { return true };
        self.is_held(&zone.name, *address)
    }
}

impl Files {
    /// Whether somebody has this address.
    fn is_held(&self, network: &str, address: Ipv4Addr) -> bool {
        let path = format!("{network}/leases/{address}");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lease = rustix::fs::openat(&self.folder, path, flags, Mode::empty()).map(File::from);
        lease.is_ok_and(|lease| lease.try_lock_shared().is_err())
    }

    /// The names of the other networks.
    fn others(&self) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.folder, ".", flags, Mode::empty());
        let entries = opened.and_then(rustix::fs::Dir::new).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.') && *name != self.name && name != "lock").collect()
    }

    fn read(&mut self, name: &str) -> std::io::Result<&Known> {
        let path = format!("{name}/{CONNECTED}");
        let now = rustix::fs::statat(&self.folder, &path, AtFlags::SYMLINK_NOFOLLOW);
        let number = match now {
            Ok(now) => now.st_ino,
            Err(error) => {
                self.known.remove(name);
                return Err(error.into());
            }
        };
        if self.known.get(name).is_none_or(|known| known.number != number) {
            let known = Known::read(self.folder.as_fd(), name, &path)?;
            self.known.insert(name.to_owned(), known);
        }
        self.known.get(name).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

impl Known {
    /// The others on the network as this one calls them, if it does.
    fn linked(&self, lease: &LeaseInfo) -> Option<Arc<Zone>> {
        let of = |link: &Link| {
            let is_it = |other: &&LeaseInfo| other.workload == link.workload || other.id == link.workload;
            Some(member(self.leases.iter().find(is_it)?, std::iter::once(&link.alias)))
        };
        let members: Vec<Member> = lease.links.iter().filter_map(of).collect();
        (!members.is_empty()).then(|| Arc::new(Zone { members, ..(*self.zone).clone() }))
    }

    fn read(folder: std::os::fd::BorrowedFd<'_>, name: &str, path: &str) -> std::io::Result<Known> {
        let open = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(folder, path, flags, Mode::empty()).map(File::from)
        };
        let all = |file: &File| {
            let mut bytes = Vec::new();
            file.take(MAX_BYTES).read_to_end(&mut bytes).map(|_| bytes)
        };
        let info: NetworkInfo = serde_json::from_slice(&all(&open(&format!("{name}/network.json"))?)?)?;
        let file = open(path)?;
        let leases: Vec<LeaseInfo> = serde_json::from_slice(&all(&file)?)?;
        let number = rustix::fs::fstat(&file)?.st_ino;
        let zone = Arc::new(zone(&info, &leases));
        Ok(Known { _file: file, number, info, leases, zone })
    }
}

fn zone(info: &NetworkInfo, leases: &[LeaseInfo]) -> Zone {
    let member = |lease: &LeaseInfo| member(lease, std::iter::once(&lease.workload).chain(&lease.names));
    Zone {
        name: info.name.clone(),
        subnets: Subnets {
            four: (info.gateway, info.subnet.prefix()),
            six: info.six.map(|(subnet, gateway)| (gateway, subnet.prefix())),
        },
        members: leases.iter().map(member).collect(),
    }
}

fn member<'a>(lease: &LeaseInfo, names: impl Iterator<Item = &'a String>) -> Member {
    let six = lease.address6.map(IpAddr::from);
    Member {
        names: names.cloned().collect(),
        addresses: std::iter::once(lease.address.into()).chain(six).collect(),
    }
}
