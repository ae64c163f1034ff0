//! What a container has of networks: as clients ask for it, and as they are told.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use bollard_stubs::models::{EndpointSettings, NetworkingConfig};
use serde_json::{Map, Value, json};
use workload::networks::{Endpoint, LeaseInfo, Link, NetworkInfo, Networks, mac_text};
use workload::{Description, Folder};

use super::containers::network_of;
use super::networks::find;
use crate::backend::{Backend, Network};
use crate::error::{ApiError, Result};

/// What docker says where there is no place for another network.
pub(super) const SHARED: &str = "container sharing network namespace with another container or host cannot be connected to any other network";

/// The id of what a workload has of a network: docker has one, and so its clients do.
pub(super) fn id(network: &str, workload: &str) -> String {
    image::Digest::of(format!("endpoint {network} {workload}").as_bytes()).hex()
}

/// Understands a hardware address of one station.
///
/// # Errors
/// It is none.
pub(super) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes =
        text.split([':', '-']).map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?);
    let bytes = bytes.collect::<Option<Vec<u8>>>().and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    let bytes = bytes.filter(|bytes| bytes[0] & 1 == 0 && *bytes != [0; 6]);
    bytes.ok_or_else(|| ApiError::bad(format!("invalid MAC address: {text}")))
}

/// What a client asks for on `network`, in our words.
///
/// # Errors
/// It makes no sense, or is not offered.
pub(super) fn parse(network: &str, said: EndpointSettings) -> Result<Endpoint> {
    let ipam = said.ipam_config.unwrap_or_default();
    // Docker's own driver does something for these; whatever else is said is kept as it is.
    let own = |map: &HashMap<String, String>| map.keys().any(|key| key.starts_with("com.docker.network."));
    let refused = [
        ("DriverOpts", said.driver_opts.is_some_and(|map| own(&map))),
        ("IPAMConfig.LinkLocalIPs", ipam.link_local_ips.is_some_and(|list| !list.is_empty())),
    ];
    if let Some((name, _)) = refused.iter().find(|(_, is_set)| *is_set) {
        return Err(ApiError::not_offered(format!("network {network}: {name}: not there yet")));
    }
    let mut aliases = said.aliases.unwrap_or_default();
    aliases.sort();
    aliases.dedup();
    if let Some(wrong) = aliases.iter().find(|alias| workload::parse_name(alias).is_err()) {
        return Err(ApiError::bad(format!("network {network}: invalid alias {wrong:?}")));
    }
    let mac = said.mac_address.filter(|mac| !mac.is_empty()).map(|mac| parse_mac(&mac)).transpose()?;
    let (ip, ip6) =
        (address::<Ipv4Addr>(ipam.ipv4_address, "IPv4")?, address::<Ipv6Addr>(ipam.ipv6_address, "IPv6")?);
    let priority = said.gw_priority.unwrap_or_default();
    let links = said.links.iter().flatten().map(|text| link(text)).collect::<Result<_>>()?;
    Ok(Endpoint { network: network.to_owned(), aliases, ip, ip6, mac, priority, links })
}

/// Understands what a container calls another one, `NAME[:ALIAS]`.
///
/// # Errors
/// It is no name.
pub(super) fn link(text: &str) -> Result<Link> {
    text.parse().map_err(|reason| ApiError::bad(format!("bad format for links: {text}: {reason}")))
}

fn address<T: FromStr>(text: Option<String>, kind: &str) -> Result<Option<T>> {
    let wrong =
        |text: &str| ApiError::bad(format!("invalid endpoint settings:\ninvalid {kind} address: {text}"));
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|_| wrong(&text))).transpose()
}

/// What a new container is to be connected to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub network: Network,
    /// On networks with a name.
    pub endpoints: Vec<Endpoint>,
    /// The hardware address on the network that it has without being asked.
    pub mac: Option<[u8; 6]>,
}

