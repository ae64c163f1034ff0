//! What must agree, and the few things that need not.

use std::fmt::Write;

use crate::amd;
use crate::case::{Bits, Output, TIMEOUT, fx};
use crate::generate::Case;
use crate::known;
use crate::layout::USER_CS64;

/// Flags a program can see: status, TF, DF, NT, RF, AC, ID. IF and IOPL are Linux's own.
const VISIBLE_FLAGS: u64 = 0x25_4dd5;
const STATUS_FLAGS: u64 = 0x8d5;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Agree,
    /// Did not end in time on the processor.
    Endless,
    /// Differs in a way that is accepted, for this reason.
    Known(&'static str),
    Differ(Vec<String>),
}

/// Position of the instruction `output` ended at: `Ok` the number of instructions completed, if known.
pub fn completed(case: &Case, output: &Output) -> Option<usize> {
    let at = output.registers.rip.wrapping_sub(case.input.registers.rip) as usize;
    let end = case.input.code_len;
    // A breakpoint after the last instruction: RIP is behind it.
    if output.fault.vector == 3 && at == end + 1 {
        return Some(case.instructions.len());
    }
    case.instructions.iter().position(|placed| placed.at == at)
}

/// Status flags not to be compared after `output`.
fn undefined(case: &Case, output: &Output) -> u64 {
    if case.instructions.iter().any(|placed| placed.insn.flow_control() != iced_x86::FlowControl::Next) {
        return case.undefined;
    }
    match completed(case, output) {
        Some(0) => 0,
        // A repeated string instruction that faults may have changed flags.
        Some(n) => case.instructions[n - 1].undefined,
        None => case.undefined,
    }
}

/// Compares what the processor did with what the interpreter did.
pub fn compare(case: &Case, native: &Output, guest: &Output) -> Verdict {
    if native.fault.vector == TIMEOUT {
        return Verdict::Endless;
    }
    let mut out = Vec::new();
    let (n, g) = (&native.registers, &guest.registers);
    let wide = case.input.bits == Bits::B64;
    let seen = if wide || n.selectors[1] == USER_CS64 { u64::MAX } else { 0xffff_ffff };
    let mut differ = |name: &str, native: u64, guest: u64| {
        if native != guest {
            out.push(format!("{name}: processor {native:#x}, interpreter {guest:#x}"));
        }
    };
    differ("vector", native.fault.vector.into(), guest.fault.vector.into());
    let (mut native_code, mut guest_code) = (native.fault.code, guest.fault.code);
    if native.fault.address >> 47 != 0 {
        // Linux hides which of its pages exist.
        (native_code, guest_code) = (native_code | 1, guest_code | 1);
    }
    differ("error code", native_code.into(), guest_code.into());
    differ("cr2", native.fault.address, guest.fault.address);
    differ("rip", n.rip & seen, g.rip & seen);
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    for (i, name) in NAMES.into_iter().enumerate() {
        // The upper halves are undefined once legacy code wrote the lower ones.
        let legacy = !wide || i == 4 && n.selectors[1] != USER_CS64;
        let mask = if legacy { 0xffff_ffff } else { u64::MAX };
        differ(name, n.gpr[i] & mask, g.gpr[i] & mask);
    }
    let flags = VISIBLE_FLAGS & !(undefined(case, native) & STATUS_FLAGS);
    differ("rflags", n.rflags & flags, g.rflags & flags);
    for (i, name) in ["es", "cs", "ss", "ds", "fs", "gs"].into_iter().enumerate() {
        // Linux's own return to user mode makes every null selector zero.
        let visible = |selector: u16| u64::from(if selector < 4 { 0 } else { selector });
        differ(name, visible(n.selectors[i]), visible(g.selectors[i]));
    }
    if wide {
        differ("fs base", n.fs_base, g.fs_base);
        differ("gs base", n.gs_base, g.gs_base);
    }
    vectors(native, guest, &mut out);
    memory(native, guest, &mut out);
    if out.is_empty() {
        return Verdict::Agree;
    }
    known::reason(case, native, guest, &out).map_or(Verdict::Differ(out), Verdict::Known)
}

fn vectors(native: &Output, guest: &Output, out: &mut Vec<String>) {
    let (n, g) = (&native.registers, &guest.registers);
    const PARTS: [(&str, usize, usize); 8] = [
        ("fcw", 0, 2),
        ("fsw", 2, 2),
        ("ftw", fx::FTW, 1),
        ("fop", 6, 2),
        ("fip", 8, 8),
        ("fdp", 16, 8),
        ("mxcsr", fx::MXCSR, 4),
        ("mxcsr mask", fx::MXCSR_MASK, 4),
    ];
    let hex = |bytes: &[u8]| {
        bytes.iter().rev().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    let mut part = |name: String, a: &[u8], b: &[u8]| {
        if a != b {
            out.push(format!("{name}: processor {}, interpreter {}", hex(a), hex(b)));
        }
    };
    for (name, at, len) in PARTS.into_iter().filter(|part| !amd::leaves_out(part.1)) {
        part(name.to_owned(), &n.fx[at..at + len], &g.fx[at..at + len]);
    }
    for i in 0..8 {
        let at = fx::ST + 16 * i;
        part(format!("st{i}"), &n.fx[at..at + 10], &g.fx[at..at + 10]);
    }
    for i in 0..16 {
        let at = fx::XMM + 16 * i;
        part(format!("xmm{i}"), &n.fx[at..at + 16], &g.fx[at..at + 16]);
        part(format!("ymm{i} high"), &n.ymm_high[16 * i..][..16], &g.ymm_high[16 * i..][..16]);
    }
}

fn memory(native: &Output, guest: &Output, out: &mut Vec<String>) {
    if native.memory == guest.memory {
        return;
    }
    let different = native.memory.iter().zip(&guest.memory).enumerate().filter(|(_, (a, b))| a != b);
    for (at, (a, b)) in different.clone().take(8) {
        out.push(format!("data + {at:#x}: processor {a:02x}, interpreter {b:02x}"));
    }
    let count = different.count();
    if count > 8 {
        out.push(format!("data: {count} bytes differ"));
    }
}
