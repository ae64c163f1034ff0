//! The saved state of one vCPU.
//!
//! Separate from [`CpuState`], whose layout is generated code's: what is scratch there is left out, and what comes back is
//! checked as input from a stranger. Values that a processor would refuse in a register would be the host's fault
//! when an engine loads them (MXCSR), or a mode that no engine knows.

use serde::{Deserialize, Serialize};
use state::{Error, Section};

use super::registers::{Cr0, Cr4, Efer, Rflags, Xcr0};
use super::segment::{Segment, TableRegister};
use super::state::{CpuState, Events, FxImage, Msrs, Undelivered, Ymm};

/// Section kind of a vCPU.
pub const KIND: &str = "x86-vcpu";
/// Version of the saved form.
pub const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct VcpuState {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    segments: [Segment; 6],
    ldtr: Segment,
    tr: Segment,
    gdtr: TableRegister,
    idtr: TableRegister,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    xcr0: u64,
    dr: [u64; 8],
    pdpte: [u64; 4],
    tsc_offset: u64,
    msrs: MsrsState,
    events: EventsState,
    ymm: [[u8; 32]; 16],
    fx: FxState,
}

#[derive(Serialize, Deserialize)]
struct MsrsState {
    efer: u64,
    star: u64,
    lstar: u64,
    cstar: u64,
    sfmask: u64,
    kernel_gs_base: u64,
    tsc_aux: u64,
    sysenter_cs: u64,
    sysenter_esp: u64,
    sysenter_eip: u64,
    pat: u64,
    misc_enable: u64,
    spec_ctrl: u64,
    tsc_adjust: u64,
    debugctl: u64,
    xss: u64,
    mtrr_def_type: u64,
    mtrr_fixed: [u64; 11],
    mtrr_variable: [u64; 16],
}

#[derive(Serialize, Deserialize)]
struct EventsState {
    nmi_pending: bool,
    nmi_blocked: bool,
    interrupt_shadow: bool,
    halted: bool,
    waits_for_start_up: bool,
    undelivered: Option<UndeliveredState>,
}

#[derive(Serialize, Deserialize)]
enum UndeliveredState {
    Interrupt(u8),
    DebugTrap,
}

#[derive(Serialize, Deserialize)]
struct FxState {
    fcw: u16,
    fsw: u16,
    ftw: u8,
    fop: u16,
    fip: u64,
    fdp: u64,
    mxcsr: u32,
    mxcsr_mask: u32,
    st: [[u8; 16]; 8],
}

/// The state as a section.
///
/// # Errors
/// [`Error::Encode`].
pub fn save(cpu: &CpuState) -> Result<Section, Error> {
    let CpuState { gpr, rip, rflags, segments, ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, xcr0, dr, .. } =
        *cpu;
    let CpuState { pdpte, tsc_offset, ref msrs, ref events, ref ymm, ref fx, .. } = *cpu;
    let saved = VcpuState {
        gpr,
        rip,
        rflags,
        segments,
        ldtr,
        tr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        xcr0,
        dr,
        pdpte,
        tsc_offset,
        msrs: save_msrs(msrs),
        events: save_events(*events),
        ymm: ymm.map(|Ymm(bytes)| bytes),
        fx: save_fx(fx),
    };
    Section::encode(KIND, VERSION, &saved)
}

/// The state that `section` holds.
///
/// # Errors
/// Another kind or version, or registers that no processor of ours can have.
pub fn restore(section: &Section) -> Result<CpuState, Error> {
    let saved: VcpuState = section.decode(KIND, VERSION)?;
    check(&saved)
        .map_err(|what| Error::Malformed { kind: KIND, reason: format!("{what} has reserved bits set") })?;
    // Names every field, so that a new one fails to compile until it is saved.
    Ok(CpuState {
        gpr: saved.gpr,
        rip: saved.rip,
        rflags: saved.rflags,
        segments: saved.segments,
        ldtr: saved.ldtr,
        tr: saved.tr,
        gdtr: saved.gdtr,
        idtr: saved.idtr,
        cr0: saved.cr0,
        cr2: saved.cr2,
        cr3: saved.cr3,
        cr4: saved.cr4,
        xcr0: saved.xcr0,
        dr: saved.dr,
        pdpte: saved.pdpte,
        tsc_offset: saved.tsc_offset,
        msrs: restore_msrs(saved.msrs),
        events: restore_events(saved.events),
        ymm: saved.ymm.map(Ymm),
        fx: restore_fx(saved.fx),
    })
}

