//! The `fieldstream` binary.
fn main() {}
