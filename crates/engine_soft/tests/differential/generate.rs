//! Makes cases: the same for the same seed and number.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, Register, RflagsBits,
};

use crate::case::{Bits, CODE_BYTES, Input, MAX_INSTRUCTIONS, Registers, fx};
use crate::forms::{Form, Rules};
use crate::layout::{self, CODE32, CODE64, DATA32, DATA64, PAGE, USER_CS32, USER_CS64, USER_DS, ldt};
use crate::operands::{self, Place, Role, SELECTORS};
use crate::random::Random;

/// Pages of random data that cases choose from.
pub const POOL_PAGES: usize = 64;

/// One instruction of a case.
#[derive(Clone, Copy)]
pub struct Placed {
    pub insn: Instruction,
    /// Bytes from the start of the code.
    pub at: usize,
    /// Status flags that are undefined once it is done.
    pub undefined: u64,
}

/// A case with what is known about it.
#[derive(Clone)]
pub struct Case {
    pub index: u64,
    pub input: Input,
    pub instructions: Vec<Placed>,
    /// Flags that are undefined anywhere, for ends at no known place.
    pub undefined: u64,
}

/// Makes the cases of one seed.
pub struct Generator<'a> {
    pub rules: &'a Rules,
    pub seed: u64,
    /// Forms by width, in the order of [`Bits::ALL`].
    pub forms: [Vec<Form>; 3],
}

impl<'a> Generator<'a> {
    /// Finds the forms that can be encoded and decoded.
    pub fn new(rules: &'a Rules, seed: u64) -> Self {
        let mut generator = Self { rules, seed, forms: Default::default() };
        for (i, bits) in Bits::ALL.into_iter().enumerate() {
            let mut forms = rules.candidates(bits);
            forms.retain(|form| generator.can_be_made(*form, bits));
            generator.forms[i] = forms;
        }
        generator
    }

    pub fn form_count(&self) -> usize {
        self.forms.iter().map(Vec::len).sum()
    }

    /// Whether some bytes decode as `form`: the decoder knows instructions no processor of ours has.
    fn can_be_made(&self, form: Form, bits: Bits) -> bool {
        (0..60).any(|i| {
            let mut random = Random::new(7, i);
            let registers = seeds(bits, &mut random);
            let place = place(&registers, bits);
            self.encode(form.code, &place, &mut random).is_some_and(|(insn, _)| insn.code() == form.code)
        })
    }

    /// Case `index`. Its first instruction goes through all forms in turn.
    pub fn case(&self, index: u64) -> Case {
        // A prime step, so that all widths come up early.
        let mut subject = (index.wrapping_mul(7919) % self.form_count() as u64) as usize;
        let mut kind = 0;
        while subject >= self.forms[kind].len() {
            subject -= self.forms[kind].len();
            kind += 1;
        }
        let mut random = Random::new(self.seed, index);
        loop {
            let first = self.forms[kind][subject].code;
            if let Some(case) = self.draw(index, first, Bits::ALL[kind], &self.forms[kind], &mut random) {
                return case;
            }
        }
    }

