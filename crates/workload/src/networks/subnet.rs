//! Blocks of IPv4 addresses (RFC 4632).

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Enough for a gateway and one more.
const MAX_PREFIX: u8 = 30;
const MIN_PREFIX: u8 = 8;

/// A block of addresses, as `10.90.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The block of `prefix` bits that `address` is in.
    #[must_use]
    pub fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let block = Self { address, prefix: prefix.min(32) };
        Self { address: Ipv4Addr::from_bits(address.to_bits() & block.mask()), ..block }
    }

    /// Blocks that are tried, in this order, where none is asked for.
    pub fn defaults() -> impl Iterator<Item = Self> {
        (90..=99)
            .flat_map(|b| (0..=255).map(move |c| Self { address: Ipv4Addr::new(10, b, c, 0), prefix: 24 }))
    }

    /// How many bits all its addresses have in common.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bits that all its addresses have in common, as 1.
    #[must_use]
    pub fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The first address that a host can have.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | 1)
    }

    fn last(self) -> u32 {
        let host_bits = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
        self.address.to_bits() | host_bits
    }

    /// Whether a host of it can have the address: all but the first and the last.
    #[must_use]
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        (self.address.to_bits() + 1..self.last()).contains(&address.to_bits())
    }

    /// Whether all addresses of the other are its own too.
    #[must_use]
    pub fn has_all_of(self, other: Self) -> bool {
        self.address.to_bits() <= other.address.to_bits() && other.last() <= self.last()
    }

    /// All addresses, also those that no host can have.
    pub(super) fn all(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.address.to_bits()..=self.last()).map(Ipv4Addr::from_bits)
    }

    /// Whether they have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.address.to_bits() <= other.last() && other.address.to_bits() <= self.last()
    }
}

/// The address and the prefix of `text`, which is to be a `kind`.
pub(super) fn split<A: FromStr>(
    text: &str,
    kind: &str,
    prefixes: RangeInclusive<u8>,
) -> Result<(A, u8), String> {
    let both = text
        .split_once('/')
        .and_then(|(address, prefix)| Some((address.parse::<A>().ok()?, prefix.parse::<u8>().ok()?)));
    let (address, prefix) = both.ok_or_else(|| format!("{text:?} is no {kind}"))?;
    if !prefixes.contains(&prefix) {
        return Err(format!("{text:?}: the prefix is from {} to {}", prefixes.start(), prefixes.end()));
    }
    Ok((address, prefix))
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix): (Ipv4Addr, u8) =
            split(text, "IPv4 subnet such as 10.90.0.0/24", MIN_PREFIX..=MAX_PREFIX)?;
        let subnet = Self::around(address, prefix);
        if subnet.address != address {
            return Err(format!("{text:?} has bits behind its prefix: {subnet}?"));
        }
        if address.is_loopback()
            || address.is_multicast()
            || address.is_link_local()
            || address.octets()[0] == 0
        {
            return Err(format!("{text:?} is for no network of this kind"));
        }
        Ok(subnet)
    }
}
