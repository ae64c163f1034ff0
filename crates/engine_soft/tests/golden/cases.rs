//! From an assembly file to cases.
//!
//! A line `case NAME user|kernel [WORD...]` begins one at a page of its own. Words: `exact` keeps all flags, `count`
//! counts instructions, `code32` is for code of 32 bits (behind `.code32`), `common` shows only what is executed as a rule and
//! `variants` those of the block too, `blocks=N` shows N blocks, `at=0xN` is where in the page the first
//! begins.

use std::path::Path;
use std::process::Command;

use engine_soft::x86::jit::inspect::{Detail, Privilege, Width};

const PAGE: usize = 4096;

/// Put in front of each file.
const PRELUDE: &str = "\
.att_syntax noprefix
.macro case name, words:vararg
    .p2align 12, 0xcc
.endm
";

/// One case.
pub struct Case {
    /// The line it begins with.
    pub line: String,
    pub privilege: Privilege,
    pub exact_flags: bool,
    pub count: bool,
    pub width: Width,
    pub detail: Detail,
    pub blocks: u32,
    /// Address of its first block.
    pub start: u64,
}

/// The cases of a file and their code, to be put at address 0.
pub struct Theme {
    pub cases: Vec<Case>,
    pub code: Vec<u8>,
}

impl Theme {
    /// Reads and assembles the file at `path`.
    pub fn assemble(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("case "));
        let cases: Vec<Case> = (0..).zip(lines).map(|(page, line)| Case::parse(page, line)).collect();
        let mut code = assembled(path, &text);
        assert!(code.len() <= cases.len() * PAGE, "{}: a case is longer than a page", path.display());
        code.resize(cases.len() * PAGE, 0xcc);
        Self { cases, code }
    }
}

impl Case {
    fn parse(page: u64, line: &str) -> Self {
        let mut words = line.split([' ', ',']).filter(|word| !word.is_empty());
        let name = words.next().unwrap_or_default();
        let mut case = Self {
            line: line.to_owned(),
            privilege: Privilege::Kernel,
            exact_flags: false,
            count: false,
            width: Width::Bits64,
            detail: Detail::Whole,
            blocks: 1,
            start: page * PAGE as u64,
        };
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("user", "") => case.privilege = Privilege::User,
                ("kernel", "") => case.privilege = Privilege::Kernel,
                ("exact", "") => case.exact_flags = true,
                ("count", "") => case.count = true,
                ("code32", "") => case.width = Width::Bits32,
                ("common", "") => case.detail = Detail::Common,
                ("variants", "") => case.detail = Detail::Variants,
                ("blocks", count) => case.blocks = count.parse().unwrap(),
                ("at", at) => case.start += u64::from_str_radix(at.strip_prefix("0x").unwrap(), 16).unwrap(),
                _ => panic!("case {name}: what is {word}?"),
            }
        }
        case
    }
}

/// The bytes that GNU as makes of `text`, from the file at `path`.
fn assembled(path: &Path, text: &str) -> Vec<u8> {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("golden-{}-{name}", std::process::id()));
    let (source, object, raw) =
        (place.with_extension("s"), place.with_extension("o"), place.with_extension("bin"));
    std::fs::write(&source, format!("{PRELUDE}# 1 \"{}\"\n{text}", path.display())).unwrap();
    run(Command::new("as").args(["--64", "-o"]).args([&object, &source]));
    run(Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).args([&object, &raw]));
    let bytes = std::fs::read(&raw).unwrap();
    for path in [source, object, raw] {
        std::fs::remove_file(path).unwrap();
    }
    bytes
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?} (binutils): {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