    fn draw(&self, index: u64, first: Code, bits: Bits, forms: &[Form], random: &mut Random) -> Option<Case> {
        let seeded = seeds(bits, random);
        let count =
            if random.chance(30) { 1 } else { 2 + random.below(MAX_INSTRUCTIONS as u64 - 1) as usize };
        let code_offset =
            if random.chance(4) { PAGE - 1 - random.below(40) } else { 0x100 + random.below(0x40) } as usize;
        let mut input = Input {
            registers: seeded.registers,
            code: [0xcc; CODE_BYTES],
            code_len: 0,
            code_offset,
            pages: std::array::from_fn(|_| random.below(POOL_PAGES as u64) as u16),
            bits,
        };
        let mut place = place(&seeded, bits);
        place.start = if bits == Bits::B64 { CODE64 } else { CODE32 } + code_offset as u64;
        place.start = place.start.wrapping_sub(place.code_base);
        input.registers.rip = place.start;
        let mut case = Case { index, input, instructions: Vec::new(), undefined: 0 };
        let mut flags = FlagTracker::default();
        for n in 0..count {
            let made = (0..12).find_map(|_| {
                let code = if n == 0 { first } else { random.pick(forms).code };
                place.ip = place.start + case.input.code_len as u64;
                let (insn, bytes) = if n > 0 && random.chance(4) {
                    self.raw(&place, random)?
                } else {
                    self.encode(code, &place, random)?
                };
                let fits = case.input.code_len + bytes.len() < CODE_BYTES;
                (fits && (n > 0 || insn.code() == first) && flags.permits(&insn)).then_some((insn, bytes))
            });
            let Some((insn, bytes)) = made else {
                if n == 0 {
                    return None;
                }
                break;
            };
            let at = case.input.code_len;
            case.input.code[at..at + bytes.len()].copy_from_slice(&bytes);
            case.input.code_len += bytes.len();
            flags.note(&insn);
            case.instructions.push(Placed { insn, at, undefined: flags.undefined });
            if insn.flow_control() != FlowControl::Next && random.chance(60) {
                case.input.code_len += 1; // a breakpoint that taken branches skip
            }
            if insn.is_invalid() {
                break;
            }
        }
        case.undefined = flags.ever;
        if flags.branched {
            let (undefined, read) = flags_anywhere(&case.input);
            if undefined & read != 0 {
                return None;
            }
            case.undefined |= undefined;
        }
        aim(&mut case.input.registers, &seeded, &case.instructions[0].insn, random);
        self.is_harmless(&case.input).then_some(case)
    }

    fn encode(&self, code: Code, place: &Place, random: &mut Random) -> Option<(Instruction, Vec<u8>)> {
        let insn = operands::instruction(code, place, random)?;
        let mut encoder = Encoder::new(place.bits.count());
        encoder.encode(&insn, place.ip).ok()?;
        let mut bytes = encoder.take_buffer();
        if random.chance(5) {
            const PREFIXES: [u8; 12] =
                [0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x48, 0x40];
            let count = if place.bits == Bits::B64 { 12 } else { 10 };
            bytes.insert(0, random.pick(&PREFIXES[..count]));
        }
        self.decode(place, &bytes)
    }

    /// Random bytes, if they are an instruction of the table or none at all.
    fn raw(&self, place: &Place, random: &mut Random) -> Option<(Instruction, Vec<u8>)> {
        let mut bytes: Vec<u8> = (0..15).map(|_| random.next() as u8).collect();
        if random.chance(50) {
            bytes[0] = 0x0f;
        }
        self.decode(place, &bytes)
    }

    fn decode(&self, place: &Place, bytes: &[u8]) -> Option<(Instruction, Vec<u8>)> {
        let mut padded = bytes.to_vec();
        padded.resize(32, 0xcc);
        let mut decoder = Decoder::with_ip(place.bits.count(), &padded, place.ip, DecoderOptions::NONE);
        let insn = decoder.decode();
        let ok = insn.is_invalid() || self.rules.allows(&insn);
        let len = if insn.is_invalid() { bytes.len() } else { insn.len() };
        padded.truncate(len);
        ok.then_some((insn, padded))
    }

    /// Whether no byte of the code begins an instruction that must not run: a branch may lead anywhere.
    pub fn is_harmless(&self, input: &Input) -> bool {
        let mut padded = input.code[..input.code_len].to_vec();
        padded.resize(input.code_len + 16, 0xcc);
        (0..input.code_len).all(|at| {
            let mut decoder = Decoder::new(input.bits.count(), &padded[at..], DecoderOptions::NONE);
            let insn = decoder.decode();
            insn.is_invalid() || self.rules.allows(&insn)
        })
    }
}

