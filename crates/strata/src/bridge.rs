//! What the host's kernel has of a network: a bridge, and a table of rules of its own, both named alike.
//!
//! Both are made anew from what the store says whenever a workload comes or goes, so that what was changed by others or left
//! by a process that was killed is as it should be again. The programs `ip` and `nft` do it, in one batch each: every
//! distribution has them, they speak each kernel's dialect of netlink, and `nft` replaces a table as one transaction.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketType};
use workload::networks::{LeaseInfo, NetworkInfo, Published, Subnet, Subnet6, Taken, mac_text};

use crate::failure::{Failure, Outcome, While};

/// Held while addresses are chosen and the bridge that has them is made: whoever makes a network here for another store sees
/// these taken. It is the namespace of interfaces and routes itself that is locked.
///
/// # Errors
/// The host has no such file.
pub fn lock() -> Outcome<File> {
    let path = "/proc/self/ns/net";
    let act = || format!("lock {path}");
    let namespace = File::open(path).while_trying(act)?;
    namespace.lock().while_trying(act)?;
    Ok(namespace)
}

/// What this host has routes for, but for the default one.
///
/// # Errors
/// The host does not tell.
pub fn routes() -> Outcome<Taken> {
    let path = "/proc/net/route";
    let text = std::fs::read_to_string(path).while_trying(|| format!("read {path}"))?;
    // A host without IPv6 has no such file.
    let six = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    Ok(Taken {
        four: text.lines().skip(1).filter_map(route).collect(),
        six: six.lines().filter_map(route6).collect(),
    })
}

/// A line of `/proc/net/route`: the second word is the destination, the eighth its mask, in the network's order.
fn route(line: &str) -> Option<Subnet> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok().map(u32::from_be);
    let (address, mask) = (number(1)?, number(7)?);
    (mask != 0).then(|| Subnet::around(Ipv4Addr::from_bits(address), mask.leading_ones() as u8))
}

/// A line of `/proc/net/ipv6_route`: the first word is the destination, the second its prefix.
fn route6(line: &str) -> Option<Subnet6> {
    let mut words = line.split_whitespace();
    let address = u128::from_str_radix(words.next()?, 16).ok()?;
    let prefix = u8::from_str_radix(words.next()?, 16).ok()?;
    (prefix != 0).then(|| Subnet6::around(Ipv6Addr::from_bits(address), prefix))
}

