//! What the end-to-end tests share: a cluster of real roles on a real nats-server, and the outside
//! tools it is looked at with.
//!
//! Tools come by environment variables that `scripts/test` sets. A test that needs one which is not
//! there says so and is skipped; see [`tool`] and [`data`].
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod faults;
pub mod fill;
pub mod logs;
pub mod sim;

use fieldstream_client::{Client, ClientOptions};
use fieldstream_gateway::{Gateway, GatewayLimits, GatewayOptions, TlsOptions, TokenPolicy};
use fieldstream_nats::{ChildOptions, Connection, Health, NatsChild, Profile, Server, Topology, TopologyOptions};
use fieldstream_processor::{Ownership, Processor, ProcessorOptions};
use fieldstream_shared::partition::PartitionSet;
use fieldstream_storer::{Storer, StorerOptions};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The nats-server program under test.
pub fn nats_server() -> PathBuf {
    std::env::var_os("FIELDSTREAM_NATS_SERVER").map_or_else(|| "nats-server".into(), Into::into)
}

/// A tool named by an environment variable; `None`, with a line that says so, if it is not set.
pub fn tool(variable: &str, needed_for: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        eprintln!("SKIPPED: {needed_for}: {variable} names no program (scripts/test gets it)");
    }
    path
}

/// The folder of real data sets; `None`, with a line that says so, if it is not there.
pub fn data(needed_for: &str) -> Option<PathBuf> {
    let path = std::env::var_os("FIELDSTREAM_TEST_DATA").map(PathBuf::from);
    let path = path.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"));
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("SKIPPED: {needed_for}: no data sets at {} (they are not part of the repository)", path.display());
    None
}

/// What a test cluster is made of.
pub struct Shape {
    /// Number of lanes.
    pub lanes: u16,
    /// Number of gateways.
    pub gateways: usize,
    /// The partitions of each processor.
    pub processors: Vec<PartitionSet>,
    /// Number of storers.
    pub storers: usize,
    /// What the log survives.
    pub profile: Profile,
    /// Room of both streams of all lanes.
    pub log_bytes: u64,
    /// Storers that must have an event before it counts as stored.
    pub stored_copies: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            lanes: 1,
            gateways: 1,
            processors: vec![PartitionSet::ALL],
            storers: 1,
            profile: Profile::Durable,
            log_bytes: 2 << 30,
            stored_copies: 1,
        }
    }
}

/// Roles in this process, which talk only through a nats-server of their own.
pub struct Cluster {
    /// Everything the cluster writes.
    pub dir: tempfile::TempDir,
    /// The server.
    pub nats: NatsChild,
    /// Gateways in order.
    pub gateways: Vec<Gateway>,
    /// Processors in order.
    pub processors: Vec<Processor>,
    /// Storers in order.
    pub storers: Vec<Storer>,
    /// What the gateways say of themselves, in order.
    pub gateway_healths: Vec<Health>,
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const STOP: Duration = Duration::from_secs(20);

impl Cluster {
    /// Starts everything.
    pub async fn start(shape: Shape) -> Cluster {
        Cluster::start_in(tempfile::tempdir().expect("a folder for the test"), shape).await
    }

    /// Starts everything in a folder that is there already.
    pub async fn start_in(dir: tempfile::TempDir, shape: Shape) -> Cluster {
        let options =
            ChildOptions { binary: nats_server(), directory: dir.path().join("nats"), profile: shape.profile };
        let nats = NatsChild::start(options).await.expect("nats-server");
        let connection = Connection::connect(nats.server(), "test").await.unwrap();
        let topology = TopologyOptions {
            lanes: Some(shape.lanes),
            max_bytes_total: Some(shape.log_bytes),
            ..TopologyOptions::default()
        };
        Topology::create(&connection, &topology).await.unwrap();
        certificate(dir.path());
        let mut cluster =
            Cluster { dir, nats, gateways: vec![], processors: vec![], storers: vec![], gateway_healths: vec![] };
        for i in 0..shape.storers {
            cluster.storers.push(Storer::start(cluster.storer_options(i)).await.expect("storer"));
        }
        for partitions in shape.processors {
            cluster.add_processor(partitions).await;
        }
        for _ in 0..shape.gateways {
            let options = cluster.gateway_options(shape.stored_copies);
            cluster.gateway_healths.push(options.health.clone());
            cluster.gateways.push(Gateway::start(options).await.expect("gateway"));
        }
        cluster
    }

