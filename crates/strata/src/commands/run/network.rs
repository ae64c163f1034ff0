//! The network of a workload's machine: what the flags say, and what becomes of it on both sides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use api::HostName;
use image::kernels::KernelBundle;
use machine::config::NetConfig;
use net::nat::{self, Config, Loopback, Nat, Publish, Transport};
use tempfile::NamedTempFile;
use workload::networks::{Endpoint, Link, NewLease};

use super::bridged::Wanted;
use super::resolving::{self, RESOLV_CONF};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};

/// The module without which a guest finds no card.
pub const MODULE: &str = "virtio_net";
/// As the guest's kernel calls the only card.
pub const INTERFACE: &str = "eth0";
/// Bytes of a packet at most, in user mode.
pub const MTU: u32 = 1500;
/// As a card comes. The agent gives it the address that the host chooses when it is connected.
const MAC: [u8; 6] = [0x02, 0x53, 0x54, 0x52, 0, 1];

/// Why there is no such name.
pub const NO_GATEWAY: &str = "--add-host: host-gateway is an address of a network with a name";

/// Which network the command has.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[command(next_help_heading = "Network")]
pub struct Flags {
    /// What the command is connected to: none, user (what this user may connect to, but for this host's loopback), a network by
    /// its name, or of containers host, or container:NAME for what that one has [default: none, or user with --publish or
    /// --host-loopback]
    #[arg(long, value_name = "KIND", value_parser = Kind::parse)]
    pub(super) network: Option<Kind>,
    /// Address on the network, which has a name [default: one that is free]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default)]
    ip: Option<Ipv4Addr>,
    /// IPv6 address on the network [default: one that is free]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default)]
    ip6: Option<Ipv6Addr>,
    /// What others on the network call it too
    #[arg(long, value_name = "NAME", value_parser = workload::parse_name)]
    #[serde(default)]
    network_alias: Vec<String>,
    /// Server of names for what is not on its network [default: those of this host]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default)]
    dns: Vec<IpAddr>,
    /// Domain in which names are looked for too; . for none [default: those of this host]
    #[arg(long, value_name = "DOMAIN", value_parser = resolving::check_word)]
    #[serde(default)]
    dns_search: Vec<String>,
    /// Option of the C library's resolver [default: those of this host, and ndots:0 on a network with a name]
    #[arg(long, value_name = "OPTION", value_parser = resolving::check_word)]
    #[serde(default)]
    dns_option: Vec<String>,
    /// A name that the command knows without asking; host-gateway is this host, on its network, which has a name
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    #[serde(default)]
    hosts: Vec<HostName>,
    /// Let a port of this host lead to one of the command's, e.g. 8080:80 or 127.0.0.1:5353:53/udp
    #[arg(short, long, value_name = "[HOSTIP:]HOSTPORT:PORT[/tcp|udp]", value_parser = check)]
    pub publish: Vec<String>,
    /// Let the command reach servers on this host's loopback, at 10.0.2.2
    #[arg(long)]
    host_loopback: bool,
    /// Have the command call another workload on the network, which has a name, something else too
    #[arg(long = "link", value_name = "WORKLOAD[:ALIAS]")]
    #[serde(default)]
    links: Vec<Link>,
    /// Hardware address on the network, user or one with a name. For clients of the API.
    #[arg(skip)]
    #[serde(default)]
    mac: Option<[u8; 6]>,
    /// Of several networks the one with the highest leads out. For clients of the API.
    #[arg(skip)]
    #[serde(default)]
    priority: i64,
    /// Other networks with a name that a container is on. For clients of the API, and as `strata network connect` says.
    #[arg(skip)]
    #[serde(default)]
    also: Vec<Endpoint>,
}

/// The workload that is connected.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    /// Its id; of one in the foreground nothing.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its host name.
    pub hostname: &'a str,
}

/// What a command is connected to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Kind {
    /// Nothing.
    None,
    /// What this user may connect to, but for this host's loopback.
    User,
    /// All that this host has.
    Host,
    /// All that the container of this name or id has.
    Container(String),
    /// The network of this name.
    Named(String),
}

