//! Gathers and masked moves against a small memory with a hole in it.

use super::*;

/// 256 bytes at 0x1000, each its own offset; the second half faults. Records what was stored.
struct Half {
    bytes: Vec<u8>,
    touched: usize,
}

const START: u64 = 0x1000;
const FAULT: Exception = Exception::page_fault(0, 0);

impl Half {
    fn new() -> Self {
        Self { bytes: (0..128).collect(), touched: 0 }
    }

    fn at(&mut self, offset: u64, len: usize) -> Result<&mut [u8], Exception> {
        self.touched += 1;
        let start = offset.wrapping_sub(START) as usize;
        self.bytes.get_mut(start..start.saturating_add(len)).ok_or(FAULT)
    }
}

impl OperandMemory for Half {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Exception> {
        data.copy_from_slice(self.at(offset, data.len())?);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Exception> {
        self.at(offset, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn probe_write(&mut self, offset: u64, len: usize) -> Result<(), Exception> {
        self.at(offset, len).map(|_| ())
    }
}

fn run(bytes: &[u8], bits: u32, offset: u64, state: &mut CpuState, half: &mut Half) -> Result<(), Exception> {
    let mut thunks = Thunks::new(|_| true).unwrap();
    let instruction = decode(bytes, bits);
    let thunk = thunks.compile(&instruction, bits, bytes).unwrap();
    assert!(thunk.is_scattered() && thunk.memory().is_none());
    thunks.run_scattered(&thunk, &instruction, offset, state, half)
}

fn set_words(state: &mut CpuState, register: usize, words: &[u32]) {
    for (lane, word) in state.ymm[register].0.chunks_exact_mut(4).zip(words) {
        lane.copy_from_slice(&word.to_le_bytes());
    }
}

fn words(state: &CpuState, register: usize) -> Vec<u32> {
    state.ymm[register].0.chunks_exact(4).map(|lane| u32::from_le_bytes(lane.try_into().unwrap())).collect()
}

const ON: u32 = 0x8000_0000;
/// vpgatherdd xmm0, [rax + xmm1 * 4 + 8], xmm2
const GATHER: [u8; 7] = [0xc4, 0xe2, 0x69, 0x90, 0x44, 0x88, 0x08];

#[test]
fn a_gather_loads_enabled_elements_and_clears_the_rest() {
    let mut state = CpuState::power_up();
    state.gpr[0] = START;
    set_words(&mut state, 0, &[9; 8]);
    set_words(&mut state, 1, &[0, 1, u32::MAX, 3, 4, 5, 6, 7]);
    set_words(&mut state, 2, &[ON, 0, ON, 0, 1, 1, 1, 1]);
    run(&GATHER, 64, 0, &mut state, &mut Half::new()).unwrap();
    assert_eq!(words(&state, 0), [0x0b0a_0908, 9, 0x0706_0504, 9, 0, 0, 0, 0]);
    assert_eq!(words(&state, 2), [0; 8]);
}

#[test]
fn a_gather_that_faults_keeps_what_it_has_and_can_go_on() {
    let mut state = CpuState::power_up();
    state.gpr[0] = START;
    set_words(&mut state, 1, &[0, 1, 0x1000, 0]);
    set_words(&mut state, 2, &[ON; 4]);
    assert_eq!(run(&GATHER, 64, 0, &mut state, &mut Half::new()), Err(FAULT));
    assert_eq!(words(&state, 0)[..3], [0x0b0a_0908, 0x0f0e_0d0c, 0]);
    // The processor spreads each sign bit over its element before it starts (SDM: MASK[i] := FFFFFFFFH).
    assert_eq!(words(&state, 2)[..4], [0, 0, u32::MAX, u32::MAX]);
    set_words(&mut state, 1, &[77, 77, 2, 3]);
    run(&GATHER, 64, 0, &mut state, &mut Half::new()).unwrap();
    assert_eq!(words(&state, 0)[..3], [0x0b0a_0908, 0x0f0e_0d0c, 0x1312_1110]);
}

#[test]
fn a_gather_in_32_bit_code_wraps_its_addresses() {
    let mut state = CpuState::power_up();
    state.gpr[0] = 0xffff_fff8;
    set_words(&mut state, 1, &[0x400, 0, 0, 0]);
    set_words(&mut state, 2, &[ON, 0, 0, 0]);
    run(&GATHER, 32, 0, &mut state, &mut Half::new()).unwrap();
    assert_eq!(words(&state, 0)[0], 0x0302_0100);
}

#[test]
fn a_gather_with_a_register_in_two_roles_is_undefined() {
    let mut state = CpuState::power_up();
    // Most decoders, ours too, refuse this one already.
    let mut instruction = decode(&GATHER, 64);
    instruction.set_op2_register(Register::XMM1);
    let mut thunks = Thunks::new(|_| true).unwrap();
    let thunk = thunks.compile(&instruction, 64, &GATHER).unwrap();
    let result = thunks.run_scattered(&thunk, &instruction, 0, &mut state, &mut Half::new());
    assert_eq!(result, Err(Exception::UD));
}

/// Every gather with random masks and indexes into a buffer, against the host.
#[test]
fn gathers_agree_with_the_host() {
    if skipped_without(Feature::Avx2) {
        return;
    }
    let (mut native, mut random) = (Native::new(), Random(99));
    for opcode in 0x90..=0x93u8 {
        for round in 0..200 {
            let (w, l) = ((round & 1) << 7, (round & 2) << 1);
            let bytes = [0xc4, 0xe2, 0x69 | w | l, opcode, 0x04, 0xc8]; // xmm0, [rax + xmm1 * 8], xmm2
            let instruction = decode(&bytes, 64);
            let (stub, _) = native.build(&instruction).unwrap();
            let mut state = CpuState::power_up();
            random::fill(&mut state, &mut random);
            state.gpr[0] = native.operand_page();
            let index_len = if opcode & 1 == 0 { 4 } else { 8 };
            for lane in state.ymm[1].0.chunks_exact_mut(index_len) {
                lane.fill(0);
                lane[0] = random.next() as u8;
            }
            let data: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
            native.operand_bytes().copy_from_slice(&data);
            let mut memory = Page { start: state.gpr[0], data };
            let (before, mut expected) = (state.clone(), state.clone());
            native.run(&stub, &mut expected);
            let mut thunks = Thunks::new(|_| true).unwrap();
            let thunk = thunks.compile(&instruction, 64, &bytes).unwrap();
            thunks.run_scattered(&thunk, &instruction, 0, &mut state, &mut memory).unwrap();
            check(instruction.code(), &bytes, &before, &expected, &state);
        }
    }
}

struct Page {
    start: u64,
    data: Vec<u8>,
}

impl OperandMemory for Page {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Exception> {
        let at = (offset - self.start) as usize;
        data.copy_from_slice(&self.data[at..at + data.len()]);
        Ok(())
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Exception> {
        unreachable!("a gather does not store")
    }

    fn probe_write(&mut self, _: u64, _: usize) -> Result<(), Exception> {
        unreachable!("a gather does not store")
    }
}

#[test]
fn masked_loads_do_not_touch_disabled_elements() {
    let mut state = CpuState::power_up();
    set_words(&mut state, 0, &[9; 8]);
    set_words(&mut state, 1, &[ON, 0, 0, 0, 0, 0, 0, 0]);
    let mut half = Half::new();
    let bytes = [0xc4, 0xe2, 0x75, 0x2c, 0x07]; // vmaskmovps ymm0, ymm1, [rdi]
    run(&bytes, 64, START + 124, &mut state, &mut half).unwrap();
    assert_eq!((words(&state, 0), half.touched), (vec![0x7f7e_7d7c, 0, 0, 0, 0, 0, 0, 0], 1));
    set_words(&mut state, 1, &[ON, ON, 0, 0, 0, 0, 0, 0]);
    assert_eq!(run(&bytes, 64, START + 124, &mut state, &mut half), Err(FAULT));
}

#[test]
fn masked_stores_store_all_or_nothing() {
    let mut state = CpuState::power_up();
    let mut half = Half::new();
    let before = half.bytes.clone();
    set_words(&mut state, 1, &[ON, ON, 0, 0]);
    let bytes = [0xc4, 0xe2, 0x71, 0x2e, 0x07]; // vmaskmovps [rdi], xmm1, xmm0
    assert_eq!(run(&bytes, 64, START + 124, &mut state, &mut half), Err(FAULT));
    assert_eq!(half.bytes, before);
    run(&bytes, 64, START + 64, &mut state, &mut half).unwrap();
    assert_eq!((&half.bytes[64..72], &half.bytes[72..], half.bytes[63]), (&[0; 8][..], &before[72..], 63));
}

#[test]
fn byte_masks_store_single_bytes_at_rdi() {
    let mut state = CpuState::power_up();
    let mut half = Half::new();
    state.gpr[7] = START;
    state.ymm[0].0 = [0xee; 32];
    state.ymm[1].0[3] = 0x80;
    state.ymm[1].0[5] = 0xff;
    run(&[0x66, 0x0f, 0xf7, 0xc1], 64, 0, &mut state, &mut half).unwrap(); // maskmovdqu xmm0, xmm1
    assert_eq!(half.bytes[..8], [0, 1, 2, 0xee, 4, 0xee, 6, 7]);
}

#[test]
fn maskmovq_takes_physical_registers_and_enters_mmx_state() {
    let mut state = CpuState::power_up();
    let mut half = Half::new();
    state.gpr[7] = START;
    state.fx.fsw = 2 << 11;
    // With the top at 2, MM0 is ST(6) and MM1 is ST(7).
    state.fx.st[6][..8].fill(0xdd);
    state.fx.st[7][0] = 0x80;
    run(&[0x0f, 0xf7, 0xc1], 64, 0, &mut state, &mut half).unwrap();
    assert_eq!(half.bytes[..2], [0xdd, 1]);
    assert_eq!((state.fx.fsw, state.fx.ftw), (0, 0xff));
    assert_eq!(state.fx.st[0][..8], [0xdd; 8], "MM0 is ST(0) now");
}
