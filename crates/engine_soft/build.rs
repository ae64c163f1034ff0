//! Writes a table of what the operands of each instruction can be: `operand_kinds.rs`, of `hostexec/kinds.rs`.
//!
//! The decoder's library has one, which it makes when it is first asked, with the texts of all manuals: 2 ms and 1 MiB of each
//! process.

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

use iced_x86::{Code, OpCodeOperandKind};

/// Most operands of an instruction.
const MOST: u32 = 5;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut table = format!("[[OpCodeOperandKind; {MOST}]; {}] = [\n", Code::values().len());
    for code in Code::values() {
        let info = code.op_code();
        let kind = |n| if n < info.op_count() { info.op_kind(n) } else { OpCodeOperandKind::None };
        let kinds: Vec<String> = (0..MOST).map(|n| format!("OpCodeOperandKind::{:?}", kind(n))).collect();
        writeln!(table, "[{}],", kinds.join(", ")).expect("a string takes everything");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let text = format!("static KINDS: {table}];\n");
    fs::write(out.join("operand_kinds.rs"), text).expect("write the table of operand kinds");
}
