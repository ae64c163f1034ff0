//! The server of names of a network: whom workloads ask for each other's addresses, and through whom they ask the rest of the
//! world. DNS (RFC 1035) over UDP and TCP, with the longer datagrams of EDNS (RFC 6891).
//!
//! Reading order: `message` (queries and answers as bytes), `zone` (who is on a network, and what that makes of a query), `upstream`
//! (other servers, who know the rest), `server` (sockets and limits).
//!
//! Deliberately absent: where networks and their members are written down, which [`Zones`] hides; caches, since members come and go
//! and others' servers have theirs; DNSSEC, which passes through; transfers of zones.
#![forbid(unsafe_code)]

mod message;
mod server;
mod upstream;
mod zone;

pub use message::{MAX_QUERY, Query, Rcode, Record};
pub use server::{End, Sockets, end, serve};
pub use upstream::is_answer;
pub use zone::{Asker, Member, Subnets, Verdict, Zone, Zones, resolve};
