//! The files of a container by which its C library finds addresses of names, `/etc/resolv.conf` and `/etc/hosts`, and what a
//! machine's agent writes into the former.

use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use api::HostName;
use container::spec::Mount;
use container::template;
use tempfile::NamedTempFile;
use workload::networks::NewLease;

use super::cable::Place;
use crate::failure::{Outcome, While};

/// Whom to ask.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What is known without asking.
pub const HOSTS: &str = "/etc/hosts";
/// Servers that the C library asks.
const MAX_SERVERS: usize = 3;

/// The files of one container, which change with the networks it is on.
#[derive(Debug)]
pub struct Files {
    resolv_conf: NamedTempFile,
    hosts: Option<NamedTempFile>,
    /// What the former says where it is on no network with a name.
    alone: String,
    hostname: String,
    /// What the latter says beside that.
    known: Vec<HostName>,
}

/// What every host knows of itself.
const LOOPBACK: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Names and addresses as `/etc/hosts` has them; those without an address have `gateway`.
pub fn lines_of(hosts: &[HostName], gateway: Option<IpAddr>) -> String {
    let line = |host: &HostName| Some(format!("{}\t{}\n", host.address.or(gateway)?, host.name));
    hosts.iter().filter_map(line).collect()
}

/// `/etc/hosts` of a container that is on no network with a name, where it is to know more than its image says.
///
/// # Errors
/// The host has no room for a file.
pub fn hosts_file(hosts: &[HostName], is_host: bool) -> Outcome<NamedTempFile> {
    let own = is_host.then(|| std::fs::read_to_string(HOSTS).ok()).flatten();
    file_saying(HOSTS, &(own.unwrap_or_else(|| LOOPBACK.to_owned()) + &lines_of(hosts, None)))
}

/// What becomes the file `becomes` of a container.
///
/// # Errors
/// The host has no room for a file.
pub fn file_saying(becomes: &str, text: &str) -> Outcome<NamedTempFile> {
    let made = file(becomes)?;
    write(&made, becomes, text)?;
    Ok(made)
}

/// Puts such a file where a container sees it.
pub fn mount(at: &str, file: &NamedTempFile) -> Mount {
    template::mount(at, "bind", &file.path().to_string_lossy(), "bind,ro,nosuid,nodev,noexec")
}

impl Files {
    /// Those of a container on networks with a name.
    ///
    /// # Errors
    /// The host has no room for files.
    pub fn of_networks(hostname: &str, known: &[HostName], places: &[&Place]) -> Outcome<Self> {
        let (hosts, hostname, known) = (Some(file(HOSTS)?), hostname.to_owned(), known.to_vec());
        let files = Self { hosts, hostname, known, ..Self::new("")? };
        files.update(places)?;
        Ok(files)
    }

    /// The first only, saying `alone`.
    ///
    /// # Errors
    /// The host has no room for files.
    pub fn new(alone: &str) -> Outcome<Self> {
        let (resolv_conf, hostname) = (file(RESOLV_CONF)?, String::new());
        let files = Self { resolv_conf, hosts: None, alone: alone.to_owned(), hostname, known: Vec::new() };
        files.update(&[])?;
        Ok(files)
    }

    /// What another container has.
    ///
    /// # Errors
    /// The host has no room for files.
    pub fn copies(resolv_conf: &str, hosts: Option<&str>) -> Outcome<Self> {
        let mut files = Self::new(resolv_conf)?;
        if let Some(text) = hosts {
            let own = file(HOSTS)?;
            write(&own, HOSTS, text)?;
            files.hosts = Some(own);
        }
        Ok(files)
    }

    /// Writes what is right on these networks.
    ///
    /// # Errors
    /// The host has no room.
    pub fn update(&self, places: &[&Place]) -> Outcome<()> {
        let text = if places.is_empty() { self.alone.clone() } else { resolv_conf(places) };
        write(&self.resolv_conf, RESOLV_CONF, &text)?;
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let gateway = places.first().map(|place| place.network.gateway.into());
        let mut text = LOOPBACK.to_owned() + &lines_of(&self.known, gateway);
        for lease in places.iter().map(|place| &place.lease) {
            let six = lease.address6.map(IpAddr::from);
            for address in std::iter::once(lease.address.into()).chain(six) {
                text.push_str(&format!("{address}\t{}\n", self.hostname));
            }
        }
        write(hosts, HOSTS, &text)
    }

    /// Puts them where the container sees them.
    pub fn mounts(&self) -> impl Iterator<Item = Mount> {
        let hosts = self.hosts.iter().map(|file| (HOSTS, file));
        std::iter::once((RESOLV_CONF, &self.resolv_conf)).chain(hosts).map(|(at, file)| mount(at, file))
    }
}

fn file(becomes: &str) -> Outcome<NamedTempFile> {
    let act = || format!("write what becomes {becomes}");
    let file = NamedTempFile::new().while_trying(act)?;
    // Everybody in the container reads it.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).while_trying(act)?;
    Ok(file)
}

