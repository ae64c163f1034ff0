//! What differs between two texts, for people.

/// Lines shown around what differs.
const AROUND: usize = 4;
/// Lines that differ which are shown.
const SHOWN: usize = 40;

/// Where `now` begins and ends to differ from `agreed`; nothing if it does not.
pub fn of(agreed: &str, now: &str) -> Option<String> {
    let (old, new): (Vec<_>, Vec<_>) = (agreed.lines().collect(), now.lines().collect());
    let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    if same == old.len() && same == new.len() {
        return None;
    }
    let rest = old.len().min(new.len()) - same;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(old, new)| old == new).count();
    let mut text = String::new();
    let case = old[..same].iter().rev().find(|line| line.starts_with("== "));
    text += &format!("from line {}, {}:\n", same + 1, case.unwrap_or(&"== the first case"));
    let mut show = |mark: &str, lines: &[&str]| {
        lines.iter().take(SHOWN).for_each(|line| text += &format!("{mark}{line}\n"));
        if lines.len() > SHOWN {
            text += &format!("{mark}... {} more lines\n", lines.len() - SHOWN);
        }
    };
    show("  ", &old[same.saturating_sub(AROUND)..same]);
    show("- ", &old[same..old.len() - tail]);
    show("+ ", &new[same..new.len() - tail]);
    show("  ", &old[old.len() - tail..(old.len() - tail + AROUND).min(old.len())]);
    Some(text)
}

#[test]
fn equal_texts_do_not_differ_and_others_are_shown_from_the_first_line_that_does() {
    assert_eq!(of("a\nb\n", "a\nb\n"), None);
    let text = of("== x\na\nb\nc\n", "== x\na\nB\nc\n").unwrap();
    assert_eq!(text, "from line 3, == x:\n  == x\n  a\n- b\n+ B\n  c\n");
    assert!(of("a\n", "a\nb\n").unwrap().contains("+ b"));
}
