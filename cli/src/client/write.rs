//! Commands that change a document.

use super::{connect, within};
use crate::args::{AddArgs, AppendArgs, DeleteArgs, HowArgs, MergeArgs, PutArgs, SpliceArgs};
use crate::exit::Failure;
use crate::output;
use fieldstream_client::How;
use fieldstream_shared::change::Edit;
use fieldstream_shared::instruction::Operation;
use fieldstream_shared::limits::DOCUMENT_BYTES_MAX;
use fieldstream_shared::outcome::AckLevel;
use fieldstream_shared::value::{Map, Value};
use serde_json::Value as Json;
use std::io::Read;

/// `fieldstream put`.
pub(crate) async fn put(args: &PutArgs) -> Result<(), Failure> {
    let operation = match &args.json_body {
        Some(json) => Operation::PutMap(map(&input(json)?)?),
        None => Operation::PutText(input(args.text.as_deref().unwrap_or("-"))?),
    };
    instruct(&args.document, operation, &args.how).await
}

/// `fieldstream append`.
pub(crate) async fn append(args: &AppendArgs) -> Result<(), Failure> {
    let text = input(args.text.as_deref().unwrap_or("-"))?;
    instruct(&args.document, Operation::Append(text), &args.how).await
}

/// `fieldstream splice`.
pub(crate) async fn splice(args: &SpliceArgs) -> Result<(), Failure> {
    let edits = match (&args.edits, args.position, args.deleted, &args.text) {
        (Some(json), ..) => edits(&input(json)?)?,
        (None, Some(position), Some(deleted), Some(text)) => vec![Edit { position, deleted, inserted: text.clone() }],
        _ => return Err(Failure::usage("splice needs POSITION DELETED TEXT, or --edits")),
    };
    instruct(&args.document, Operation::Splice(edits), &args.how).await
}

/// `fieldstream merge`.
pub(crate) async fn merge(args: &MergeArgs) -> Result<(), Failure> {
    let patch = map(&input(&args.patch)?)?;
    instruct(&args.document, Operation::Merge(patch), &args.how).await
}

/// `fieldstream add`.
pub(crate) async fn add(args: &AddArgs) -> Result<(), Failure> {
    let (path, number) = path_and_amount(&args.path_and_amount, args.path_json.as_deref())?;
    instruct(&args.document, Operation::Add(path, number), &args.how).await
}

/// `fieldstream delete`.
pub(crate) async fn delete(args: &DeleteArgs) -> Result<(), Failure> {
    instruct(&args.document, Operation::Delete, &args.how).await
}

async fn instruct(document: &str, operation: Operation, how: &HowArgs) -> Result<(), Failure> {
    let client = connect(&how.server).await?;
    let wanted = How { if_revision: how.if_rev, ack: how.ack.into() };
    let receipt = within(&how.server, client.instruct_with(document, operation, wanted)).await?;
    let id = client.id().clone();
    // Its outcome is known, so there is nothing to wait for.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(200), client.close(std::time::Duration::ZERO)).await;
    let level = level_name(receipt.level);
    if how.server.json {
        return output::json(&serde_json::json!({
            "document": document,
            "revision": receipt.revision,
            "level": level,
            "client": id.as_str(),
            "number": receipt.number,
        }));
    }
    match receipt.revision {
        Some(revision) => output::line(&format!("{document} is at revision {revision} ({level})")),
        None => output::line(&format!("{document}: {level}")),
    }
}

/// The word of a level.
pub(crate) fn level_name(level: AckLevel) -> &'static str {
    match level {
        AckLevel::Logged => "logged",
        AckLevel::Applied => "applied",
        AckLevel::Stored => "stored",
    }
}

/// An argument's text: itself, a file's content for `@FILE`, stdin for `-`.
fn input(argument: &str) -> Result<String, Failure> {
    let read = |what: &str, from: &mut dyn Read| {
        let mut text = String::new();
        // A byte more than any document may have: enough to be refused, whatever its length.
        match from.take(DOCUMENT_BYTES_MAX as u64 + 1).read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => Err(Failure::failed(format_args!("cannot read {what}: {error}"))),
        }
    };
    match argument.strip_prefix('@') {
        Some(path) => match std::fs::File::open(path) {
            Ok(mut file) => read(path, &mut file),
            Err(error) => Err(Failure::failed(format_args!("cannot read {path}: {error}"))),
        },
        None if argument == "-" => read("stdin", &mut std::io::stdin().lock()),
        None => Ok(argument.to_owned()),
    }
}

