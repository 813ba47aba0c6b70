//! The arguments of `fieldstream report`.

use super::activity::Per;
use super::export::{Format, What};
use super::moment::moment;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The storer's file: its folder, the `db` in it, a copy, or the data directory of `fieldstream up`
    /// [default: fieldstream-data]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) db: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, global = true, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print CSV with a header
    #[arg(long, global = true)]
    pub(crate) csv: bool,
    #[command(subcommand)]
    pub(crate) report: Report,
}

/// The reports there are.
#[derive(Debug, Subcommand)]
pub(crate) enum Report {
    /// The documents as they are now
    Latest(LatestArgs),
    /// The changes of a document, the newest last
    History(HistoryArgs),
    /// A document as it was at a revision or a time
    At(AtArgs),
    /// What changed in a document between two revisions
    Diff(DiffArgs),
    /// Who changed a document
    Who(WhoArgs),
    /// How far the file is behind, and how large it is
    Lag,
    /// Events per minute, hour or day, by prefix
    Activity(ActivityArgs),
    /// Write all documents, or all changes, as CSV or as JSON, one object per line
    Export(ExportArgs),
    /// A page with tables and charts of the whole file, for a browser
    Html(super::html::HtmlArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LatestArgs {
    /// Only documents whose id begins with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// Deleted documents, too
    #[arg(long)]
    pub(crate) all: bool,
    /// End after so many
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The document's id
    pub(crate) document: String,
    /// The first revision
    #[arg(long, value_name = "REV", default_value_t = 1)]
    pub(crate) from: u64,
    /// The last revision [default: the newest]
    #[arg(long, value_name = "REV")]
    pub(crate) to: Option<u64>,
    /// Only the newest so many of them
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct AtArgs {
    /// The document's id
    pub(crate) document: String,
    /// The revision; the first is 1
    #[arg(long, value_name = "N", required_unless_present = "time", conflicts_with = "time")]
    pub(crate) rev: Option<u64>,
    /// The time: 2026-11-26T10:00:00Z, Unix seconds, or before now, such as -5m, -2h, -1d
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    pub(crate) time: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The document's id
    pub(crate) document: String,
    /// From one revision to another, such as 3..7; 3.. is up to the newest, 7 alone is 6..7, and
    /// revision 0 is before there was one
    #[arg(value_name = "REV..REV")]
    pub(crate) revisions: super::diff::Revisions,
}

#[derive(Debug, Args)]
pub(crate) struct WhoArgs {
    /// The document's id
    pub(crate) document: String,
}

#[derive(Debug, Args)]
pub(crate) struct ActivityArgs {
    /// Only documents whose id begins with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// From this time on, as `at --time` takes it [default: the last 60 minutes, hours or days]
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    pub(crate) since: Option<u64>,
    /// What is counted together
    #[arg(long, value_enum, default_value = "minute")]
    pub(crate) per: Per,
    /// How many parts of the ids, which `/` separates, are told apart
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) depth: u32,
    /// Draw a chart into this file as well
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// CSV with a header, or JSON, one object per line
    #[arg(long, value_enum)]
    pub(crate) format: Format,
    /// The documents as they are, or all changes [default: documents, with --since history]
    #[arg(long, value_enum)]
    pub(crate) what: Option<What>,
    /// Only changes from this time on, as `at --time` takes it, in the order of time
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    pub(crate) since: Option<u64>,
    /// Only documents whose id begins with this
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// Deleted documents, too
    #[arg(long)]
    pub(crate) all: bool,
    /// Write to this file [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}
