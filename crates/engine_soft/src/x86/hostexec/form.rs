//! What one instruction form is and needs: its class, its memory operand, and how it is carried out.
//!
//! Only forms on a positive list are ever run on the host. Whole feature sets are on it for vector and x87
//! instructions, single mnemonics for integer ones; anything that could leave the thunk, touch the stack, a
//! segment or privileged state is on no list.

use iced_x86::{
    Code, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic,
    OpAccess, OpCodeOperandKind, OpKind, Register, RflagsBits,
};

use super::features::{Features, Lack};
use super::{Access, Class, MemoryOperand, Unsupported, kinds};

/// An instruction that is carried out here rather than by running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Builtin {
    /// Nothing happens: NOP forms, prefetches, FWAIT (whose checks are those of its class), cache flushes.
    Nothing,
    /// LDMXCSR.
    LoadMxcsr,
    /// STMXCSR.
    StoreMxcsr,
    /// VZEROUPPER on this many registers.
    ZeroUpper(u8),
    /// VZEROALL on this many registers.
    ZeroAll(u8),
    /// FNINIT.
    X87Init,
    /// FNCLEX.
    X87ClearErrors,
    /// FNSTSW AX.
    X87StatusToAx,
    /// FNSTSW m16.
    X87StoreStatus,
    /// FNSTCW.
    X87StoreControl,
    /// FLDENV.
    X87LoadEnvironment(EnvironmentWidth),
    /// FNSTENV.
    X87StoreEnvironment(EnvironmentWidth),
    /// FRSTOR.
    X87Restore(EnvironmentWidth),
    /// FNSAVE.
    X87Save(EnvironmentWidth),
    /// Gathers: see [`super::scattered`].
    Gather,
    /// VMASKMOVPS and its kin, loading.
    MaskedLoad,
    /// VMASKMOVPS and its kin, storing.
    MaskedStore,
    /// MASKMOVQ, MASKMOVDQU.
    MaskedBytes,
}

/// The two widths of the x87 environment in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EnvironmentWidth {
    /// 14 bytes.
    Bits16,
    /// 28 bytes.
    Bits32,
}

/// How a form is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// By running it on the host.
    Host,
    /// By our own code.
    Builtin(Builtin),
}

/// What is known of one instruction form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) class: Class,
    pub(super) memory: Option<MemoryOperand>,
    pub(super) means: Means,
    pub(super) uses_mxcsr: bool,
}

const FLAGS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// `instruction` without what differs between uses of one form: addressing, segment, place, needless prefixes.
pub(super) fn normalise(instruction: &Instruction, features: &Features) -> Instruction {
    let mut form = *instruction;
    form.set_code(without_bit_counts(instruction.code(), features));
    form.set_code_size(iced_x86::CodeSize::Code64);
    form.set_len(0);
    form.set_next_ip(0);
    form.set_segment_prefix(Register::None);
    form.set_has_rep_prefix(false);
    form.set_has_repne_prefix(false);
    form.set_has_xacquire_prefix(false);
    form.set_has_xrelease_prefix(false);
    if has_memory(&form) && !form.is_vsib() {
        set_address(&mut form, Register::None);
    }
    form
}

/// Makes the memory operand `[base]`.
pub(super) fn set_address(instruction: &mut Instruction, base: Register) {
    instruction.set_memory_base(base);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(0);
    instruction.set_memory_displ_size(if base == Register::None { 8 } else { 0 });
}

pub(super) fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// LZCNT and TZCNT are BSR and BSF with a prefix, which processors that lack them ignore.
fn without_bit_counts(code: Code, features: &Features) -> Code {
    let lzcnt = features.offers(iced_x86::CpuidFeature::LZCNT);
    let tzcnt = features.offers(iced_x86::CpuidFeature::BMI1);
    match code {
        Code::Lzcnt_r16_rm16 if !lzcnt => Code::Bsr_r16_rm16,
        Code::Lzcnt_r32_rm32 if !lzcnt => Code::Bsr_r32_rm32,
        Code::Lzcnt_r64_rm64 if !lzcnt => Code::Bsr_r64_rm64,
        Code::Tzcnt_r16_rm16 if !tzcnt => Code::Bsf_r16_rm16,
        Code::Tzcnt_r32_rm32 if !tzcnt => Code::Bsf_r32_rm32,
        Code::Tzcnt_r64_rm64 if !tzcnt => Code::Bsf_r64_rm64,
        other => other,
    }
}

