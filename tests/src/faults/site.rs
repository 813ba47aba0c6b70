//! The deployment under test: a real nats-server, and every role as a process of its own behind a proxy.

use super::disk::Disk;
use super::proxy::Proxy;
use super::udp::UdpProxy;
use crate::{certificate, nats_server};
use fieldstream_nats::{ChildOptions, Connection, Credentials, NatsChild, Profile, Topology, TopologyOptions};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A role's process.
#[derive(Debug)]
pub struct Role {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Role {
    fn new(site: &SiteOptions, name: String, arguments: Vec<String>) -> Role {
        let log = site.directory.join(format!("{name}.log"));
        Role { name, program: site.program.clone(), arguments, log, child: None }
    }

    /// Its name, such as `processor-1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it, if it does not run.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&mut self) {
        if self.is_running() {
            return;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FIELDSTREAM_") {
                command.env_remove(name);
            }
        }
        // The checker compares whole histories.
        command.env("FIELDSTREAM_STORER__HISTORY_REVISIONS", "0");
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("the role starts"));
    }

    /// Whether the process is alive.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until it has ended; whether it has by then. If not, it is killed.
    pub fn has_ended_by(&mut self, until: Instant) -> bool {
        while self.is_running() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let has_ended = !self.is_running();
        if !has_ended {
            eprintln!("{} was asked to end and did not in time", self.name);
        }
        self.kill();
        has_ended
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the deployment is made of.
#[derive(Debug, Clone)]
pub struct SiteOptions {
    /// The `fieldstream` program.
    pub program: PathBuf,
    /// Everything is written here.
    pub directory: PathBuf,
    /// What the log survives.
    pub profile: Profile,
    /// Number of processors.
    pub processors: usize,
    /// What becomes of datagrams on bad lines.
    pub seed: u64,
    /// nats-server and the second storer get disks of their own, where that can be done.
    pub has_disks: bool,
}

/// Of each log, when something does not come up.
const LINES_TOLD: usize = 12;
/// Ports of roles.
const PORTS_FROM: u16 = 16_000;
const PORTS: u16 = 14_000;
/// Of a disk of its own; blocks are taken from the machine's only when they are written.
const DISK_BYTES: u64 = 8 << 30;

fn own_disk(options: &SiteOptions, folder: &str) -> Option<Disk> {
    if !options.has_disks {
        return None;
    }
    let disk = Disk::mount(&options.directory.join(folder), DISK_BYTES);
    disk.map_err(|error| eprintln!("SKIPPED: a full disk under {folder}: {error}")).ok()
}

/// The deployment.
pub struct Site {
    /// The server's disk, if it has one of its own.
    pub nats_disk: Option<Disk>,
    /// The second storer's.
    pub storer_disk: Option<Disk>,
    /// The server; it is started again by itself when it is killed.
    pub nats: NatsChild,
    /// Where the server really is, with the login.
    pub nats_url: String,
    /// Gateways, processors, storers.
    pub gateways: Vec<Role>,
    /// See above.
    pub processors: Vec<Role>,
    /// See above.
    pub storers: Vec<Role>,
    /// Between gateways and NATS.
    pub gateway_proxy: Proxy,
    /// Between processors and NATS.
    pub processor_proxy: Proxy,
    /// Between storers and NATS.
    pub storer_proxy: Proxy,
    /// Between devices and each gateway.
    pub device_proxies: Vec<Proxy>,
    /// Between devices that come by QUIC and each gateway.
    pub udp_proxies: Vec<UdpProxy>,
    /// The gateways themselves.
    pub urls: Vec<String>,
    /// Where devices connect.
    pub device_urls: Vec<String>,
    /// Where devices connect that come by QUIC.
    pub quic_urls: Vec<String>,
    /// The CA of the gateways' certificates.
    pub ca: PathBuf,
}

impl Site {
    /// Starts two gateways, processors, and two storers.
    ///
    /// # Panics
    /// If NATS does not start.
    pub async fn start(options: &SiteOptions) -> Site {
        let nats_disk = own_disk(options, "nats");
        let storer_disk = own_disk(options, "storer-1");
        let child =
            ChildOptions { binary: nats_server(), directory: options.directory.join("nats"), profile: options.profile };
        let nats = NatsChild::start(child).await.expect("nats-server");
        let connection = Connection::connect(nats.server(), "faults").await.expect("a connection");
        let topology = TopologyOptions { max_bytes_total: Some(4 << 30), ..TopologyOptions::default() };
        Topology::create(&connection, &topology).await.expect("the streams");
        let at: SocketAddr = nats.server().url.trim_start_matches("nats://").parse().expect("an address");
        let login = match &nats.server().credentials {
            Credentials::UserPassword { user, password } => format!("{user}:{password}@"),
            _ => String::new(),
        };
        let (gateway_proxy, processor_proxy, storer_proxy) =
            (Proxy::start(at).await, Proxy::start(at).await, Proxy::start(at).await);
        let url = |proxy: &Proxy| format!("nats://{login}{}", proxy.address);
        let role = |kind: &str, i: usize, proxy: &Proxy, more: &[String]| {
            let arguments = [&[kind.to_owned(), "--nats".to_owned(), url(proxy)], more].concat();
            Role::new(options, format!("{kind}-{i}"), arguments)
        };
        let mut ports = free_ports(4);
        let secure_ports = ports.split_off(2);
        let gateways = ports.iter().enumerate();
        certificate(&options.directory);
        let (cert, key) = (options.directory.join("server.pem"), options.directory.join("server.key"));
        let gateways = gateways.map(|(i, at)| {
            let (tcp, listen) = (at.to_string(), secure_ports[i].to_string());
            let (cert, key) = (cert.display().to_string(), key.display().to_string());
            let more = ["--tcp", &tcp, "--listen", &listen, "--cert", &cert, "--key", &key].map(str::to_owned);
            role("gateway", i, &gateway_proxy, &more)
        });
        let gateways: Vec<Role> = gateways.collect();
        let processors = (0..options.processors).map(|i| role("processor", i, &processor_proxy, &[])).collect();
        let data = |i| ["--data".to_owned(), options.directory.join(format!("storer-{i}")).display().to_string()];
        let storers = (0..2).map(|i| role("storer", i, &storer_proxy, &data(i))).collect();
        let nats_url = format!("nats://{login}{at}");
        let urls = ports.iter().map(|at| format!("tcp://{at}")).collect();
        let mut device_proxies = Vec::new();
        for at in &ports {
            device_proxies.push(Proxy::of_bytes(*at).await);
        }
        let device_urls = device_proxies.iter().map(|proxy| format!("tcp://{}", proxy.address)).collect();
        let mut udp_proxies = Vec::new();
        for (at, i) in secure_ports.iter().zip(0..) {
            udp_proxies.push(UdpProxy::start(*at, options.seed.wrapping_add(i)).await);
        }
        let quic_urls = udp_proxies.iter().map(|proxy| format!("quic://{}", proxy.address)).collect();
        let mut site = Site {
            nats_disk,
            storer_disk,
            udp_proxies,
            quic_urls,
            ca: options.directory.join("ca.pem"),
            nats,
            nats_url,
            gateways,
            processors,
            storers,
            gateway_proxy,
            processor_proxy,
            storer_proxy,
            device_proxies,
            urls,
            device_urls,
        };
        site.roles().for_each(Role::start);
        site
    }

    /// All processes but NATS.
    pub fn roles(&mut self) -> impl Iterator<Item = &mut Role> {
        self.storers.iter_mut().chain(&mut self.processors).chain(&mut self.gateways)
    }

    /// Prints the last lines of each log, and which role does not run.
    pub fn tell_logs(&mut self) {
        for role in self.roles() {
            let state = if role.is_running() { "runs" } else { "has ended" };
            eprintln!("-- {}, which {state}", role.name);
            let log = std::fs::read_to_string(&role.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(LINES_TOLD)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }

    /// Sends nats-server a signal.
    pub fn signal_nats(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.nats.pid().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }

    /// The LMDB files, as readers open them.
    pub fn databases(directory: &Path) -> Vec<PathBuf> {
        (0..2).map(|i| directory.join(format!("storer-{i}/db"))).collect()
    }
}

/// Free ports, all different, that stay free until a role takes them: below those that the kernel gives to
/// outgoing connections, since a device that tries to connect meanwhile would otherwise sooner or later take
/// one. All are held until the last is found, over TCP and UDP, since roles listen on both.
fn free_ports(count: usize) -> Vec<SocketAddr> {
    let candidates = (0..PORTS).map(|_| rand::random_range(PORTS_FROM..PORTS_FROM + PORTS));
    let free = candidates.filter_map(|port| {
        let tcp = TcpListener::bind(("127.0.0.1", port)).ok()?;
        let udp = UdpSocket::bind(("127.0.0.1", port)).ok()?;
        Some((tcp, udp))
    });
    let held: Vec<_> = free.take(count).collect();
    assert_eq!(held.len(), count, "free ports");
    held.iter().map(|(tcp, _)| tcp.local_addr().expect("an address")).collect()
}
