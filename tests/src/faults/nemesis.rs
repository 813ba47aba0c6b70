//! What goes wrong: one fault after the other, chosen by the seed, each with evidence that it hit.

use super::load::{Load, connect};
use super::site::{Role, Site};
use fieldstream_client::{Client, Operation};
use fieldstream_nats::{BatchWriter, Connection, Log, Workshop, last_sequence};
use rand::Rng as _;
use rand::rngs::StdRng;
use rustix::process::Signal;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// So long a recovery may take before it counts as none.
const PATIENCE: Duration = Duration::from_secs(40);
/// Documents of the probes: many, so that they lie in partitions of every processor.
const PROBES: usize = 8;

/// The faults, by the names in the report.
const FAULTS: [(&str, u32); 23] = [
    ("kill-processor", 10),
    ("kill-storer", 6),
    ("kill-gateway", 4),
    ("kill-nats", 4),
    ("kill-all", 1),
    ("zombie-processor", 3),
    ("pause-nats", 2),
    ("pause-storers", 2),
    ("lost-pubacks", 6),
    ("cut-gateways", 2),
    ("cut-processors", 2),
    ("cut-storers", 2),
    ("freeze-processors", 1),
    ("replace-processor", 3),
    ("replace-gateway", 2),
    ("replace-storer", 2),
    ("poison-record", 2),
    ("replayed-batch", 3),
    ("cut-devices", 2),
    ("half-open-devices", 1),
    ("freeze-devices", 1),
    ("slow-devices", 1),
    ("lossy-devices", 3),
];

/// Strikes, and keeps count.
pub(super) struct Nemesis {
    rng: StdRng,
    load: Load,
    connection: Connection,
    probes: Vec<Client>,
    hits: BTreeMap<&'static str, u64>,
    misses: u64,
    recoveries_ms: BTreeMap<&'static str, Vec<u64>>,
    stuck: u64,
    /// Roles that had ended by themselves.
    started_again: u64,
}

impl Nemesis {
    pub(super) async fn new(rng: StdRng, load: Load, site: &Site) -> Nemesis {
        let connection = Connection::connect(site.nats.server(), "nemesis").await.expect("a connection");
        let mut probes = Vec::new();
        for (i, url) in site.urls.iter().enumerate() {
            let probe = tokio::time::timeout(PATIENCE, connect(url, &format!("probe-{i}"), &site.ca)).await;
            probes.push(probe.expect("the deployment comes up; its logs say why not").expect("a probe"));
        }
        let nemesis = Nemesis {
            rng,
            load,
            connection,
            probes,
            hits: BTreeMap::new(),
            misses: 0,
            recoveries_ms: BTreeMap::new(),
            stuck: 0,
            started_again: 0,
        };
        // Everything is up before anything is broken.
        assert!(nemesis.probe().await, "the deployment works; its logs say why not");
        nemesis
    }

