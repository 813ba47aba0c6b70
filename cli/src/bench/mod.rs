//! `fieldstream bench`: an open-loop load generator for the device wire.
//!
//! Instructions are due by the clock, whatever the server does, and latencies count from then. One
//! thread does everything, because it shares the machine with what it measures. `fleet` holds all
//! clients without sockets or clock; `sockets` moves their bytes over TCP and TLS, `quic` over QUIC; `run` takes one
//! rate after the other, and `figures` says what came of it.

mod args;
mod client;
mod climb;
mod figures;
mod fleet;
mod layout;
mod payload;
mod plot;
mod process;
mod quic;
mod run;
mod shell;
mod sockets;
mod step;
mod table;
mod window;

pub(crate) use args::BenchArgs;

use crate::args::Ack;
use crate::client::failure;
use crate::exit::Failure;
use crate::output;

use fieldstream_client::wire::Wire;
use fieldstream_client::{ClientError, QuicSocket};
use figures::{Figures, Head, Line};
use fleet::{Common, Fleet};
use layout::Layout;
use payload::Payloads;
use process::Processes;
use quic::Quic;
use run::Run;
use rustls::pki_types::ServerName;
use shell::{Clock, SharedFleet, Shell};
use sockets::{Sockets, Tls};
use std::cell::RefCell;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

/// QUIC clients that share a UDP socket: many of them would overflow its buffer in a burst, which
/// clients on machines of their own do not.
const CLIENTS_PER_UDP_SOCKET: usize = 16;

/// More sockets than these are shared by more clients each.
const UDP_SOCKETS_MAX: usize = 256;

/// `fieldstream bench`.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    args.check()?;
    let processes = Processes::of(&args.pids)
        .map_err(|pid| Failure::usage(format_args!("--pids: there is no process {pid}, or it may not be looked at")))?;
    raise_files_max();
    let wire = Wire::new(&args.server.server, args.server.ca.as_deref(), None);
    let wire = wire.map_err(|error| failure(&args.server, &error))?;
    let layout = Layout { clients: args.clients, documents: args.documents() };
    let epoch = wall_us();
    let mut head = head(args, layout, &wire, epoch);
    let common = Common {
        layout,
        ack: args.ack.into(),
        client_prefix: format!("{}-", args.server.client_id.clone().unwrap_or(format!("bench-{}", head.run))),
        document_prefix: format!("{}{}/", args.prefix, head.run),
        token: args.server.token.clone(),
        epoch,
        handshakes: args.handshakes,
    };
    let fleet = Rc::new(RefCell::new(Fleet::new(common, Payloads::new(args.size, rand::random))));
    let clock = Clock::new();
    let shell = match wire.transport() {
        "quic" => quic(args, &wire, &fleet, clock)?,
        _ => sockets(args, &wire, clock)?,
    };
    let mut run = Run { args, layout, fleet, shell, clock, processes, steps_done: 0 };
    run.connect(&mut head)?;
    if !args.server.json {
        output::line(&table::head(&head))?;
    }
    if let Some(documents) = args.fill {
        run.stock(documents)?;
    }
    let measured = measure(args, &mut run, &head);
    run.shell.end();
    measured
}

/// Runs the steps, prints each as it ends, and then what they come to.
fn measure(args: &BenchArgs, run: &mut Run<'_>, head: &Head) -> Result<(), Failure> {
    let rates = args.steps();
    let mode = if args.find_max || rates.len() > 1 { "step" } else { "rate" };
    let mut done: Vec<Figures> = Vec::new();
    let mut step = |rate: f64| {
        let figures = run.step(rate)?;
        match args.server.json {
            true => line(&Line { head, mode, max_rate: None, figures: Some(&figures) })?,
            false => output::line(&table::row(&figures))?,
        }
        let sustained = figures.sustained;
        done.push(figures);
        Ok::<bool, Failure>(sustained)
    };
    if args.find_max {
        let highest = climb::climb(&rates, step)?;
        let best = done.iter().rev().find(|figures| Some(figures.offered) == highest && figures.sustained);
        match args.server.json {
            true => {
                let max_rate = Some(highest.unwrap_or(0.0));
                line(&Line { head, mode: "findmax", max_rate, figures: best.or(done.last()) })?;
            }
            false => output::line(&table::summary(highest))?,
        }
    } else {
        for rate in rates {
            step(rate)?;
        }
    }
    if let Some(path) = &args.plot {
        let svg = plot::svg(head, &done);
        let failed = |error| Failure::failed(format_args!("cannot write {}: {error}", path.display()));
        std::fs::write(path, svg).map_err(failed)?;
    }
    let broken: Vec<String> = done.iter().filter_map(Figures::broken).collect();
    if broken.is_empty() { Ok(()) } else { Err(Failure::failed(broken.join("\n"))) }
}

