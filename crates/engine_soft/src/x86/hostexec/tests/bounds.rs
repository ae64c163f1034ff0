//! That a thunk touches the state and its operand, and nothing else, whatever it was made from.
// UNSAFETY: runs thunks on buffers of the tests and maps guard pages.

use super::*;

/// A memory in which everything faults.
struct Nowhere;

impl OperandMemory for Nowhere {
    fn read(&mut self, offset: u64, _: &mut [u8]) -> Result<(), Exception> {
        Err(Exception::page_fault(offset, 0))
    }

    fn write(&mut self, offset: u64, _: &[u8]) -> Result<(), Exception> {
        Err(Exception::page_fault(offset, 2))
    }

    fn probe_write(&mut self, offset: u64, _: usize) -> Result<(), Exception> {
        Err(Exception::page_fault(offset, 2))
    }
}

/// Whatever a guest may try, a thunk touches the state and its operand and returns.
#[test]
fn random_bytes_in_any_mode_never_leave_the_thunk() {
    let (mut thunks, mut random) = (Thunks::new(|_| true).unwrap(), Random(4711));
    let mut state = CpuState::power_up();
    let mut operand = Operand([0; 4096]);
    let mut ran = 0;
    for i in 0..300_000u32 {
        if i % 64 == 0 {
            random::fill(&mut state, &mut random);
            state.fx.mxcsr = random.next() as u32;
            state.cr0 = random.next();
        }
        let mut bytes = (random.next() as u128 | (random.next() as u128) << 64).to_le_bytes();
        // Lead half of them into the maps where vector instructions live.
        match random.below(6) {
            0 => bytes[0] = 0x0f,
            1 => bytes[..2].copy_from_slice(&[0x66, 0x0f]),
            2 => bytes[0] = 0xc4 | bytes[0] & 1,
            3 => bytes[0] = 0xd8 | bytes[0] & 7,
            _ => {}
        }
        let bits = [16, 32, 64][random.below(3) as usize];
        let instruction = decode(&bytes[..15], bits);
        let Ok(thunk) = thunks.compile(&instruction, bits, &bytes) else { continue };
        ran += 1;
        if thunk.is_scattered() {
            let _ = thunks.run_scattered(&thunk, &instruction, 0, &mut state, &mut Nowhere);
            continue;
        }
        // SAFETY: the operand is larger and more aligned than any instruction needs.
        let result = unsafe { thunks.run(&thunk, &mut state, operand.0.as_mut_ptr(), Pointers::default()) };
        assert_ne!(result, Err(Trap::Stale));
        assert!(operand.0[MAX_OPERAND_BYTES..].iter().all(|&byte| byte == 0), "{bytes:02x?}");
    }
    println!("{ran} random instructions ran");
    assert!(ran > 50_000, "{ran}");
}

/// One page between two that cannot be touched.
struct Guarded(*mut u8);

impl Guarded {
    const PAGE: usize = 4096;

    fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping, of which the middle page is made accessible.
        unsafe {
            let base = libc::mmap(std::ptr::null_mut(), 3 * Self::PAGE, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            let page = base.cast::<u8>().add(Self::PAGE);
            assert_eq!(libc::mprotect(page.cast(), Self::PAGE, libc::PROT_READ | libc::PROT_WRITE), 0);
            Self(page)
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the three pages of `new`.
        unsafe { libc::munmap(self.0.sub(Self::PAGE).cast(), 3 * Self::PAGE) };
    }
}

#[test]
fn operands_are_no_larger_than_said() {
    let (mut thunks, mut random, page) = (all(), Random(5), Guarded::new());
    let mut state = CpuState::power_up();
    let mut tried = 0;
    for code in Code::values().filter(|code| code.op_code().is_instruction()) {
        for _ in 0..8 {
            let Some(instruction) = random::instruction(code, &mut random) else { continue };
            let Ok(thunk) = thunks.compile(&instruction, 64, &[]) else { continue };
            let Some(operand) = thunk.memory() else { continue };
            tried += 1;
            random::fill(&mut state, &mut random);
            for offset in [0, Guarded::PAGE - usize::from(operand.size)] {
                // SAFETY: the operand is inside the page, if it is as large as its thunk says.
                let result = unsafe {
                    let memory = page.0.add(offset);
                    memory.write_bytes(0, operand.size.into());
                    thunks.run(&thunk, &mut state, memory, Pointers::default())
                };
                assert_eq!(result, Ok(()));
            }
        }
    }
    assert!(tried > 1000, "{tried}");
}
