//! Classic BPF over `struct seccomp_data`: number at 0, architecture at 4, arguments from 16, 8 bytes each.

use std::collections::BTreeMap;

use super::tables::Arch;
use crate::error::{Error, Result};
use crate::sys::Instruction;

/// The kernel takes no longer program (`BPF_MAXINSNS`).
pub const MOST_INSTRUCTIONS: usize = 4096;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A condition on an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub argument: u32,
    pub mask: u64,
    pub value: u64,
    pub comparison: Comparison,
}

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The first whose conditions all hold counts.
    rules: Vec<(Vec<Condition>, u32)>,
    otherwise: u32,
}

impl Decision {
    /// The same whatever the arguments.
    pub fn always(verdict: u32) -> Self {
        Self { rules: Vec::new(), otherwise: verdict }
    }

    /// Adds a rule after those there are.
    pub fn add(&mut self, conditions: Vec<Condition>, verdict: u32) {
        let is_decided = self.rules.last().is_some_and(|(conditions, _)| conditions.is_empty());
        if !is_decided {
            self.rules.push((conditions, verdict));
        }
    }

    /// Whether it is one of these verdicts, whatever the arguments.
    pub fn is_always(&self, verdicts: &[u32]) -> bool {
        let ends = self.rules.iter().any(|(conditions, _)| conditions.is_empty());
        self.rules.iter().all(|(_, verdict)| verdicts.contains(verdict))
            && (ends || verdicts.contains(&self.otherwise))
    }

    fn code(&self) -> Vec<Instruction> {
        let mut code = Vec::new();
        for (conditions, verdict) in &self.rules {
            let mut rule = vec![plain(RETURN, *verdict)];
            // From the last to the first, for a condition that fails jumps over all that comes after it.
            for condition in conditions.iter().rev() {
                let mut test = condition.code(rule.len());
                test.append(&mut rule);
                rule = test;
            }
            code.append(&mut rule);
            if conditions.is_empty() {
                return code;
            }
        }
        code.push(plain(RETURN, self.otherwise));
        code
    }
}