    /// One fault, and the way back.
    pub(super) async fn strike(&mut self, site: &mut Site) {
        let total: u32 = FAULTS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.random_range(0..total);
        let chosen = FAULTS.iter().find(|(_, weight)| {
            let is_it = at < *weight;
            at = at.saturating_sub(*weight);
            is_it
        });
        let name = chosen.map_or("kill-processor", |(name, _)| name);
        let hit = self.inflict(name, site).await;
        if hit {
            *self.hits.entry(name).or_default() += 1;
        } else {
            self.misses += 1;
        }
        let healed = Instant::now();
        // As a service manager would: a role that finds no NATS at its start ends, and is started again.
        let mut ended = 0;
        let starting = async {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                for role in site.roles() {
                    if !role.is_running() {
                        ended += 1;
                        role.start();
                    }
                }
            }
        };
        let recovered = tokio::select! {
            recovered = self.probe() => recovered,
            () = starting => false,
        };
        self.started_again += ended;
        match recovered {
            true => self.recoveries_ms.entry(name).or_default().push(healed.elapsed().as_millis() as u64),
            false => {
                eprintln!("no recovery within {PATIENCE:?} after {name}");
                self.stuck += 1;
            }
        }
        self.rest(50, 300).await;
    }

    async fn rest(&mut self, least_ms: u64, most_ms: u64) {
        let ms = self.rng.random_range(least_ms..most_ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Does it, and puts right what the fault broke. Whether it is shown to have hit.
    async fn inflict(&mut self, name: &str, site: &mut Site) -> bool {
        match name {
            "kill-processor" => self.kill(|site| &mut site.processors, site).await,
            "kill-storer" => self.kill(|site| &mut site.storers, site).await,
            "kill-gateway" => self.kill(|site| &mut site.gateways, site).await,
            "kill-nats" => {
                let (pid, busy) = (site.nats.pid(), self.load.open() > 0);
                site.signal_nats(Signal::KILL);
                until(|| site.nats.pid() != pid).await && busy
            }
            "kill-all" => {
                let busy = self.load.open() > 0;
                site.signal_nats(Signal::KILL);
                site.roles().for_each(Role::kill);
                site.roles().for_each(Role::start);
                busy
            }
            "zombie-processor" => {
                let i = self.rng.random_range(0..site.processors.len());
                site.processors[i].signal(Signal::STOP);
                // The lease is over and the others go on without it, while it still holds batches.
                self.rest(2_800, 4_000).await;
                let taken_over = self.probe().await;
                site.processors[i].signal(Signal::CONT);
                taken_over
            }
            "pause-nats" => {
                let busy = self.load.open() > 0;
                site.signal_nats(Signal::STOP);
                self.rest(800, 2_500).await;
                site.signal_nats(Signal::CONT);
                busy
            }
            "pause-storers" => {
                site.storers.iter().for_each(|role| role.signal(Signal::STOP));
                self.rest(500, 2_000).await;
                site.storers.iter().for_each(|role| role.signal(Signal::CONT));
                self.load.open() > 0
            }
            "lost-pubacks" => {
                let proxies = [site.gateway_proxy.clone(), site.processor_proxy.clone()];
                let count = || proxies.iter().map(|proxy| proxy.swallowed()).sum::<u64>();
                let before = count();
                proxies.iter().for_each(|proxy| proxy.swallow(true));
                self.rest(1_500, 3_000).await;
                proxies.iter().for_each(|proxy| proxy.swallow(false));
                let lost = (count() - before) / 2;
                *self.hits.entry("pubacks-lost").or_default() += lost;
                lost > 0
            }
            "cut-gateways" => site.gateway_proxy.cut() > 0,
            "cut-processors" => site.processor_proxy.cut() > 0,
            "cut-storers" => site.storer_proxy.cut() > 0,
            // All devices come back at once.
            "cut-devices" => site.device_proxies.iter().map(|proxy| proxy.cut()).sum::<u64>() > 0,
            "half-open-devices" => {
                let (i, busy) = (self.rng.random_range(0..site.device_proxies.len()), self.load.open() > 0);
                site.device_proxies[i].stall() > 0 && busy
            }
            "freeze-devices" => {
                let i = self.rng.random_range(0..site.device_proxies.len());
                site.device_proxies[i].freeze(true);
                self.rest(1_000, 3_000).await;
                let open = self.load.open();
                site.device_proxies[i].freeze(false);
                open > 0
            }
            "slow-devices" => {
                site.device_proxies.iter().for_each(|proxy| proxy.slow_down(true));
                self.rest(1_000, 3_000).await;
                let open = self.load.open();
                site.device_proxies.iter().for_each(|proxy| proxy.slow_down(false));
                open > 0
            }
            "lossy-devices" => {
                let lost = || site.udp_proxies.iter().map(|proxy| proxy.lost()).sum::<u64>();
                let before = lost();
                site.udp_proxies.iter().for_each(|proxy| proxy.spoil(true));
                self.rest(1_000, 3_000).await;
                site.udp_proxies.iter().for_each(|proxy| proxy.spoil(false));
                *self.hits.entry("datagrams-lost").or_default() += lost() - before;
                lost() > before
            }
            "freeze-processors" => {
                site.processor_proxy.freeze(true);
                self.rest(1_000, 3_000).await;
                site.processor_proxy.freeze(false);
                self.load.open() > 0
            }
            "replace-processor" => self.replace(&mut site.processors),
            "replace-gateway" => self.replace(&mut site.gateways),
            "replace-storer" => self.replace(&mut site.storers),
            "poison-record" => self.publish(vec![0x92, 1, 0x91, 0xc4, 1, 0xc1].into()).await,
            "replayed-batch" => {
                let Ok(last @ 1..) = last_sequence(&self.connection, Log::Instructions, 0).await else { return false };
                let back = self.rng.random_range(0..last.min(200));
                let workshop = Workshop::new(&self.connection);
                match workshop.message(Log::Instructions, 0, last - back).await {
                    Ok(Some(batch)) => self.publish(batch).await,
                    _ => false,
                }
            }
            _ => false,
        }
    }

    async fn kill(&mut self, of: fn(&mut Site) -> &mut Vec<Role>, site: &mut Site) -> bool {
        let roles = of(site);
        let i = self.rng.random_range(0..roles.len());
        let busy = self.load.open() > 0;
        let was_running = roles[i].is_running();
        roles[i].kill();
        self.rest(0, 600).await;
        of(site)[i].start();
        busy && was_running
    }

    /// Asks one of them to end, and starts it again when it has.
    fn replace(&mut self, roles: &mut [Role]) -> bool {
        let i = self.rng.random_range(0..roles.len());
        let busy = self.load.open() > 0;
        tokio::task::block_in_place(|| roles[i].stop());
        roles[i].start();
        busy
    }

    async fn publish(&self, message: bytes::Bytes) -> bool {
        BatchWriter::new(&self.connection, Log::Instructions, 0).append(message).await.is_ok()
    }

    /// Whether instructions are carried out again, through every gateway and for every processor.
    async fn probe(&self) -> bool {
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

async fn until(mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}
