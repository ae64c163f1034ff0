//! `strata check --store`: everything in the store is read, and what is broken is mended.

use super::Options;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Outcome, While};
use crate::progress::Bar;
use crate::{output, store};

/// Checks the store and says what was found and done.
///
/// # Errors
/// The store cannot be read or written, or images are being added to it just now.
pub fn run(global: &Global, options: &Options) -> Outcome {
    let store = store::open(global)?;
    let bar = Bar::new();
    let checked = store.check(!options.dry_run, &bar);
    drop(bar);
    let checked = checked.while_trying(|| "check the store".to_owned())?;
    if options.json {
        output::json(&serde_json::json!({ "whole": checked.is_whole(), "checked": checked }))?;
    } else {
        let mut text = String::new();
        for problem in &checked.problems {
            let state = problem.done.as_deref().map_or("broken".to_owned(), |done| format!("mended, {done}"));
            text.push_str(&format!("{}: {}\n", state, output::visible(&problem.what)));
            text.extend(problem.advice.iter().map(|advice| format!("  next: {advice}\n")));
        }
        text.push_str(&format!(
            "{}: {} blobs ({}), {} images, {} kernels: {}\n",
            store.root().display(),
            checked.blobs,
            output::bytes(checked.bytes),
            checked.images,
            checked.kernels,
            if checked.is_whole() { "all is well" } else { "something is broken" }
        ));
        output::write(&text)?;
    }
    Ok(if checked.is_whole() { Exit::Success } else { Exit::Missing })
}