impl Form {
    /// What `instruction`, already normalised, is and needs in `bits`-wide code.
    ///
    /// # Errors
    /// [`Unsupported`] if the guest may not use it, the host cannot run it, or it is on no list.
    pub(super) fn of(instruction: &Instruction, bits: u32, features: &Features) -> Result<Self, Unsupported> {
        let builtin = builtin(instruction, bits);
        features.allow(instruction.code(), builtin.is_none()).map_err(|lack| match lack {
            Lack::NotOffered => Unsupported::NotOffered,
            Lack::NotOnHost => Unsupported::NotOnHost,
        })?;
        if instruction.flow_control() != FlowControl::Next
            || instruction.is_privileged()
            || instruction.is_stack_instruction()
            || instruction.is_string_instruction()
        {
            return Err(Unsupported::NotHere);
        }
        let class = class_of(instruction).ok_or(Unsupported::NotHere)?;
        if matches!(class, Class::Integer | Class::VexInteger) && !is_plain_integer(instruction) {
            return Err(Unsupported::NotHere);
        }
        if builtin.is_none()
            && (instruction.is_vsib() || instruction.rflags_modified() & !FLAGS & !X87_FLAGS != 0)
        {
            return Err(Unsupported::NotHere);
        }
        let memory = match builtin {
            Some(Builtin::Gather | Builtin::MaskedLoad | Builtin::MaskedStore | Builtin::MaskedBytes) => None,
            Some(Builtin::Nothing) if !is_cache_flush(instruction) => None,
            _ => memory_operand(instruction, class)?,
        };
        Ok(Self {
            class,
            memory,
            means: builtin.map_or(Means::Host, Means::Builtin),
            uses_mxcsr: builtin.is_none() && uses_mxcsr(instruction, class),
        })
    }
}

/// The decoder counts the x87 condition codes among the flags.
const X87_FLAGS: u32 = RflagsBits::C0 | RflagsBits::C1 | RflagsBits::C2 | RflagsBits::C3;

fn is_x87(instruction: &Instruction) -> bool {
    use iced_x86::CpuidFeature::{FPU, FPU287, FPU387};
    instruction.cpuid_features().iter().any(|f| matches!(f, FPU | FPU287 | FPU387))
}

#[rustfmt::skip]
const VECTOR_KINDS: &[OpCodeOperandKind] = &[
    OpCodeOperandKind::xmm_reg, OpCodeOperandKind::xmm_rm, OpCodeOperandKind::xmm_vvvv,
    OpCodeOperandKind::xmm_is4, OpCodeOperandKind::xmm_or_mem,
    OpCodeOperandKind::ymm_reg, OpCodeOperandKind::ymm_rm, OpCodeOperandKind::ymm_vvvv,
    OpCodeOperandKind::ymm_is4, OpCodeOperandKind::ymm_or_mem,
];

fn class_of(instruction: &Instruction) -> Option<Class> {
    use OpCodeOperandKind as Kind;
    // What the operands could be decides, not what they are: CVTSS2SI from memory is an SSE instruction.
    let kinds = kinds::of(instruction.code());
    let mmx = kinds.iter().any(|kind| matches!(kind, Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem));
    let vector = kinds.iter().any(|kind| VECTOR_KINDS.contains(kind));
    match instruction.encoding() {
        EncodingKind::VEX => Some(match instruction.mnemonic() {
            Mnemonic::Vzeroupper | Mnemonic::Vzeroall | Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr => Class::Avx,
            _ if vector => Class::Avx,
            _ => Class::VexInteger,
        }),
        EncodingKind::Legacy => Some(match instruction.mnemonic() {
            Mnemonic::Wait => Class::Wait,
            _ if is_x87(instruction) && is_x87_control(instruction.mnemonic()) => Class::X87Control,
            _ if is_x87(instruction) => Class::X87,
            Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr => Class::Sse,
            Mnemonic::Emms => Class::Mmx,
            // These leave the x87 alone, its pending errors too, if their MMX operand is in memory. The manual
            // says so of the first only.
            Mnemonic::Cvtpi2pd | Mnemonic::Cvtpi2ps if has_memory(instruction) => Class::Sse,
            _ if mmx && vector => Class::MmxSse,
            _ if mmx => Class::Mmx,
            _ if vector => Class::Sse,
            _ => Class::Integer,
        }),
        _ => None,
    }
}

/// The instructions that do not wait for a pending x87 error.
fn is_x87_control(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Fninit
            | Mnemonic::Fnclex
            | Mnemonic::Fnstsw
            | Mnemonic::Fnstcw
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fneni
            | Mnemonic::Fndisi
            | Mnemonic::Fnsetpm
    )
}

fn is_cache_flush(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb)
}

