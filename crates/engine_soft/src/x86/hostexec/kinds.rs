//! What the operands of an instruction can be, as the manuals' tables say, and what its name says: `build.rs` makes the tables.

use iced_x86::{Code, OpCodeOperandKind};

// `KINDS` and `COMPUTES`, indexed by code.
include!(concat!(env!("OUT_DIR"), "/kinds_of_codes.rs"));

/// Of each operand, [`OpCodeOperandKind::None`] after the last.
pub(super) fn of(code: Code) -> &'static [OpCodeOperandKind] {
    &KINDS[code as usize]
}

/// Whether an SSE or AVX instruction is floating-point arithmetic, comparison or conversion.
pub(super) fn computes(code: Code) -> bool {
    COMPUTES[code as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_told_from_integer_work_and_moves() {
        use Code::*;
        let computing = [
            Addps_xmm_xmmm128,
            VEX_Vaddps_xmm_xmm_xmmm128,
            Cvtsi2sd_xmm_rm64,
            Cmppd_xmm_xmmm128_imm8,
            Ucomiss_xmm_xmmm32,
            VEX_Vfmadd132ps_xmm_xmm_xmmm128,
            Roundsd_xmm_xmmm64_imm8,
        ];
        assert!(computing.into_iter().all(computes));
        let others = [Movaps_xmm_xmmm128, Paddd_xmm_xmmm128, VEX_Vpmaxub_xmm_xmm_xmmm128, Pshufb_xmm_xmmm128];
        assert!(!others.into_iter().any(computes));
    }

    #[test]
    fn the_table_says_what_the_decoder_says() {
        for code in Code::values() {
            let known = code.op_code();
            assert_eq!(of(code)[..known.op_count() as usize], *known.op_kinds(), "{code:?}");
        }
    }
}
