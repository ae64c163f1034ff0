//! Paths inside an image: bytes, resolved without ever leaving its root.

/// Symlinks followed in one path (Linux: MAXSYMLINKS).
pub(crate) const MAX_HOPS: u32 = 40;

/// What [`resolve`] does at a place it came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Goes on from there.
    On,
    /// Goes on where this symbolic link leads to.
    Follow(Vec<u8>),
    /// Ends: the path leads nowhere.
    Nowhere,
}

/// The components of a path that are names or `..`.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|c| !c.is_empty() && *c != b".")
}

/// The path without symbolic links that `path` leads to, without a slash in front; empty for the root. `step` is asked about
/// each place on the way, with the components still to go, the next one last; `..` never leads out of the root.
///
/// # Errors
/// Those of `step`, and `too_many` where links lead in circles.
pub fn resolve<E>(
    path: &[u8],
    too_many: impl FnOnce() -> E,
    mut step: impl FnMut(&[u8], &[Vec<u8>]) -> Result<Step, E>,
) -> Result<Option<Vec<u8>>, E> {
    let mut todo: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut hops = 0;
    while let Some(name) = todo.pop() {
        if name == b".." {
            done.pop();
            continue;
        }
        done.push(name);
        match step(&done.join(&b'/'), &todo)? {
            Step::On => {}
            Step::Nowhere => return Ok(None),
            Step::Follow(target) => {
                hops += 1;
                if hops > MAX_HOPS {
                    return Err(too_many());
                }
                done.pop();
                if target.starts_with(b"/") {
                    done.clear();
                }
                todo.extend(components(&target).rev().map(<[u8]>::to_vec));
            }
        }
    }
    Ok(Some(done.join(&b'/')))
}
