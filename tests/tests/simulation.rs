//! The shipped cores under simulation. `FIELDSTREAM_SIM_SEEDS=20000` plays more seeds,
//! `FIELDSTREAM_SIM_SEED=17` plays one and prints its trace.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_tests::sim::run;
use std::sync::atomic::{AtomicU64, Ordering};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_happens_the_log_decides() {
    if let Some(seed) = number("FIELDSTREAM_SIM_SEED") {
        return println!("{:?}", run(seed, true).unwrap());
    }
    let seeds = number("FIELDSTREAM_SIM_SEEDS").unwrap_or(500);
    let (next, submitted) = (AtomicU64::new(0), AtomicU64::new(0));
    let found = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    match run(seed, false) {
                        Ok(report) => submitted.fetch_add(report.submitted as u64, Ordering::Relaxed),
                        Err(finding) => {
                            found.lock().unwrap().push(finding);
                            0
                        }
                    };
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    assert!(found.is_empty(), "{} of {seeds} seeds: {:#?}", found.len(), &found[..found.len().min(5)]);
    assert!(submitted.into_inner() >= seeds * 20, "the world is busy");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..5 {
        assert_eq!(run(seed, false).unwrap(), run(seed, false).unwrap());
    }
    assert_ne!(run(1, false).unwrap().trace, run(2, false).unwrap().trace);
}
