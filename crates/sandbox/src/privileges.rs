//! Capabilities, and the ways to get them back. The kernel keeps them per thread, and threads inherit them.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::Error;

/// Drops every capability of this thread and of the threads it starts from now on, and makes sure that executing a program
/// gives none. Files that are open stay usable; those of other users cannot be opened any more.
///
/// # Errors
/// The host refuses.
pub fn drop_privileges() -> Result<(), Error> {
    keep_privileges(CapabilitySet::empty())
}

/// As [`drop_privileges`], but for those in `kept` that this thread has.
pub(crate) fn keep_privileges(kept: CapabilitySet) -> Result<(), Error> {
    let failed = |act| move |source: Errno| Error::Privileges { act, source: source.into() };
    set_no_new_privs(true).map_err(failed("give up new privileges"))?;
    let kept = capabilities(None).map_err(failed("read capabilities"))?.permitted & kept;
    for capability in CapabilitySet::all().difference(kept).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Only who may set capabilities needs to; a kernel need not know all of them.
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(error) => return Err(failed("empty the capability bounding set")(error)),
        }
    }
    match clear_ambient_capability_set() {
        // Kernels before 4.3 have none.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(failed("clear ambient capabilities")(error)),
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("drop capabilities"))
}