    /// Options of a gateway on free ports.
    pub fn gateway_options(&self, stored_copies: usize) -> GatewayOptions {
        gateway_options(self.nats.server().clone(), self.dir.path(), stored_copies)
    }

    /// Options of the i-th storer.
    pub fn storer_options(&self, i: usize) -> StorerOptions {
        StorerOptions::new(self.nats.server().clone(), self.dir.path().join(format!("storer-{i}")))
    }

    /// Starts one more processor.
    pub async fn add_processor(&mut self, partitions: PartitionSet) {
        let ownership = Ownership::Fixed(partitions);
        let options = ProcessorOptions { ownership, ..ProcessorOptions::new(self.nats.server().clone()) };
        self.processors.push(Processor::start(options).await.expect("processor"));
    }

    /// Starts one more processor that shares the partitions with the others.
    pub async fn add_sharing_processor(&mut self) {
        let options = ProcessorOptions::new(self.nats.server().clone());
        self.processors.push(Processor::start(options).await.expect("processor"));
    }

    /// URL of a gateway for a transport: `tcp`, `tls` or `quic`.
    pub fn url(&self, gateway: usize, transport: &str) -> String {
        let addresses = self.gateways[gateway].addresses();
        let address = match transport {
            "tcp" => addresses.tcp,
            "tls" => addresses.tls,
            _ => addresses.quic,
        };
        format!("{transport}://{}", address.expect("the transport is on"))
    }

    /// The CA that gateways' certificates are of.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A client of a gateway.
    pub async fn client(&self, gateway: usize, transport: &str) -> Client {
        let options = ClientOptions::default().ca_file(self.ca());
        Client::connect(&self.url(gateway, transport), options).await.expect("connect")
    }

    /// Stops everything in order.
    pub async fn stop(self) {
        for gateway in self.gateways {
            gateway.stop(STOP).await;
        }
        for processor in self.processors {
            processor.stop(STOP).await;
        }
        for storer in self.storers {
            storer.stop(STOP).await;
        }
        self.nats.stop().await;
    }
}

fn gateway_options(nats: Server, dir: &Path, stored_copies: usize) -> GatewayOptions {
    let tls = TlsOptions { listen: ANY, certificate_file: dir.join("server.pem"), key_file: dir.join("server.key") };
    GatewayOptions {
        nats,
        tcp: Some(ANY),
        tls: Some(tls),
        tokens: TokenPolicy::loopback_open(),
        stored_copies,
        limits: GatewayLimits::default(),
        health: Health::new(),
    }
}

/// A certificate for localhost, self-signed: it is its own CA.
fn certificate(dir: &Path) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(dir.join("ca.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("server.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("server.key"), made.signing_key.serialize_pem()).unwrap();
}

/// As many open files as the system allows this process.
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Runs the test again as a process of its own, in a mount namespace of its own, in which it may mount
/// disks that nobody has to unmount. `None`: this is that process. Else whether it passed; one that
/// cannot be had here is said and passes.
pub fn in_mount_namespace(test: &str) -> Option<bool> {
    const INSIDE: &str = "FIELDSTREAM_TEST_MOUNTS";
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let can = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: {test}: no mount namespace can be had (it takes root)");
        return Some(true);
    }
    let mut command = std::process::Command::new("unshare");
    command.arg("--mount").arg(std::env::current_exe().expect("this program"));
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    Some(command.status().expect("the test runs").success())
}

/// Waits until a condition holds.
///
/// # Panics
/// After the deadline, with what was waited for.
pub async fn until<F: Future<Output = bool>>(what: &str, deadline: Duration, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
