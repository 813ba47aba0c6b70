//! What processes and the machine used, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

/// Processes that are looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Processes(Vec<(u32, String)>);

/// CPU seconds at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    /// Of the processes, by name.
    processes: BTreeMap<String, f64>,
    /// Of this program.
    own: f64,
    /// Of the machine: busy with anything, and what there was.
    busy: f64,
    available: f64,
    at_ns: u64,
}

/// CPU used between two moments.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Used {
    pub(super) seconds: f64,
    /// CPU seconds of the processes, by name.
    pub(super) processes: BTreeMap<String, f64>,
    pub(super) own: f64,
    /// Of everything else on the machine.
    pub(super) others: f64,
    /// The share of the machine that was in use.
    pub(super) share: f64,
}

impl Processes {
    /// The given processes and their descendants.
    ///
    /// # Errors
    /// The first that is not there.
    pub(super) fn of(pids: &[u32]) -> Result<Processes, u32> {
        let mut found = Vec::new();
        let mut open: Vec<u32> = pids.to_vec();
        while let Some(pid) = open.pop() {
            if found.iter().any(|(known, _)| *known == pid) {
                continue;
            }
            match Stat::read(pid) {
                Some(stat) => found.push((pid, stat.name)),
                // A child may have ended meanwhile.
                None if pids.contains(&pid) => return Err(pid),
                None => continue,
            }
            open.extend(children(pid));
        }
        Ok(Processes(found))
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Resident memory of all of them, in KiB.
    pub(super) fn rss_kb(&self) -> u64 {
        self.0.iter().filter_map(|(pid, _)| rss_kb(*pid)).sum()
    }

    /// What was used until now.
    pub(super) fn usage(&self, at_ns: u64) -> Usage {
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        let mut processes = BTreeMap::new();
        for (pid, name) in &self.0 {
            let ticks = Stat::read(*pid).map_or(0, |stat| stat.ticks);
            *processes.entry(name.clone()).or_insert(0.0) += ticks as f64 / ticks_per_s;
        }
        let own = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let (busy, available) = machine_ticks();
        Usage {
            processes,
            own: own.tv_sec as f64 + own.tv_nsec as f64 / 1e9,
            busy: busy as f64 / ticks_per_s,
            available: available as f64 / ticks_per_s,
            at_ns,
        }
    }
}

impl Usage {
    /// What was used from then to now.
    pub(super) fn until(&self, now: &Usage) -> Used {
        let before = |name: &String| self.processes.get(name).copied().unwrap_or(0.0);
        let processes: BTreeMap<String, f64> =
            now.processes.iter().map(|(name, used)| (name.clone(), used - before(name))).collect();
        let own = now.own - self.own;
        let (busy, available) = (now.busy - self.busy, now.available - self.available);
        Used {
            seconds: now.at_ns.saturating_sub(self.at_ns) as f64 / 1e9,
            others: (busy - own - processes.values().sum::<f64>()).max(0.0),
            share: if available > 0.0 { busy / available } else { 0.0 },
            processes,
            own,
        }
    }
}

#[derive(Debug, PartialEq)]
struct Stat {
    name: String,
    /// User and system time.
    ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name stands in brackets and may hold any character.
    fn parse(text: &str) -> Option<Stat> {
        let (name, fields) = text.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
        Some(Stat { name: name.to_owned(), ticks: user + system })
    }
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

fn rss_kb(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

/// Ticks the machine was busy, and all there were.
fn machine_ticks() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_machine(text.lines().next().unwrap_or_default())
}

/// `cpu  user nice system idle iowait irq softirq steal …`; guests are counted in user already.
fn parse_machine(line: &str) -> (u64, u64) {
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
    let all: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (all - idle, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read_as_they_are() {
        let text = "7 (a (b) c) S 1 7 7 0 -1 4194560 9 0 0 0 30 12 0 0 20 0 1 0 5 0 0";
        assert_eq!(Stat::parse(text), Some(Stat { name: "a (b) c".into(), ticks: 42 }));
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(parse_machine("cpu  10 1 5 80 4 2 3 1 9 9"), (22, 106));
        assert_eq!(parse_machine(""), (0, 0));
    }

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let own = Processes::of(&[std::process::id()]).unwrap();
        assert!(own.rss_kb() > 100);
        let before = own.usage(0);
        let mut n = 0_u64;
        while own.usage(0).own - before.own < 0.05 {
            n = std::hint::black_box(n + 1);
        }
        let used = before.until(&own.usage(1_000_000_000));
        assert!(used.own >= 0.05 && used.seconds == 1.0, "{used:?}");
        assert_eq!(Processes::of(&[u32::MAX]).unwrap_err(), u32::MAX);
    }
}
