//! Dead letters for people and for programs.

use crate::client::render::time;
use fieldstream_shared::dead_letter::DeadLetter;
use fieldstream_shared::instruction::Operation;
use fieldstream_shared::msgpack::decode;
use fieldstream_shared::record::{Action, Record};
use serde_json::{Value as Json, json};
use std::fmt::Write as _;

/// Bytes in a row of the hex dump.
const ROW: usize = 16;

/// What comes from devices must not move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// One line each, under a header; nothing for none.
pub(super) fn table(letters: &[DeadLetter]) -> String {
    let row = |letter: &DeadLetter| {
        let origin = letter.origin.as_ref();
        let document = origin.map_or("-".to_owned(), |origin| printable(&origin.document));
        let client = origin.map_or("-".to_owned(), |origin| printable(&origin.client));
        let (id, at) = (letter.id.to_string(), time(letter.received_at_us));
        [id, at, document, client, letter.code.name().to_owned(), printable(&letter.reason)]
    };
    if letters.is_empty() {
        return String::new();
    }
    let header = ["ID", "RECEIVED", "DOCUMENT", "CLIENT", "WHY", ""].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(header).chain(letters.iter().map(row)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4, 5].map(width);
    let mut text = String::new();
    for line in &lines {
        let words: Vec<_> = line.iter().zip(widths).map(|(word, width)| format!("{word:<width$}")).collect();
        let _ = writeln!(text, "{}", words.join("  ").trim_end());
    }
    text
}

/// Everything about one.
pub(super) fn text(letter: &DeadLetter) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    row("id", letter.id.to_string());
    row("why", format!("{}: {}", letter.code.name(), printable(&letter.reason)));
    row("received", time(letter.received_at_us));
    let place = (letter.instruction_sequence, letter.instruction_index);
    row("record", format!("{} of message {} of INSTRUCTIONS_{}", place.1, place.0, letter.id.lane));
    row("partition", letter.partition.0.to_string());
    if let Some(origin) = &letter.origin {
        row("document", printable(&origin.document));
        row("client", printable(&origin.client));
        row("number", format!("{} of epoch {}", origin.arrival.number, origin.arrival.epoch));
    }
    row("instruction", instruction(letter));
    let _ = writeln!(text, "\n{} bytes:", letter.raw.len());
    for (n, bytes) in letter.raw.chunks(ROW).enumerate() {
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let ascii = bytes.iter().map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' });
        let _ = writeln!(text, "{:08x}  {:<47}  {}", n * ROW, hex.join(" "), ascii.collect::<String>());
    }
    text
}

/// The instruction in the record, if it can be read.
fn instruction(letter: &DeadLetter) -> String {
    let record = match Record::decode(&letter.raw) {
        Ok(record) => record,
        Err(error) => return format!("cannot be read: {error}"),
    };
    match record.action {
        Action::Refuse(code) => format!("none: the gateway refused the number ({})", code.name()),
        Action::Forget => "none: a storer's wish to forget a client".to_owned(),
        Action::Instruct { operation, .. } => match decode(operation, Operation::read) {
            Ok(operation) => printable(&shortened(format!("{operation:?}"))),
            Err(error) => format!("cannot be read: {error}"),
        },
    }
}

fn shortened(text: String) -> String {
    const SHOWN: usize = 200;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// For programs. `raw` is in hex.
pub(super) fn json(letter: &DeadLetter) -> Json {
    let origin = letter.origin.as_ref();
    json!({
        "id": letter.id.to_string(),
        "code": letter.code.0,
        "code_name": letter.code.name(),
        "reason": letter.reason,
        "partition": letter.partition.0,
        "instruction_sequence": letter.instruction_sequence,
        "instruction_index": letter.instruction_index,
        "received_at_us": letter.received_at_us,
        "document": origin.map(|origin| origin.document.as_str()),
        "client": origin.map(|origin| origin.client.as_str()),
        "epoch": origin.map(|origin| origin.arrival.epoch),
        "number": origin.map(|origin| origin.arrival.number),
        "raw": letter.raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
    })
}
