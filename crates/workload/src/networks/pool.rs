//! Which addresses of a network are given to those who ask for none.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Subnet, Subnet6};
use crate::error::{Error, Result};

/// What a network gives away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// Where those are from; from all of the network, if it does not say.
    pub range: Option<Subnet>,
    /// The same of IPv6.
    pub range6: Option<Subnet6>,
    /// Addresses that no workload gets, by what they are called: somebody has them whom no list shows.
    pub reserved: BTreeMap<String, IpAddr>,
}

impl Pool {
    /// Whether no workload gets the address.
    pub(super) fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved.values().any(|reserved| *reserved == address)
    }

    /// Whether all of it is of a network with these addresses.
    pub(super) fn check(&self, subnet: Subnet, six: Option<Subnet6>) -> Result<()> {
        let refuse = |what: &str, address: String| {
            let six = six.map(|six| format!(" or {six}")).unwrap_or_default();
            Err(Error::Refused(format!("{what} {address} is not in {subnet}{six}")))
        };
        if let Some(range) = self.range.filter(|range| !subnet.has_all_of(*range)) {
            return refuse("address range", range.to_string());
        }
        if let Some(range) = self.range6.filter(|range| !six.is_some_and(|six| six.has_all_of(*range))) {
            return refuse("address range", range.to_string());
        }
        let is_own = |address: &IpAddr| match address {
            IpAddr::V4(address) => subnet.is_host(*address),
            IpAddr::V6(address) => six.is_some_and(|six| six.is_host(*address)),
        };
        match self.reserved.iter().find(|(_, address)| !is_own(address)) {
            Some((name, address)) => refuse(&format!("reserved address {name}"), address.to_string()),
            None => Ok(()),
        }
    }
}
