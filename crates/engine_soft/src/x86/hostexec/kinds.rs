//! What the operands of an instruction can be, as the manuals' tables say: `build.rs` makes the table.

use iced_x86::{Code, OpCodeOperandKind};

// `KINDS`, indexed by code.
include!(concat!(env!("OUT_DIR"), "/operand_kinds.rs"));

/// Of each operand, [`OpCodeOperandKind::None`] after the last.
pub(super) fn of(code: Code) -> &'static [OpCodeOperandKind] {
    &KINDS[code as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_the_decoder_says() {
        for code in Code::values() {
            let known = code.op_code();
            assert_eq!(of(code)[..known.op_count() as usize], *known.op_kinds(), "{code:?}");
        }
    }
}