impl Kind {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "none" => Self::None,
            "user" => Self::User,
            "host" => Self::Host,
            text if text.starts_with("container:") => Self::Container(text["container:".len()..].to_owned()),
            name => Self::Named(workload::parse_name(name)?),
        })
    }
}

/// Says that `text` is a port to publish.
///
/// # Errors
/// It is not.
pub fn check(text: &str) -> Result<String, String> {
    parse(text).map(|_| text.to_owned())
}

fn parse_all(texts: &[String]) -> Outcome<Vec<Publish>> {
    let publish = texts.iter().map(|text| parse(text)).collect::<Result<_, _>>();
    publish.map_err(|text| Failure::new(format!("--publish: {text}")).exit(Exit::Usage))
}

fn parse(text: &str) -> Result<Publish, String> {
    let wrong = || format!("{text:?} is not [HOSTIP:]HOSTPORT:PORT[/tcp|udp]");
    let (ports, transport) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.split('/').next().unwrap_or_default(), Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some(_) => return Err(wrong()),
    };
    let (host, guest) = ports.rsplit_once(':').ok_or_else(wrong)?;
    let (ip, port) = match host.rsplit_once(':') {
        Some((ip, port)) => (ip.parse().map_err(|_| wrong())?, port),
        None => (Ipv4Addr::UNSPECIFIED, host),
    };
    let number = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(wrong);
    Ok(Publish { host: SocketAddrV4::new(ip, number(port)?), guest: number(guest)?, transport })
}

impl Flags {
    /// The network of this user; `None` if it is none or another.
    ///
    /// # Errors
    /// As [`Self::is_user`] and [`Self::user_config`].
    pub fn config(&self) -> Outcome<Option<Config>> {
        if self.is_user()? { self.user_config().map(Some) } else { Ok(None) }
    }

    /// Whether it is the network of this user.
    ///
    /// # Errors
    /// What is asked for needs a network, or another one, or a port is none.
    pub fn is_user(&self) -> Outcome<bool> {
        let is_needed = !self.publish.is_empty() || self.host_loopback;
        let is_addressed = self.ip.is_some()
            || self.ip6.is_some()
            || !self.network_alias.is_empty()
            || !self.links.is_empty();
        if is_addressed && !matches!(self.network, Some(Kind::Named(_))) {
            let text = "--ip, --ip6, --network-alias and --link need --network NAME";
            return Err(Failure::new(text).exit(Exit::Usage));
        }
        if self.asks() && self.joined().is_some() {
            let text =
                "--dns, --dns-search and --dns-option: --network container:NAME asks whom that one asks";
            return Err(Failure::new(text).exit(Exit::Usage));
        }
        match &self.network {
            Some(Kind::Host) if is_needed => {
                let text = "--publish and --host-loopback: --network host has all of this host's already";
                return Err(Failure::new(text).exit(Exit::Usage));
            }
            Some(Kind::Container(_)) if is_needed => {
                let text =
                    "--publish and --host-loopback: --network container:NAME has the ports of that one";
                return Err(Failure::new(text).exit(Exit::Usage));
            }
            Some(Kind::Named(_)) if self.host_loopback => {
                let text = "--host-loopback is of --network user";
                return Err(Failure::new(text).exit(Exit::Usage));
            }
            Some(Kind::Host | Kind::Container(_) | Kind::Named(_)) => return Ok(false),
            Some(Kind::None | Kind::User) | None => {}
        }
        if self.network == Some(Kind::None) {
            let text = "--publish and --host-loopback need a network, and --network none is none";
            return if is_needed { Err(Failure::new(text).exit(Exit::Usage)) } else { Ok(false) };
        }
        parse_all(&self.publish)?;
        Ok(self.network.is_some() || is_needed || self.asks())
    }

    /// Whether it says whom to ask for names, or how.
    fn asks(&self) -> bool {
        !(self.dns.is_empty() && self.dns_search.is_empty() && self.dns_option.is_empty())
    }

