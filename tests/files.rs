//! What file systems do, asked of a volume from a machine and from a container: the answers must be the same.

use crate::detached::Place;

/// A line for each case: what it returned, or the number of its error. Perl, for the image has no other way to make these calls.
const CASES: &str = include_str!("files/cases.pl");

/// Runs the cases on a volume of `place`, and gives the lines.
fn lines(place: &Place) -> Vec<String> {
    std::fs::write(place.dir.path().join("cases.pl"), CASES).unwrap();
    let script = format!("{}:/cases:ro", place.dir.path().display());
    let run = [
        "run",
        "--isolation",
        place.isolation,
        "-v",
        "cases:/v",
        "-v",
        &script,
        "debian",
        "--",
        "perl",
        "/cases/cases.pl",
    ];
    place.strata(&run).lines().map(str::to_owned).collect()
}

#[test]
fn a_volume_answers_a_machine_as_it_answers_a_container() {
    let answers: Vec<_> = Place::each().map(|place| lines(&place)).collect();
    let [machine, container] = &answers[..] else {
        println!("skipped: needs the assets and root");
        return;
    };
    assert!(machine.len() > 90 && machine.last().is_some_and(|line| line == "end: 1"), "{machine:#?}");
    let differing: Vec<_> = machine.iter().zip(container).filter(|(a, b)| a != b).collect();
    assert!(differing.is_empty() && machine.len() == container.len(), "{differing:#?}");
    // The two could be wrong together: some whose answer POSIX knows.
    for known in [
        "rename onto a full folder: E39",
        "rename with NOREPLACE onto a file: E17",
        "unlink a folder: E21",
        "rmdir a full folder: E39",
        "link a folder: E1",
        "open O_EXCL what is there: E17",
        "open O_NOFOLLOW a link: E40",
        "a name of 256 bytes: E36",
        "mode of a file in a setgid folder: 100644 1 0:50 0",
        "mode of a folder in a setgid folder: 42755 2 0:50 0",
        "another user's unlink in a sticky folder: E1",
        "own unlink in a sticky folder: 1",
        "setuid bit after a write of another: 100755",
        "hole begins: 1048576",
        "get an attribute: value",
        "a lock that is held: E11",
        "entries: 2000",
    ] {
        assert!(machine.iter().any(|line| line == known), "no {known:?} in {machine:#?}");
    }
}