fn line(line: &Line<'_>) -> Result<(), Failure> {
    let json = serde_json::to_string(line).map_err(|error| Failure::failed(format_args!("the figures: {error}")))?;
    output::line(&json)
}

fn head(args: &BenchArgs, layout: Layout, wire: &Wire, epoch: u64) -> Head {
    Head {
        peer: "fieldstream",
        version: env!("CARGO_PKG_VERSION"),
        // Milliseconds since 2024 tell runs apart and keep ids short.
        run: format!("{:x}", (epoch / 1_000).saturating_sub(1_704_067_200_000)),
        clients: layout.clients,
        docs: layout.documents,
        size: args.size,
        transport: wire.transport(),
        profile: args.profile_name.clone(),
        ack: match args.ack {
            Ack::Logged => "logged",
            Ack::Applied => "applied",
            Ack::Stored => "stored",
        },
        note: args.note.clone(),
        connect_s: 0.0,
        rss_per_conn_kb: None,
    }
}

/// Connections over TCP and TLS.
fn sockets(args: &BenchArgs, wire: &Wire, clock: Clock) -> Result<Box<dyn Shell>, Failure> {
    let (host, port) = wire.host_and_port();
    // One connection tells whether anybody is there, and at which of a name's addresses.
    let server = TcpStream::connect((host, port)).and_then(|probe| probe.peer_addr());
    let server = server.map_err(|error| unreachable(args, &error))?;
    let tls = match wire.tls() {
        None => None,
        Some(config) => {
            let name = ServerName::try_from(host.to_owned()).map_err(|_| {
                failure(&args.server, &ClientError::Url(format!("{host} is neither a DNS name nor an IP address")))
            })?;
            Some(Tls { config: config.clone(), name })
        }
    };
    let sockets = Sockets::new(server, tls, args.clients, clock).map_err(|error| unreachable(args, &error))?;
    Ok(Box::new(sockets))
}

/// Connections over QUIC.
fn quic(args: &BenchArgs, wire: &Wire, fleet: &SharedFleet, clock: Clock) -> Result<Box<dyn Shell>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format_args!("cannot start: {error}")))?;
    let mut found = wire.host_and_port().to_socket_addrs().map_err(|error| unreachable(args, &error))?;
    let is_ipv6 = found.next().is_some_and(|address| address.is_ipv6());
    let inside = runtime.enter();
    let bound = || {
        let socket = QuicSocket::bind(is_ipv6)?;
        Wire::new(&args.server.server, args.server.ca.as_deref(), Some(socket))
    };
    let sockets = args.clients.div_ceil(CLIENTS_PER_UDP_SOCKET).min(UDP_SOCKETS_MAX);
    let wires = (0..sockets).map(|_| bound()).collect::<Result<Vec<Wire>, ClientError>>();
    let wires = wires.map_err(|error| failure(&args.server, &error))?;
    drop(inside);
    Ok(Box::new(Quic::new(runtime, wires, Rc::clone(fleet), args.clients, clock)))
}

fn unreachable(args: &BenchArgs, error: &std::io::Error) -> Failure {
    failure(&args.server, &ClientError::Io(format!("cannot connect to {}: {error}", args.server.server)))
}

/// Lets the process have as many files as it may: each connection is one.
fn raise_files_max() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // What cannot be raised shows when connecting.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Microseconds since the Unix epoch.
fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