fn check(saved: &VcpuState) -> Result<(), &'static str> {
    let rflags = Rflags::from_bits(saved.rflags).is_some_and(|flags| flags.contains(Rflags::FIXED));
    let paging = saved.cr0 & Cr0::PG.bits() == 0 || saved.cr0 & Cr0::PE.bits() != 0;
    let efer = Efer::from_bits(saved.msrs.efer);
    let active = saved.msrs.efer & Efer::LMA.bits() == 0
        || (saved.msrs.efer & Efer::LME.bits() != 0 && saved.cr4 & Cr4::PAE.bits() != 0);
    let padding = |s: &Segment| s.reserved == [0; 3] && s.access >> 17 == 0;
    let segments = saved.segments.iter().chain([&saved.ldtr, &saved.tr]).all(padding);
    let tables = [&saved.gdtr, &saved.idtr].iter().all(|t| t.reserved == [0; 3]);
    let xcr0 = Xcr0::from_bits(saved.xcr0)
        .is_some_and(|x| x.contains(Xcr0::X87) && (x.contains(Xcr0::SSE) || !x.contains(Xcr0::AVX)));
    let mask = saved.fx.mxcsr_mask;
    let mxcsr = saved.fx.mxcsr & !mask == 0 && mask & !FxImage::MXCSR_MASK == 0;
    let checks = [
        (rflags, "rflags"),
        (paging && Cr0::from_bits(saved.cr0).is_some(), "cr0"),
        (Cr4::from_bits(saved.cr4).is_some(), "cr4"),
        (efer.is_some() && active, "efer"),
        (xcr0, "xcr0"),
        (segments && tables, "a segment or table register"),
        (mxcsr, "mxcsr"),
    ];
    checks.iter().find(|(good, _)| !good).map_or(Ok(()), |(_, what)| Err(what))
}

fn save_msrs(msrs: &Msrs) -> MsrsState {
    let Msrs { efer, star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux, sysenter_cs, .. } = *msrs;
    let Msrs { sysenter_esp, sysenter_eip, pat, misc_enable, spec_ctrl, tsc_adjust, debugctl, .. } = *msrs;
    let Msrs { xss, mtrr_def_type, mtrr_fixed, mtrr_variable, .. } = *msrs;
    MsrsState {
        efer,
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        tsc_aux,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        misc_enable,
        spec_ctrl,
        tsc_adjust,
        debugctl,
        xss,
        mtrr_def_type,
        mtrr_fixed,
        mtrr_variable,
    }
}

/// Names every field, so that a new one fails to compile until it is saved.
fn restore_msrs(saved: MsrsState) -> Msrs {
    Msrs {
        efer: saved.efer,
        star: saved.star,
        lstar: saved.lstar,
        cstar: saved.cstar,
        sfmask: saved.sfmask,
        kernel_gs_base: saved.kernel_gs_base,
        tsc_aux: saved.tsc_aux,
        sysenter_cs: saved.sysenter_cs,
        sysenter_esp: saved.sysenter_esp,
        sysenter_eip: saved.sysenter_eip,
        pat: saved.pat,
        misc_enable: saved.misc_enable,
        spec_ctrl: saved.spec_ctrl,
        tsc_adjust: saved.tsc_adjust,
        debugctl: saved.debugctl,
        xss: saved.xss,
        mtrr_def_type: saved.mtrr_def_type,
        mtrr_fixed: saved.mtrr_fixed,
        mtrr_variable: saved.mtrr_variable,
    }
}

