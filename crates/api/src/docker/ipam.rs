//! `IPAM` of a network: its addresses, and which of them are given away.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;

use bollard_stubs::models::{Ipam, IpamConfig};
use serde_json::{Value, json};
use workload::networks::{NetworkInfo, NewNetwork};

use crate::error::{ApiError, Result};

fn bad(what: &str, text: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::bad(format!("invalid network config:\ninvalid {what} {text}: {why}"))
}

fn parse<T: FromStr>(what: &str, text: Option<String>) -> Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|error| bad(what, &text, error))).transpose()
}

/// What a client wants, in our words.
///
/// # Errors
/// It makes no sense, or is not offered.
pub(super) fn wanted(new: &mut NewNetwork, ipam: Ipam) -> Result<()> {
    if let Some(driver) = ipam.driver.filter(|driver| !matches!(&**driver, "" | "default")) {
        return Err(ApiError::not_found(format!("could not find plugin {driver}: plugin not found")));
    }
    ipam.config.into_iter().flatten().try_for_each(|config| block(new, config))
}

/// One subnet of it.
fn block(new: &mut NewNetwork, config: IpamConfig) -> Result<()> {
    let subnet = config.subnet.unwrap_or_default();
    let gateway: Option<IpAddr> = parse("gateway", config.gateway)?;
    let range = config.ip_range.filter(|range| !range.is_empty());
    let reserved = reserved(config.auxiliary_addresses.unwrap_or_default())?;
    if subnet.is_empty() {
        if gateway.is_some() || range.is_some() || !reserved.is_empty() {
            let text = "invalid network config:\na gateway, an IPRange and AuxiliaryAddresses need a subnet";
            return Err(ApiError::bad(text));
        }
        return Ok(());
    }
    let is_six = subnet.contains(':');
    if (is_six && new.subnet6.is_some()) || (!is_six && new.subnet.is_some()) {
        let text = "networks: a network has one subnet of IPv4, and one of IPv6";
        return Err(ApiError::not_offered(text));
    }
    if is_six {
        new.subnet6 = parse("subnet", Some(subnet))?;
        new.pool.range6 = parse("IPRange", range)?;
    } else {
        new.subnet = parse("subnet", Some(subnet))?;
        new.pool.range = parse("IPRange", range)?;
    }
    new.pool.reserved.extend(reserved);
    match gateway {
        None => {}
        Some(IpAddr::V4(gateway)) if !is_six => new.gateway = Some(gateway),
        Some(IpAddr::V6(gateway)) if is_six => new.gateway6 = Some(gateway),
        Some(gateway) => {
            return Err(bad("gateway", &gateway.to_string(), "it is not of the subnet's kind"));
        }
    }
    Ok(())
}

fn reserved(said: HashMap<String, String>) -> Result<Vec<(String, IpAddr)>> {
    let one = |(name, text): (String, String)| match text.parse() {
        Ok(address) => Ok((name, address)),
        Err(error) => Err(bad("auxiliary address", &text, error)),
    };
    said.into_iter().map(one).collect()
}

/// `IPAM.Config` of a network.
pub(super) fn rows(info: &NetworkInfo) -> Vec<Value> {
    let row = |subnet: String, gateway: IpAddr, range: Option<String>| {
        let mut value = json!({ "Subnet": subnet, "Gateway": gateway });
        if let Some(range) = range {
            value["IPRange"] = json!(range);
        }
        let is_of_kind = |(_, address): &(&String, &IpAddr)| address.is_ipv4() == gateway.is_ipv4();
        let reserved: HashMap<_, _> = info.pool.reserved.iter().filter(is_of_kind).collect();
        if !reserved.is_empty() {
            value["AuxiliaryAddresses"] = json!(reserved);
        }
        value
    };
    let pool = &info.pool;
    let four = row(info.subnet.to_string(), info.gateway.into(), pool.range.map(|range| range.to_string()));
    let six = info.six.map(|(subnet, gateway)| {
        row(subnet.to_string(), gateway.into(), pool.range6.map(|range| range.to_string()))
    });
    std::iter::once(four).chain(six).collect()
}
