//! How lists are written.

use clap::Args;

/// A table, unless told otherwise.
#[derive(Args)]
pub struct Listing {
    /// Write JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// Write the ids alone
    #[arg(short, long)]
    pub quiet: bool,
}
