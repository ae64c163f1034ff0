//! The network of a workload's machine: what the flags say, and what becomes of it on both sides.

use std::net::{Ipv4Addr, SocketAddrV4};

use image::kernels::KernelBundle;
use machine::MachineConfig;
use machine::config::NetConfig;
use net::nat::{self, Config, Loopback, Nat, Publish, Transport};

use super::bridged::Wanted as Bridge;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};

/// The module without which a guest finds no card.
pub const MODULE: &str = "virtio_net";
/// As the guest's kernel calls the only card.
const INTERFACE: &str = "eth0";
/// Each machine is alone on its network, and its addresses are the same. The agent of one that is to be told from others
/// gives its card an address of its own.
const MAC: [u8; 6] = [0x02, 0x53, 0x54, 0x52, 0, 1];

/// Which network the command has.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[command(next_help_heading = "Network")]
pub struct Flags {
    /// What the command is connected to: none, user (what this user may connect to, but for this host's loopback), or of
    /// containers host or a network's name [default: none, or user with --publish or --host-loopback]
    #[arg(long, value_name = "KIND", value_parser = Kind::parse)]
    pub(super) network: Option<Kind>,
    /// Address on the network, which has a name [default: one that is free]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default)]
    ip: Option<Ipv4Addr>,
    /// What others on the network call it too
    #[arg(long, value_name = "NAME", value_parser = workload::parse_name)]
    #[serde(default)]
    network_alias: Vec<String>,
    /// Server of names, on a network with a name [default: those of this host]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default)]
    dns: Vec<Ipv4Addr>,
    /// Let a port of this host lead to one of the command's, e.g. 8080:80 or 127.0.0.1:5353:53/udp
    #[arg(short, long, value_name = "[HOSTIP:]HOSTPORT:PORT[/tcp|udp]", value_parser = check)]
    pub(super) publish: Vec<String>,
    /// Let the command reach servers on this host's loopback, at 10.0.2.2
    #[arg(long)]
    host_loopback: bool,
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
    /// The network of this name.
    Named(String),
}

impl Kind {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "none" => Self::None,
            "user" => Self::User,
            "host" => Self::Host,
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
    /// The network; `None` if there is none.
    ///
    /// # Errors
    /// What is asked for needs a network.
    pub fn config(&self) -> Outcome<Option<Config>> {
        let is_needed = !self.publish.is_empty() || self.host_loopback;
        let is_addressed = self.ip.is_some() || !self.dns.is_empty() || !self.network_alias.is_empty();
        if is_addressed && !matches!(self.network, Some(Kind::Named(_))) {
            let text = "--ip, --network-alias and --dns need --network NAME";
            return Err(Failure::new(text).exit(Exit::Usage));
        }
        match &self.network {
            Some(Kind::Host) if is_needed => {
                let text = "--publish and --host-loopback: --network host has all of this host's already";
                return Err(Failure::new(text).exit(Exit::Usage));
            }
            Some(Kind::Named(_)) if self.host_loopback => {
                let text = "--host-loopback is of --network user";
                return Err(Failure::new(text).exit(Exit::Usage));
            }
            Some(Kind::Host | Kind::Named(_)) => return Ok(None),
            Some(Kind::None | Kind::User) | None => {}
        }
        if self.network == Some(Kind::None) {
            let text = "--publish and --host-loopback need a network, and --network none is none";
            return if is_needed { Err(Failure::new(text).exit(Exit::Usage)) } else { Ok(None) };
        }
        if self.network.is_none() && !is_needed {
            return Ok(None);
        }
        let publish = parse_all(&self.publish)?;
        let loopback = if self.host_loopback { Loopback::Allowed } else { Loopback::Refused };
        Ok(Some(Config { guest_mac: MAC, publish, resolver: resolver(), loopback }))
    }

    /// Whether it is the host's own.
    pub fn is_host(&self) -> bool {
        self.network == Some(Kind::Host)
    }

