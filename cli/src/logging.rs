//! Log lines on stderr: text for people, JSON for programs.

use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Starts logging. Libraries below us speak only when they have to warn.
pub(crate) fn start(level: &str, format: &str) {
    let quiet = ["async_nats", "quinn", "quinn_proto", "quinn_udp", "rustls"];
    let libraries = if matches!(level, "debug" | "trace") { level } else { "warn" };
    let mut filter = level.to_owned();
    if level != "off" {
        quiet.iter().for_each(|name| filter.push_str(&format!(",{name}={libraries}")));
    }
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(crate::output::colours_on_stderr());
    // A second start in one process (tests) keeps the first one's settings.
    let _ = match (format, terminal) {
        ("json", _) | ("auto", false) => builder.json().flatten_event(true).try_init(),
        _ => builder.with_target(false).try_init(),
    };
}