    /// The network of this user, with the ports and the loopback that are asked for.
    ///
    /// # Errors
    /// A port is none, or the host has no random numbers.
    pub fn user_config(&self) -> Outcome<Config> {
        let publish = parse_all(&self.publish)?;
        let loopback = if self.host_loopback { Loopback::Allowed } else { Loopback::Refused };
        let guest_mac = self.mac.map_or_else(random_mac, Ok)?;
        Ok(Config { guest_mac, publish, resolver: resolver(), loopback })
    }

    /// `/etc/resolv.conf` on the network of this user.
    pub fn user_resolv_conf(&self) -> String {
        resolving::own_resolv_conf(self.resolving(), Some(nat::RESOLVER.into()))
    }

    /// `/etc/resolv.conf` of a container on this host's network, or on none, if it is to be its own.
    ///
    /// # Errors
    /// The host has no room for a file.
    pub fn resolv_file(&self) -> Outcome<Option<NamedTempFile>> {
        if !self.asks() || !matches!(self.network, Some(Kind::Host | Kind::None)) {
            return Ok(None);
        }
        resolving::file_saying(RESOLV_CONF, &resolving::own_resolv_conf(self.resolving(), None)).map(Some)
    }

    /// Whom to ask for names, and how, as far as it says.
    fn resolving(&self) -> NewLease {
        NewLease {
            dns: self.dns.clone(),
            search: self.dns_search.clone(),
            dns_options: self.dns_option.clone(),
            ..NewLease::default()
        }
    }

    /// Whether there is to be nothing.
    pub fn is_none(&self) -> bool {
        self.network == Some(Kind::None)
    }

