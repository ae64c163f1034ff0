//! The architectural state to and from the kernel: what of [`CpuState`] is where in KVM's structures.
//!
//! Absent: the segment limits and attributes of unusable registers, which processors do not keep, and the page-directory
//! pointers of 32-bit PAE paging, which the kernel loads from memory with CR3.
// UNSAFETY: an ioctl that the wrapper cannot check the size of.

mod events;
mod registers;
mod tsc;
mod vectors;

use arch::x86::state::Msrs;
use arch::x86::{CpuState, Efer};
use engine::Error;
use kvm_bindings::{Msrs as KvmMsrs, kvm_msr_entry, kvm_xcrs};
use kvm_ioctls::VcpuFd;
use memory::GuestRam;

use crate::{msrs, refused, unsupported};

pub use tsc::{TscControl, host_tsc};

/// What of the state a host's kernel can hold.
#[derive(Clone, Debug)]
pub struct Shape {
    /// MSRs of the state that it knows.
    pub msrs: Vec<u32>,
    /// The bits of XCR0 that may be set.
    pub xcr0: u64,
    /// How its TSC is set.
    pub tsc: TscControl,
}

impl Shape {
    /// Tries it out on a vCPU.
    pub fn of(vcpu: &VcpuFd, xcr0: u64) -> Self {
        let mut known = Vec::new();
        msrs::each(&mut Msrs::default(), |index, _| {
            // Some are read as zero and taken from nobody.
            if matches!(read_msrs(vcpu, &[index]), Ok(values) if values.len() == 1 && write_msrs(vcpu, &values).is_ok())
            {
                known.push(index);
            }
        });
        Self { msrs: known, xcr0, tsc: TscControl::of(vcpu) }
    }
}

/// Reads everything.
pub fn pull(vcpu: &VcpuFd, shape: &Shape, ram: &GuestRam, state: &mut CpuState) -> Result<(), Error> {
    // First: asking for it makes the kernel take INIT and start-up IPIs that wait, which change the rest.
    let activity = vcpu.get_mp_state().map_err(refused("read a vcpu's activity"))?;
    let sregs = vcpu.get_sregs().map_err(refused("read a vcpu's system registers"))?;
    registers::take_general(&vcpu.get_regs().map_err(refused("read a vcpu's registers"))?, state);
    registers::take_system(&sregs, state);
    registers::take_page_directory_pointers(ram, state);
    let debug = vcpu.get_debug_regs().map_err(refused("read a vcpu's debug registers"))?;
    registers::take_debug(&debug, state);
    vectors::take(&vcpu.get_xsave().map_err(refused("read a vcpu's vector registers"))?, state);
    if shape.xcr0 != 0 {
        let xcrs = vcpu.get_xcrs().map_err(refused("read a vcpu's xcr0"))?;
        let used = &xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(xcrs.xcrs.len())];
        state.xcr0 = used.iter().find(|x| x.xcr == 0).map_or(1, |x| x.value);
    }
    let values = read_msrs(vcpu, &shape.msrs)?;
    msrs::each(&mut state.msrs, |index, place| {
        if let Some((_, value)) = values.iter().find(|entry| entry.0 == index) {
            *place = *value;
        }
    });
    let events = vcpu.get_vcpu_events().map_err(refused("read a vcpu's events"))?;
    events::take(&events, &activity, state);
    Ok(())
}

/// Writes general purpose, segment and control registers.
pub fn push_registers(vcpu: &VcpuFd, state: &CpuState) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(refused("read a vcpu's system registers"))?;
    registers::give_system(state, &mut sregs);
    vcpu.set_sregs(&sregs).map_err(refused("write a vcpu's system registers"))?;
    vcpu.set_regs(&registers::give_general(state)).map_err(refused("write a vcpu's registers"))
}

/// Writes everything. On error part of it is written.
pub fn push(vcpu: &VcpuFd, shape: &Shape, state: &CpuState) -> Result<(), Error> {
    push_registers(vcpu, state)?;
    if shape.xcr0 != 0 {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = state.xcr0;
        let act = || format!("write {:#x} to a vcpu's xcr0", state.xcr0);
        vcpu.set_xcrs(&xcrs).map_err(|error| refused(act())(error))?;
    }
    let xsave = vectors::give(state, shape.xcr0);
    // SAFETY: the kernel reads 4096 bytes, which `kvm_xsave` has, as no state that needs more was ever asked for
    // (arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)).
    unsafe { vcpu.set_xsave(&xsave) }.map_err(refused("write a vcpu's vector registers"))?;
    vcpu.set_debug_regs(&registers::give_debug(state)).map_err(refused("write a vcpu's debug registers"))?;
    write_state_msrs(vcpu, shape, &state.msrs)?;
    shape.tsc.give(vcpu, state.tsc_offset)?;
    let template = vcpu.get_vcpu_events().map_err(refused("read a vcpu's events"))?;
    let (events, activity) = events::give(state, template);
    vcpu.set_vcpu_events(&events).map_err(refused("write a vcpu's events"))?;
    vcpu.set_mp_state(activity).map_err(refused("write a vcpu's activity"))
}

fn write_state_msrs(vcpu: &VcpuFd, shape: &Shape, state: &Msrs) -> Result<(), Error> {
    let (mut entries, mut unknown) = (Vec::new(), None);
    let at_power_up = CpuState::power_up().msrs;
    let mut defaults = Vec::new();
    msrs::each(&mut at_power_up.clone(), |index, value| defaults.push((index, *value)));
    msrs::each(&mut state.clone(), |index, value| {
        if shape.msrs.contains(&index) {
            entries.push((index, *value));
        } else if !defaults.contains(&(index, *value)) {
            unknown = Some((index, *value));
        }
    });
    match unknown {
        Some((index, value)) => {
            Err(unsupported(format!("msr {index:#x} holds {value:#x}, and this host has no such msr")))
        }
        None => write_msrs(vcpu, &entries),
    }
}

/// Reads MSRs, up to the first that the kernel does not know.
pub fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, Error> {
    let entries: Vec<_> =
        indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut list = KvmMsrs::from_entries(&entries).map_err(|_| unsupported("so many msrs"))?;
    let read = vcpu.get_msrs(&mut list).map_err(refused("read a vcpu's msrs"))?;
    Ok(list.as_slice()[..read.min(indices.len())].iter().map(|entry| (entry.index, entry.data)).collect())
}

/// Writes MSRs.
pub fn write_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), Error> {
    let entry = |&(index, data): &(u32, u64)| kvm_msr_entry { index, data, ..Default::default() };
    let list = KvmMsrs::from_entries(&values.iter().map(entry).collect::<Vec<_>>())
        .map_err(|_| unsupported("so many msrs"))?;
    let written = vcpu.set_msrs(&list).map_err(refused("write a vcpu's msrs"))?;
    match values.get(written) {
        Some((index, value)) => Err(unsupported(format!("msr {index:#x} cannot be {value:#x} on this host"))),
        None => Ok(()),
    }
}

/// Whether 32-bit PAE paging is on, which is when page-directory pointers are registers.
fn has_page_directory_pointers(state: &CpuState) -> bool {
    state.is_paging()
        && state.cr4 & arch::x86::Cr4::PAE.bits() != 0
        && state.msrs.efer & Efer::LMA.bits() == 0
}
