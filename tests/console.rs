//! The web console, clicked through in a headless Chromium.

use std::path::Path;

use serde_json::json;

use crate::support::chromium::Page;
use crate::support::docker_registry::DockerRegistry;
use crate::support::server::Server;

/// A server with the console, and a page that shows it.
fn open() -> Option<(Server, Page)> {
    let mut page = Page::open()?;
    let server = Server::start(&["--console", "--listen", "http://127.0.0.1:0"], 2)?;
    page.resize(1200);
    page.go(server.address("http"));
    page.has("heading", "Workloads");
    Some((server, page))
}

/// Makes a workload as a user would.
fn create(page: &mut Page, name: &str, isolation: &str, command: &str) {
    go(page, "Workloads");
    page.click("button", "Create a workload");
    page.has("dialog", "Create a workload");
    page.fill("Image", "debian");
    page.click("field", isolation);
    page.fill("Command", command);
    page.fill("Name", name);
    confirm(page, "Create a workload", "Create and start");
    page.has("heading", name);
    page.wait("document.querySelector('.facts').innerText.includes('Running')");
}

/// Goes to one of the pages.
fn go(page: &mut Page, title: &str) {
    page.click("link", title);
    page.has("heading", title);
}

/// Presses the button of this dialog, and waits until that is done.
fn confirm(page: &mut Page, title: &str, button: &str) {
    page.has("dialog", title);
    page.click("button", button);
    page.has_no("dialog", title);
}

fn row_says(page: &mut Page, name: &str, text: &str) {
    page.wait(&format!("__find('row', {}).innerText.includes({})", json!(name), json!(text)));
}

#[test]
fn workloads_are_made_seen_used_copied_and_removed() {
    let Some((server, mut page)) = open() else { return };
    // The token is in a cookie that no script reads, and not in the address any more.
    assert_eq!(page.value("location.search + document.cookie"), "");
    page.sees("Nothing is here yet");

    create(&mut page, "web", "Container", "sh -c 'echo hello from the console; exec sleep 1000'");
    page.click("link", "Logs");
    page.wait("document.querySelector('.log').textContent.includes('hello from the console')");
    page.click("link", "Terminal");
    page.wait("document.querySelector('.xterm-accessibility').textContent.includes('#')");
    page.keys("echo $((40 + 2)) typed; tty\n");
    page.wait("document.querySelector('.xterm-accessibility').textContent.includes('42 typed')");
    page.wait("document.querySelector('.xterm-accessibility').textContent.includes('/dev/pts/')");
    // Tab is the shell's; this is the way out for those without a mouse.
    page.press("F6", true);
    page.wait("document.activeElement.textContent === 'New session'");

    create(&mut page, "box", "microVM", "sh -c 'echo hello from a machine; exec sleep 1000'");
    page.click("link", "Logs");
    page.wait("document.querySelector('.log').textContent.includes('hello from a machine')");
    page.click("link", "Charts");
    page.wait("[...document.querySelectorAll('svg .line')].some((line) => line.points.length > 1)");
    page.click("link", "Terminal");
    page.wait("document.querySelector('.xterm-accessibility').textContent.includes('#')");
    page.keys("uname -s; exit 3\n");
    page.sees("The shell ended with 3.");

    page.click("button", "Snapshot box");
    page.fill("Snapshot's name", "base");
    confirm(&mut page, "Save box to a snapshot", "Save");
    page.sees("box is saved as base");
    go(&mut page, "Workloads");
    page.click("button", "Fork box");
    row_says(&mut page, "box-1", "Running");
    go(&mut page, "Snapshots");
    page.click("button", "Restore base");
    page.sees("goes on from base");
    page.click("button", "Remove base");
    confirm(&mut page, "Remove base?", "Remove");
    page.sees("There is no snapshot.");

    // What the command line does is seen at once, and the other way round.
    go(&mut page, "Workloads");
    row_says(&mut page, "web", "Running");
    server.place.strata(&["stop", "-t", "0", "web"]);
    row_says(&mut page, "web", "Exited");
    server.place.strata(&["rm", "web"]);
    page.has_no("row", "web");
    page.click("button", "Remove box-1");
    page.has("dialog", "Remove box-1?");
    page.press("Escape", false);
    page.has_no("dialog", "Remove box-1?");
    page.has("row", "box-1");
    page.click("button", "Remove box-1");
    confirm(&mut page, "Remove box-1?", "Remove");
    page.has_no("row", "box-1");
    assert!(!server.place.strata(&["ps", "-a"]).contains("box-1"));
    assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
}