fn save_events(events: Events) -> EventsState {
    let Events { nmi_pending, nmi_blocked, interrupt_shadow, halted, waits_for_start_up, undelivered } =
        events;
    let undelivered = undelivered.map(|event| match event {
        Undelivered::Interrupt(vector) => UndeliveredState::Interrupt(vector),
        Undelivered::DebugTrap => UndeliveredState::DebugTrap,
    });
    EventsState { nmi_pending, nmi_blocked, interrupt_shadow, halted, waits_for_start_up, undelivered }
}

fn restore_events(saved: EventsState) -> Events {
    let EventsState { nmi_pending, nmi_blocked, interrupt_shadow, halted, waits_for_start_up, undelivered } =
        saved;
    let undelivered = undelivered.map(|event| match event {
        UndeliveredState::Interrupt(vector) => Undelivered::Interrupt(vector),
        UndeliveredState::DebugTrap => Undelivered::DebugTrap,
    });
    Events { nmi_pending, nmi_blocked, interrupt_shadow, halted, waits_for_start_up, undelivered }
}

fn save_fx(fx: &FxImage) -> FxState {
    let FxImage { fcw, fsw, ftw, reserved: _, fop, fip, fdp, mxcsr, mxcsr_mask, st, xmm_scratch: _, tail: _ } =
        *fx;
    FxState { fcw, fsw, ftw, fop, fip, fdp, mxcsr, mxcsr_mask, st }
}

fn restore_fx(saved: FxState) -> FxImage {
    let FxState { fcw, fsw, ftw, fop, fip, fdp, mxcsr, mxcsr_mask, st } = saved;
    FxImage { fcw, fsw, ftw, fop, fip, fdp, mxcsr, mxcsr_mask, st, ..FxImage::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> CpuState {
        let mut cpu = CpuState::power_up();
        cpu.gpr = std::array::from_fn(|i| 0x0101_0101_0101_0101 * i as u64);
        (cpu.rip, cpu.rflags) = (0xffff_8000_1234_5678, 0x246);
        (cpu.cr0, cpu.cr3, cpu.cr4) = (0x8005_0033, 0x1000, 0x3506f0 & Cr4::all().bits());
        (cpu.msrs.efer, cpu.xcr0, cpu.tsc_offset) = (0xd01, 7, u64::MAX - 5);
        cpu.msrs.mtrr_variable[15] = 9;
        cpu.events.halted = true;
        cpu.events.undelivered = Some(Undelivered::Interrupt(0x31));
        cpu.ymm[15].0[31] = 0xee;
        (cpu.fx.mxcsr, cpu.fx.st[7][9]) = (0x1fa0, 0x7f);
        cpu
    }

    #[test]
    fn a_vcpu_comes_back_as_it_was() {
        for cpu in [busy(), CpuState::power_up()] {
            assert_eq!(restore(&save(&cpu).unwrap()).unwrap(), cpu);
        }
    }

    #[test]
    fn registers_no_processor_has_are_refused_by_name() {
        type Damage = fn(&mut CpuState);
        let damages: [(&str, Damage); 8] = [
            ("rflags", |cpu| cpu.rflags = 0),
            ("cr0", |cpu| cpu.cr0 = Cr0::PG.bits()),
            ("cr4", |cpu| cpu.cr4 |= 1 << 40),
            ("efer", |cpu| cpu.msrs.efer = Efer::LMA.bits()),
            ("xcr0", |cpu| cpu.xcr0 = 5),
            ("mxcsr", |cpu| cpu.fx.mxcsr = 1 << 16),
            ("mxcsr", |cpu| (cpu.fx.mxcsr, cpu.fx.mxcsr_mask) = (1 << 17, 1 << 17)),
            ("segment", |cpu| cpu.tr.access = 1 << 17),
        ];
        for (name, damage) in damages {
            let mut cpu = busy();
            damage(&mut cpu);
            let error = restore(&save(&cpu).unwrap()).unwrap_err().to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}