/// Understands what a new container is to be connected to: what `mode` says, and more as `config` says. Old clients say the hardware
/// address, `mac`, beside that.
///
/// # Errors
/// It makes no sense, or is not offered.
pub(super) fn wanted(mode: &str, config: Option<NetworkingConfig>, mac: Option<[u8; 6]>) -> Result<Wanted> {
    let mut said: HashMap<_, _> = config.and_then(|config| config.endpoints_config).unwrap_or_default();
    let network = match mode {
        "" | "default" | "bridge" => Network::Default,
        "none" => Network::None,
        "user" => Network::User,
        "host" => Network::Host,
        "container:" => return Err(ApiError::bad("invalid container format container:<name|id>")),
        mode => match mode.strip_prefix("container:") {
            Some(name) => Network::Container(name.to_owned()),
            None => Network::Named,
        },
    };
    let mut endpoints = Vec::new();
    let mut own_mac = mac;
    if network == Network::Named {
        let first = parse(mode, said.remove(mode).unwrap_or_default())?;
        endpoints.push(Endpoint { mac: first.mac.or(own_mac.take()), ..first });
    } else {
        for name in ["default", "bridge", "none", "user", "host", mode] {
            let Some(own) = said.remove(name) else { continue };
            let own = parse(name, own)?;
            own_mac = own.mac.or(own_mac);
            if own.ip.is_some() || own.ip6.is_some() {
                let text = "user specified IP address is supported on user defined networks only";
                return Err(ApiError::bad(text));
            }
            if !own.aliases.is_empty() {
                let text = "network-scoped alias is supported only for containers in user defined networks";
                return Err(ApiError::bad(text));
            }
        }
    }
    let alone = match network {
        Network::None => Some(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ),
        Network::Host | Network::Container(_) => Some(SHARED),
        _ => None,
    };
    if own_mac.is_some() && matches!(network, Network::Host | Network::Container(_)) {
        return Err(ApiError::bad("conflicting options: mac-address and the network mode"));
    }
    if let Some(text) = alone.filter(|_| !said.is_empty()) {
        return Err(ApiError::bad(text));
    }
    let mut others: Vec<_> = said.into_iter().collect();
    others.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, own) in others {
        endpoints.push(parse(&name, own)?);
    }
    // The first is the one that published ports lead to.
    endpoints.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.priority));
    Ok(Wanted { network, endpoints, mac: own_mac })
}

/// Has endpoints name networks by their names, where clients may name them by their ids.
///
/// # Errors
/// There is no such network, or one is named twice.
pub(super) fn resolve(networks: &Networks, endpoints: &mut Vec<Endpoint>) -> Result<()> {
    for endpoint in endpoints.iter_mut() {
        // Docker's client takes "not found" for the image, and brings that.
        let found = find(networks, &endpoint.network).map_err(|error| ApiError::bad(error.message))?;
        endpoint.network = found.info().name.clone();
    }
    // By its name and by its id: docker's client does so where the mode is an id.
    let mut seen = std::collections::HashSet::new();
    endpoints.retain(|endpoint| seen.insert(endpoint.network.clone()));
    Ok(())
}

/// The names of all networks that a workload is on.
pub(super) fn names(folder: &Folder) -> Vec<String> {
    let own = &folder.description().wanted.networks;
    let first = network_of(folder);
    // Otherwise the mode is the name or the id of one of them.
    let is_predefined = matches!(&*first, "bridge" | "user" | "host") || (first == "none" && own.is_empty());
    let first = is_predefined.then_some(first);
    first.into_iter().chain(own.iter().map(|endpoint| endpoint.network.clone())).collect()
}

/// `NetworkSettings.Networks` of a workload, and what it has of the first network.
pub(super) fn settings(backend: &dyn Backend, folder: &Folder) -> (Value, Value) {
    let mut map = Map::new();
    let mut first = Value::Null;
    let what = folder.description();
    for name in names(folder) {
        let endpoint = what.wanted.networks.iter().find(|endpoint| endpoint.network == name);
        let value = match endpoint {
            None => row(what, &name, None, None),
            Some(endpoint) => {
                let place = place(backend, &endpoint.network, &what.id);
                row(what, &name, Some(endpoint), place.as_ref())
            }
        };
        if first.is_null() {
            first = value.clone();
        }
        map.insert(name, value);
    }
    let first = if first.is_null() { row(what, "", None, None) } else { first };
    (Value::Object(map), first)
}