/// Flags left undefined and flags read by instructions that begin at any byte of the code: branches may lead
/// there. Conditional branches of the sequence itself are decoded like all others.
fn flags_anywhere(input: &Input) -> (u64, u64) {
    let mut padded = input.code[..input.code_len].to_vec();
    padded.resize(input.code_len + 16, 0xcc);
    let mut starts = 0..input.code_len;
    starts.by_ref().fold((0, 0), |(undefined, read), at| {
        let insn = Decoder::new(input.bits.count(), &padded[at..], DecoderOptions::NONE).decode();
        (undefined | rflags(insn.rflags_undefined()), read | rflags(insn.rflags_read()))
    })
}

/// Which status flags are undefined, instruction by instruction.
#[derive(Default)]
struct FlagTracker {
    undefined: u64,
    ever: u64,
    branched: bool,
}

impl FlagTracker {
    fn permits(&self, insn: &Instruction) -> bool {
        rflags(insn.rflags_read()) & self.undefined == 0
    }

    fn note(&mut self, insn: &Instruction) {
        let undefined = rflags(insn.rflags_undefined());
        if insn.flow_control() != FlowControl::Next {
            self.branched = true;
        }
        if !self.branched && !may_keep_flags(insn) {
            self.undefined &= !rflags(insn.rflags_modified());
        }
        self.undefined |= undefined;
        self.ever |= undefined;
        if self.branched {
            self.undefined = self.ever;
        }
    }
}

/// Whether the instruction may, by a count of zero, leave flags as they are.
fn may_keep_flags(insn: &Instruction) -> bool {
    use Mnemonic::*;
    insn.is_string_instruction()
        || matches!(insn.mnemonic(), Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd)
}

fn rflags(bits: u32) -> u64 {
    const MAP: [(u32, u64); 6] = [
        (RflagsBits::OF, 1 << 11),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::CF, 1 << 0),
        (RflagsBits::PF, 1 << 2),
    ];
    MAP.iter().filter(|(from, _)| bits & from != 0).map(|(_, to)| to).sum()
}

/// Initial registers and what was meant by them.
struct Seeds {
    registers: Registers,
    roles: [Role; 16],
}

fn place(seeds: &Seeds, bits: Bits) -> Place<'_> {
    let [_, cs, _, ds, ..] = seeds.registers.selectors;
    let (code_base, data_base) =
        if bits == Bits::B64 { (0, 0) } else { (layout::base_of(cs), layout::base_of(ds)) };
    Place { bits, ip: 0, start: 0, roles: &seeds.roles, data_base, code_base }
}

fn selectors(bits: Bits, random: &mut Random) -> [u16; 6] {
    let segmented: [u16; 7] = [ldt(1), ldt(2), ldt(3), ldt(4), ldt(9), ldt(10), USER_DS];
    match bits {
        Bits::B64 => [0, USER_CS64, USER_DS, 0, 0, 0],
        Bits::B32 if random.chance(60) => {
            [USER_DS, USER_CS32, USER_DS, USER_DS, random.pick(&segmented), random.pick(&segmented)]
        }
        Bits::B32 => {
            let data = random.pick(&segmented);
            let other = if random.chance(60) { data } else { random.pick(&segmented) };
            let stack = random.pick(&[ldt(2), ldt(2), ldt(9), USER_DS, ldt(1), ldt(10), ldt(3)]);
            let code = random.pick(&[USER_CS32, ldt(5), ldt(8)]);
            [other, code, stack, data, random.pick(&segmented), random.pick(&segmented)]
        }
        Bits::B16 => {
            let data = random.pick(&[ldt(1), ldt(1), ldt(1), ldt(3), ldt(11), ldt(2)]);
            let other = if random.chance(70) { data } else { random.pick(&segmented) };
            let stack = random.pick(&[ldt(1), ldt(1), ldt(1), ldt(3), ldt(11), ldt(2)]);
            [other, random.pick(&[ldt(0), ldt(0), ldt(7)]), stack, data, random.pick(&segmented), ldt(1)]
        }
    }
}

