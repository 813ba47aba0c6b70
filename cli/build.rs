//! Puts into the program how it was built, for `fieldstream version`.

use std::path::Path;
use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let target = std::env::var("TARGET").unwrap_or_else(|_| "unknown".to_owned());
    println!("cargo::rustc-env=FIELDSTREAM_GIT={}", first_line("git", &["rev-parse", "--short=12", "HEAD"]));
    println!("cargo::rustc-env=FIELDSTREAM_RUSTC={}", first_line(&rustc, &["--version"]));
    println!("cargo::rustc-env=FIELDSTREAM_TARGET={target}");
    println!("cargo::rerun-if-changed=build.rs");
    // Git appends to this file at every commit and checkout; a path that is missing would mean a
    // new build every time.
    let history = Path::new("../.git/logs/HEAD");
    if history.exists() {
        println!("cargo::rerun-if-changed={}", history.display());
    }
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
