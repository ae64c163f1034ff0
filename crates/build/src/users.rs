//! Names of users and groups, as the image's own files have them.

use image::View;

/// Bytes of `/etc/passwd` or `/etc/group`.
const MAX_BYTES: u64 = 4 << 20;

/// Numbers for `user[:group]`; a user without a group has the group of its own number, as Docker has it for files.
///
/// # Errors
/// The image does not know the name.
pub fn owner(view: &View, text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let uid = number(view, "/etc/passwd", user)?;
    let gid = group.map_or(Ok(uid), |group| number(view, "/etc/group", group))?;
    Ok((uid, gid))
}

fn number(view: &View, file: &str, name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let bytes = view.read(file.as_bytes(), MAX_BYTES).map_err(|error| format!("read {file}: {error}"))?;
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let id = line.and_then(|line| line.split(':').nth(2)?.parse().ok());
    id.ok_or_else(|| format!("{name:?} is neither a number nor in the image's {file}"))
}
