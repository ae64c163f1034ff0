//! Writes tables of what the operands of each instruction can be and of which compute: `kinds_of_codes.rs`, of
//! `hostexec/kinds.rs`.
//!
//! The decoder's library has one of the former, which it makes when it is first asked, with the texts of all manuals: 2 ms and
//! 1 MiB of each process. For the latter one would ask it for the names of instructions, which it makes in the same way.

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

use iced_x86::{Code, OpCodeOperandKind};

/// Most operands of an instruction.
const MOST: u32 = 5;

/// How the names of floating-point arithmetic, comparison and conversion begin, without the V of AVX. Integer work begins
/// with P, and moves with MOV.
const ARITHMETIC: &[&str] = &[
    "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "comis", "ucomis", "cvt", "hadd", "hsub", "dpp",
    "round", "fmadd", "fmsub", "fnmadd", "fnmsub",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut table = format!("[[OpCodeOperandKind; {MOST}]; {}] = [\n", Code::values().len());
    for code in Code::values() {
        let info = code.op_code();
        let kind = |n| if n < info.op_count() { info.op_kind(n) } else { OpCodeOperandKind::None };
        let kinds: Vec<String> = (0..MOST).map(|n| format!("OpCodeOperandKind::{:?}", kind(n))).collect();
        writeln!(table, "[{}],", kinds.join(", ")).expect("a string takes everything");
    }
    let names = Code::values().map(|code| format!("{:?}", code.mnemonic()).to_lowercase());
    let computes: Vec<bool> = names
        .map(|name| ARITHMETIC.iter().any(|prefix| name.trim_start_matches('v').starts_with(prefix)))
        .collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let text = format!(
        "static KINDS: {table}];\nstatic COMPUTES: [bool; {}] = {computes:?};\n",
        Code::values().len()
    );
    fs::write(out.join("kinds_of_codes.rs"), text).expect("write the tables");
}
