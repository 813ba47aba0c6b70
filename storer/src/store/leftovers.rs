//! What attempts that were killed left in a storer's directory: files of full size that nobody uses.

use super::copies::RESTORING;
use super::{GENERATIONS, LINK, StoreError, file_error, take_lock};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Unfinished files that are made under the directory's lock, or by whoever takes it next.
const UNDER_LOCK: [&str; 3] = [".rebuild-", RESTORING, ".join-"];
/// Unfinished files of commands that run beside the storer, each with a lock of its own.
const BESIDE: &str = ".remake-";

/// Removes what is left of earlier attempts. The directory's lock is held.
pub(super) fn remove(directory: &Path) -> Result<(), StoreError> {
    for name in names(directory)? {
        let path = directory.join(&name);
        let is_over = UNDER_LOCK.iter().any(|prefix| name.starts_with(prefix))
            || (name.starts_with(BESIDE) && take_lock(&path).is_ok());
        if is_over {
            remove_folder(&path);
        }
    }
    // The link is switched last: what is behind it was never in use.
    let Some(current) = linked(directory) else { return Ok(()) };
    let generations = directory.join(GENERATIONS);
    for name in names(&generations)? {
        if name.parse::<u64>().is_ok_and(|number| number > current) {
            remove_folder(&generations.join(name));
        }
    }
    Ok(())
}

/// The number of the generation that the link points at.
fn linked(directory: &Path) -> Option<u64> {
    let target = fs::read_link(directory.join(LINK)).ok()?;
    let number = target.strip_prefix(GENERATIONS).ok()?.to_str()?.parse().ok()?;
    directory.join(target).is_dir().then_some(number)
}

fn remove_folder(path: &Path) {
    tracing::info!(path = %path.display(), "removing what an earlier attempt left behind");
    // It only takes room: no reason not to start.
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "what an earlier attempt left behind stays");
    }
}

fn names(directory: &Path) -> Result<Vec<String>, StoreError> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(file_error("list", directory, error)),
    }
}
