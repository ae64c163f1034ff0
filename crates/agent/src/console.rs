//! The last resort: one line on the console, for errors that can't be told over the control connection.

use alloc::format;

use rustix::fs::OFlags;

use crate::files;

/// Writes `agent: text` to the console, or to the kernel's log where there is none.
pub fn report(text: &str) {
    for (path, line) in
        [("/dev/console", format!("agent: {text}\r\n")), ("/dev/kmsg", format!("<3>agent: {text}\n"))]
    {
        if let Ok(file) = files::open(path, OFlags::WRONLY | OFlags::NOCTTY)
            && files::write_all(&file, line.as_bytes()).is_ok()
        {
            return;
        }
    }
}