    /// The networks with a name that the workload is on.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let first = match &self.network {
            Some(Kind::Named(network)) => Some(Endpoint {
                network: network.clone(),
                aliases: self.network_alias.clone(),
                ip: self.ip,
                ip6: self.ip6,
                mac: self.mac,
                priority: self.priority,
                links: self.links.clone(),
            }),
            _ => None,
        };
        first.into_iter().chain(self.also.iter().cloned()).collect()
    }

    /// Makes the workload one of these networks with a name, the first of which leads out. Without any it is on none, if it was
    /// on one with a name.
    pub fn set_endpoints(&mut self, endpoints: Vec<Endpoint>) {
        let mut endpoints = endpoints.into_iter();
        let is_named = matches!(self.network, Some(Kind::Named(_)));
        if is_named || matches!(self.network, None | Some(Kind::None)) {
            let first = endpoints.next();
            if is_named || first.is_some() {
                let first = first.map(|first| {
                    (self.network_alias, self.ip) = (first.aliases, first.ip);
                    (self.ip6, self.mac, self.priority) = (first.ip6, first.mac, first.priority);
                    self.links = first.links;
                    Kind::Named(first.network)
                });
                if first.is_none() {
                    *self = Self::default();
                }
                self.network = Some(first.unwrap_or(Kind::None));
            }
        }
        self.also = endpoints.collect();
    }

    /// Makes this its hardware address on the network of this user.
    pub fn set_mac(&mut self, mac: Option<[u8; 6]>) {
        self.mac = mac;
    }

    /// Makes these the servers that are asked for names, and the way in which they are.
    pub fn set_resolving(&mut self, resolving: &api::Resolving) {
        self.dns.clone_from(&resolving.servers);
        self.dns_search.clone_from(&resolving.search);
        self.dns_option.clone_from(&resolving.options);
    }

    /// Without what only one workload can have, and with ports of its own.
    pub fn of_a_copy(self, publish: Vec<String>) -> Self {
        let also = self.also.into_iter().map(|endpoint| Endpoint {
            network: endpoint.network,
            aliases: endpoint.aliases,
            priority: endpoint.priority,
            links: endpoint.links,
            ..Endpoint::default()
        });
        let also = also.collect();
        Self { ip: None, ip6: None, mac: None, publish, also, ..self }
    }

    /// Whether it is the host's own.
    pub fn is_host(&self) -> bool {
        self.network == Some(Kind::Host)
    }

    /// Has these names known without asking.
    pub fn set_hosts(&mut self, hosts: &[HostName]) {
        hosts.clone_into(&mut self.hosts);
    }

    /// What a container that is on no network with a name knows without asking, if that is more than its image says.
    ///
    /// # Errors
    /// There is no place for it, or the host has no room for a file.
    pub fn hosts_file(&self) -> Outcome<Option<NamedTempFile>> {
        if self.hosts.is_empty() || !self.endpoints().is_empty() {
            return Ok(None);
        }
        let refuse = |why: &str| Err(Failure::new(why).exit(Exit::Usage));
        if self.joined().is_some() {
            return refuse("--add-host: --network container:NAME has the names of that one");
        }
        if self.hosts.iter().any(|host| host.address.is_none()) {
            return refuse(NO_GATEWAY);
        }
        resolving::hosts_file(&self.hosts, self.is_host()).map(Some)
    }

    /// What a machine knows without asking beside what its image says: lines of `/etc/hosts`.
    ///
    /// # Errors
    /// It is to know this host's address, on no network that has one.
    pub fn lines_of_hosts(&self, gateway: Option<IpAddr>) -> Outcome<String> {
        if gateway.is_none() && self.hosts.iter().any(|host| host.address.is_none()) {
            return Err(Failure::new(NO_GATEWAY).exit(Exit::Usage));
        }
        Ok(resolving::lines_of(&self.hosts, gateway))
    }

    /// Whether it is somebody else's, to which nothing can be added.
    pub fn shares(&self) -> bool {
        self.is_host() || self.joined().is_some()
    }

    /// The container whose network it is.
    pub fn joined(&self) -> Option<&str> {
        match &self.network {
            Some(Kind::Container(name)) => Some(name),
            _ => None,
        }
    }

    /// What the workload wants of networks with a name; `None` if it is on none.
    ///
    /// # Errors
    /// A port is none.
    pub fn wanted(&self, who: Who<'_>) -> Outcome<Option<Wanted>> {
        let endpoints = self.endpoints();
        let publish =
            if matches!(self.network, Some(Kind::Named(_))) { parse_all(&self.publish)? } else { Vec::new() };
        let wanted = Wanted {
            endpoints,
            common: self.common(who),
            publish,
            hostname: who.hostname.to_owned(),
            hosts: self.hosts.clone(),
        };
        Ok((!wanted.endpoints.is_empty()).then_some(wanted))
    }

    /// What it wants of each.
    pub fn common(&self, who: Who<'_>) -> NewLease {
        let mut names: Vec<String> = Vec::new();
        let short = who.id.get(..12).unwrap_or_default();
        for name in [who.name, who.hostname, short] {
            if workload::parse_name(name).is_ok() && !names.iter().any(|other| other == name) {
                names.push(name.to_owned());
            }
        }
        NewLease { id: who.id.to_owned(), workload: who.name.to_owned(), names, ..self.resolving() }
    }

    /// Whether a machine needs a card for this.
    ///
    /// # Errors
    /// As [`Self::is_user`].
    pub fn needs_card(&self) -> Outcome<bool> {
        Ok(self.is_user()? || !self.endpoints().is_empty())
    }

    /// Whether a machine with `kernel` has a card.
    ///
    /// # Errors
    /// As [`Self::is_user`], or the kernel came without the driver.
    pub fn has_card(&self, kernel: &KernelBundle) -> Outcome<bool> {
        if self.shares() {
            let text = "network: the host's own and another container's are for containers; a machine has a kernel and \
                        a card of its own, --network user or one with a name";
            return Err(Failure::new(text).exit(Exit::Usage).hint("strata run --isolation container"));
        }
        let has_card = self.needs_card()?;
        if has_card && kernel.info().absent.iter().any(|module| module == MODULE) {
            let text = format!("network: kernel {} came without {MODULE}", kernel.info().id);
            return Err(Failure::new(text).hint("strata kernel fetch brings one that has it"));
        }
        Ok(has_card)
    }
}

/// A locally administered address of one station that no other machine has.
fn random_mac() -> Outcome<[u8; 6]> {
    let mut mac = [0; 6];
    let filled = rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty());
    filled.map_err(std::io::Error::from).while_trying(|| "make a hardware address".to_owned())?;
    mac[0] = 2;
    Ok(mac)
}

