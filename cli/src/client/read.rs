//! Commands that read documents.

use super::{connect, failure, render, within};
use crate::args::{GetArgs, LsArgs, ServerArgs, WatchArgs};
use crate::exit::Failure;
use crate::output;
use fieldstream_client::{ClientError, Watch, WatchEvent};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use std::collections::BTreeSet;

/// `fieldstream get`.
pub(crate) async fn get(args: &GetArgs) -> Result<(), Failure> {
    let client = connect(&args.server).await?;
    let document = within(&args.server, client.get(&args.document)).await?;
    if args.server.json {
        output::json(&render::document_json(&args.document, &document))?;
    } else {
        output::bytes(render::body(&document.body, output::stdout_is_terminal()).as_bytes())?;
    }
    if document.exists() {
        return Ok(());
    }
    let what = if document.revision == 0 { "does not exist" } else { "was deleted" };
    Err(Failure::failed(format_args!("{} {what}", args.document)))
}

/// `fieldstream ls`.
pub(crate) async fn ls(args: &LsArgs) -> Result<(), Failure> {
    let client = connect(&args.server).await?;
    let listed = within(&args.server, client.list(&args.prefix)).await?;
    if args.server.json {
        return listed.iter().try_for_each(|entry| output::json(&render::listed_json(entry)));
    }
    let width = listed.iter().map(|entry| entry.document.chars().count()).max().unwrap_or(0);
    listed.iter().try_for_each(|entry| {
        output::line(&format!(
            "{:<width$}  revision {:>8}  {:<10}  {:>8} bytes  {}",
            entry.document.as_str(),
            entry.revision,
            entry.kind.name(),
            entry.bytes,
            render::time(entry.time_us),
        ))
    })
}

/// `fieldstream watch`.
pub(crate) async fn watch(args: &WatchArgs) -> Result<(), Failure> {
    let client = connect(&args.server).await?;
    let mut watches = stream::SelectAll::new();
    for document in &args.documents {
        let watch = within(&args.server, client.watch(document)).await?;
        watches.push(events(document.clone(), watch));
    }
    let mut seen = BTreeSet::new();
    let mut left = args.count;
    while left != Some(0) {
        let Some((document, event)) = watches.next().await else { break };
        let event = event.map_err(|error| failure(&args.server, &error))?;
        let is_first = seen.insert(document.clone());
        print(&args.server, &document, &event, is_first)?;
        if matches!(event, WatchEvent::Updated { .. }) {
            left = left.map(|left| left - 1);
        }
    }
    Ok(())
}

/// The events of one watch, up to its first error.
fn events(document: String, watch: Watch) -> BoxStream<'static, (String, Result<WatchEvent, ClientError>)> {
    let next = |state: Option<(String, Watch)>| async move {
        let (document, mut watch) = state?;
        let event = watch.next().await;
        let rest = event.is_ok().then(|| (document.clone(), watch));
        Some(((document, event), rest))
    };
    stream::unfold(Some((document, watch)), next).boxed()
}

fn print(server: &ServerArgs, document: &str, event: &WatchEvent, is_first: bool) -> Result<(), Failure> {
    if server.json {
        return output::json(&render::event_json(document, event));
    }
    output::line(&render::event_line(document, event, is_first))
}