fn roles(bits: Bits, random: &mut Random) -> [Role; 16] {
    let any = |random: &mut Random| match random.below(10) {
        0..=2 => Role::Pointer,
        3 if bits == Bits::B64 => Role::LowPointer,
        4 | 5 => Role::Small,
        6 => Role::Code,
        _ => Role::Any,
    };
    let mut roles = [(); 16].map(|()| any(random));
    for (register, percent, role) in [
        (4, 97, Role::Pointer),
        (5, 80, Role::Pointer),
        (6, 85, Role::Pointer),
        (7, 85, Role::Pointer),
        (3, 60, Role::Pointer),
        (1, 55, Role::Small),
    ] {
        if random.chance(percent) {
            roles[register] = role;
        }
    }
    roles
}

fn seeds(bits: Bits, random: &mut Random) -> Seeds {
    let selectors = selectors(bits, random);
    let roles = roles(bits, random);
    let mut registers = Registers {
        gpr: [0; 16],
        rip: 0,
        rflags: 0x202 | random.next() & 0x8d5,
        selectors,
        fs_base: 0,
        gs_base: 0,
        fx: [0; 416],
        ymm_high: [0; 256],
    };
    let fake = Seeds { registers, roles };
    let place = place(&fake, bits);
    for n in 0..16 {
        // The segment the register is used with if nothing else is said.
        let segment = match n {
            4 | 5 => selectors[2],
            7 => selectors[0],
            _ => selectors[3],
        };
        let base = if bits == Bits::B64 { 0 } else { layout::base_of(segment) };
        let value = match fake.roles[n] {
            Role::Pointer if n == 4 && random.chance(80) => {
                let start = if bits == Bits::B64 { DATA64 } else { DATA32 };
                (start + 0x100 + random.below(0x1e0) * 16).wrapping_sub(base)
            }
            Role::Pointer => place.data_address(random).wrapping_sub(base),
            Role::LowPointer => place.data_address(random) & 0xffff | DATA32,
            Role::Small => random.below(40),
            Role::Code => place.breakpoint(random),
            Role::Any => random.word(),
        };
        registers.gpr[n] = if bits == Bits::B64 { value } else { value & 0xffff_ffff };
    }
    for (bit, percent) in [(10, 15), (18, 6), (8, 3), (16, 2)] {
        registers.rflags |= u64::from(random.chance(percent)) << bit;
    }
    if bits == Bits::B64 {
        registers.fs_base = DATA64 + random.below(64) * 32;
        registers.gs_base = if random.chance(80) { DATA32 + random.below(256) } else { random.next() >> 17 };
    }
    floating(&mut registers, random);
    if bits != Bits::B64 {
        // Legacy code truncates these at unpredictable times.
        registers.fx[12..16].fill(0);
        registers.fx[20..24].fill(0);
    }
    Seeds { registers, roles: fake.roles }
}