/// The network, and what a workload has of it while it runs.
fn place(backend: &dyn Backend, network: &str, id: &str) -> Option<(NetworkInfo, Option<LeaseInfo>)> {
    let networks = backend.workloads().networks().ok()?;
    let network = networks.find(network).ok()?;
    let leases = backend.connected(&network).ok()?;
    Some((network.info().clone(), leases.into_iter().find(|lease| lease.id == id)))
}

fn row(
    what: &Description,
    name: &str,
    endpoint: Option<&Endpoint>,
    place: Option<&(NetworkInfo, Option<LeaseInfo>)>,
) -> Value {
    let asked = endpoint.filter(|endpoint| endpoint.ip.is_some() || endpoint.ip6.is_some());
    let asked = asked.map(|endpoint| {
        let four = endpoint.ip.map(|ip| ("IPv4Address", ip.to_string()));
        let six = endpoint.ip6.map(|ip| ("IPv6Address", ip.to_string()));
        four.into_iter().chain(six).collect::<HashMap<_, _>>()
    });
    let info = place.map(|(info, _)| info);
    let lease = place.and_then(|(_, lease)| lease.as_ref());
    // What it is only while it runs.
    let now = info.zip(lease);
    let text = |of: &dyn Fn(&NetworkInfo, &LeaseInfo) -> Option<String>| {
        now.and_then(|(info, lease)| of(info, lease)).unwrap_or_default()
    };
    let six = now.and_then(|(info, lease)| info.six.zip(lease.address6));
    // As the client said it when it made the workload.
    let said = |key: &str| {
        let networks = what.wanted.said.as_ref()?.pointer("/NetworkingConfig/EndpointsConfig")?;
        networks.get(name).or_else(|| networks.get("default").filter(|_| name == "bridge"))?.get(key)
    };
    let mac = lease.map(|lease| lease.mac).or_else(|| endpoint?.mac).map(mac_text);
    let mac = mac.or_else(|| {
        let beside = || what.wanted.said.as_ref()?.get("MacAddress").filter(|_| endpoint.is_none());
        said("MacAddress").or_else(beside)?.as_str().map(str::to_owned)
    });
    json!({
        "IPAMConfig": asked,
        "Links": endpoint.map(|endpoint| &endpoint.links).filter(|links| !links.is_empty()).map(|links| {
            links.iter().map(|link| format!("{}:{}", link.workload, link.alias)).collect::<Vec<_>>()
        }),
        "Aliases": endpoint.map(|endpoint| &endpoint.aliases).filter(|aliases| !aliases.is_empty()),
        "DriverOpts": said("DriverOpts"),
        "GwPriority": endpoint.map_or(0, |endpoint| endpoint.priority),
        "NetworkID": info.map(|info| info.id.as_str()).unwrap_or_default(),
        "EndpointID": text(&|info, _| Some(id(&info.id, &what.id))),
        "MacAddress": mac.unwrap_or_default(),
        "Gateway": text(&|info, _| (!info.internal).then(|| info.gateway.to_string())),
        "IPAddress": text(&|_, lease| Some(lease.address.to_string())),
        "IPPrefixLen": now.map_or(0, |(info, _)| info.subnet.prefix()),
        "IPv6Gateway": six.map_or_else(String::new, |((_, gateway), _)| gateway.to_string()),
        "GlobalIPv6Address": six.map_or_else(String::new, |(_, address)| address.to_string()),
        "GlobalIPv6PrefixLen": six.map_or(0, |((subnet, _), _)| subnet.prefix()),
        "DNSNames": lease.map(|lease| &lease.names),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mode: &str, config: Value) -> Result<(Network, Vec<Endpoint>)> {
        let config = serde_json::from_value(json!({ "EndpointsConfig": config })).unwrap();
        wanted(mode, Some(config), None).map(|wanted| (wanted.network, wanted.endpoints))
    }

    #[test]
    fn what_docker_sends_for_a_container_on_networks_is_understood() {
        let config = json!({
            "team": {
                "IPAMConfig": {"IPv4Address": "10.9.0.9", "IPv6Address": "fd00::9"}, "Links": ["web:site", "db"],
                "Aliases": ["b", "a", "b"], "MacAddress": "02:42:AC-11:00:02", "DriverOpts": null, "NetworkID": "",
            },
            "other": {"Aliases": null},
        });
        let (network, endpoints) = of("team", config).unwrap();
        assert_eq!(network, Network::Named);
        let expected = Endpoint {
            network: "team".to_owned(),
            aliases: vec!["a".to_owned(), "b".to_owned()],
            ip: Some(Ipv4Addr::new(10, 9, 0, 9)),
            ip6: Some("fd00::9".parse().unwrap()),
            mac: Some([2, 0x42, 0xac, 0x11, 0, 2]),
            priority: 0,
            links: vec!["/web:site".parse().unwrap(), "db:db".parse().unwrap()],
        };
        let other = Endpoint { network: "other".to_owned(), ..Endpoint::default() };
        assert_eq!(endpoints, [expected, other.clone()]);
        assert_eq!(
            of("default", json!({"default": {}, "other": {}})).unwrap(),
            (Network::Default, vec![other])
        );
        assert_eq!(of("none", json!({"none": {}})).unwrap(), (Network::None, Vec::new()));
        assert_eq!(of("host", json!({"host": {}})).unwrap(), (Network::Host, Vec::new()));
        let joined = of("container:x", json!({"container:x": {}})).unwrap();
        assert_eq!(joined, (Network::Container("x".to_owned()), Vec::new()));
        let config = json!({"team": {}, "b": {"GwPriority": 7}, "a": {"GwPriority": 7}});
        let (_, endpoints) = of("team", config).unwrap();
        let order: Vec<_> = endpoints.iter().map(|endpoint| &*endpoint.network).collect();
        assert_eq!(order, ["a", "b", "team"]);
        let nothing = Wanted { network: Network::Default, endpoints: Vec::new(), mac: None };
        assert_eq!(wanted("", None, None).unwrap(), nothing);
    }

    #[test]
    fn a_hardware_address_is_the_first_networks_wherever_it_is_said() {
        let (mac, other) = ([2, 0x42, 0xac, 0x11, 0, 2], Some([2, 0, 0, 0, 0, 1]));
        let said = |mode: &str| {
            let config = json!({"EndpointsConfig": {mode: {"MacAddress": "02:42:ac:11:00:02"}}});
            serde_json::from_value::<NetworkingConfig>(config).unwrap()
        };
        assert_eq!(wanted("bridge", Some(said("bridge")), other).unwrap().mac, Some(mac));
        assert_eq!(wanted("bridge", None, other).unwrap().mac, other);
        let named = wanted("team", Some(said("team")), other).unwrap();
        assert_eq!((named.endpoints[0].mac, named.mac), (Some(mac), None));
        assert_eq!(wanted("team", None, other).unwrap().endpoints[0].mac, other);
        assert!(wanted("host", Some(said("host")), None).is_err());
    }

    #[test]
    fn what_makes_no_sense_on_a_network_is_refused() {
        let on = |settings: Value| of("team", json!({ "team": settings })).unwrap_err().status.as_u16();
        for (settings, status) in [
            (json!({"IPAMConfig": {"IPv4Address": "10.9.0"}}), 400),
            (json!({"IPAMConfig": {"IPv6Address": "10.9.0.1"}}), 400),
            (json!({"IPAMConfig": {"LinkLocalIPs": ["169.254.1.1"]}}), 501),
            (json!({"Aliases": ["a b"]}), 400),
            (json!({"MacAddress": "02:42"}), 400),
            (json!({"MacAddress": "03:42:ac:11:00:02"}), 400),
            (json!({"Links": ["x:"]}), 400),
            (json!({"DriverOpts": {"com.docker.network.endpoint.ifname": "b"}}), 501),
        ] {
            assert_eq!(on(settings.clone()), status, "{settings}");
        }
        let error = |mode: &str, config| of(mode, config).unwrap_err().status.as_u16();
        assert_eq!(error("bridge", json!({"bridge": {"IPAMConfig": {"IPv4Address": "10.9.0.1"}}})), 400);
        assert_eq!(error("none", json!({"team": {}})), 400);
        for mode in ["host", "container:x"] {
            assert_eq!(error(mode, json!({"team": {}})), 400);
        }
        assert_eq!(error("container:", json!({})), 400);
    }
}
