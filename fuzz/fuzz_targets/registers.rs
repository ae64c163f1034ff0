//! Any sequence of accesses to the chips of a board: nothing panics, and every state reached can be restored.
#![no_main]

use fuzz::Bytes;
use fuzz::board::Board;
use libfuzzer_sys::fuzz_target;

fn check_restore(board: &Board) {
    let saved = board.bus.save().expect("a state that was reached can be saved");
    board
        .bus
        .restore(|name| saved.iter().find(|(owner, _)| owner == name).map(|(_, section)| section.clone()))
        .expect("a state that was reached can be restored");
    let apics = board.router.apics().save().expect("a state that was reached can be saved");
    board.router.apics().restore(&apics).expect("a state that was reached can be restored");
}

fuzz_target!(|data: &[u8]| {
    let board = Board::new();
    let mut input = Bytes(data);
    while !input.is_empty() {
        board.act(&mut input);
    }
    check_restore(&board);
    board.pass(1 << 30);
    board.bus.reset();
    board.router.apics().reset();
});