/// Makes bridge and rules what `info` and the workloads that are connected want.
///
/// # Errors
/// This process may not, or the host lacks a program.
pub fn restore(info: &NetworkInfo, leases: &[LeaseInfo]) -> Outcome<()> {
    let bridge = info.bridge();
    let act = || format!("set up the bridge {bridge} of network {}", info.name);
    // A cable whose workload ends may go between the look and the act: the second look no longer finds it.
    ip(&bridged(info, leases)).or_else(|_| ip(&bridged(info, leases))).while_trying(act)?;
    // So that a port published on 127.0.0.1 leads somewhere; the rules keep workloads from that address.
    set(&format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet")).while_trying(act)?;
    if !info.internal {
        set("/proc/sys/net/ipv4/ip_forward").while_trying(act)?;
        if info.six.is_some() {
            forward6().while_trying(act)?;
        }
    }
    let rules = rules(info, leases);
    feed("nft", &["-f", "-"], &rules).map_err(|error| {
        Failure::because(format!("set the rules of network {}", info.name), error)
            .hint("the program nft comes with the package nftables")
    })
}

/// What `ip` is to do so that the bridge is there, and has the cables of all that are connected.
fn bridged(info: &NetworkInfo, leases: &[LeaseInfo]) -> String {
    let bridge = info.bridge();
    let mut batch = String::new();
    if !exists(&bridge) {
        let _ = writeln!(batch, "link add {bridge} address {} type bridge", mac_text(info.mac()));
    }
    let _ = writeln!(batch, "link set {bridge} mtu {} up", info.mtu);
    let _ = writeln!(batch, "address replace {}/{} dev {bridge}", info.gateway, info.subnet.prefix());
    if let Some((subnet, gateway)) = info.six {
        let _ = writeln!(batch, "address replace {gateway}/{} dev {bridge} nodad", subnet.prefix());
    }
    for lease in leases.iter().filter(|lease| is_loose(&lease.interface)) {
        let _ = writeln!(batch, "link set {} master {bridge} up", lease.interface);
    }
    batch
}

/// Removes bridge and rules.
///
/// # Errors
/// This process may not.
pub fn remove(info: &NetworkInfo) -> Outcome<()> {
    let bridge = info.bridge();
    let act = || format!("remove the bridge {bridge} of network {}", info.name);
    if exists(&bridge) {
        ip(&format!("link delete {bridge}\n")).while_trying(act)?;
    }
    feed("nft", &["-f", "-"], &format!("table inet {bridge} {{}}\ndelete table inet {bridge}\n"))
        .while_trying(act)
}

/// Removes what is left of an interface that another workload had with this address: the kernel takes down the namespace of
/// one that ended in its own time.
///
/// # Errors
/// This process may not.
pub fn clear(lease: &LeaseInfo) -> io::Result<()> {
    let old = &lease.interface;
    if !exists(old) {
        return Ok(());
    }
    // The kernel may be the first to do it.
    ip(&format!("link delete {old}\n")).or_else(|error| if exists(old) { Err(error) } else { Ok(()) })
}

/// Gives the network namespace of this thread an interface, whose other end is an interface of this process's. The one that
/// packets for everybody else leave by, if `is_way_out`. Its name.
///
/// # Errors
/// This process may not.
pub fn connect(info: &NetworkInfo, lease: &LeaseInfo, is_way_out: bool) -> io::Result<String> {
    let (process, mtu) = (std::process::id(), info.mtu);
    let free = (0..).map(|number| format!("eth{number}")).find(|name| !exists(name));
    let name = free.ok_or_else(|| io::Error::other("no name is free"))?;
    if info.six.is_some() {
        // The host gives each address to one, and none of the others has a say in where the rest of the world is.
        for setting in ["accept_dad", "accept_ra"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{setting}"), "0")?;
        }
    }
    let mut batch = format!(
        "link add {name} address {} mtu {mtu} type veth peer name {} mtu {mtu} netns {process}\n\
         address add {}/{} dev {name}\n",
        mac_text(lease.mac),
        lease.interface,
        lease.address,
        info.subnet.prefix()
    );
    let six = info.six.zip(lease.address6);
    if let Some(((subnet, _), address)) = six {
        let _ = writeln!(batch, "address add {address}/{} dev {name} nodad", subnet.prefix());
    }
    let _ = writeln!(batch, "link set {name} up");
    if is_way_out && !info.internal {
        let _ = writeln!(batch, "route replace default via {}", info.gateway);
        if let Some(((_, gateway), _)) = six {
            let _ = writeln!(batch, "route replace ::/0 via {gateway} dev {name}");
        }
    }
    ip(&batch)?;
    Ok(name)
}

/// Has what is for nobody on the networks of this thread's namespace leave by these gateways.
///
/// # Errors
/// This process may not.
pub fn lead_out(gateway: Ipv4Addr, six: Option<Ipv6Addr>) -> io::Result<()> {
    let six = six.map(|gateway| format!("route replace ::/0 via {gateway}\n")).unwrap_or_default();
    ip(&format!("route replace default via {gateway}\n{six}"))
}

/// Sets up the host's end of a tap, whose other end is there.
///
/// # Errors
/// This process may not.
pub fn set_up_tap(info: &NetworkInfo, lease: &LeaseInfo) -> io::Result<()> {
    ip(&format!("link set {} mtu {}\n", lease.interface, info.mtu))
}

/// Whether the kernel has an interface by this name. One that it takes down has none, though sysfs still shows it.
pub fn exists(name: &str) -> bool {
    rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .is_ok_and(|socket| rustix::net::netdevice::name_to_index(socket, name).is_ok())
}

/// Whether there is such an interface, and no bridge has it.
fn is_loose(name: &str) -> bool {
    !Path::new("/sys/class/net").join(name).join("master").exists() && exists(name)
}

/// Writes 1 where there is none yet.
fn set(path: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    if std::fs::read_to_string(path).map_err(named)?.trim() != "1" {
        std::fs::write(path, "1").map_err(named)?;
    }
    Ok(())
}

/// Lets packets of IPv6 pass. A host that does no longer listens to routers for its own way out, unless told to.
fn forward6() -> io::Result<()> {
    let all = "/proc/sys/net/ipv6/conf";
    if std::fs::read_to_string(format!("{all}/all/forwarding"))?.trim() == "1" {
        return Ok(());
    }
    for entry in std::fs::read_dir(all)?.flatten() {
        let setting = entry.path().join("accept_ra");
        if std::fs::read_to_string(&setting).is_ok_and(|text| text.trim() == "1") {
            std::fs::write(&setting, "2")?;
        }
    }
    set(&format!("{all}/all/forwarding"))
}

fn ip(batch: &str) -> io::Result<()> {
    feed("ip", &["-batch", "-"], batch)
}

/// Runs a program that reads `input`; what it complains about is the error.
fn feed(program: &str, arguments: &[&str], input: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("run {program}: {error}"));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(named)?;
    // Dropped at once, so that the program sees its end. One that ends before says why itself.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(named)?;
    if output.status.success() {
        return written.unwrap_or(Ok(())).map_err(named);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first = text.lines().next().unwrap_or("it says nothing").trim();
    Err(io::Error::other(format!("{program}: {first}")))
}

/// The whole table, which takes the place of the one that is there.
fn rules(info: &NetworkInfo, leases: &[LeaseInfo]) -> String {
    let bridge = info.bridge();
    let outside = if info.internal {
        format!(
            "    iifname {bridge} oifname != {bridge} drop\n    oifname {bridge} iifname != {bridge} drop\n"
        )
    } else {
        format!(
            "    iifname {bridge} oifname != {bridge} oifname \"st-*\" drop\n\
             \x20   oifname {bridge} iifname != {bridge} ct state established,related accept\n\
             \x20   oifname {bridge} iifname != {bridge} ct status dnat accept\n\
             \x20   oifname {bridge} iifname != {bridge} drop\n"
        )
    };
    let mut masquerade = String::new();
    let mut published = String::new();
    if !info.internal {
        let families =
            [Some(("ip", info.subnet.to_string())), info.six.map(|(six, _)| ("ip6", six.to_string()))];
        for (family, subnet) in families.into_iter().flatten() {
            if !info.routed {
                // What the host says to its own address leaves by the loopback, and is from that address.
                let outside = format!("oifname != {{ {bridge}, lo }}");
                let _ = writeln!(masquerade, "    {family} saddr {subnet} {outside} masquerade");
            }
            let own = if family == "ip" { format!("{{ 127.0.0.0/8, {subnet} }}") } else { subnet };
            let _ =
                writeln!(masquerade, "    oifname {bridge} ct status dnat {family} saddr {own} masquerade");
        }
    }
    for lease in leases {
        for port in &lease.publish {
            published.push_str(&publish(port, lease));
        }
    }
    format!(
        "table inet {bridge} {{}}\ndelete table inet {bridge}\ntable inet {bridge} {{\n\
         \x20 chain early {{\n    type filter hook prerouting priority raw;\n\
         \x20   iifname {bridge} ip daddr 127.0.0.0/8 drop\n  }}\n\
         \x20 chain forward {{\n    type filter hook forward priority filter;\n{outside}  }}\n\
         \x20 chain prerouting {{\n    type nat hook prerouting priority dstnat;\n{published}  }}\n\
         \x20 chain output {{\n    type nat hook output priority -100;\n{published}  }}\n\
         \x20 chain postrouting {{\n    type nat hook postrouting priority srcnat;\n{masquerade}  }}\n}}\n"
    )
}

fn publish(port: &Published, lease: &LeaseInfo) -> String {
    let (transport, from, to) = (&port.transport, port.host.port(), port.port);
    let host = match port.host.ip() {
        ip if ip.is_unspecified() => "fib daddr type local".to_owned(),
        ip => format!("ip daddr {ip}"),
    };
    let address = lease.address;
    let mut rules =
        format!("    meta nfproto ipv4 {host} {transport} dport {from} dnat ip to {address}:{to}\n");
    if let Some(address) = lease.address6.filter(|_| port.host.ip().is_unspecified()) {
        // There is no way from the loopback's own address to another interface.
        let host = "ip6 daddr != ::1 fib daddr type local";
        let _ = writeln!(rules, "    {host} {transport} dport {from} dnat ip6 to [{address}]:{to}");
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_the_host_are_read_and_the_default_one_is_none() {
        let line = |destination: u32, mask: u32| {
            format!("eth0 {:08X} 00000000 0001 0 0 0 {:08X} 0 0 0", destination.to_be(), mask.to_be())
        };
        assert_eq!(route(&line(0x0a5a_0100, 0xffff_ff00)).unwrap().to_string(), "10.90.1.0/24");
        assert_eq!(route(&line(0, 0)), None);
        assert_eq!(route("eth0 nonsense"), None);
        let six = "fd000001000000000000000000000000 40 00000000000000000000000000000000 00 0 0 0 0 0 eth0";
        assert_eq!(route6(six).unwrap().to_string(), "fd00:1::/64");
        assert_eq!(route6(&six.replace(" 40 ", " 00 ")), None);
        assert_eq!(route6("nonsense"), None);
    }
}
