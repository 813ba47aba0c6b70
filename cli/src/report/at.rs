//! `fieldstream report at`: a document as it was.

use super::args::AtArgs;
use super::cell::{Cell, csv_field};
use super::sheet::Mode;
use super::{Desk, failure};
use crate::client::render::{body, time};
use crate::exit::Failure;
use crate::output;
use fieldstream_shared::document::Body;
use fieldstream_storer::report::State;
use serde_json::json;

pub(super) fn run(desk: &mut Desk, args: &AtArgs) -> Result<(), Failure> {
    let (document, reports) = (&args.document, &mut desk.reports);
    let revision = match (args.rev, args.time) {
        (Some(revision), _) => revision,
        (None, Some(time_us)) => reports.revision_at(document, time_us).map_err(failure)?,
        (None, None) => return Err(Failure::usage("say which revision (--rev) or which time (--time)")),
    };
    let State { row, body: then } = reports.state(document, revision).map_err(failure)?;
    let at = time(row.version.time_us);
    match desk.mode {
        Mode::Json => output::json(&json!({
            "as_of": desk.stand.json(),
            "document": document,
            "revision": revision,
            "time": at,
            "client": row.client.as_str(),
            "number": row.number,
            "kind": then.kind().name(),
            "state_hash": format!("{:016x}", row.version.state_hash),
            "body": then.to_json(),
        })),
        Mode::Csv => {
            let names = "document,revision,time,client,number,kind,state_hash,body\r\n";
            let hash = format!("{:016x}", row.version.state_hash);
            let (number, whole) = (row.number.to_string(), Cell::Body(then.clone()).csv());
            let of =
                [document, &revision.to_string(), &at, row.client.as_str(), &number, then.kind().name(), &hash, &whole];
            let fields: Vec<String> = of.iter().map(|field| csv_field(field)).collect();
            output::bytes(format!("{names}{}\r\n", fields.join(",")).as_bytes())?;
            eprintln!("{}", desk.stand.line());
            Ok(())
        }
        Mode::Table(_) | Mode::Lines => {
            output::bytes(body(&then, output::stdout_is_terminal()).as_bytes())?;
            let what = if then == Body::Absent { ", deleted" } else { "" };
            eprintln!("{document} at revision {revision} of {at}, by {}{what}", row.client);
            eprintln!("{}", desk.stand.line());
            Ok(())
        }
    }
}
