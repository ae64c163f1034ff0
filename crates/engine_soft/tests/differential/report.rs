//! What is said about a difference, and about the run.

use std::fmt::Write as _;
use std::io::Write as _;

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

use crate::case::{Bits, Output};
use crate::compare::Verdict;
use crate::generate::{Case, Generator};
use crate::run::{Sides, Summary};

/// Kinds of difference that are described in full.
const SHOWN: usize = 40;

/// Differences of one kind.
pub struct Failure {
    /// What they have in common.
    pub key: String,
    /// The first, in words.
    pub text: String,
    pub count: u64,
}

/// Shortens `case`, which differed as `seen` says, as far as it still differs and describes it.
pub fn examine(generator: &Generator, sides: &mut Sides, case: &Case, seen: &Seen) -> Failure {
    let mut shortest = case.clone();
    let (first, ..) = sides.verdict(case);
    for count in 1..case.instructions.len() {
        let shorter = truncated(case, count);
        if generator.is_harmless(&shorter.input) && matches!(sides.verdict(&shorter).0, Verdict::Differ(_)) {
            shortest = shorter;
            break;
        }
    }
    while let Some(shorter) = without_one(generator, sides, &shortest) {
        shortest = shorter;
    }
    let (verdict, native, guest) = sides.verdict(&shortest);
    let Verdict::Differ(lines) = verdict else {
        let what = if first == Verdict::Agree { "the run's state, or chance" } else { "chance" };
        let key = format!("differs by {what}");
        return Failure { key, text: describe(case) + &seen.describe(), count: 1 };
    };
    let last = shortest.instructions.last().expect("cases have instructions");
    let place = lines[0].split(':').next().unwrap_or("").to_owned();
    let key = format!("{}-bit {:?}: {place}", shortest.input.bits.count(), last.insn.code());
    let mut text = describe(&shortest);
    text += &Seen { lines: &lines, native: &native, guest: &guest }.describe();
    Failure { key, text, count: 1 }
}

/// How a case ended on both sides.
pub struct Seen<'a> {
    /// What differs.
    pub lines: &'a [String],
    pub native: &'a Output,
    pub guest: &'a Output,
}

impl Seen<'_> {
    fn describe(&self) -> String {
        let (native, guest) = (outcome(self.native), outcome(self.guest));
        let lines: String = self.lines.iter().map(|line| format!("  {line}\n")).collect();
        format!("  processor: {native}\n  interpreter: {guest}\n{lines}")
    }
}

fn truncated(case: &Case, count: usize) -> Case {
    let mut shorter = case.clone();
    shorter.instructions.truncate(count);
    let end = case.instructions[count].at;
    shorter.input.code[end..].fill(0xcc);
    shorter.input.code_len = end;
    shorter
}

/// The case without one of its instructions, if it still differs; displacements of branches stay as they are.
fn without_one(generator: &Generator, sides: &mut Sides, case: &Case) -> Option<Case> {
    for n in 0..case.instructions.len().saturating_sub(1) {
        let (start, end) = (case.instructions[n].at, case.instructions[n + 1].at);
        let mut shorter = case.clone();
        shorter.input.code.copy_within(end.., start);
        shorter.input.code_len -= end - start;
        shorter.input.code[case.input.code_len - (end - start)..].fill(0xcc);
        shorter.instructions.remove(n);
        for placed in &mut shorter.instructions[n..] {
            placed.at -= end - start;
        }
        if generator.is_harmless(&shorter.input) && matches!(sides.verdict(&shorter).0, Verdict::Differ(_)) {
            return Some(shorter);
        }
    }
    None
}

fn outcome(output: &Output) -> String {
    let fault = &output.fault;
    format!(
        "vector {} code {:#x} cr2 {:#x} at rip {:#x}",
        fault.vector, fault.code, fault.address, output.registers.rip
    )
}

/// Seed, bytes, disassembly and registers of a case.
pub fn describe(case: &Case) -> String {
    let input = &case.input;
    let registers = &input.registers;
    let bits = input.bits.count();
    let mut text = String::new();
    let code = &input.code[..input.code_len];
    let hex: Vec<String> = code.iter().map(|byte| format!("{byte:02x}")).collect();
    let _ = writeln!(text, "case {} ({bits}-bit): {}", case.index, hex.join(" "));
    let mut decoder = Decoder::with_ip(bits, code, registers.rip, DecoderOptions::NONE);
    let mut formatter = GasFormatter::new();
    for insn in &mut decoder {
        let mut line = String::new();
        formatter.format(&insn, &mut line);
        let _ = writeln!(text, "    {:#x}: {line}    ({:?})", insn.ip(), insn.code());
    }
    for (i, value) in registers.gpr.iter().enumerate().take(if input.bits == Bits::B64 { 16 } else { 8 }) {
        let name = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"].get(i).copied();
        let name = name.map_or_else(|| format!("r{i}"), str::to_owned);
        let _ = write!(text, "  {name}={value:#x}");
    }
    let _ = writeln!(
        text,
        "  rflags={:#x} fs={:#x} gs={:#x}",
        registers.rflags, registers.fs_base, registers.gs_base
    );
    let _ = writeln!(text, "  es,cs,ss,ds,fs,gs={:x?} pages={:?}", registers.selectors, input.pages);
    let word = |at: usize| u16::from_le_bytes([registers.fx[at], registers.fx[at + 1]]);
    let (fcw, fsw, ftw, mxcsr) = (word(0), word(2), registers.fx[4], word(24));
    let _ = writeln!(text, "  fcw={fcw:#x} fsw={fsw:#x} ftw={ftw:#x} mxcsr={mxcsr:#x}");
    text
}

/// Says how it went, also where the test harness keeps output back.
pub fn print(summary: &Summary) {
    let mut text = String::new();
    let Summary { sequences, instructions, endless, seed, model, .. } = summary;
    let [wide, flat, small] = summary.by_bits;
    let _ = writeln!(
        text,
        "differential: {sequences} sequences ({wide} 64-bit, {flat} 32-bit, {small} 16-bit), {instructions} \
         instructions, model {model}, seed {seed}; {endless} endless, {} differ",
        summary.differing
    );
    let (covered, forms, completed) = (summary.forms_covered, summary.forms, summary.forms_completed);
    let _ = writeln!(
        text,
        "differential: {covered} of {forms} forms covered, {completed} completed without a fault"
    );
    let mut vectors: Vec<_> = summary.vectors.iter().collect();
    vectors.sort();
    let _ = writeln!(text, "differential: ends by vector: {vectors:?}");
    for (reason, n) in &summary.known {
        let _ = writeln!(text, "differential: accepted {n} x {reason}");
    }
    if !summary.uncovered.is_empty() {
        let _ = writeln!(text, "differential: not covered: {}", summary.uncovered.join(", "));
    }
    if std::env::var_os("STRATA_VERBOSE").is_some() {
        let _ = writeln!(text, "differential: never completed: {}", summary.never_completed.join(", "));
    }
    let mut failures: Vec<_> = summary.failures.iter().collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    for failure in &failures {
        let _ = writeln!(text, "differential: {:6} x {}", failure.count, failure.key);
    }
    for failure in failures.iter().take(SHOWN) {
        let _ = writeln!(
            text,
            "\n--- {} ({} x)\nSTRATA_SEED={seed} {}",
            failure.key, failure.count, failure.text
        );
    }
    let _ = std::io::stdout().write_all(text.as_bytes());
}
