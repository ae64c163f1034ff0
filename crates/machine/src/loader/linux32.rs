//! Linux's 32-bit boot protocol (`Documentation/arch/x86/boot.rst` "32-bit Boot Protocol"): for i386 kernels without a
//! PVH note. boot_params are those of [`super::linux64`]; the registers are protected mode without paging.

use arch::x86::{CpuState, Cr0, Gpr, Segment, TableRegister};
use memory::GuestRam;

use super::Error;
use super::linux64::{BOOT_CS, BOOT_DS, BootParams, DATA, Places, write_gdt};

const CODE32: u64 = 0x00cf_9b00_0000_ffff;

/// Writes boot_params and the GDT.
///
/// # Errors
/// [`Error::Memory`].
pub fn write(ram: &GuestRam, places: &Places, params: &BootParams<'_>) -> Result<(), Error> {
    ram.write(places.zero_page, &params.to_zero_page())?;
    write_gdt(ram, places, CODE32)
}

/// The registers a kernel is entered with: flat segments, ESI = boot_params, interrupts off, EBP, EDI and EBX zero.
pub fn entry_state(entry: u32, places: &Places) -> CpuState {
    let mut state = CpuState::power_up();
    let data = Segment::from_descriptor(BOOT_DS, DATA);
    let code = Segment::from_descriptor(BOOT_CS, CODE32);
    state.segments = [data, code, data, data, data, data];
    state.tr = Segment::new(0, 0, 0x67, Segment::PRESENT | 0xb); // a busy 32-bit TSS
    state.gdtr = TableRegister { base: places.gdt, limit: 4 * 8 - 1, reserved: [0; 3] };
    state.idtr = TableRegister::default();
    state.cr0 = (Cr0::PE | Cr0::ET).bits();
    state.rip = u64::from(entry);
    for register in [Gpr::Rbx, Gpr::Rbp, Gpr::Rdi] {
        state.gpr[register as usize] = 0;
    }
    state.gpr[Gpr::Rsi as usize] = places.zero_page;
    state
}