fn json(text: &str, expected: &str) -> Result<Json, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::usage(format_args!("not {expected}: {error}: {}", short(text))))
}

fn short(text: &str) -> String {
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

fn map(text: &str) -> Result<Map, Failure> {
    match Value::from_json(&json(text, "a JSON object")?) {
        Some(Value::Map(map)) => Ok(map),
        Some(_) => {
            Err(Failure::usage(format_args!("expected a JSON object such as {{\"a\": 1}}, got {}", short(text))))
        }
        None => Err(Failure::usage(format_args!("a number that cannot be represented in {}", short(text)))),
    }
}

fn edits(text: &str) -> Result<Vec<Edit>, Failure> {
    let triples: Vec<(u64, u64, String)> = serde_json::from_value(json(text, "a JSON list")?)
        .map_err(|error| Failure::usage(format_args!("expected [[position, deleted, \"text\"], …]: {error}")))?;
    Ok(triples.into_iter().map(|(position, deleted, inserted)| Edit { position, deleted, inserted }).collect())
}

fn path_and_amount(arguments: &[String], path_json: Option<&str>) -> Result<(Vec<String>, Value), Failure> {
    let (path, amount_text) = match (arguments, path_json) {
        ([amount], Some(json_path)) => {
            let path = serde_json::from_value(json(json_path, "a JSON list")?)
                .map_err(|error| Failure::usage(format_args!("expected --path-json '[\"key\", …]': {error}")))?;
            (path, amount)
        }
        ([path, amount], None) => (path.split('.').map(str::to_owned).collect(), amount),
        ([_, _, ..], Some(_)) => return Err(Failure::usage("give PATH or --path-json, not both")),
        _ => return Err(Failure::usage("add needs PATH and AMOUNT")),
    };
    let wrong = || Failure::usage(format_args!("expected a number to add, got {amount_text}"));
    let amount = match serde_json::from_str::<Json>(amount_text.trim_start_matches('+')) {
        Ok(number @ Json::Number(_)) => Value::from_json(&number).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    Ok((path, amount))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn amounts_and_paths_are_read_as_people_write_them() {
        let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let parse = |words: &[&str], json| path_and_amount(&owned(words), json);
        assert_eq!(parse(&["a.b", "2"], None), Ok((owned(&["a", "b"]), Value::Int(2))));
        assert_eq!(parse(&["a", "-1.5"], None), Ok((owned(&["a"]), Value::Float(-1.5))));
        assert_eq!(parse(&["+3"], Some(r#"["a.b"]"#)), Ok((owned(&["a.b"]), Value::Int(3))));
        for (words, json) in [
            (&["a"][..], None),
            (&["a", "x"], None),
            (&["a", "1e999"], None),
            (&["a", "1"], Some("[]")),
            (&["1"], Some("{}")),
        ] {
            assert_eq!(parse(words, json).unwrap_err().exit, Some(Exit::Usage), "{words:?}");
        }
    }

    #[test]
    fn arguments_come_from_files_too() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("body");
        std::fs::write(&file, "from a file\n").unwrap();
        assert_eq!(input(&format!("@{}", file.display())).unwrap(), "from a file\n");
        assert_eq!(input("plain").unwrap(), "plain");
        assert!(input("@/nowhere").unwrap_err().message.contains("/nowhere"));
    }

    #[test]
    fn json_arguments_are_checked_here() {
        assert_eq!(edits(r#"[[0, 1, "x"]]"#).unwrap(), [Edit { position: 0, deleted: 1, inserted: "x".into() }]);
        assert!(edits("[[0, -1, \"x\"]]").is_err() && edits("{").is_err() && edits("[[1]]").is_err());
        assert!(map("[]").is_err() && map("{").is_err());
        assert_eq!(map(r#"{"a": null}"#).unwrap().len(), 1);
    }
}
