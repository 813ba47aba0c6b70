//! A deployment's own binary, with one instruction more: `shout` turns a text into capitals.
//!
//! With `EXAMPLE_BROKEN=1` its handler panics, as a faulty one would: the instruction becomes a dead
//! letter, everything else goes on, and once the handler is mended `fieldstream dead-letters retry`
//! carries it out.

use fieldstream_shared::change::{Change, Primitive};
use fieldstream_shared::code::Code;
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::registry::{CustomInstruction, Registry};

struct Shout {
    broken: bool,
}

impl CustomInstruction for Shout {
    fn name(&self) -> &str {
        "shout"
    }

    fn apply(&self, document: &Document, _arguments: &[u8]) -> Result<Change, Code> {
        assert!(!self.broken, "the handler of `shout` is broken");
        match &document.body {
            Body::Text(text) => Ok(vec![Primitive::SetText(text.to_uppercase())]),
            Body::Absent | Body::Structured(_) => Err(Code::WRONG_KIND),
        }
    }
}

fn main() -> std::process::ExitCode {
    let broken = std::env::var_os("EXAMPLE_BROKEN").is_some();
    fieldstream_cli::run(Registry::default().with(Shout { broken }))
}