fn builtin(instruction: &Instruction, bits: u32) -> Option<Builtin> {
    use EnvironmentWidth::{Bits16, Bits32};
    let registers = if bits == 64 { 16 } else { 8 };
    let stores = instruction.op0_kind() == OpKind::Memory;
    Some(match instruction.code() {
        Code::Fldenv_m14byte => Builtin::X87LoadEnvironment(Bits16),
        Code::Fldenv_m28byte => Builtin::X87LoadEnvironment(Bits32),
        Code::Fnstenv_m14byte => Builtin::X87StoreEnvironment(Bits16),
        Code::Fnstenv_m28byte => Builtin::X87StoreEnvironment(Bits32),
        Code::Frstor_m94byte => Builtin::X87Restore(Bits16),
        Code::Frstor_m108byte => Builtin::X87Restore(Bits32),
        Code::Fnsave_m94byte => Builtin::X87Save(Bits16),
        Code::Fnsave_m108byte => Builtin::X87Save(Bits32),
        Code::Fnstsw_AX => Builtin::X87StatusToAx,
        Code::Fnstsw_m2byte => Builtin::X87StoreStatus,
        _ => match instruction.mnemonic() {
            Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => Builtin::LoadMxcsr,
            Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr => Builtin::StoreMxcsr,
            Mnemonic::Vzeroupper => Builtin::ZeroUpper(registers),
            Mnemonic::Vzeroall => Builtin::ZeroAll(registers),
            Mnemonic::Fninit => Builtin::X87Init,
            Mnemonic::Fnclex => Builtin::X87ClearErrors,
            Mnemonic::Fnstcw => Builtin::X87StoreControl,
            Mnemonic::Vpgatherdd
            | Mnemonic::Vpgatherdq
            | Mnemonic::Vpgatherqd
            | Mnemonic::Vpgatherqq
            | Mnemonic::Vgatherdps
            | Mnemonic::Vgatherdpd
            | Mnemonic::Vgatherqps
            | Mnemonic::Vgatherqpd => Builtin::Gather,
            Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq => {
                if stores {
                    Builtin::MaskedStore
                } else {
                    Builtin::MaskedLoad
                }
            }
            Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => Builtin::MaskedBytes,
            Mnemonic::Wait
            | Mnemonic::Fneni
            | Mnemonic::Fndisi
            | Mnemonic::Fnsetpm
            | Mnemonic::Nop
            | Mnemonic::Reservednop
            | Mnemonic::Pause
            | Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
            | Mnemonic::Cldemote
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchwt1
            | Mnemonic::Prefetchit0
            | Mnemonic::Prefetchit1
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchnta
            | Mnemonic::Clflush
            | Mnemonic::Clflushopt
            | Mnemonic::Clwb => Builtin::Nothing,
            _ => return None,
        },
    })
}

/// Integer instructions whose operands are general purpose registers, memory and immediates, and whose
/// effects are those, the arithmetic flags, and nothing else.
fn is_plain_integer(instruction: &Instruction) -> bool {
    let plain_operands = (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
        OpKind::Register => instruction.op_register(i).is_gpr(),
        OpKind::Memory => kinds::of(instruction.code())[i as usize] != OpCodeOperandKind::mem_offs,
        _ => true,
    });
    plain_operands
        && match instruction.mnemonic() {
            // With a register for the bit number, the memory operand is a bit string of any length.
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
                instruction.op0_kind() == OpKind::Register || instruction.op1_kind() != OpKind::Register
            }
            other => INTEGER.contains(&other) || builtin(instruction, 64) == Some(Builtin::Nothing),
        }
}

