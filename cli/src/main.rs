//! The `fieldstream` binary: every role and the client commands.

use fieldstream_shared::registry::Registry;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fieldstream_cli::run(Registry::default())
}
