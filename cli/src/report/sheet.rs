//! A report's rows on their way out: a table on a terminal, JSON lines on a pipe, or what was asked for.

use super::cell::{Cell, Column, csv_field};
use super::table::Table;
use crate::client::render::time;
use crate::exit::Failure;
use crate::output;
use fieldstream_storer::report::AsOf;
use serde_json::{Map, Value as Json, json};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

/// So much is collected before it is written.
const CHUNK_BYTES: usize = 64 * 1024;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// A box table for so many columns.
    Table(usize),
    /// JSON, one object per line.
    Lines,
    /// One JSON object.
    Json,
    /// CSV with a header.
    Csv,
}

impl Mode {
    /// What was asked for, or what suits stdout.
    pub(super) fn chosen(json: bool, csv: bool) -> Mode {
        match (json, csv) {
            (true, _) => Mode::Json,
            (_, true) => Mode::Csv,
            _ if output::stdout_is_terminal() => Mode::Table(output::columns()),
            _ => Mode::Lines,
        }
    }
}

/// Up to where the file held the log when the report began.
#[derive(Debug, Clone)]
pub(super) struct Stand {
    /// As the file says.
    pub(super) as_of: AsOf,
    /// When it was asked.
    pub(super) now_us: u64,
}

impl Stand {
    /// In one line.
    pub(super) fn line(&self) -> String {
        let lanes = &self.as_of.lanes;
        let sequences: Vec<String> = match &lanes[..] {
            [one] => vec![one.events_sequence.to_string()],
            many => many.iter().map(|lane| format!("{} (lane {})", lane.events_sequence, lane.lane)).collect(),
        };
        let behind = self.as_of.behind_us(self.now_us) as f64 / 1e6;
        let at = time(self.as_of.committed_at_us());
        format!("as of EVENTS sequence {}, {at}, {behind:.1} seconds behind", sequences.join(", "))
    }

    /// As JSON.
    pub(super) fn json(&self) -> Json {
        let lane = |lane: &fieldstream_storer::report::LaneAsOf| {
            json!({
                "lane": lane.lane,
                "events_sequence": lane.events_sequence,
                "committed_at": time(lane.committed_at_us),
            })
        };
        json!({
            "committed_at": time(self.as_of.committed_at_us()),
            "seconds_behind": Cell::Elapsed(self.as_of.behind_us(self.now_us)).json(),
            "lanes": self.as_of.lanes.iter().map(lane).collect::<Vec<_>>(),
        })
    }
}

enum Target {
    Stdout,
    File(BufWriter<File>, PathBuf),
}

impl Target {
    fn write(&mut self, text: &str) -> Result<(), Failure> {
        match self {
            Target::Stdout => output::bytes(text.as_bytes()),
            Target::File(file, path) => {
                let cannot = |error| Failure::failed(format_args!("cannot write {}: {error}", path.display()));
                file.write_all(text.as_bytes()).map_err(cannot)
            }
        }
    }
}

/// Where a report's rows go.
pub(super) struct Sheet {
    mode: Mode,
    columns: &'static [Column],
    stand: Stand,
    table: Option<Table>,
    target: Target,
    text: String,
    rows: u64,
    more: Map<String, Json>,
}

impl Sheet {
    /// Begins one on stdout. With [`Mode::Json`] the rows stand under `name`.
    pub(super) fn begin(mode: Mode, stand: &Stand, name: &str, columns: &'static [Column]) -> Sheet {
        let table = match mode {
            Mode::Table(terminal) => Some(Table::new(columns, terminal)),
            _ => None,
        };
        let text = match mode {
            Mode::Json => format!("{{\"as_of\":{},{}:[", stand.json(), json!(name)),
            Mode::Csv => {
                let names: Vec<_> = columns.iter().filter(|column| column.name != BAR).map(|c| c.name).collect();
                names.join(",") + "\r\n"
            }
            Mode::Table(_) | Mode::Lines => String::new(),
        };
        let (stand, target, more) = (stand.clone(), Target::Stdout, Map::new());
        Sheet { mode, columns, stand, table, target, text, rows: 0, more }
    }

    /// Writes to a file instead.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn into_file(mut self, path: PathBuf) -> Result<Sheet, Failure> {
        let file = File::create(&path);
        let file = file.map_err(|error| Failure::failed(format_args!("cannot make {}: {error}", path.display())))?;
        self.target = Target::File(BufWriter::new(file), path);
        Ok(self)
    }

    /// Adds a row, with a cell for each column.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn row(&mut self, cells: Vec<Cell>) -> Result<(), Failure> {
        debug_assert_eq!(cells.len(), self.columns.len());
        let pairs = || self.columns.iter().zip(&cells).filter(|(column, _)| column.name != BAR);
        let object = || Json::Object(pairs().map(|(column, cell)| (column.name.to_owned(), cell.json())).collect());
        match self.mode {
            Mode::Lines => self.text += &format!("{}\n", object()),
            Mode::Json => {
                let comma = if self.rows > 0 { "," } else { "" };
                self.text += &format!("{comma}\n{}", object());
            }
            Mode::Csv => {
                let fields: Vec<_> = pairs().map(|(_, cell)| csv_field(&cell.csv())).collect();
                self.text += &(fields.join(",") + "\r\n");
            }
            Mode::Table(_) => {
                let shown = self.columns.iter().zip(cells).filter(|(column, _)| column.heading.is_some());
                let shown: Vec<Cell> = shown.map(|(_, cell)| cell).collect();
                if let Some(table) = &mut self.table {
                    table.row(&shown, &mut self.text);
                }
            }
        }
        self.rows += 1;
        if self.text.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Adds a value beside the rows of [`Mode::Json`].
    pub(super) fn beside(&mut self, name: &str, value: Json) {
        self.more.insert(name.to_owned(), value);
    }

    /// Rows so far.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.target.write(&self.text)?;
        self.text.clear();
        Ok(())
    }

    /// Writes what is left, then up to where the file held the log.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        if let Some(table) = &mut self.table {
            table.end(&mut self.text);
        }
        if self.mode == Mode::Json {
            self.text += if self.rows > 0 { "\n]" } else { "]" };
            for (name, value) in &self.more {
                self.text += &format!(",{}:{value}", json!(name));
            }
            self.text += "}\n";
        }
        self.flush()?;
        if let Target::File(file, path) = &mut self.target {
            let written = file.flush();
            written.map_err(|error| Failure::failed(format_args!("cannot write {}: {error}", path.display())))?;
        }
        if let Mode::Table(_) = self.mode {
            return output::line(&self.stand.line());
        }
        eprintln!("{}", self.stand.line());
        Ok(())
    }
}

/// The name of a column that is for people only.
pub(super) const BAR: &str = "bar";
