//! Every form that compiles, against the same instruction run by an independent stub; and what needs a case
//! of its own: unmasked errors, pointers, scattered memory.
// UNSAFETY: runs thunks on buffers of the tests.

mod bounds;
mod cases;
mod memory;
mod native;
mod random;

use super::*;
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Mnemonic, OpCodeOperandKind, OpKind, Register};
use native::Native;
use random::Random;

fn all() -> Thunks {
    Thunks::new(features::host_has).unwrap()
}

/// Whether a test cannot run on this host, which it then says.
fn skipped_without(feature: Feature) -> bool {
    let lacks = !features::host_has(feature);
    if lacks {
        println!("skipped: this host has no {feature:?}");
    }
    lacks
}

fn decode(bytes: &[u8], bits: u32) -> Instruction {
    Decoder::with_ip(bits, bytes, 0x1000, DecoderOptions::NONE).decode()
}

/// A memory operand in a buffer of its own, aligned as any instruction may want.
#[repr(align(64))]
struct Operand([u8; 4096]);

/// Forms whose result is not a function of their operands.
fn is_random(code: Code) -> bool {
    matches!(code.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed)
}

/// Hints that are #UD on AMD's processors where they name a register, and nothing on Intel's and here.
fn may_be_undefined(code: Code) -> bool {
    matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    )
}

/// One random instruction of form `code` in both ways; `None` if the form does not compile.
fn compare(thunks: &mut Thunks, native: &mut Native, code: Code, random: &mut Random) -> Option<()> {
    let (instruction, stub, bytes) = (0..50).find_map(|_| {
        let instruction = random::instruction(code, random)?;
        let (stub, bytes) = native.build(&instruction)?;
        Some((instruction, stub, bytes))
    })?;
    let decoded = decode(&bytes, 64);
    let thunk = thunks.compile(&decoded, 64, &bytes).ok()?;
    // Pseudo-instructions and second encodings may decode as something else.
    if thunk.is_scattered()
        || may_be_undefined(code)
        || !code.op_code().is_instruction()
        || code.op_code().fwait()
    {
        return None;
    }
    let mut state = CpuState::power_up();
    state.cr0 |= 1;
    state.msrs.efer = 0x500;
    random::fill(&mut state, random);
    let aligned = thunk.memory().map_or(1, |m| m.alignment);
    let offset = if aligned > 1 { 1024 } else { 1024 + random.below(64) };
    let mut operand = Operand(std::array::from_fn(|_| 0));
    operand.0.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.word().to_le_bytes()));
    if code.mnemonic() == Mnemonic::Ldmxcsr || code.mnemonic() == Mnemonic::Vldmxcsr {
        operand.0[offset as usize + 2..][..2].fill(0);
    }
    native.operand_bytes().copy_from_slice(&operand.0);
    if form::has_memory(&instruction) {
        state.gpr[instruction.memory_base().number()] = native.operand_page() + offset;
    }
    let before = state.clone();
    let mut expected = state.clone();
    native.run(&stub, &mut expected);
    // SAFETY: the operand lies in a buffer larger than any.
    let result = unsafe {
        let memory = operand.0.as_mut_ptr().add(offset as usize);
        thunks.run(&thunk, &mut state, memory, Pointers::default())
    };
    assert_eq!(result, Ok(()), "{code:?}");
    if !is_random(code) {
        check(code, &bytes, &before, &expected, &state);
        assert!(operand.0[..] == *native.operand_bytes(), "{code:?} {bytes:02x?} memory");
    }
    Some(())
}

fn check(code: Code, bytes: &[u8], before: &CpuState, expected: &CpuState, state: &CpuState) {
    let context = || format!("{code:?} {bytes:02x?}");
    for i in 0..16 {
        let [b, e, s] = [before, expected, state].map(|x| x.gpr[i]);
        assert_eq!(e, s, "{} gpr {i}: expected {e:#x}, is {s:#x}, was {b:#x}", context());
        assert_eq!(expected.ymm[i], state.ymm[i], "{} ymm {i}, was {:x?}", context(), before.ymm[i]);
    }
    let [b, e, s] = [before, expected, state].map(|x| x.rflags);
    assert_eq!(e, s, "{} rflags: expected {e:#x}, is {s:#x}, was {b:#x}", context());
    let x87 = |x: &CpuState| (x.fx.fcw, x.fx.fsw, x.fx.ftw, x.fx.mxcsr);
    assert_eq!(x87(expected), x87(state), "{} fcw, fsw, ftw, mxcsr; were {:x?}", context(), x87(before));
    for (i, (e, s)) in expected.fx.st.iter().zip(&state.fx.st).enumerate() {
        assert_eq!(e[..10], s[..10], "{} st {i}, was {:x?}", context(), before.fx.st[i]);
    }
}

/// How often each form is tried.
const ROUNDS: usize = 16;

#[test]
fn every_form_does_what_the_host_does() {
    if skipped_without(Feature::Avx) {
        return;
    }
    let (mut thunks, mut native, mut random) = (all(), Native::new(), Random(0x1234_5678_9abc_def1));
    let mut covered = 0;
    for code in Code::values() {
        let ran =
            (0..ROUNDS).filter(|_| compare(&mut thunks, &mut native, code, &mut random).is_some()).count();
        covered += usize::from(ran > 0);
    }
    println!("{covered} instruction forms agree with the host in {ROUNDS} rounds each");
    assert!(covered > 1000, "{covered}");
}

/// Feature sets all of whose instructions must be carried out where the host has them.
const COMPLETE: &[CpuidFeature] = &[
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::LZCNT,
    CpuidFeature::POPCNT,
    CpuidFeature::MOVBE,
    CpuidFeature::ADX,
    CpuidFeature::RDRAND,
    CpuidFeature::RDSEED,
];

#[test]
fn the_feature_sets_we_offer_are_complete() {
    let mut thunks = all();
    let mut random = Random(7);
    let (mut made, mut refused) = (0, Vec::new());
    for code in Code::values() {
        let features = code.cpuid_features();
        let op_code = code.op_code();
        let complete = features.iter().all(|f| COMPLETE.contains(f) || *f == CpuidFeature::CMOV);
        // The decoder gives the waiting forms (FSTENV) as FWAIT and the other one.
        let waits = op_code.fwait() || !op_code.is_instruction();
        if features.is_empty() || features == [CpuidFeature::CMOV] || !complete || waits || !op_code.mode64()
        {
            continue;
        }
        let instruction = random::instruction(code, &mut random).unwrap_or_else(|| {
            let mut scattered = Instruction::default();
            scattered.set_code(code);
            if op_code.op_kind(0) == OpCodeOperandKind::seg_rDI {
                scattered.set_op0_kind(OpKind::MemorySegRDI);
            } else {
                scattered.set_op1_kind(OpKind::Memory);
                scattered.set_memory_index(Register::XMM1);
            }
            scattered
        });
        match thunks.compile(&instruction, 64, &[]) {
            Ok(_) => made += 1,
            Err(Unsupported::NotOffered) => println!("skipped, not on this host: {code:?}"),
            Err(error) => {
                refused.push((code, error, instruction.to_string(), thunks.compile(&instruction, 32, &[])))
            }
        }
    }
    println!("{made} forms of the complete feature sets have thunks");
    assert!(refused.is_empty(), "{refused:?}");
}