#[test]
fn images_are_pulled_and_removed() {
    let Some((server, mut page)) = open() else { return };
    let Some(registry) = DockerRegistry::start() else { return };
    let name = format!("{}/team/small:1", registry.domain);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("Containerfile"), "FROM scratch\nCOPY a /a\n").unwrap();
    std::fs::write(folder.path().join("a"), crate::support::noise(3 << 20)).unwrap();
    server.place.strata(&["image", "build", "-t", &name, folder.path().to_str().unwrap()]);
    server.place.strata(&["push", &name]);
    server.place.strata(&["image", "rm", &name]);

    go(&mut page, "Images");
    row_says(&mut page, "debian:latest", "MiB");
    page.fill("Pull an image", &name);
    page.click("button", "Pull");
    page.sees(&format!("{name} is here"));
    row_says(&mut page, &name, "MiB");
    page.fill("Pull an image", &format!("{}/team/none:1", registry.domain));
    page.click("button", "Pull");
    page.wait("document.querySelector('[role=alert] .error').textContent.includes('team/none')");
    page.click("button", &format!("Remove {name}"));
    confirm(&mut page, &format!("Remove {name}?"), "Remove");
    page.has_no("row", &name);
    assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
}

/// The checker of accessibility, which comes with the packages that the console is built with.
fn axe() -> Option<String> {
    let checker =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../console/node_modules/axe-core/axe.min.js");
    let axe = std::fs::read_to_string(checker).ok();
    if axe.is_none() {
        println!("skipped in part: axe-core is not there; run `make console`");
    }
    axe
}

/// What a checker of accessibility finds wrong with the page, as it is.
fn faults(page: &mut Page, axe: &str) -> String {
    page.value(axe);
    let run = "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations.map(\
               ({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} (${node.failureSummary})`).join('; ')}`).join('\\n'))";
    page.value(run).as_str().unwrap().to_owned()
}

#[test]
fn every_page_can_be_used_by_keyboard_by_ear_and_on_a_small_screen() {
    let Some((server, mut page)) = open() else { return };
    server.place.strata(&[
        "run",
        "-d",
        "--isolation",
        "container",
        "--name",
        "web",
        "debian",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]);
    let checker =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../console/node_modules/axe-core/axe.min.js");
    let axe = std::fs::read_to_string(checker).ok();
    if axe.is_none() {
        println!("skipped in part: axe-core is not there; run `make console`");
    }
    page.has("row", "web");
    for scheme in ["light", "dark"] {
        page.scheme(scheme);
        for (path, shows) in [
            ("workloads", "Workloads"),
            ("workloads/web", "web"),
            ("workloads/web/logs", "web"),
            ("workloads/web/terminal", "web"),
            ("workloads/web/charts", "web"),
            ("images", "Images"),
            ("snapshots", "Snapshots"),
            ("networks", "Networks"),
            ("volumes", "Volumes"),
            ("host", "Host"),
        ] {
            page.resize(1200);
            page.value(&format!("location.hash = '#/{path}'"));
            page.has("heading", shows);
            page.wait("!document.body.innerText.includes('Loading…')");
            if let Some(axe) = &axe {
                let found = faults(&mut page, axe);
                assert_eq!(found, "", "{scheme} {path}");
            }
            page.resize(360);
            page.wait("document.documentElement.scrollWidth <= 360");
        }
    }
    assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
}

#[test]
fn the_focus_goes_where_the_work_is() {
    let Some((server, mut page)) = open() else { return };
    page.resize(1200);
    go(&mut page, "Workloads");
    page.click("button", "Create a workload");
    page.has("dialog", "Create a workload");
    // The focus is in the dialog, and goes back to where it came from.
    page.wait("document.querySelector('dialog').contains(document.activeElement)");
    if let Some(axe) = axe() {
        assert_eq!(faults(&mut page, &axe), "", "the dialog");
    }
    page.press("Escape", false);
    page.wait(
        "!document.querySelector('dialog') && document.activeElement.textContent === 'Create a workload'",
    );

    let url = server.address("http").split('?').next().unwrap().to_owned();
    page.go(&format!("{url}?again#/images"));
    page.has("heading", "Images");
    page.wait("document.activeElement.tagName === 'H1'");
    // Back from the heading: the pages, the name, and before all of them the way past them.
    let mut passed = Vec::new();
    while page.value("document.activeElement.className") != "skip" {
        passed.push(page.value("document.activeElement.textContent"));
        assert!(passed.len() < 20, "{passed:?}");
        page.press("Tab", true);
    }
    assert_eq!(passed.len(), 8, "{passed:?}");
    page.press("Enter", false);
    page.wait("document.activeElement.tagName === 'H1'");
    assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
}
