//! Commands that need no machine.

use crate::support::{finish, strata};

#[test]
fn nonsense_on_the_command_line_is_code_2() {
    for arguments in [
        &["run"][..],
        &["fly"],
        &["run", "--cpus", "0", "x"],
        &["run", "--memory", "much", "x"],
        &["run", "-e", "=x", "x"],
    ] {
        let mut command = strata();
        command.args(arguments);
        assert_eq!(finish(command).code(), 2, "{arguments:?}");
    }
}

#[test]
fn help_lists_commands_and_exit_codes() {
    let mut command = strata();
    command.arg("--help");
    let help = finish(command).stdout;
    for word in ["run", "boot", "check", "kernel", "image", "Exit codes", "127", "STRATA_ROOT"] {
        assert!(help.contains(word), "no {word} in {help}");
    }
}

#[test]
fn the_help_of_a_command_says_all_that_is_written_about_it() {
    for (command, words) in [
        ("run", &["three interrupts", "-i only", "90s", "Exit codes", "127", "Options of every command"][..]),
        ("boot", &["Ctrl-] x leaves", "Exit codes", "triple fault"]),
        ("check", &["Exit code 1 means"]),
    ] {
        let mut help = strata();
        help.args([command, "--help"]);
        let help = finish(help).stdout;
        for word in words {
            assert!(help.contains(word), "no {word} in {help}");
        }
    }
}

#[test]
fn check_says_what_is_there_in_both_forms() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = strata();
    command.arg("--root").arg(folder.path()).args(["check", "--json"]);
    let ended = finish(command);
    let value: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code(), if value["microvms"] == true { 0 } else { 1 });
    let layers: Vec<&str> =
        value["findings"].as_array().unwrap().iter().map(|f| f["layer"].as_str().unwrap()).collect();
    assert!(["hardware", "os", "store", "tools"].iter().all(|layer| layers.contains(layer)), "{layers:?}");
    let mut command = strata();
    command.arg("--root").arg(folder.path()).arg("check");
    let table = finish(command).stdout;
    assert!(table.contains("LAYER") && table.contains("strata kernel fetch"), "{table}");
    assert!(!table.contains('\x1b'), "no styles where no terminal is");
}

#[test]
fn manual_pages_and_completions_come_from_the_same_declarations() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = strata();
    command.arg("man").arg(folder.path());
    assert_eq!(finish(command).code(), 0);
    for page in ["strata.1", "strata-run.1", "strata-image-bootstrap.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".SH") && text.contains("STRATA_ROOT"), "{page}: {text}");
        let has_codes = text.contains(".SH \"EXIT STATUS\"");
        assert_eq!(has_codes, page != "strata-image-bootstrap.1", "{page}: {text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let mut command = strata();
        command.args(["completions", shell]);
        assert!(finish(command).stdout.contains("workdir"), "{shell}");
    }
}

#[test]
fn an_empty_store_lists_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [["image", "ls", "--json"], ["kernel", "ls", "--json"]] {
        let mut command = strata();
        command.arg("--root").arg(folder.path()).args(arguments);
        let ended = finish(command);
        assert_eq!((ended.code(), ended.stdout.trim()), (0, "[]"));
    }
}