#[rustfmt::skip]
const INTEGER: &[Mnemonic] = &[
    Mnemonic::Adc, Mnemonic::Adcx, Mnemonic::Add, Mnemonic::Adox, Mnemonic::And, Mnemonic::Andn, Mnemonic::Bextr,
    Mnemonic::Blsi, Mnemonic::Blsmsk, Mnemonic::Blsr, Mnemonic::Bsf, Mnemonic::Bsr, Mnemonic::Bswap,
    Mnemonic::Bzhi, Mnemonic::Cbw, Mnemonic::Cdq, Mnemonic::Cdqe, Mnemonic::Clc, Mnemonic::Cmc,
    Mnemonic::Cmova, Mnemonic::Cmovae, Mnemonic::Cmovb, Mnemonic::Cmovbe, Mnemonic::Cmove, Mnemonic::Cmovg,
    Mnemonic::Cmovge, Mnemonic::Cmovl, Mnemonic::Cmovle, Mnemonic::Cmovne, Mnemonic::Cmovno, Mnemonic::Cmovnp,
    Mnemonic::Cmovns, Mnemonic::Cmovo, Mnemonic::Cmovp, Mnemonic::Cmovs, Mnemonic::Cmp, Mnemonic::Cmpxchg,
    Mnemonic::Cmpxchg8b, Mnemonic::Cqo, Mnemonic::Crc32, Mnemonic::Cwd, Mnemonic::Cwde, Mnemonic::Dec,
    Mnemonic::Imul, Mnemonic::Inc, Mnemonic::Lahf, Mnemonic::Lfence, Mnemonic::Lzcnt, Mnemonic::Mfence,
    Mnemonic::Mov, Mnemonic::Movbe, Mnemonic::Movnti, Mnemonic::Movsx, Mnemonic::Movzx,
    Mnemonic::Mul, Mnemonic::Mulx, Mnemonic::Neg, Mnemonic::Not, Mnemonic::Or, Mnemonic::Pdep, Mnemonic::Pext,
    Mnemonic::Popcnt, Mnemonic::Rcl, Mnemonic::Rcr, Mnemonic::Rdrand, Mnemonic::Rdseed, Mnemonic::Rol,
    Mnemonic::Ror, Mnemonic::Rorx, Mnemonic::Sahf, Mnemonic::Sal, Mnemonic::Sar, Mnemonic::Sarx, Mnemonic::Sbb,
    Mnemonic::Seta, Mnemonic::Setae, Mnemonic::Setb, Mnemonic::Setbe, Mnemonic::Sete, Mnemonic::Setg,
    Mnemonic::Setge, Mnemonic::Setl, Mnemonic::Setle, Mnemonic::Setne, Mnemonic::Setno, Mnemonic::Setnp,
    Mnemonic::Setns, Mnemonic::Seto, Mnemonic::Setp, Mnemonic::Sets, Mnemonic::Sfence, Mnemonic::Shl,
    Mnemonic::Shld, Mnemonic::Shlx, Mnemonic::Shr, Mnemonic::Shrd, Mnemonic::Shrx, Mnemonic::Stc, Mnemonic::Sub,
    Mnemonic::Test, Mnemonic::Tzcnt, Mnemonic::Xadd, Mnemonic::Xchg, Mnemonic::Xor,
];

fn memory_operand(instruction: &Instruction, class: Class) -> Result<Option<MemoryOperand>, Unsupported> {
    if !has_memory(instruction) {
        return Ok(None);
    }
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(instruction, InstructionInfoOptions::NO_REGISTER_USAGE);
    let used = info.used_memory().first().ok_or(Unsupported::NotHere)?;
    let size = instruction.memory_size().size();
    if size == 0 || size > super::MAX_OPERAND_BYTES {
        return Err(Unsupported::NotHere);
    }
    let access = match used.access() {
        OpAccess::Read | OpAccess::CondRead => Access::Read,
        // An x87 store whose unmasked error is pending leaves memory as it was.
        OpAccess::Write | OpAccess::CondWrite if class != Class::X87 => Access::Write,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
            Access::ReadWrite
        }
        _ => return Err(Unsupported::NotHere),
    };
    let atomic = instruction.has_lock_prefix() || instruction.mnemonic() == Mnemonic::Xchg;
    let aligned = must_be_aligned(instruction, class, size);
    Ok(Some(MemoryOperand {
        size: size as u8,
        alignment: if aligned { size as u8 } else { 1 },
        access,
        atomic,
    }))
}

/// Whether a misaligned operand is #GP (SDM vol. 2 section 2.4, exception classes 1, 2 and 4).
fn must_be_aligned(instruction: &Instruction, class: Class, size: usize) -> bool {
    match class {
        Class::Sse | Class::MmxSse => {
            size == 16
                && !matches!(
                    instruction.mnemonic(),
                    Mnemonic::Movups
                        | Mnemonic::Movupd
                        | Mnemonic::Movdqu
                        | Mnemonic::Lddqu
                        | Mnemonic::Pcmpestri
                        | Mnemonic::Pcmpestrm
                        | Mnemonic::Pcmpestri64
                        | Mnemonic::Pcmpestrm64
                        | Mnemonic::Pcmpistri
                        | Mnemonic::Pcmpistrm
                )
        }
        Class::Avx => matches!(
            instruction.mnemonic(),
            Mnemonic::Vmovaps
                | Mnemonic::Vmovapd
                | Mnemonic::Vmovdqa
                | Mnemonic::Vmovntps
                | Mnemonic::Vmovntpd
                | Mnemonic::Vmovntdq
                | Mnemonic::Vmovntdqa
        ),
        _ => false,
    }
}

/// Whether the instruction depends on MXCSR or changes it.
fn uses_mxcsr(instruction: &Instruction, class: Class) -> bool {
    matches!(class, Class::Sse | Class::Avx | Class::MmxSse) && kinds::computes(instruction.code())
}
