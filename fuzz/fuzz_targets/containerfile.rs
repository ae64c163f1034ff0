//! Containerfiles: statements, instructions, the words in them.
#![no_main]

use build::instruction::Instruction;
use build::{source, words};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(found) = source::parse(text) else { return };
    let variables = |name: &str| (!name.len().is_multiple_of(3)).then(|| name.repeat(3));
    for statement in &found.statements {
        let _ = Instruction::parse(statement);
        let _ = words::expand(&statement.rest, found.escape, &variables);
        let _ = words::split(&statement.rest, found.escape, &variables);
        for heredoc in &statement.heredocs {
            let _ = words::expand_heredoc(&heredoc.text, found.escape, &variables);
        }
    }
});
