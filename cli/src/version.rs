//! What this program is made of.

use crate::exit::Failure;
use crate::output;
use fieldstream_shared::frame::PROTOCOL_VERSION;
use fieldstream_shared::record::LOG_VERSION;

/// `fieldstream version`.
pub(crate) fn run(json: bool) -> Result<(), Failure> {
    let fields = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("git", env!("FIELDSTREAM_GIT").to_owned()),
        ("rustc", env!("FIELDSTREAM_RUSTC").to_owned()),
        ("target", env!("FIELDSTREAM_TARGET").to_owned()),
        ("profile", if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned()),
        ("wire_protocol", PROTOCOL_VERSION.to_string()),
        ("log_format", LOG_VERSION.to_string()),
    ];
    if json {
        let object = fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        return output::json(&serde_json::Value::Object(object));
    }
    for (name, value) in fields {
        output::line(&format!("{name:<14} {value}"))?;
    }
    Ok(())
}

/// One line for banners.
pub(crate) fn line() -> String {
    format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("FIELDSTREAM_GIT"))
}
