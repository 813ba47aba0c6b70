//! What a role says about itself: findings that an operator has to see, and whether the role is ready.
//!
//! A role raises a finding where it notices something, and clears it when that is over. Log, status
//! and readiness show the same text; a finding outlives a restart of its role within the process.

use crate::status::RoleStatus;
use fieldstream_shared::histogram::Histogram;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Work goes on; somebody should look.
    Warning,
    /// The role does not do its work: it is not ready.
    Blocking,
}

/// Something an operator has to know.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finding {
    /// Stable name for programs, such as `log-hole`.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and where, one sentence.
    pub message: String,
    /// The command that mends it, or what to do.
    pub mend: String,
    /// When it was noticed, microseconds since the Unix epoch.
    pub since_us: u64,
}

impl Finding {
    /// A finding noticed now.
    pub fn new(code: &str, severity: Severity, message: impl Into<String>, mend: impl Into<String>) -> Finding {
        let since_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        Finding { code: code.to_owned(), severity, message: message.into(), mend: mend.into(), since_us }
    }
}

/// Says how a role is.
pub(crate) type Report = dyn Fn() -> RoleStatus + Send + Sync;

#[derive(Default)]
struct State {
    findings: BTreeMap<String, Finding>,
    ready: bool,
    /// How long the hops of this role take, by name.
    hops: BTreeMap<&'static str, Arc<Histogram>>,
    /// Weak: a role that is gone says nothing any more.
    report: Option<Weak<Report>>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("findings", &self.findings).field("ready", &self.ready).finish_non_exhaustive()
    }
}

/// One role's health. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

impl Health {
    /// Not ready, nothing found.
    pub fn new() -> Health {
        Health::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain data, whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises a finding, or replaces the one with the same code; logged when its text is new.
    pub fn raise(&self, mut finding: Finding) {
        let mut state = self.lock();
        let known = state.findings.get(&finding.code);
        if known.is_none_or(|known| known.message != finding.message) {
            let Finding { code, message, mend, .. } = &finding;
            match finding.severity {
                Severity::Warning => tracing::warn!(code, mend, "{message}"),
                Severity::Blocking => tracing::error!(code, mend, "{message}"),
            }
        }
        if let Some(known) = known {
            finding.since_us = known.since_us;
        }
        state.findings.insert(finding.code.clone(), finding);
    }

    /// What was found is over.
    pub fn clear(&self, code: &str) {
        if self.lock().findings.remove(code).is_some() {
            tracing::info!(code, "over");
        }
    }

    /// What is found at present, in order of codes.
    pub fn findings(&self) -> Vec<Finding> {
        self.lock().findings.values().cloned().collect()
    }

    /// Where the role counts how long a hop takes. It goes on counting where a run of the role before
    /// it in this process has stopped.
    pub fn hop(&self, name: &'static str) -> Arc<Histogram> {
        Arc::clone(self.lock().hops.entry(name).or_default())
    }

    /// All hops the role counts, in order of names.
    pub fn hops(&self) -> Vec<(&'static str, Arc<Histogram>)> {
        self.lock().hops.iter().map(|(name, hop)| (*name, Arc::clone(hop))).collect()
    }

    /// From now on the role is asked here.
    pub(crate) fn report_by(&self, report: &Arc<Report>) {
        self.lock().report = Some(Arc::downgrade(report));
    }

    /// What the role says of itself; `None` while it does not run.
    pub fn report(&self) -> Option<RoleStatus> {
        // Asked without the lock, which the role takes to answer.
        let report = self.lock().report.as_ref().and_then(Weak::upgrade)?;
        Some(report())
    }

    /// The role has started its work, or has ended it.
    pub fn set_ready(&self, ready: bool) {
        self.lock().ready = ready;
    }

    /// Whether the role does its work: it has started and nothing blocking is found.
    pub fn is_ready(&self) -> bool {
        let state = self.lock();
        state.ready && state.findings.values().all(|finding| finding.severity != Severity::Blocking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocking_findings_take_readiness_and_give_it_back() {
        let health = Health::new();
        assert!(!health.is_ready());
        health.set_ready(true);
        health.raise(Finding::new("disk", Severity::Warning, "nearly full", "make room"));
        assert!(health.is_ready());
        health.raise(Finding::new("log-hole", Severity::Blocking, "message 7 is missing", "fieldstream repair"));
        assert!(!health.is_ready());
        let since = health.findings()[1].since_us;
        health.raise(Finding::new("log-hole", Severity::Blocking, "message 7 is missing", "fieldstream repair"));
        assert_eq!(health.findings()[1].since_us, since);
        health.clear("log-hole");
        assert!(health.is_ready());
        assert_eq!(health.findings().len(), 1);
    }
}