    /// What the container `workload` wants of the network with a name; `None` if it is on none.
    ///
    /// # Errors
    /// A port is none.
    pub fn bridged<'a>(&'a self, workload: &'a str, hostname: &str) -> Outcome<Option<Bridge<'a>>> {
        let Some(Kind::Named(network)) = &self.network else { return Ok(None) };
        let own = [workload, hostname].map(str::to_owned);
        let mut names: Vec<String> = Vec::new();
        for name in self.network_alias.iter().cloned().chain(own) {
            if workload::parse_name(&name).is_ok() && !names.contains(&name) {
                names.push(name);
            }
        }
        let publish = parse_all(&self.publish)?;
        Ok(Some(Bridge { network, address: self.ip, dns: &self.dns, publish, workload, names }))
    }

    /// The network of a machine with `kernel`; `None` if it has none.
    ///
    /// # Errors
    /// As [`Self::config`], or the kernel came without the driver.
    pub fn of_machine(&self, kernel: &KernelBundle) -> Outcome<Option<Config>> {
        let config = self.config()?;
        if matches!(self.network, Some(Kind::Host | Kind::Named(_))) {
            let text = "network: machines have --network user or none; host and names are for containers";
            return Err(Failure::new(text).exit(Exit::Usage).hint("strata run --isolation container"));
        }
        if config.is_some() && kernel.info().absent.iter().any(|module| module == MODULE) {
            let text = format!("network: kernel {} came without {MODULE}", kernel.info().id);
            return Err(Failure::new(text).hint("strata kernel fetch brings one that has it"));
        }
        Ok(config)
    }
}

fn resolver() -> Option<SocketAddrV4> {
    let text = std::fs::read_to_string("/etc/resolv.conf");
    let found = text.ok().and_then(|text| nat::resolver(&text));
    if found.is_none() {
        tracing::info!("network: this host names no server with an IPv4 address in /etc/resolv.conf");
    }
    found
}

/// The card of a machine that has a network.
pub fn card() -> NetConfig {
    NetConfig { mac: MAC }
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

/// What is decided anew about the network of a machine that goes on. In the options of a workload it stands where [`Flags`]
/// stand in those of one that began with its command, and has the same names.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Again {
    /// It reaches this host's loopback.
    #[serde(default)]
    pub host_loopback: bool,
    /// Ports of its own: those of the machine it comes from are that one's.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Whether it has a card.
    #[serde(default)]
    pub card: bool,
}

/// Gives the options of a workload that others are copied from the ports of a copy.
///
/// # Errors
/// The machine has no network.
pub fn publish_instead(options: &mut serde_json::Value, publish: &[String]) -> Outcome<()> {
    let network = options.get_mut("network").and_then(serde_json::Value::as_object_mut);
    let Some(network) = network else { return check_card(false, publish) };
    let has_card = match network.get("card") {
        Some(card) => card.as_bool() == Some(true),
        None => {
            let flags = serde_json::from_value::<Flags>(network.clone().into()).unwrap_or_default();
            flags.config()?.is_some()
        }
    };
    check_card(has_card, publish)?;
    network.insert("publish".to_owned(), publish.into());
    Ok(())
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

/// The cables of a machine that goes on: connections that it had are gone.
///
/// # Errors
/// As [`open`], or it has no card to publish ports of.
pub fn reopen(config: &MachineConfig, wanted: &Again) -> Outcome<Vec<Box<dyn net::Port>>> {
    let publish = parse_all(&wanted.publish)?;
    check_card(!config.net.is_empty(), &wanted.publish)?;
    let loopback = if wanted.host_loopback { Loopback::Allowed } else { Loopback::Refused };
    let again = Config { guest_mac: MAC, publish, resolver: resolver(), loopback };
    config.net.iter().map(|_| open(&again)).collect()
}

/// What the sandbox must leave to a machine of `config`.
pub fn calls(config: &MachineConfig) -> sandbox::Network {
    if config.net.is_empty() { sandbox::Network::None } else { sandbox::Network::Sockets }
}

/// What the agent is told of it.
pub fn of_guest() -> protocol::Network {
    protocol::Network {
        interface: INTERFACE.to_owned(),
        address: nat::GUEST.octets(),
        prefix: nat::PREFIX,
        gateway: nat::GATEWAY.octets(),
        resolver: nat::RESOLVER.octets(),
    }
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
    fn what_is_no_port_is_refused() {
        for text in
            ["80", "0:80", "80:0", "80:65536", "x:80:80", "80:80/sctp", "1:2:3:4", ":80", "80:80/tcp/udp"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
