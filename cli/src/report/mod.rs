//! `fieldstream report`: what a storer's file tells, whether the server runs or not.

mod html;

use crate::exit::Failure;
use clap::{Args, Subcommand};
use fieldstream_storer::report::Reports;
use std::path::{Path, PathBuf};

/// Where `fieldstream up` keeps its data unless told otherwise.
const DEFAULT: &str = "fieldstream-data";

/// Arguments of `report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The storer's file: its folder, the `db` in it, a copy, or the data directory of `fieldstream up`
    /// [default: fieldstream-data]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) db: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) report: Report,
}

/// The reports there are.
#[derive(Debug, Subcommand)]
pub(crate) enum Report {
    /// A page with tables and charts of the whole file, for a browser
    Html(html::HtmlArgs),
}

/// Makes a report.
pub(crate) fn run(args: &ReportArgs) -> Result<(), Failure> {
    let path = args.db.as_deref().unwrap_or(Path::new(DEFAULT));
    let mut reports = Reports::open(path).map_err(Failure::failed)?;
    match &args.report {
        Report::Html(html) => html::run(html, &mut reports, path),
    }
}
