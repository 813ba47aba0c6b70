//! The faults themselves: each one does it, puts right what it broke, and says whether it is shown to
//! have hit.

use super::nemesis::{Nemesis, PATIENCE};
use super::proxy::{Direction, Proxy};
use super::site::{Role, Site};
use fieldstream_nats::{BatchWriter, Log, Workshop, collect_status, damage, last_sequence};
use rand::Rng as _;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The faults, by the names in the report, and how often each comes.
pub(super) const FAULTS: [(&str, u32); 29] = [
    ("kill-processor", 40),
    ("kill-storer", 28),
    ("kill-gateway", 11),
    ("kill-nats", 13),
    ("kill-all", 2),
    ("zombie-processor", 11),
    ("pause-nats", 2),
    ("pause-storers", 2),
    ("lost-pubacks", 27),
    ("cut-gateways", 2),
    ("cut-processors", 2),
    ("cut-storers", 2),
    ("freeze-processors", 1),
    ("replace-processor", 2),
    ("replace-gateway", 2),
    ("replace-storer", 2),
    ("poison-record", 2),
    ("replayed-batch", 2),
    ("cut-devices", 2),
    ("half-open-devices", 1),
    ("freeze-devices", 1),
    ("slow-devices", 1),
    ("lossy-devices", 2),
    ("full-streams", 1),
    ("full-disk-nats", 1),
    ("full-disk-storer", 1),
    ("replace-while-nats-hangs", 1),
    ("one-way-gateways", 1),
    ("one-way-processors", 1),
];

/// Roles that are asked to end do so within this, also when NATS does not answer: they give what is in
/// flight 20 s.
const ENDING: Duration = Duration::from_secs(25);

/// Whether this machine allows it.
pub(super) fn can_be_inflicted(name: &str, site: &Site) -> bool {
    match name {
        "full-disk-nats" => site.nats_disk.is_some(),
        "full-disk-storer" => site.storer_disk.is_some(),
        _ => true,
    }
}

impl Nemesis {
    /// Does it, and puts right what the fault broke. Whether it is shown to have hit.
    pub(super) async fn inflict(&mut self, name: &str, site: &mut Site) -> bool {
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
            "one-way-gateways" => self.stop_one_way(&site.gateway_proxy).await,
            "one-way-processors" => self.stop_one_way(&site.processor_proxy).await,
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
            "full-streams" => self.fill_a_stream().await,
            "full-disk-nats" => {
                let Some(disk) = &site.nats_disk else { return false };
                disk.fill();
                let nothing_is_logged = self.found("not-acknowledged").await;
                disk.empty();
                // As the finding says; `up` does it by itself.
                let pid = site.nats.pid();
                site.signal_nats(Signal::TERM);
                until(|| site.nats.pid() != pid).await && nothing_is_logged
            }
            "full-disk-storer" => {
                let Some(disk) = &site.storer_disk else { return false };
                disk.fill();
                let nothing_is_stored = self.found("not-stored").await;
                disk.empty();
                nothing_is_stored && self.is_over("not-stored").await
            }
            "replace-while-nats-hangs" => {
                let busy = self.load.open() > 0;
                site.signal_nats(Signal::STOP);
                self.rest(100, 1_000).await;
                let i = self.rng.random_range(0..2);
                let roles = [&mut site.processors[i], &mut site.gateways[i], &mut site.storers[i]];
                roles.iter().for_each(|role| role.signal(Signal::TERM));
                let until = Instant::now() + ENDING;
                let ended = tokio::task::block_in_place(|| roles.map(|role| role.has_ended_by(until)));
                site.signal_nats(Signal::CONT);
                site.roles().for_each(Role::start);
                ended == [true; 3] && busy
            }
            _ => false,
        }
    }

    /// Lets nothing pass to or from NATS for a while, as chance decides, and everything the other way.
    async fn stop_one_way(&mut self, proxy: &Proxy) -> bool {
        let direction = if self.rng.random_bool(0.5) { Direction::Up } else { Direction::Down };
        proxy.stop_one_way(Some(direction));
        self.rest(1_000, 3_000).await;
        proxy.stop_one_way(None);
        self.load.open() > 0
    }

    /// Takes a stream the room for anything more, and gives it back.
    async fn fill_a_stream(&mut self) -> bool {
        let log = if self.rng.random_bool(0.5) { Log::Instructions } else { Log::Events };
        if damage::set_room(&self.connection, log, 0, Some(1)).await.is_err() {
            return false;
        }
        let is_told = self.found("not-logged").await;
        while damage::set_room(&self.connection, log, 0, None).await.is_err() {
            self.rest(50, 100).await;
        }
        is_told
    }

    /// Whether some role finds something whose code begins so, within the patience for it.
    async fn found(&self, code: &str) -> bool {
        self.until_findings(code, |found| found).await
    }

    /// Whether no role finds that any more.
    async fn is_over(&self, code: &str) -> bool {
        self.until_findings(code, |found| !found).await
    }

    async fn until_findings(&self, code: &str, is_it: fn(bool) -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let Ok(roles) = collect_status(&self.connection, Duration::from_millis(300)).await else { continue };
            let found = roles.iter().flat_map(|role| &role.findings).any(|finding| finding.code.starts_with(code));
            if !roles.is_empty() && is_it(found) {
                return true;
            }
        }
        false
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
