//! `fieldstream report html`: one page with tables and charts of the whole file.

mod chart;
mod page;
mod sections;
mod table;
#[cfg(test)]
mod tests;
mod text;

use crate::exit::Failure;
use crate::output;
use clap::Args;
use fieldstream_storer::report::Reports;
use fieldstream_storer::report::facts::{FactsOptions, Part};
use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Arguments of `report html`.
#[derive(Debug, Args)]
pub(crate) struct HtmlArgs {
    /// The file to write, replaced if it is there; - is stdout
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Count at most so many changes, the newest
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) changes: u64,
    /// Entries of each list
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) top: u32,
}

/// Gathers the facts and writes the page. `path` is what the page calls the file.
pub(crate) fn run(args: &HtmlArgs, reports: &mut Reports, path: &Path) -> Result<(), Failure> {
    let options = FactsOptions { changes_max: args.changes, listed_max: args.top as usize, ..FactsOptions::default() };
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let begun = Instant::now();
    let mut progress = Progress::new();
    let facts = reports.facts(&options, now_us, |part, rows| progress.tell(part, rows));
    progress.end();
    let facts = facts.map_err(super::failure)?;
    let page = page::page(&facts, &path.display().to_string());
    if args.out == Path::new("-") {
        return output::bytes(page.as_bytes());
    }
    replace(&args.out, page.as_bytes())
        .map_err(|error| Failure::failed(format_args!("cannot write {}: {error}", args.out.display())))?;
    let (size, took) = (text::bytes(page.len() as u64), text::duration(begun.elapsed().as_micros() as u64));
    let changes = text::many(facts.changes.counted, "change");
    eprintln!("wrote {}: {size}, {changes} counted in {took}", args.out.display());
    Ok(())
}

/// Writes a file as a whole: who opens it meanwhile sees the old one or the new one.
fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    // A device or a pipe cannot be replaced.
    if fs::metadata(file).is_ok_and(|found| !found.is_file()) {
        return fs::write(file, content);
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = file.with_file_name(name);
    let written = fs::write(&part, content).and_then(|()| fs::rename(&part, file));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// A line on a terminal that says how far it is, once it takes long.
struct Progress {
    is_shown: bool,
    begun: Instant,
    told: Option<Instant>,
}

impl Progress {
    /// Before that nobody wonders.
    const QUIET: Duration = Duration::from_secs(1);
    const EVERY: Duration = Duration::from_millis(200);

    fn new() -> Progress {
        Progress { is_shown: std::io::stderr().is_terminal(), begun: Instant::now(), told: None }
    }

    fn tell(&mut self, part: Part, rows: u64) {
        let is_due = self.told.is_none_or(|told| told.elapsed() >= Progress::EVERY);
        if self.is_shown && is_due && self.begun.elapsed() >= Progress::QUIET {
            self.told = Some(Instant::now());
            eprint!("\r\x1b[K{} {}", text::count(rows), part.name());
            let _ = std::io::stderr().flush();
        }
    }

    /// Takes the line away.
    fn end(&self) {
        if self.told.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