impl Condition {
    /// Falls through if it holds, else jumps over `rest` instructions more. `rest` is below 200: six arguments at
    /// most, but rules may repeat one, so a longer jump goes by an instruction of its own.
    fn code(&self, rest: usize) -> Vec<Instruction> {
        let (high, low) = ((self.value >> 32) as u32, self.value as u32);
        let offset = 16 + 8 * self.argument;
        let mut code = Vec::new();
        let load = |code: &mut Vec<Instruction>, at: u32, mask: u32| {
            code.push(plain(LOAD, at));
            if mask != u32::MAX {
                code.push(plain(AND, mask));
            }
        };
        load(&mut code, offset + 4, (self.mask >> 32) as u32);
        let mut second = Vec::new();
        load(&mut second, offset, self.mask as u32);
        let body = second.len() as u8;
        // `holds` and `fails` are jumps past the end: `holds` over the instruction that jumps on, which `fails` meets.
        use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        match self.comparison {
            Equal => {
                code.push(jump(JUMP_EQUAL, high, 0, body + 1));
                code.append(&mut second);
                code.push(jump(JUMP_EQUAL, low, 1, 0));
            }
            NotEqual => {
                code.push(jump(JUMP_EQUAL, high, 0, body + 2));
                code.append(&mut second);
                code.push(jump(JUMP_EQUAL, low, 0, 1));
            }
            Greater | GreaterOrEqual => {
                code.push(jump(JUMP_GREATER, high, body + 3, 0));
                code.push(jump(JUMP_EQUAL, high, 0, body + 1));
                code.append(&mut second);
                let kind = if self.comparison == Greater { JUMP_GREATER } else { JUMP_GREATER_OR_EQUAL };
                code.push(jump(kind, low, 1, 0));
            }
            Less | LessOrEqual => {
                code.push(jump(JUMP_GREATER, high, body + 2, 0));
                code.push(jump(JUMP_EQUAL, high, 0, body + 2));
                code.append(&mut second);
                let kind = if self.comparison == Less { JUMP_GREATER_OR_EQUAL } else { JUMP_GREATER };
                code.push(jump(kind, low, 0, 1));
            }
        }
        code.push(plain(JUMP, rest as u32));
        code
    }
}

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// The program for some architectures; any other is answered with `foreign`.
///
/// # Errors
/// It gets too long for the kernel.
pub fn program(parts: &[(Arch, BTreeMap<u32, Decision>)], foreign: u32) -> Result<Vec<Instruction>> {
    let mut merged: Vec<(u32, BTreeMap<u32, Decision>)> = Vec::new();
    for (arch, ranges) in parts {
        let entry = merged.iter_mut().find(|(audit, _)| *audit == arch.audit());
        let mut ranges = ranges.clone();
        if *arch == Arch::X32 {
            let below = ranges.clone();
            ranges = ranges.split_off(&super::tables::X32_BIT);
            if let Some(default) = below.get(&0) {
                ranges.entry(super::tables::X32_BIT).or_insert_with(|| default.clone());
            }
        }
        match entry {
            Some((_, there)) => there.extend(ranges),
            None => merged.push((arch.audit(), ranges)),
        }
    }
    let has_x32 = parts.iter().any(|(arch, _)| *arch == Arch::X32);
    let mut code = vec![plain(LOAD, ARCH)];
    for (audit, mut ranges) in merged {
        if audit == Arch::X32.audit() && !has_x32 {
            // Its calls would otherwise be taken for 64-bit ones that nobody knows.
            ranges.insert(super::tables::X32_BIT, Decision::always(foreign));
        }
        let ranges: Vec<(u32, Decision)> = ranges.into_iter().collect();
        let body = search(&ranges);
        code.push(jump(JUMP_EQUAL, audit, 1, 0));
        code.push(plain(JUMP, body.len() as u32 + 1));
        code.push(plain(LOAD, NUMBER));
        code.extend(body);
    }
    code.push(plain(RETURN, foreign));
    if code.len() > MOST_INSTRUCTIONS {
        let fault =
            format!("the rules make {} instructions, at most {MOST_INSTRUCTIONS} are taken", code.len());
        return Err(Error::refused("seccomp", fault));
    }
    Ok(code)
}

/// Finds the range a number is in, by halves. Neighbours that decide alike become one.
fn search(ranges: &[(u32, Decision)]) -> Vec<Instruction> {
    let mut joined: Vec<&(u32, Decision)> = Vec::new();
    for range in ranges {
        if joined.last().is_none_or(|last| last.1 != range.1) {
            joined.push(range);
        }
    }
    halves(&joined)
}

fn halves(ranges: &[&(u32, Decision)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![plain(RETURN, super::KILL_PROCESS)],
        [only] => only.1.code(),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let (start, lower) = (upper[0].0, halves(lower));
            let mut code = match u8::try_from(lower.len()) {
                Ok(len) => vec![jump(JUMP_GREATER_OR_EQUAL, start, len, 0)],
                Err(_) => {
                    vec![jump(JUMP_GREATER_OR_EQUAL, start, 0, 1), plain(JUMP, lower.len() as u32)]
                }
            };
            code.extend(lower);
            code.extend(halves(upper));
            code
        }
    }
}

#[cfg(test)]
pub fn evaluate(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [0u32; 16];
    (data[0], data[1]) = (number, arch);
    for (index, arg) in args.iter().enumerate() {
        (data[4 + 2 * index], data[5 + 2 * index]) = (*arg as u32, (arg >> 32) as u32);
    }
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            LOAD => accumulator = data[k as usize / 4],
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += branch(accumulator == k),
            JUMP_GREATER => at += branch(accumulator > k),
            JUMP_GREATER_OR_EQUAL => at += branch(accumulator >= k),
            RETURN => return k,
            _ => panic!("no instruction {code:#x}"),
        }
    }
}
