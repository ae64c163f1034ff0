//! What docker's client of version 28 sent, and what it is answered: every field, so that a change of one is seen.
//!
//! `recorded/docker-28.txt` has each request, `>`, and its answer, `<`; `cargo xtask bless` writes the answers anew. What differs from
//! run to run is replaced: ids, times, sizes, hardware addresses and paths of the store.

use serde_json::{Map, Value};

use crate::docker::Server;

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/recorded/docker-28.txt");

#[test]
fn what_dockers_client_once_sent_is_answered_as_it_was() {
    let Some(server) = Server::start() else { return };
    let recorded = std::fs::read_to_string(RECORDED).unwrap();
    let mut exec = String::new();
    let mut seen = Vec::new();
    for entry in recorded.trim_end().split("\n\n") {
        let said: Vec<&str> = entry.lines().filter_map(|line| line.strip_prefix("> ")).collect();
        let (method, path) = said[0].split_once(' ').unwrap();
        let body = said.get(1).copied().unwrap_or_default();
        let (status, answer) = server.ask(method, &path.replace("{exec}", &exec), body);
        let mut value = serde_json::from_str(&answer).unwrap_or(Value::Null);
        if path.ends_with("/exec") {
            exec = value["Id"].as_str().unwrap().to_owned();
        }
        settle("", &mut value);
        let text = serde_json::to_string_pretty(&value).unwrap();
        let lines = [status.to_string()].into_iter().chain(text.lines().map(str::to_owned));
        let lines = said.iter().map(|line| format!("> {line}")).chain(lines.map(|line| format!("< {line}")));
        seen.push(lines.collect::<Vec<_>>().join("\n"));
    }
    let seen = seen.join("\n\n") + "\n";
    if std::env::var_os("STRATA_BLESS").is_some() {
        std::fs::write(RECORDED, &seen).unwrap();
        return;
    }
    for (was, is) in recorded.split("\n\n").zip(seen.split("\n\n")) {
        let differs = was.trim_end().lines().zip(is.trim_end().lines()).find(|(was, is)| was != is);
        let request = is.lines().next().unwrap();
        assert_eq!(differs, None, "{request}; cargo xtask bless, if that is as it should be");
        assert_eq!(was.trim_end().lines().count(), is.trim_end().lines().count(), "{request}");
    }
}

/// Numbers that say when or how much.
const VARYING: [&str; 6] = ["Created", "Pid", "Size", "SizeRootFs", "SizeRw", "VirtualSize"];

/// Replaces what differs from run to run below `key`.
fn settle(key: &str, value: &mut Value) {
    match value {
        // Whether the command has ended yet.
        _ if key == "ExecIDs" => *value = "<commands>".into(),
        Value::String(text) => *text = settled(key, text),
        Value::Number(_) if VARYING.contains(&key) => *value = "<number>".into(),
        Value::Array(list) => list.iter_mut().for_each(|item| settle(key, item)),
        // Whether a check has been made yet.
        Value::Object(_) if key == "Health" => *value = "<health>".into(),
        Value::Object(map) => {
            let settle_entry = |(key, mut value): (String, Value)| {
                settle(&key, &mut value);
                (if is_hex(&key) { "<id>".to_owned() } else { key }, value)
            };
            *map = std::mem::take(map).into_iter().map(settle_entry).collect::<Map<_, _>>();
        }
        _ => {}
    }
}

fn is_hex(text: &str) -> bool {
    matches!(text.len(), 12 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn settled(key: &str, text: &str) -> String {
    let is_mac = text.len() == 17 && text.split(':').count() == 6;
    let is_time = text.len() >= 20 && text.as_bytes()[4] == b'-' && text.as_bytes()[10] == b'T';
    let bare = text.split(':').next_back().unwrap_or_default();
    match text {
        _ if is_hex(bare) => text.replace(bare, "<id>"),
        _ if is_mac => "<mac>".to_owned(),
        _ if is_time => "<time>".to_owned(),
        _ if key == "Status" && (text.starts_with("Up ") || text.starts_with("Exited ")) => {
            "<status>".to_owned()
        }
        _ if text.starts_with('/') && (text.contains("/store/") || text.split('/').any(is_hex)) => {
            "<path>".to_owned()
        }
        // Of the bridge that the host has for a network.
        _ if text.starts_with("strata") && key.starts_with("com.docker") => "<bridge>".to_owned(),
        _ => text.to_owned(),
    }
}
