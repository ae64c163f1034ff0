use super::super::testing::*;
use super::*;

#[test]
fn buffers_are_filled_with_bytes_that_differ() {
    let mut rig = Rig::live(Box::new(Rng::new()));
    assert_eq!(rig.request(0, &[(DATA, 32, WRITE), (DATA + 0x1000, 32, WRITE)]), 64);
    let (first, second) = (rig.bytes(DATA, 32), rig.bytes(DATA + 0x1000, 32));
    assert_ne!(first, second);
    assert_ne!(first, [0; 32]);
}

#[test]
fn a_huge_or_unwritable_buffer_gets_little_or_nothing() {
    let mut rig = Rig::live(Box::new(Rng::new()));
    assert_eq!(rig.request(0, &[(DATA, 1 << 20, WRITE)]), MAX_BYTES as u32);
    assert_eq!(rig.request(0, &[(DATA, 64, 0)]), 0);
    assert_eq!(rig.request(0, &[(DATA, 0, WRITE)]), 0);
    assert!(!rig.is_broken());
}
