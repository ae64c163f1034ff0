//! Names of users and groups, as the image's own files have them.

use image::View;

/// Bytes of `/etc/passwd` or `/etc/group`.
const MAX_BYTES: u64 = 4 << 20;

/// Numbers for `user[:group]`. Without a group it is that of the user, where the image knows the name, and the user's own number
/// where a number stands for it, as Docker has it for files.
///
/// # Errors
/// The image does not know the name.
pub fn owner(view: &View, text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own) = match user.parse() {
        Ok(number) => (number, number),
        Err(_) => {
            let line = entry(view, "/etc/passwd", user)?;
            (number(&line, 2, "/etc/passwd", user)?, number(&line, 3, "/etc/passwd", user)?)
        }
    };
    let gid = match group.map(str::parse) {
        None => own,
        Some(Ok(number)) => number,
        Some(Err(_)) => {
            let name = group.unwrap_or_default();
            number(&entry(view, "/etc/group", name)?, 2, "/etc/group", name)?
        }
    };
    Ok((uid, gid))
}

/// The line that begins with a name.
fn entry(view: &View, file: &str, name: &str) -> Result<String, String> {
    let bytes = view.read(file.as_bytes(), MAX_BYTES).map_err(|error| format!("read {file}: {error}"))?;
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    line.map(str::to_owned).ok_or_else(|| format!("{name:?} is neither a number nor in the image's {file}"))
}

fn number(line: &str, field: usize, file: &str, name: &str) -> Result<u32, String> {
    let number = line.split(':').nth(field).and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        format!("the line of {name:?} in the image's {file} has no number where one should be")
    })
}
