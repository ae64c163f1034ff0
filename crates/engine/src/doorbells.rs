//! Stores to device memory that an engine answers by itself, without leaving the guest: the notifications of queues.

use std::os::fd::BorrowedFd;

use crate::Error;

/// Where an engine that can do so tells of certain stores.
pub trait Doorbells: Send + Sync {
    /// From now on a store of the four bytes `value` at guest physical address `gpa` is one more in the counter of `event`, an
    /// eventfd(2), and does not come to the bus. Before the first vCPU runs.
    ///
    /// # Errors
    /// [`Error::Host`].
    fn add(&self, gpa: u64, value: u32, event: BorrowedFd<'_>) -> Result<(), Error>;
}
