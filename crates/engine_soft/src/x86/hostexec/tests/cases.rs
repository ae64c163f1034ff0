//! Single behaviours the manual prescribes.
// UNSAFETY: runs thunks on buffers of the tests.

use super::*;

/// Runs the instruction in `bytes` (64-bit code) on `state`, with `memory` as its operand.
fn run(bytes: &[u8], state: &mut CpuState, memory: &mut [u8]) -> Result<(), Trap> {
    let mut thunks = all();
    let thunk = thunks.compile(&decode(bytes, 64), 64, bytes).unwrap();
    let mut operand = Operand([0; 4096]);
    operand.0[..memory.len()].copy_from_slice(memory);
    let at = Pointers { rip: 0x40_1000, operand: 0x7000 };
    // SAFETY: the operand is larger and more aligned than any instruction needs.
    let result = unsafe { thunks.run(&thunk, state, operand.0.as_mut_ptr(), at) };
    memory.copy_from_slice(&operand.0[..memory.len()]);
    result
}

fn ready() -> CpuState {
    let mut state = CpuState::power_up();
    state.cr0 = 0x8000_0033;
    state.cr4 = (Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits();
    state.xcr0 = 7;
    state.fx.fcw = 0x37f;
    state
}

fn set_singles(state: &mut CpuState, register: usize, values: [f32; 4]) {
    for (lane, value) in state.ymm[register].0.chunks_exact_mut(4).zip(values) {
        lane.copy_from_slice(&value.to_le_bytes());
    }
}

const SIMD_ERROR: Result<(), Trap> = Err(Trap::Exception(Exception::new(Vector::SimdError)));
const DIVPS: [u8; 3] = [0x0f, 0x5e, 0xc1];
const MULPS: [u8; 3] = [0x0f, 0x59, 0xc1];
const ADDPS: [u8; 3] = [0x0f, 0x58, 0xc1];
const INVALID: u32 = 1;
const DENORMAL: u32 = 2;
const ZERO_DIVIDE: u32 = 4;
const OVERFLOW: u32 = 8;
const UNDERFLOW: u32 = 16;
const INEXACT: u32 = 32;

/// Runs `bytes` with `unmasked` errors unmasked and returns the flags it leaves; the operands must not change.
fn simd_error(bytes: &[u8], unmasked: u32, a: [f32; 4], b: [f32; 4]) -> u32 {
    let mut state = ready();
    state.fx.mxcsr = 0x1f80 & !(unmasked << 7);
    set_singles(&mut state, 0, a);
    set_singles(&mut state, 1, b);
    let mut expected = state.clone();
    assert_eq!(run(bytes, &mut state, &mut []), SIMD_ERROR);
    let flags = state.fx.mxcsr & 0x3f;
    expected.fx.mxcsr |= flags;
    assert!(state == expected, "only MXCSR may change");
    flags
}

#[test]
fn an_unmasked_early_error_hides_late_ones_and_keeps_early_ones() {
    let tiny = f32::from_bits(1);
    let flags = simd_error(&DIVPS, ZERO_DIVIDE, [1.0, tiny, 1.0, 1.0], [0.0, 1.0, 3.0, 1.0]);
    assert_eq!(flags, ZERO_DIVIDE | DENORMAL);
    let flags = simd_error(&DIVPS, INVALID, [0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 3.0, 1.0]);
    assert_eq!(flags, INVALID | ZERO_DIVIDE);
}

#[test]
fn unmasked_late_errors_are_found_before_rounding_hides_them() {
    let big = f32::MAX;
    assert_eq!(simd_error(&MULPS, OVERFLOW, [big; 4], [2.0; 4]) & OVERFLOW, OVERFLOW);
    assert_eq!(simd_error(&DIVPS, INEXACT, [1.0; 4], [3.0; 4]), INEXACT);
    // An exact denormal result underflows only if the error is unmasked.
    let tiny = f32::from_bits(2);
    assert_eq!(simd_error(&ADDPS, UNDERFLOW, [tiny; 4], [tiny; 4]) & UNDERFLOW, UNDERFLOW);
}

#[test]
fn an_unmasked_error_that_does_not_happen_changes_nothing() {
    let mut state = ready();
    state.fx.mxcsr = 0x1f80 & !(ZERO_DIVIDE << 7);
    set_singles(&mut state, 0, [1.0, 2.0, 3.0, 4.0]);
    set_singles(&mut state, 1, [3.0; 4]);
    assert_eq!(run(&DIVPS, &mut state, &mut []), Ok(()));
    assert_eq!(state.ymm[0].0[..4], (1.0f32 / 3.0).to_le_bytes());
    assert_eq!(state.fx.mxcsr & 0x3f, INEXACT);
}

#[test]
fn without_osxmmexcpt_an_unmasked_error_is_an_undefined_opcode() {
    let mut state = ready();
    state.cr4 &= !Cr4::OSXMMEXCPT.bits();
    state.fx.mxcsr = 0;
    set_singles(&mut state, 0, [1.0; 4]);
    assert_eq!(run(&DIVPS, &mut state, &mut []), Err(Trap::Exception(Exception::UD)));
}

#[test]
fn an_error_is_caught_on_a_thread_that_blocks_all_signals() {
    std::thread::spawn(|| {
        // SAFETY: a local set, and this thread's mask.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut set);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        }
        for _ in 0..3 {
            simd_error(&DIVPS, ZERO_DIVIDE, [1.0; 4], [0.0; 4]);
        }
    })
    .join()
    .unwrap();
}

#[test]
fn a_conversion_to_mmx_that_errs_leaves_the_x87_state() {
    let mut state = ready();
    state.fx.mxcsr = 0x1f80 & !(INVALID << 7);
    state.fx.fsw = 3 << 11;
    set_singles(&mut state, 1, [f32::NAN; 4]);
    let before = state.fx;
    assert_eq!(run(&[0x0f, 0x2d, 0xc1], &mut state, &mut []), SIMD_ERROR); // cvtps2pi mm0, xmm1
    assert_eq!((state.fx.fsw, state.fx.ftw, state.fx.st), (before.fsw, before.ftw, before.st));
}

#[test]
fn the_host_keeps_its_own_rounding() {
    let mut state = ready();
    state.fx.mxcsr = 0x7f80; // towards zero
    run(&DIVPS, &mut state, &mut []).unwrap();
    run(&[0xd9, 0xe8], &mut state, &mut []).unwrap(); // fld1
    let mut mxcsr = 0u32;
    // SAFETY: stores four bytes to a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr) };
    assert_eq!(mxcsr & 0xffc0, 0x1f80);
}

#[test]
fn legacy_instructions_keep_the_upper_half_and_vex_ones_clear_it() {
    if skipped_without(Feature::Avx) {
        return;
    }
    let mut state = ready();
    state.ymm[0].0 = [0x55; 32];
    run(&[0x66, 0x0f, 0xef, 0xc0], &mut state, &mut []).unwrap(); // pxor xmm0, xmm0
    assert_eq!(state.ymm[0].0[..16], [0; 16]);
    assert_eq!(state.ymm[0].0[16..], [0x55; 16]);
    state.ymm[1].0 = [0xaa; 32];
    run(&[0xc5, 0xf1, 0xef, 0xc1], &mut state, &mut []).unwrap(); // vpxor xmm0, xmm1, xmm1
    assert_eq!(state.ymm[0].0, [0; 32]);
    run(&[0xc5, 0xf8, 0x77], &mut state, &mut []).unwrap(); // vzeroupper
    assert_eq!((&state.ymm[1].0[..16], &state.ymm[1].0[16..]), (&[0xaa; 16][..], &[0; 16][..]));
}

#[test]
fn ldmxcsr_refuses_reserved_bits() {
    let mut state = ready();
    let ldmxcsr = [0x0f, 0xae, 0x16];
    assert_eq!(
        run(&ldmxcsr, &mut state, &mut 0x1_0000u32.to_le_bytes()),
        Err(Trap::Exception(Exception::GP0))
    );
    assert_eq!(state.fx.mxcsr, 0x1f80);
    run(&ldmxcsr, &mut state, &mut 0x9fc0u32.to_le_bytes()).unwrap();
    let mut stored = [0; 4];
    run(&[0x0f, 0xae, 0x1e], &mut state, &mut stored).unwrap();
    assert_eq!(u32::from_le_bytes(stored), 0x9fc0);
}

/// 1 / 0 with the error unmasked.
fn divided_by_zero() -> CpuState {
    let mut state = ready();
    state.fx.fcw = 0x37b;
    run(&[0xd9, 0xe8], &mut state, &mut []).unwrap(); // fld1
    run(&[0xd9, 0xee], &mut state, &mut []).unwrap(); // fldz
    assert_eq!(check_enabled(Class::X87, &state), Ok(()));
    run(&[0xde, 0xf9], &mut state, &mut []).unwrap(); // fdivp
    state
}

#[test]
fn an_unmasked_x87_error_waits_for_the_next_waiting_instruction() {
    let mut state = divided_by_zero();
    assert!(x87_pending_error(&state));
    assert_eq!(state.fx.fsw & 0x80ff, 0x8084, "B, ES, ZE");
    assert_eq!(check_enabled(Class::X87, &state), Err(Exception::new(Vector::X87Error)));
    assert_eq!(check_enabled(Class::X87Control, &state), Ok(()));
    let mut status = [0; 2];
    run(&[0xdd, 0x3e], &mut state, &mut status).unwrap(); // fnstsw [rsi]
    assert_eq!(u16::from_le_bytes(status), state.fx.fsw);
    run(&[0xdb, 0xe2], &mut state, &mut []).unwrap(); // fnclex
    assert!(!x87_pending_error(&state));
}

#[test]
fn the_x87_remembers_the_guests_addresses_not_the_hosts() {
    let state = divided_by_zero();
    assert_eq!(state.fx.fip, 0x40_1000);
    assert!(state.fx.fop == 0x6f9 || state.fx.fop == 0, "{:#x}", state.fx.fop);
    let mut state = ready();
    state.fx.fcw = 0x37b;
    run(&[0xd9, 0xe8], &mut state, &mut []).unwrap(); // fld1
    run(&[0xd8, 0x36], &mut state, &mut [0; 4]).unwrap(); // fdiv dword [rsi]
    assert_eq!((state.fx.fip, state.fx.fdp), (0x40_1000, 0x7000));
}

#[test]
fn without_numeric_error_reporting_a_pending_error_does_not_stop_the_guest() {
    let mut state = divided_by_zero();
    state.cr0 &= !0x20;
    run(&[0xd9, 0xe8], &mut state, &mut []).unwrap(); // fld1
    assert!(x87_pending_error(&state), "still flagged and unmasked");
    assert_eq!(state.fx.fcw, 0x37b);
}

#[test]
fn an_x87_store_with_an_unmasked_error_leaves_memory() {
    let mut state = ready();
    state.fx.fcw = 0x37e;
    let mut memory = [0x11; 8];
    run(&[0xdd, 0x1e], &mut state, &mut memory).unwrap(); // fstp qword [rsi], stack empty
    assert_eq!(memory, [0x11; 8]);
    assert!(x87_pending_error(&state));
}

#[test]
fn the_state_holds_nothing_of_the_host_after_an_x87_instruction() {
    let mut state = ready();
    run(&[0xd9, 0xe8], &mut state, &mut []).unwrap();
    assert_eq!(state.fx.xmm_scratch, [0; 256]);
    assert_eq!((state.fx.mxcsr_mask, state.fx.mxcsr), (FxImage::MXCSR_MASK, 0x1f80));
}

#[test]
fn environments_have_the_four_formats_of_the_manual() {
    let mut state = ready();
    (state.fx.fip, state.fx.fdp, state.fx.fop) = (0x1_2345, 0x6_789a, 0x123);
    let mut store = |cr0: u64, bytes: &[u8], len: usize| {
        state.cr0 = cr0;
        let mut memory = vec![0; len];
        run(bytes, &mut state, &mut memory).unwrap();
        memory
    };
    let (wide, narrow) = ([0xd9, 0x36].as_slice(), [0x66, 0xd9, 0x36].as_slice());
    let word = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let protected = store(0x31, wide, 28);
    assert_eq!((word(&protected, 12), word(&protected, 14), word(&protected, 18)), (0x2345, 1, 0x123));
    assert_eq!((word(&protected, 20), word(&protected, 22)), (0x789a, 6));
    let real = store(0x30, wide, 28);
    assert_eq!((word(&real, 12), word(&real, 16), word(&real, 24)), (0x2345, 0x1123, 0x6000));
    let protected = store(0x31, narrow, 14);
    assert_eq!((word(&protected, 6), word(&protected, 8), word(&protected, 10)), (0x2345, 0, 0x789a));
    let real = store(0x30, narrow, 14);
    assert_eq!((word(&real, 6), word(&real, 8), word(&real, 12)), (0x2345, 0x1123, 0x6000));
    for (cr0, bytes, load, mut image) in [
        (0x30, wide, &[0xd9, 0x26][..], [0; 28].to_vec()),
        (0x30, narrow, &[0x66, 0xd9, 0x26], [0; 14].to_vec()),
    ] {
        let mut state = ready();
        state.cr0 = cr0;
        (state.fx.fip, state.fx.fdp, state.fx.fop) = (0x1_2345, 0x6_789a, 0x123);
        let before = state.fx;
        run(bytes, &mut state, &mut image).unwrap();
        state.fx = FxImage::default();
        run(load, &mut state, &mut image).unwrap();
        assert_eq!((state.fx.fip, state.fx.fdp, state.fx.fop), (before.fip, before.fdp, before.fop));
    }
}

#[test]
fn operands_tell_the_caller_what_to_check() {
    if skipped_without(Feature::Avx) {
        return;
    }
    let mut thunks = all();
    let mut operand = |bytes: &[u8], bits| {
        let thunk = thunks.compile(&decode(bytes, bits), bits, bytes).unwrap();
        thunk.memory().map(|m| (m.size, m.alignment, m.access, m.atomic))
    };
    assert_eq!(operand(&[0x0f, 0x28, 0x07], 64), Some((16, 16, Access::Read, false))); // movaps xmm0, [rdi]
    assert_eq!(operand(&[0x0f, 0x10, 0x07], 64), Some((16, 1, Access::Read, false))); // movups xmm0, [rdi]
    assert_eq!(operand(&[0x0f, 0x29, 0x07], 32), Some((16, 16, Access::Write, false)));
    assert_eq!(operand(&[0x0f, 0x58, 0x05, 0, 0, 0, 0], 32), Some((16, 16, Access::Read, false)));
    assert_eq!(operand(&[0x0f, 0x58, 0x06, 0, 0], 16), Some((16, 16, Access::Read, false)));
    assert_eq!(operand(&[0xc5, 0xfc, 0x28, 0x07], 64), Some((32, 32, Access::Read, false))); // vmovaps
    assert_eq!(operand(&[0xc5, 0xf4, 0x58, 0x07], 64), Some((32, 1, Access::Read, false))); // vaddps
    assert_eq!(operand(&[0xf0, 0x48, 0x0f, 0xc1, 0x07], 64), Some((8, 1, Access::ReadWrite, true))); // lock xadd
    assert_eq!(operand(&[0xdb, 0x3f], 64), Some((10, 1, Access::ReadWrite, false))); // fstp tbyte
    assert_eq!(operand(&[0xdd, 0x37], 64), Some((108, 1, Access::Write, false))); // fnsave
    assert_eq!(operand(&[0x0f, 0x18, 0x0f], 64), None); // prefetcht0
}

#[test]
fn what_could_leave_the_thunk_is_refused() {
    let mut thunks = all();
    let dangerous: &[&[u8]] = &[
        &[0x0f, 0x05],                         // syscall
        &[0x0f, 0x34],                         // sysenter
        &[0xcc],                               // int3
        &[0xcd, 0x80],                         // int 80h
        &[0xf4],                               // hlt
        &[0xfa],                               // cli
        &[0xec],                               // in al, dx
        &[0xc3],                               // ret
        &[0xeb, 0],                            // jmp
        &[0xff, 0xd0],                         // call rax
        &[0x50],                               // push
        &[0x9d],                               // popfq
        &[0xa4],                               // movsb
        &[0xfc],                               // cld
        &[0xf7, 0xf1],                         // div
        &[0x8e, 0xd0],                         // mov ss
        &[0x0f, 0x22, 0xc0],                   // mov cr0
        &[0x0f, 0x01, 0xd0],                   // xgetbv
        &[0x0f, 0xa2],                         // cpuid
        &[0x0f, 0x31],                         // rdtsc
        &[0x0f, 0xae, 0x07],                   // fxsave
        &[0x0f, 0xae, 0x2f],                   // xrstor
        &[0xf3, 0x0f, 0xae, 0xd0],             // wrfsbase
        &[0x0f, 0x0b],                         // ud2
        &[0xd7],                               // xlat
        &[0x48, 0x0f, 0xab, 0x07],             // bts [rdi], rax
        &[0x48, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0], // mov rax, [0]
        &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1], // vaddps zmm
        &[0xc7, 0xf8, 0, 0, 0, 0],             // xbegin
        &[0x0f, 0x01, 0xee],                   // rdpkru
        &[0xc8, 0, 0, 0],                      // enter
        &[0x48, 0x8d, 0x07],                   // lea
    ];
    for bytes in dangerous {
        let error = thunks.compile(&decode(bytes, 64), 64, bytes).unwrap_err();
        assert_ne!(error, Unsupported::NoMemory, "{bytes:02x?}");
    }
    // daa, inc eax, aam, arpl, bound, les, pusha, into, salc: not in 64-bit code, so not ours.
    for bytes in
        [&[0x27][..], &[0x40], &[0xd4, 10], &[0x63, 0xc0], &[0x62, 0], &[0xc4, 0], &[0x60], &[0xce], &[0xd6]]
    {
        assert!(thunks.compile(&decode(bytes, 32), 32, bytes).is_err(), "{bytes:02x?}");
    }
    for code in Code::values().filter(|code| code.op_code().is_instruction()) {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let plain = instruction.flow_control() == iced_x86::FlowControl::Next && !instruction.is_privileged();
        assert!(plain || thunks.compile(&instruction, 64, &[]).is_err(), "{code:?}");
    }
}

