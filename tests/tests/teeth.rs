//! Whether the simulation would notice: each defect is switched on, and seeds are played until one
//! run finds something wrong. In one test, because a defect is a matter of the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_shared::defect::{self, Defect};
use fieldstream_tests::sim::run;
use std::time::Instant;

const SEEDS: u64 = 3_000;
const CONTROL: u64 = 200;

/// Defects in code that the simulation does not run: shells, LMDB, purging.
const ELSEWHERE: [Defect; 4] =
    [Defect::HoleSkipped, Defect::ResumeUnverified, Defect::CheckpointApart, Defect::PurgedPastCopy];

/// The first seed that finds something. A panic of a core is a finding, too.
fn first(seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| match std::panic::catch_unwind(|| run(seed, false)) {
        Ok(Ok(_)) => None,
        Ok(Err(finding)) => Some((seed, finding.what)),
        Err(_) => Some((seed, "a core panics".to_owned())),
    })
}

#[test]
fn every_defect_of_the_cores_is_noticed() {
    defect::deactivate();
    assert_eq!(first(CONTROL), None, "without a defect nothing may be found");
    let mut missed = Vec::new();
    for defect in Defect::ALL.iter().filter(|defect| !ELSEWHERE.contains(defect)) {
        defect::activate(defect.name()).unwrap();
        let begun = Instant::now();
        match first(SEEDS) {
            Some((seed, what)) => {
                let what: String = what.chars().take(110).collect();
                println!("{:<26} seed {seed:>3} {:>6} ms  {what}", defect.name(), begun.elapsed().as_millis());
            }
            None => missed.push(defect.name()),
        }
    }
    defect::deactivate();
    assert_eq!(missed, Vec::<&str>::new(), "not noticed within {SEEDS} seeds");
}