fn floating(registers: &mut Registers, random: &mut Random) {
    let image = &mut registers.fx;
    let mut fcw = 0x40 | random.next() as u16 & 0x0c00 | random.pick(&[0, 0x200, 0x300, 0x300]);
    fcw |= if random.chance(75) { 0x3f } else { random.next() as u16 & 0x3f };
    let pending = if random.chance(6) { 0x3f } else { fcw & 0x3f };
    let mut fsw = random.next() as u16 & 0x7f00 | random.next() as u16 & 0x3f & pending;
    fsw |= if fsw & 1 != 0 { random.next() as u16 & 0x40 } else { 0 };
    if fsw & !fcw & 0x3f != 0 {
        fsw |= 0x8080;
    }
    let tags = match random.below(4) {
        0 => 0,
        1 => random.next() as u8,
        _ => 0xff,
    };
    image[..2].copy_from_slice(&fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fsw.to_le_bytes());
    image[fx::FTW] = tags;
    image[6..8].copy_from_slice(&(random.next() as u16 & 0x7ff).to_le_bytes());
    image[8..16].copy_from_slice(&(random.next() >> 17).to_le_bytes());
    image[16..24].copy_from_slice(&(random.next() >> 17).to_le_bytes());
    let masked = if random.chance(80) { 0x1f80 } else { random.next() as u32 & 0x1f80 };
    let mxcsr = masked | random.next() as u32 & if random.chance(50) { 0xe07f } else { 0 };
    image[fx::MXCSR..fx::MXCSR_MASK].copy_from_slice(&mxcsr.to_le_bytes());
    image[fx::MXCSR_MASK..fx::ST].copy_from_slice(&0xffffu32.to_le_bytes());
    for i in 0..8 {
        image[fx::ST + 16 * i..][..16].copy_from_slice(&random.extended());
    }
    for i in 0..16 {
        let kind = random.below(6);
        for half in 0..4 {
            let lane = match kind {
                0 => random.below(512) | random.below(512) << 32, // indices of gathers
                1 => random.pick(&[0, u64::MAX, 0xffff_ffff, 0xffff_ffff_0000_0000]), // masks
                _ => random.word(),
            };
            let place = if half < 2 {
                &mut image[fx::XMM + 16 * i + 8 * half..][..8]
            } else {
                &mut registers.ymm_high[16 * i + 8 * (half - 2)..][..8]
            };
            place.copy_from_slice(&lane.to_le_bytes());
        }
    }
}

/// Sets registers the first instruction needs to be anything but an error.
fn aim(registers: &mut Registers, seeds: &Seeds, insn: &Instruction, random: &mut Random) {
    if random.chance(15) {
        return;
    }
    match insn.mnemonic() {
        // A quotient that fits.
        Mnemonic::Div | Mnemonic::Idiv => {
            registers.gpr[2] &= 0x3;
            if insn.op0_register().size() == 1 || insn.memory_size().size() == 1 {
                registers.gpr[0] &= !0xff00;
            }
        }
        _ => {
            // A selector in a register that is used as one.
            let segment = (0..insn.op_count()).any(|n| insn.op_register(n).is_segment_register());
            let uses = segment
                || matches!(
                    insn.mnemonic(),
                    Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw | Mnemonic::Arpl
                );
            for n in 0..insn.op_count() {
                let register = insn.op_register(n);
                let number = register.full_register().number();
                if uses && register != Register::None && register.is_gpr() && seeds.roles[number] == Role::Any
                {
                    registers.gpr[number] = u64::from(random.pick(&SELECTORS));
                }
            }
        }
    }
}

/// The pages cases fill their data pages with.
pub fn pool(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed, u64::MAX);
    let mut bytes = Vec::with_capacity(POOL_PAGES * PAGE as usize);
    while bytes.len() < POOL_PAGES * PAGE as usize {
        let word = match random.below(12) {
            0 => DATA64 + random.below(2 * PAGE),
            1 => DATA32 + random.below(2 * PAGE),
            2 => CODE64 + 0x800 + random.below(0x200),
            3 => CODE32 + 0x800 + random.below(0x200),
            // Far pointers: 32-bit offset and selector, and 16-bit ones.
            4 => (0x800 + random.below(0x200)) | (u64::from(random.pick(&SELECTORS)) << 32),
            5 => (CODE32 + 0x800 + random.below(0x200)) | (u64::from(random.pick(&SELECTORS)) << 32),
            6 => {
                let far = |r: &mut Random| (0x800 + r.below(0x200)) | (u64::from(r.pick(&SELECTORS)) << 16);
                far(&mut random) | far(&mut random) << 32
            }
            7 => u64::from_le_bytes(random.extended()[..8].try_into().unwrap()),
            _ => random.word(),
        };
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}
