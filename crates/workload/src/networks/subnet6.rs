//! Blocks of IPv6 addresses (RFC 4291).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::subnet;

/// Enough for every address that an IPv4 block of a network may have.
const MAX_PREFIX: u8 = 104;
const MIN_PREFIX: u8 = 8;

/// A block of addresses, as `fd00:1::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet6 {
    address: Ipv6Addr,
    prefix: u8,
}

impl Subnet6 {
    /// The block of `prefix` bits that `address` is in.
    #[must_use]
    pub fn around(address: Ipv6Addr, prefix: u8) -> Self {
        let prefix = prefix.min(128);
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        Self { address: Ipv6Addr::from_bits(address.to_bits() & mask), prefix }
    }

    /// Unique local addresses (RFC 4193) that nobody else has: made of `random` bits.
    #[must_use]
    pub fn unique(random: u64) -> Self {
        const PREFIX: u128 = 0xfd;
        Self::around(Ipv6Addr::from_bits(PREFIX << 120 | u128::from(random) << 56), 64)
    }

    /// How many bits all its addresses have in common.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The first address that a host can have.
    #[must_use]
    pub fn first(self) -> Ipv6Addr {
        self.at(1)
    }

    /// The address so far behind the block's own.
    #[must_use]
    pub fn at(self, offset: u128) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.address.to_bits().wrapping_add(offset))
    }

    fn last(self) -> u128 {
        let host_bits = u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
        self.address.to_bits() | host_bits
    }

    /// Whether a host of it can have the address: all but the first, which is every router's.
    #[must_use]
    pub fn is_host(self, address: Ipv6Addr) -> bool {
        address != self.address && (self.address.to_bits()..=self.last()).contains(&address.to_bits())
    }

    /// Whether all addresses of the other are its own too.
    #[must_use]
    pub fn has_all_of(self, other: Self) -> bool {
        self.address.to_bits() <= other.address.to_bits() && other.last() <= self.last()
    }

    /// Whether they have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.address.to_bits() <= other.last() && other.address.to_bits() <= self.last()
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> String {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Subnet6 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix): (Ipv6Addr, u8) =
            subnet::split(text, "IPv6 subnet such as fd00:1::/64", MIN_PREFIX..=MAX_PREFIX)?;
        let subnet = Self::around(address, prefix);
        if subnet.address != address {
            return Err(format!("{text:?} has bits behind its prefix: {subnet}?"));
        }
        // The first 16 bits 0 are for addresses with a meaning of their own; ff and fe80 for one cable.
        let first = address.segments()[0];
        if first == 0 || address.is_multicast() || first & 0xffc0 == 0xfe80 {
            return Err(format!("{text:?} is for no network of this kind"));
        }
        Ok(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_ipv6_subnet_is_refused() {
        for text in
            ["fd00::", "fd00::1/64", "fd00::/120", "::/8", "ff00::/64", "fe80::/64", "10.0.0.0/8", "fd00::/x"]
        {
            assert!(text.parse::<Subnet6>().is_err(), "{text}");
        }
        let subnet: Subnet6 = "fd00:1::/64".parse().unwrap();
        assert_eq!(
            (subnet.to_string(), subnet.first().to_string()),
            ("fd00:1::/64".into(), "fd00:1::1".into())
        );
        assert!(subnet.is_host("fd00:1::ffff".parse().unwrap()));
        assert!(
            !subnet.is_host("fd00:1::".parse().unwrap()) && !subnet.is_host("fd00:2::1".parse().unwrap())
        );
        assert!(
            subnet.overlaps("fd00::/16".parse().unwrap()) && !subnet.overlaps("fd00:2::/64".parse().unwrap())
        );
    }

    #[test]
    fn unique_ones_are_local_and_differ() {
        let [one, two] = [1 << 20, 2 << 20].map(|random| Subnet6::unique(random).to_string());
        assert!(one.starts_with("fd") && one.ends_with("::/64") && one != two, "{one} {two}");
        assert!(one.parse::<Subnet6>().is_ok());
    }
}
