//! `fieldstream-faults PROGRAM DIRECTORY SECONDS SEED PROFILE`: runs faults against a real deployment and
//! prints one line of JSON. See `scripts/faults`. `fieldstream-faults PROGRAM DIRECTORY joining RATE
//! PROFILE` shows what joining and leaving processors cost at so many instructions per second.
#![allow(clippy::expect_used)]

use fieldstream_nats::Profile;
use fieldstream_tests::faults::site::SiteOptions;
use fieldstream_tests::faults::{RunOptions, is_clean, joining, run};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, directory, seconds, seed, profile] = &arguments[..] else {
        eprintln!("usage: fieldstream-faults PROGRAM DIRECTORY SECONDS SEED durable|fast");
        return ExitCode::from(2);
    };
    let profile = if profile == "fast" { Profile::Fast } else { Profile::Durable };
    if let ("joining", Ok(rate)) = (seconds.as_str(), seed.parse::<u64>()) {
        let (program, directory) = (program.into(), directory.into());
        let site = SiteOptions { program, directory, profile, processors: 4, seed: 0, has_disks: false };
        println!("{}", tokio::runtime::Runtime::new().expect("a runtime").block_on(joining::run(&site, rate)));
        return ExitCode::SUCCESS;
    }
    let (Ok(seconds), Ok(seed)) = (seconds.parse::<u64>(), seed.parse::<u64>()) else {
        eprintln!("SECONDS and SEED are whole numbers");
        return ExitCode::from(2);
    };
    let options = RunOptions {
        program: program.into(),
        directory: directory.into(),
        faults_for: Duration::from_secs(seconds),
        seed,
        profile,
    };
    let report = tokio::runtime::Runtime::new().expect("a runtime").block_on(run(&options));
    println!("{report}");
    if is_clean(&report) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
