//! The table of instruction forms: every one the decoder knows that the CPU model offers and that means the
//! same on this processor in user mode.
// UNSAFETY: asks the host's auxiliary vector what user code may do.

use arch::x86::cpuid::{CpuModel, Feature};
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

use crate::case::Bits;

/// The decoder's name for a feature and ours; `None` where every x86-64 processor has it.
#[rustfmt::skip]
const FEATURES: &[(CpuidFeature, Option<Feature>)] = &[
    (CpuidFeature::INTEL8086, None), (CpuidFeature::INTEL186, None), (CpuidFeature::INTEL286, None),
    (CpuidFeature::INTEL386, None), (CpuidFeature::INTEL486, None), (CpuidFeature::MULTIBYTENOP, None),
    (CpuidFeature::PAUSE, None), (CpuidFeature::X64, None), (CpuidFeature::SMM, None),
    (CpuidFeature::FPU, Some(Feature::Fpu)), (CpuidFeature::FPU287, Some(Feature::Fpu)),
    (CpuidFeature::FPU387, Some(Feature::Fpu)), (CpuidFeature::CMOV, Some(Feature::Cmov)),
    (CpuidFeature::CX8, Some(Feature::Cx8)), (CpuidFeature::CMPXCHG16B, Some(Feature::Cx16)),
    (CpuidFeature::CLFSH, Some(Feature::Clflush)), (CpuidFeature::MMX, Some(Feature::Mmx)),
    (CpuidFeature::SSE, Some(Feature::Sse)), (CpuidFeature::SSE2, Some(Feature::Sse2)),
    (CpuidFeature::SSE3, Some(Feature::Sse3)), (CpuidFeature::SSSE3, Some(Feature::Ssse3)),
    (CpuidFeature::SSE4_1, Some(Feature::Sse41)), (CpuidFeature::SSE4_2, Some(Feature::Sse42)),
    (CpuidFeature::PCLMULQDQ, Some(Feature::Pclmulqdq)), (CpuidFeature::AES, Some(Feature::Aes)),
    (CpuidFeature::AVX, Some(Feature::Avx)), (CpuidFeature::AVX2, Some(Feature::Avx2)),
    (CpuidFeature::FMA, Some(Feature::Fma)), (CpuidFeature::F16C, Some(Feature::F16c)),
    (CpuidFeature::BMI1, Some(Feature::Bmi1)), (CpuidFeature::BMI2, Some(Feature::Bmi2)),
    (CpuidFeature::LZCNT, Some(Feature::Lzcnt)), (CpuidFeature::POPCNT, Some(Feature::Popcnt)),
    (CpuidFeature::MOVBE, Some(Feature::Movbe)), (CpuidFeature::ADX, Some(Feature::Adx)),
    (CpuidFeature::FXSR, Some(Feature::Fxsr)), (CpuidFeature::XSAVE, Some(Feature::Xsave)),
    (CpuidFeature::XSAVEC, Some(Feature::Xsavec)), (CpuidFeature::XSAVES, Some(Feature::Xsaves)),
    (CpuidFeature::FSGSBASE, Some(Feature::Fsgsbase)), (CpuidFeature::SMAP, Some(Feature::Smap)),
    (CpuidFeature::INVPCID, Some(Feature::Invpcid)), (CpuidFeature::SYSCALL, Some(Feature::Syscall)),
    (CpuidFeature::SEP, Some(Feature::Sep)), (CpuidFeature::MSR, Some(Feature::Msr)),
    (CpuidFeature::PREFETCHW, Some(Feature::Prefetchw)),
];

/// What is left out, and why.
#[rustfmt::skip]
const EXCLUDED: &[(&str, &[Mnemonic])] = &[
    ("answers differ between model and host, or from one time to the next", &[
        Mnemonic::Cpuid, Mnemonic::Rdtsc, Mnemonic::Rdtscp, Mnemonic::Rdpid, Mnemonic::Rdpmc, Mnemonic::Xgetbv,
        Mnemonic::Rdrand, Mnemonic::Rdseed]),
    ("the host's kernel answers, in the processor's place for those UMIP hides", &[
        Mnemonic::Syscall, Mnemonic::Sysenter, Mnemonic::Sgdt, Mnemonic::Sidt, Mnemonic::Sldt, Mnemonic::Str,
        Mnemonic::Smsw]),
    ("whether the image is written depends on what the kernel loaded last", &[
        Mnemonic::Xsaveopt, Mnemonic::Xsaveopt64]),
    ("covers state components the model has not got", &[
        Mnemonic::Xsave, Mnemonic::Xsave64, Mnemonic::Xsavec, Mnemonic::Xsavec64, Mnemonic::Xrstor,
        Mnemonic::Xrstor64]),
    ("not an instruction in the processors we imitate", &[Mnemonic::INVALID, Mnemonic::Rsm]),
];

/// What cannot be compared on this host beside [`EXCLUDED`].
pub struct Rules {
    model: CpuModel,
    fsgsbase: bool,
}

/// An instruction form in code of some width.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Form {
    pub code: Code,
    pub bits: Bits2,
}

/// [`Bits`], hashable.
pub type Bits2 = u32;

impl Rules {
    pub fn new(model: CpuModel) -> Self {
        // SAFETY: reads a word the kernel left.
        let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0;
        Self { model, fsgsbase }
    }

    pub fn model(&self) -> &CpuModel {
        &self.model
    }

    fn offers(&self, feature: CpuidFeature) -> bool {
        let known = FEATURES.iter().find(|row| row.0 == feature);
        known.is_some_and(|row| row.1.is_none_or(|f| self.model.has(f)))
    }

    fn allows_code(&self, code: Code) -> bool {
        let mnemonic = code.mnemonic();
        matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && !EXCLUDED.iter().any(|(_, list)| list.contains(&mnemonic))
            && code.cpuid_features().iter().all(|f| self.offers(*f))
            && (self.fsgsbase || !code.cpuid_features().contains(&CpuidFeature::FSGSBASE))
    }

    /// Whether `insn`, as decoded, can be compared.
    pub fn allows(&self, insn: &Instruction) -> bool {
        // Linux's own system call.
        let linux = insn.code() == Code::Int_imm8 && insn.immediate8() == 0x80;
        // Segments of user mode that Linux uses to tell the processor's number.
        let far = matches!(insn.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32)
            && insn.far_branch_selector() & !7 == 0x78;
        self.allows_code(insn.code()) && !linux && !far
    }

    /// Every form of code of `bits` that can be.
    pub fn candidates(&self, bits: Bits) -> Vec<Form> {
        let in_mode = |code: Code| {
            let op_code = code.op_code();
            match bits {
                Bits::B16 => op_code.mode16(),
                Bits::B32 => op_code.mode32(),
                Bits::B64 => op_code.mode64(),
            }
        };
        Code::values()
            .filter(|code| code.op_code().is_instruction() && in_mode(*code) && self.allows_code(*code))
            .map(|code| Form { code, bits: bits.count() })
            .collect()
    }
}