#[test]
fn what_the_model_does_not_show_is_undefined_or_its_older_self() {
    let mut thunks = Thunks::new(|feature| !matches!(feature, Feature::Lzcnt | Feature::Avx)).unwrap();
    let vaddps = [0xc5, 0xf4, 0x58, 0xc1];
    assert_eq!(thunks.compile(&decode(&vaddps, 64), 64, &vaddps).unwrap_err(), Unsupported::NotOffered);
    let lzcnt = [0xf3, 0x0f, 0xbd, 0xc1];
    let thunk = thunks.compile(&decode(&lzcnt, 64), 64, &lzcnt).unwrap();
    let mut state = ready();
    state.gpr[1] = 0x10;
    // SAFETY: there is no memory operand.
    unsafe { thunks.run(&thunk, &mut state, std::ptr::null_mut(), Pointers::default()) }.unwrap();
    assert_eq!(state.gpr[0], 4, "bsr");
}

#[test]
fn thunks_survive_a_full_area_by_starting_over() {
    let mut thunks = all();
    let mut state = ready();
    let first_bytes = [0xb8, 0, 0, 0, 0];
    let first = thunks.compile(&decode(&first_bytes, 64), 64, &first_bytes).unwrap();
    let mut stale = false;
    for i in 0..40_000u32 {
        let mut bytes = [0x81, 0xc0, 0, 0, 0, 0]; // add eax, imm32
        bytes[2..].copy_from_slice(&i.to_le_bytes());
        state.gpr[0] = 1;
        let thunk = thunks.compile(&decode(&bytes, 64), 64, &bytes).unwrap();
        // SAFETY: there is no memory operand.
        unsafe { thunks.run(&thunk, &mut state, std::ptr::null_mut(), Pointers::default()) }.unwrap();
        assert_eq!(state.gpr[0], u64::from(i) + 1);
        assert!(thunks.forms.len() <= MAX_FORMS);
        stale |= !thunks.is_current(&first);
    }
    assert!(stale);
    // SAFETY: there is no memory operand.
    let result = unsafe { thunks.run(&first, &mut state, std::ptr::null_mut(), Pointers::default()) };
    assert_eq!(result, Err(Trap::Stale));
}