fn resolver() -> Option<SocketAddrV4> {
    let text = std::fs::read_to_string(RESOLV_CONF);
    let found = text.ok().and_then(|text| nat::resolver(&text));
    if found.is_none() {
        tracing::info!("network: this host names no server with an IPv4 address in {RESOLV_CONF}");
    }
    found
}

/// The card of a machine with `cpus` vCPUs that has a network.
pub fn card(cpus: u32) -> NetConfig {
    NetConfig::new(MAC).for_cpus(cpus)
}

/// Where its cable ends.
///
/// # Errors
/// A published port is taken, or the host has no descriptors left.
pub fn open(config: &Config) -> Outcome<Box<dyn net::Port>> {
    match Nat::new(config) {
        Ok(nat) => Ok(Box::new(nat)),
        Err(nat::Error::Publish(Publish { host, .. }, error)) => {
            let hint = "another port of this host: -p HOSTPORT:PORT; ss -lnp shows who has this one";
            Err(Failure::because(format!("publish port {host}"), error).hint(hint))
        }
        Err(nat::Error::Host(error)) => Err(Failure::because("make a network", error)),
    }
}

/// Says that ports can be published of a machine that goes on, if any are to be.
///
/// # Errors
/// It has no card.
pub fn check_card(has_card: bool, publish: &[String]) -> Outcome<()> {
    if has_card || publish.is_empty() {
        return Ok(());
    }
    let text = "--publish: the machine has no network, and a card cannot be added to one that goes on";
    Err(Failure::new(text).exit(Exit::Usage).hint("strata run --network user makes one that has"))
}

/// Where the cable of a machine ends that only boots, to be saved: its link is up, as that of those that go on from it.
///
/// # Errors
/// The host has no descriptors left.
pub fn open_for_template() -> Outcome<Box<dyn net::Port>> {
    open(&Config { guest_mac: MAC, ..Config::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_is_on_all_addresses_unless_it_says_which() {
        let publish =
            |host: &str, guest, transport| Ok(Publish { host: host.parse().unwrap(), guest, transport });
        assert_eq!(parse("8080:80"), publish("0.0.0.0:8080", 80, Transport::Tcp));
        assert_eq!(parse("8080:80/tcp"), publish("0.0.0.0:8080", 80, Transport::Tcp));
        assert_eq!(parse("127.0.0.1:53:5353/udp"), publish("127.0.0.1:53", 5353, Transport::Udp));
    }

    #[test]
    fn networks_come_and_go_and_the_first_leads_out() {
        let endpoint = |network: &str| Endpoint { network: network.to_owned(), ..Endpoint::default() };
        let mut flags = Flags { network: Some(Kind::Named("a".to_owned())), ..Flags::default() };
        flags.publish.push("80:80".to_owned());
        flags.also.push(Endpoint { ip: Some(Ipv4Addr::new(10, 9, 0, 9)), ..endpoint("b") });
        let all = flags.endpoints();
        assert_eq!(all.iter().map(|e| &*e.network).collect::<Vec<_>>(), ["a", "b"]);
        flags.set_endpoints(all[1..].to_vec());
        assert_eq!((flags.endpoints(), flags.ip), (all[1..].to_vec(), all[1].ip));
        assert_eq!(flags.clone().of_a_copy(Vec::new()).endpoints(), [endpoint("b")]);
        flags.set_endpoints(Vec::new());
        assert!(flags.is_none() && flags.endpoints().is_empty() && flags.publish.is_empty());
        flags.set_endpoints(all.clone());
        assert_eq!(flags.endpoints(), all);
        let mut user = Flags { network: Some(Kind::User), ..Flags::default() };
        user.set_endpoints(vec![endpoint("a")]);
        assert_eq!((user.network, user.also), (Some(Kind::User), vec![endpoint("a")]));
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in
            ["80", "0:80", "80:0", "80:65536", "x:80:80", "80:80/sctp", "1:2:3:4", ":80", "80:80/tcp/udp"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