/// In its place, for it is mounted: whoever reads meanwhile finds more rather than less.
fn write(file: &NamedTempFile, becomes: &str, text: &str) -> Outcome<()> {
    let file = file.as_file();
    let written = file.write_all_at(text.as_bytes(), 0).and_then(|()| file.set_len(text.len() as u64));
    written.while_trying(|| format!("write what becomes {becomes}"))
}

/// What is said on these networks, one at least: the servers of all, and what else the first one's says.
pub fn resolv_conf(places: &[&Place]) -> String {
    let servers = places.iter().take(MAX_SERVERS);
    let mut text: String = servers.map(|place| format!("nameserver {}\n", place.network.gateway)).collect();
    if let Some(first) = places.first() {
        text.push_str(&first.resolving);
    }
    text
}

/// What is said on no network with a name: the servers that are wanted, or the network's `own`, or this host's.
pub fn own_resolv_conf(wanted: NewLease, own: Option<IpAddr>) -> String {
    let host = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    said_alone(wanted, own, &host)
}

fn said_alone(mut wanted: NewLease, own: Option<IpAddr>, host: &str) -> String {
    if wanted.dns.is_empty() {
        wanted.dns.extend(own);
    }
    settle_servers(&mut wanted, host);
    settle_words(&mut wanted, host);
    let servers = wanted.dns.iter().take(MAX_SERVERS);
    servers.map(|server| format!("nameserver {server}\n")).collect::<String>() + &lines(&wanted)
}

/// Makes of what a workload wants what it gets on this host: whatever it does not say is as the host's own `resolv.conf` says.
pub fn settle(wanted: &mut NewLease, host: &str) {
    settle_servers(wanted, host);
    let says_options = !wanted.dns_options.is_empty();
    settle_words(wanted, host);
    if !says_options {
        // Names of a network have no dots, and are asked for as they are before any domain is put behind them.
        wanted.dns_options.retain(|word| !word.starts_with("ndots:"));
        wanted.dns_options.push("ndots:0".to_owned());
    }
}

/// The same of servers alone.
fn settle_servers(wanted: &mut NewLease, host: &str) {
    if wanted.dns.is_empty() {
        wanted.dns = words_of(host, "nameserver").filter_map(|word| word.parse().ok()).collect();
    }
}

/// The same of domains and options alone.
fn settle_words(wanted: &mut NewLease, host: &str) {
    if wanted.search.is_empty() {
        wanted.search = words_of(host, "search").map(str::to_owned).collect();
    }
    if wanted.dns_options.is_empty() {
        let of_host = words_of(host, "options").filter(|word| *word != "trust-ad");
        wanted.dns_options = of_host.map(str::to_owned).collect();
    }
}

/// The words of all lines of a `resolv.conf` that begin with `key`.
fn words_of<'t>(text: &'t str, key: &'static str) -> impl Iterator<Item = &'t str> {
    let lines = text.lines().map(str::split_whitespace);
    lines.filter_map(move |mut words| (words.next()? == key).then_some(words)).flatten()
}

/// The lines behind those of the servers.
pub fn lines(wanted: &NewLease) -> String {
    // As docker has it: this one is for none.
    let search: Vec<_> = wanted.search.iter().map(String::as_str).filter(|domain| *domain != ".").collect();
    let line = |key: &str, words: &[&str]| match words {
        [] => String::new(),
        words => format!("{key} {}\n", words.join(" ")),
    };
    let options: Vec<_> = wanted.dns_options.iter().map(String::as_str).collect();
    line("search", &search) + &line("options", &options)
}

/// Says that `text` may be a word of `resolv.conf`.
///
/// # Errors
/// It may not: it would be another line.
pub fn check_word(text: &str) -> Result<String, String> {
    let is_word = !text.is_empty() && text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_word.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is no word of resolv.conf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# none\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver 10.0.0.1\n\
                        search a.example b.example\noptions edns0 trust-ad ndots:2\n";

    #[test]
    fn what_nobody_says_is_as_the_host_has_it() {
        let mut wanted = NewLease::default();
        settle(&mut wanted, HOST);
        let servers: Vec<IpAddr> = ["127.0.0.53", "10.0.0.1"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(wanted.dns, servers);
        assert_eq!(lines(&wanted), "search a.example b.example\noptions edns0 ndots:0\n");
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let (search, dns_options) = (own(&["."]), own(&["ndots:1"]));
        let mut wanted = NewLease { dns: servers[1..].to_vec(), search, dns_options, ..NewLease::default() };
        settle(&mut wanted, HOST);
        assert_eq!((wanted.dns.len(), &*lines(&wanted)), (1, "options ndots:1\n"));
        let words = "search a.example b.example\n";
        let user = said_alone(NewLease::default(), Some("10.0.2.3".parse().unwrap()), HOST);
        assert_eq!(user, format!("nameserver 10.0.2.3\n{words}options edns0 ndots:2\n"));
        let wanted = NewLease { dns_options: own(&["ndots:1"]), ..NewLease::default() };
        let servers = "nameserver 127.0.0.53\nnameserver 10.0.0.1\n";
        assert_eq!(said_alone(wanted, None, HOST), format!("{servers}{words}options ndots:1\n"));
        for wrong in ["", "a b", "a\nnameserver 1.1.1.1"] {
            assert!(check_word(wrong).is_err(), "{wrong:?}");
        }
    }
}
