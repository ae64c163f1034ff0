//! `strata image history`, `diff` and `prune`.

use std::io::{self, BufRead, IsTerminal};

use api::ImageFilters;
use clap::Args;
use image::{Change, ChangeKind, HistoryStep, Image, Pruned, Store};

use super::{explain, parse};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output::{self, Table};
use crate::progress::Bar;

/// Characters of a step that a table shows.
const STEP_WIDTH: usize = 60;

#[derive(Args)]
pub struct HistoryOptions {
    /// Name of the image
    name: String,
    /// Show all of long steps
    #[arg(long)]
    no_trunc: bool,
    /// Write JSON, the oldest step first
    #[arg(long, conflicts_with = "no_trunc")]
    json: bool,
}

#[derive(Args)]
pub struct DiffOptions {
    /// Name of the image
    name: String,
    /// Name of the image to compare it with [default: the first one without its last layer]
    other: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct PruneOptions {
    /// Remove all images, too, that nobody uses just now
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Of all images only those that fit: until=24h or until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]; may be repeated
    #[arg(long = "filter", value_name = "FILTER", requires = "all", value_parser = parse_filter)]
    filters: Vec<(String, String)>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

fn open(store: &Store, name: &str) -> Outcome<Image> {
    store.image(&parse(name)?).map_err(|error| explain(format!("look at image {name:?}"), name, error))
}

/// Shows the steps of an image.
///
/// # Errors
/// There is no such image.
pub fn history(store: &Store, options: &HistoryOptions) -> Outcome<()> {
    let steps = open(store, &options.name)?.history();
    if options.json {
        return output::json(&steps);
    }
    let mut table = Table::new(&["CREATED", "SIZE", "STEP", "COMMENT"]);
    for step in steps.iter().rev() {
        let created = step.created.as_deref().unwrap_or("-");
        let created = output::visible(created).chars().take("2026-01-01T00:00:00".len()).collect();
        let size = if step.layer.is_some() { output::bytes(step.size_bytes) } else { "-".to_owned() };
        table.row([created, size, text(step, options.no_trunc), output::visible(&step.comment)]);
    }
    table.print()
}

fn text(step: &HistoryStep, whole: bool) -> String {
    // Tools write commands with all the white space they had.
    let line = step.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = output::visible(&line);
    if whole || line.chars().count() <= STEP_WIDTH {
        return line;
    }
    line.chars().take(STEP_WIDTH - 1).chain(['…']).collect()
}

/// Shows what an image has changed.
///
/// # Errors
/// There is no such image, or a layer of it is broken.
pub fn diff(store: &Store, options: &DiffOptions) -> Outcome<()> {
    let image = open(store, &options.name)?;
    let other = options.other.as_ref().map(|other| open(store, other)).transpose()?;
    let bar = Bar::new();
    let changes = store.diff(&image, other.as_ref(), &bar);
    drop(bar);
    let changes = changes.while_trying(|| format!("compare image {:?}", options.name))?;
    show(&changes, options.json)
}

/// Shows changes, a line each.
///
/// # Errors
/// Standard output cannot be written.
pub fn show(changes: &[Change], as_json: bool) -> Outcome<()> {
    if as_json {
        return output::json(&changes);
    }
    let mut text = String::new();
    for change in changes {
        let letter = match change.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        };
        text.push_str(&format!("{letter} {}\n", output::visible(&change.path)));
    }
    output::write(&text)
}

/// Removes what nobody uses.
///
/// # Errors
/// Images are being added just now, or the store cannot be read.
pub fn prune(store: &Store, options: &PruneOptions) -> Outcome<()> {
    if options.all && !options.force && !confirmed()? {
        return Ok(());
    }
    let of = |name: &str| -> Vec<String> {
        options.filters.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    };
    let filters = ImageFilters { labels: of("label"), without: of("label!"), until: of("until") };
    let Pruned { names, collected } = api::prune_images(store, options.all, &filters)
        .map_err(|refusal| Failure::new(format!("prune the store: {}", refusal.message)))?;
    if options.json {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        return output::json(&serde_json::json!({
            "removed": names, "files": collected.files, "bytes": collected.bytes, "in_use": collected.in_use,
        }));
    }
    names.iter().try_for_each(|name| output::write(&format!("{name}\n")))?;
    let in_use =
        if collected.in_use > 0 { format!(", {} more are in use", collected.in_use) } else { String::new() };
    eprintln!(
        "strata: {} files removed, {} free again{in_use}",
        collected.files,
        output::bytes(collected.bytes)
    );
    Ok(())
}

/// `NAME=VALUE` of a filter there is.
fn parse_filter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE")?;
    match name {
        "until" | "label" | "label!" if !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it is until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]".to_owned()),
    }
}

fn confirmed() -> Outcome<bool> {
    if !io::stdin().is_terminal() {
        let failure =
            Failure::new("remove all images that nobody uses: standard input is no terminal to ask at");
        return Err(failure.hint("strata image prune --all --force").exit(Exit::Usage));
    }
    eprint!("Remove all images that nobody uses just now? [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).while_trying(|| "read the answer".to_owned())?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
