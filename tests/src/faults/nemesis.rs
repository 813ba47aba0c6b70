//! What goes wrong: one fault after the other, chosen by the seed, each with evidence that it hit.

use super::inflict::{FAULTS, can_be_inflicted};
use super::load::{Load, connect};
use super::site::Site;
use fieldstream_client::{Client, Operation};
use fieldstream_nats::Connection;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// So long a recovery may take before it counts as none.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);
/// So long the first start may take, on whatever machine.
const PATIENCE_AT_START: Duration = Duration::from_secs(120);
/// Documents of the probes: many, so that they lie in partitions of every processor.
const PROBES: usize = 8;

/// Strikes, and keeps count.
pub(super) struct Nemesis {
    pub(super) rng: StdRng,
    pub(super) load: Load,
    pub(super) connection: Connection,
    pub(super) hits: BTreeMap<&'static str, u64>,
    probes: Vec<Client>,
    /// The faults that this machine allows, by weight.
    faults: Vec<(&'static str, u32)>,
    /// Each of them once, before chance decides.
    first: Vec<&'static str>,
    misses: u64,
    acked: BTreeMap<&'static str, usize>,
    recoveries_ms: BTreeMap<&'static str, Vec<u64>>,
    stuck: u64,
    /// Roles that had ended by themselves.
    started_again: u64,
}

impl Nemesis {
    /// Connects once the deployment is up.
    ///
    /// # Panics
    /// If it does not come up.
    pub(super) async fn new(mut rng: StdRng, load: Load, site: &mut Site) -> Nemesis {
        let connection = Connection::connect(site.nats.server(), "nemesis").await.expect("a connection");
        let urls: Vec<_> = site.urls.iter().cloned().zip(0..).collect();
        let ca = site.ca.clone();
        let connecting = urls.iter().map(|(url, i)| {
            let (name, ca) = (format!("probe-{i}"), &ca);
            async move { connect(url, &name, ca).await }
        });
        let mut started_again = 0;
        let probes = tokio::select! {
            probes = tokio::time::timeout(PATIENCE_AT_START, futures::future::try_join_all(connecting)) => probes,
            () = keep_running(site, &mut started_again) => Ok(Ok(Vec::new())),
        };
        let Ok(Ok(probes)) = probes else {
            site.tell_logs();
            panic!("the deployment does not come up: {:?}", probes.err());
        };
        let faults: Vec<_> = FAULTS.into_iter().filter(|(name, _)| can_be_inflicted(name, site)).collect();
        let mut first: Vec<_> = faults.iter().map(|(name, _)| *name).collect();
        first.shuffle(&mut rng);
        let nemesis = Nemesis {
            rng,
            load,
            connection,
            probes,
            faults,
            first,
            hits: BTreeMap::new(),
            misses: 0,
            acked: BTreeMap::new(),
            recoveries_ms: BTreeMap::new(),
            stuck: 0,
            started_again,
        };
        // Everything is up before anything is broken.
        if !nemesis.probe().await {
            site.tell_logs();
            panic!("the deployment came up and does not work");
        }
        nemesis
    }

    /// One fault, and the way back.
    pub(super) async fn strike(&mut self, site: &mut Site) {
        let name = self.choose();
        let acked = self.load.acked();
        let hit = self.inflict(name, site).await;
        if hit {
            *self.hits.entry(name).or_default() += 1;
        } else {
            self.misses += 1;
        }
        let healed = Instant::now();
        let mut ended = 0;
        let recovered = tokio::select! {
            recovered = self.probe() => recovered,
            () = keep_running(site, &mut ended) => false,
        };
        self.started_again += ended;
        *self.acked.entry(name).or_default() += self.load.acked() - acked;
        match recovered {
            true => self.recoveries_ms.entry(name).or_default().push(healed.elapsed().as_millis() as u64),
            false => {
                site.tell_logs();
                eprintln!("no recovery within {PATIENCE:?} after {name}");
                self.stuck += 1;
            }
        }
        self.rest(50, 300).await;
    }

    fn choose(&mut self) -> &'static str {
        if let Some(name) = self.first.pop() {
            return name;
        }
        let total: u32 = self.faults.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.random_range(0..total);
        let chosen = self.faults.iter().find(|(_, weight)| {
            let is_it = at < *weight;
            at = at.saturating_sub(*weight);
            is_it
        });
        chosen.map_or("kill-processor", |(name, _)| name)
    }

    pub(super) async fn rest(&mut self, least_ms: u64, most_ms: u64) {
        let ms = self.rng.random_range(least_ms..most_ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Whether instructions are carried out again, through every gateway and for every processor.
    pub(super) async fn probe(&self) -> bool {
        let probing = self.probes.iter().enumerate().flat_map(|(i, client)| {
            (0..PROBES).map(move |n| async move {
                client.instruct(&format!("probe-{i}-{n}"), Operation::PutText("alive".into())).await
            })
        });
        tokio::time::timeout(PATIENCE, futures::future::try_join_all(probing)).await.is_ok_and(|all| all.is_ok())
    }

    pub(super) fn report(&self) -> Json {
        let mut all: Vec<u64> = self.recoveries_ms.values().flatten().copied().collect();
        let by_fault: BTreeMap<_, _> =
            self.recoveries_ms.iter().map(|(name, ms)| (*name, percentiles(ms.clone()))).collect();
        all.sort_unstable();
        let [p50, p99, max] = percentiles(all);
        let violations = self.load.with(|history| history.violations.clone());
        violations.iter().take(10).for_each(|what| eprintln!("watchers: {what}"));
        json!({
            "faults": self.hits,
            "faults_missed": self.misses,
            "faults_skipped": FAULTS.iter().map(|(name, _)| *name).filter(|name| self.faults.iter().all(|(ours, _)| ours != name)).collect::<Vec<_>>(),
            "acked_by_fault": self.acked,
            "stuck": self.stuck,
            "roles_started_again": self.started_again,
            "recovery_p50_ms": p50,
            "recovery_p99_ms": p99,
            "recovery_max_ms": max,
            "recovery_by_fault_ms": by_fault,
            "watch_violations": violations.len(),
        })
    }
}

fn percentiles(mut ms: Vec<u64>) -> [u64; 3] {
    ms.sort_unstable();
    let at = |share: f64| ms.get(((ms.len() as f64 - 1.0) * share).round().max(0.0) as usize).copied().unwrap_or(0);
    [at(0.5), at(0.99), at(1.0)]
}

/// As a service manager would: a role that finds no NATS at its start ends, and is started again.
async fn keep_running(site: &mut Site, ended: &mut u64) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for role in site.roles() {
            if !role.is_running() {
                *ended += 1;
                role.start();
            }
        }
    }
}
