//! A headless Chromium, driven by the DevTools protocol over a pair of pipes: JSON, each message ended by a byte 0.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::PATIENCE;

/// What finds things as people do who see the page, or hear it: by role and name.
const FINDER: &str = r#"
window.__find = (role, name) => {
  const selectors = {
    button: "button", link: "a[href]", heading: "h1,h2", field: "input,textarea,select",
    row: "tr[data-row]", dialog: "dialog[open]",
  };
  const text = (node) => (node.textContent ?? "").replace(/\s+/g, " ").trim();
  const nameOf = (node) => {
    if (node.dataset.row) return node.dataset.row;
    const by = node.getAttribute("aria-labelledby");
    if (by) return text(document.getElementById(by));
    const label = node.getAttribute("aria-label");
    if (label) return label;
    if (role === "field") return [...(node.labels ?? [])].map(text).join(" ");
    return text(node);
  };
  const seen = (node) => node.checkVisibility({ visibilityProperty: true });
  // What a dialog stands in front of cannot be used.
  const places = document.querySelector("dialog[open]") ?? document;
  const scope = ["button", "link", "field"].includes(role) ? places : document;
  const found = [...scope.querySelectorAll(selectors[role])].filter(seen);
  // A choice is explained in its label, behind its name.
  const begins = (node) => role === "field" && nameOf(node).startsWith(name);
  return found.find((node) => nameOf(node) === name) ?? found.find(begins);
};
"#;

/// A page in a browser of its own, with nothing remembered.
pub struct Page {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    next: u64,
    /// What went wrong in the page: exceptions of its scripts, and what its policy refused.
    pub complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Page {
    /// An empty page; nothing, and a line, if there is no browser.
    pub fn open() -> Option<Page> {
        let program = "chromium";
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            println!("skipped: {program} is not installed (package chromium)");
            return None;
        }
        let profile = tempfile::tempdir().unwrap();
        // The browser's pipes are descriptors 3 and 4.
        let script = "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut command = Command::new("sh");
        command.args([
            "-c",
            script,
            "sh",
            program,
            "--headless=new",
            "--remote-debugging-pipe",
            "--disable-gpu",
        ]);
        command.args(["--no-first-run", "--disable-extensions", "--disable-background-networking"]);
        // Root has no name space for it, and it sees our own pages alone.
        command.args(["--no-sandbox", "--disable-dev-shm-usage"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.env("HOME", profile.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let to = child.stdin.take().unwrap();
        let (sender, from) = channel();
        let mut pipe = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while pipe.read_until(0, &mut message).is_ok_and(|count| count > 0) {
                let value = serde_json::from_slice(message.strip_suffix(&[0]).unwrap_or(&message));
                if sender.send(value.unwrap()).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut page =
            Page { child, to, from, session: None, next: 0, complaints: Vec::new(), _profile: profile };
        let target = page.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = page.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        page.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": FINDER }));
        Some(page)
    }

    /// Asks the browser.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = match self.from.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => panic!("{method}: no answer"),
                Err(RecvTimeoutError::Disconnected) => panic!("{method}: the browser ended"),
            };
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            self.hear(&message);
        }
    }

    fn hear(&mut self, event: &Value) {
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(event["params"].to_string()),
            Some("Log.entryAdded") => {
                let entry = &event["params"]["entry"];
                // What the server refuses is told there too, which the page shows itself.
                if entry["level"] == "error" && entry["source"] != "network" {
                    self.complaints.push(entry.to_string());
                }
            }
            _ => {}
        }
    }

    /// Goes to an address.
    pub fn go(&mut self, url: &str) {
        let gone = self.call("Page.navigate", json!({ "url": url }));
        assert!(gone.get("errorText").is_none(), "{url}: {gone}");
    }

    /// The value of an expression of the page's script.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression holds.
    pub fn wait(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        // While a page is left for another there is nobody to ask.
        while self.value(&format!(
            "(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
        )) != true
        {
            if Instant::now() > deadline {
                let text = self.value("document.body.innerText");
                panic!("it never came: {expression}\n{}", text.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the page shows this text.
    pub fn sees(&mut self, text: &str) {
        self.wait(&format!("document.body.innerText.includes({})", json!(text)));
    }

    fn found(role: &str, name: &str) -> String {
        format!("__find({}, {})", json!(role), json!(name))
    }

    /// Waits until there is something of this role and name.
    pub fn has(&mut self, role: &str, name: &str) {
        self.wait(&Page::found(role, name));
    }

    /// Waits until there is nothing of this role and name.
    pub fn has_no(&mut self, role: &str, name: &str) {
        self.wait(&format!("!{}", Page::found(role, name)));
    }

    /// Clicks with the mouse where it is, once it is there, can be used, and moves no more.
    pub fn click(&mut self, role: &str, name: &str) {
        let place = format!(
            "(() => {{ const node = {}; if (!node || node.disabled) return null; \
             node.scrollIntoView({{ block: 'center', behavior: 'instant' }}); const box = node.getBoundingClientRect(); \
             const [x, y] = [box.x + box.width / 2, box.y + box.height / 2]; const top = document.elementFromPoint(x, y); \
             return top && (node === top || node.contains(top) || node.labels?.[0]?.contains(top)) ? [x, y] : null; }})()",
            Page::found(role, name)
        );
        let deadline = Instant::now() + PATIENCE;
        let mut before = Value::Null;
        let place = loop {
            let now = self.value(&place);
            if now.is_array() && now == before {
                break now;
            }
            assert!(Instant::now() < deadline, "nothing to click: {role} {name:?}");
            before = now;
            std::thread::sleep(Duration::from_millis(100));
        };
        for kind in ["mousePressed", "mouseReleased"] {
            let params =
                json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// Puts text into the field of this label, in place of what is there.
    pub fn fill(&mut self, label: &str, text: &str) {
        self.has("field", label);
        self.value(&format!(
            "(() => {{ const node = {}; node.focus(); node.select?.(); }})()",
            Page::found("field", label)
        ));
        self.types(text);
    }

    /// Puts text where the focus is, all at once.
    fn types(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Types text key by key: what a terminal hears.
    pub fn keys(&mut self, text: &str) {
        for letter in text.chars() {
            if letter == '\n' {
                self.press("Enter", false);
                continue;
            }
            for kind in ["rawKeyDown", "char", "keyUp"] {
                let params = json!({ "type": kind, "key": letter.to_string(), "text": letter.to_string() });
                self.call("Input.dispatchKeyEvent", params);
            }
        }
    }

    /// Presses and releases a key: `Enter`, `Tab`, `F6`; with Shift if asked for.
    pub fn press(&mut self, key: &str, shift: bool) {
        let code = match key {
            "Enter" => 13,
            "Tab" => 9,
            "Escape" => 27,
            "F6" => 117,
            _ => panic!("{key}"),
        };
        let mut params = json!({
            "type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": if shift { 8 } else { 0 },
        });
        if key == "Enter" {
            params["text"] = json!("\r");
        }
        self.call("Input.dispatchKeyEvent", params.clone());
        params["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", params);
    }

    /// How wide the window is, in pixels of style sheets.
    pub fn resize(&mut self, width: u32) {
        let params = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    /// `light` or `dark`.
    pub fn scheme(&mut self, scheme: &str) {
        let params = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", params);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
