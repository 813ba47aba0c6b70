//! nats-server and the three roles, each in a process of its own.
#![allow(dead_code)]

use crate::site::{program, run, text, until};
use fieldstream_nats::{
    ChildOptions, Connection, Credentials, Log, NatsChild, Profile, Topology, TopologyOptions, damage,
};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tokio::runtime::Runtime;

pub(crate) struct Roles {
    pub(crate) folder: PathBuf,
    pub(crate) connection: Connection,
    pub(crate) runtime: Runtime,
    nats: Option<NatsChild>,
    tcp: SocketAddr,
    roles: Vec<(String, Child)>,
}

impl Roles {
    /// nats-server with streams out of which messages can be taken, and no role yet.
    pub(crate) fn new(folder: &Path) -> Roles {
        let runtime = Runtime::new().unwrap();
        let binary = std::env::var_os("FIELDSTREAM_NATS_SERVER").map_or_else(|| "nats-server".into(), Into::into);
        let options = ChildOptions { binary, directory: folder.join("nats"), profile: Profile::Durable };
        let nats = runtime.block_on(NatsChild::start(options)).unwrap();
        let connection = runtime.block_on(async {
            let connection = Connection::connect(nats.server(), "test").await.unwrap();
            Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
            damage::permit(&connection, Log::Instructions, 0).await.unwrap();
            connection
        });
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Roles { folder: folder.to_owned(), connection, runtime, nats: Some(nats), tcp, roles: Vec::new() }
    }

    /// Its URL, with the login in it.
    pub(crate) fn nats(&self) -> String {
        let server = self.nats.as_ref().unwrap().server();
        let Credentials::UserPassword { user, password } = &server.credentials else { return server.url.clone() };
        server.url.replacen("://", &format!("://{user}:{password}@"), 1)
    }

    pub(crate) fn url(&self) -> String {
        format!("tcp://{}", self.tcp)
    }

    /// Starts a role under a name of its own, which begins with the role's.
    pub(crate) fn start(&mut self, name: &str) {
        self.start_with(name, &[]);
    }

    /// Starts a role with further arguments.
    pub(crate) fn start_with(&mut self, name: &str, more: &[&str]) {
        let role = name.split('-').next().unwrap();
        let mut command = program();
        command.args([role, "--nats", &self.nats()]);
        match role {
            "storer" => command.arg("--data").arg(self.folder.join(name)),
            "gateway" => command.args(["--tcp", &self.tcp.to_string()]),
            _ => &mut command,
        };
        let said = fs::OpenOptions::new().create(true).append(true).open(self.folder.join(name).with_extension("txt"));
        command.args(more).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.unwrap());
        self.roles.push((name.to_owned(), command.spawn().unwrap()));
    }

    /// What a role has said on stderr.
    pub(crate) fn said(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name).with_extension("txt")).unwrap()
    }

    pub(crate) fn kill(&mut self, name: &str) {
        let at = self.roles.iter().position(|(other, _)| other == name).unwrap();
        let (_, mut child) = self.roles.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// nats-server ends and does not come back.
    pub(crate) fn lose_nats(&mut self) {
        let nats = self.nats.take().unwrap();
        self.runtime.block_on(nats.stop());
    }

    /// Asks a role to end and waits until it has.
    pub(crate) fn stop(&mut self, name: &str) {
        let at = self.roles.iter().position(|(other, _)| other == name).unwrap();
        let (_, mut child) = self.roles.remove(at);
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        until("it has ended", || child.try_wait().unwrap());
    }

    /// Waits until a document is put and stored.
    pub(crate) fn put(&mut self, document: &str, body: &str) {
        let url = self.url();
        until("stored", || {
            run(&["put", document, body, "--ack", "stored", "--server", &url]).status.success().then_some(())
        });
        self.assert_running();
    }

    /// Puts a document, which then is in the log.
    pub(crate) fn log(&self, document: &str, body: &str) {
        let done = run(&["put", document, body, "--ack", "logged", "--server", &self.url()]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    }

    pub(crate) fn get(&self, document: &str) -> String {
        text(&run(&["get", document, "--server", &self.url()]).stdout)
    }

    pub(crate) fn assert_running(&mut self) {
        for (name, child) in &mut self.roles {
            assert!(child.try_wait().unwrap().is_none(), "{name} has ended");
        }
    }

    /// Last sequence of INSTRUCTIONS.
    pub(crate) fn last(&self) -> u64 {
        self.runtime.block_on(damage::ends(&self.connection, Log::Instructions, 0)).unwrap().1
    }

    /// What `repair --check` says, and whether the log is whole.
    pub(crate) fn check(&self) -> (bool, String) {
        let checked = run(&["repair", "--check", "--nats", &self.nats()]);
        (checked.status.success(), text(&checked.stdout) + &text(&checked.stderr))
    }

    pub(crate) fn status(&self) -> String {
        text(&run(&["status", "--nats", &self.nats()]).stdout)
    }

    pub(crate) fn repair(&self) {
        let repaired = run(&["repair", "--yes", "--nats", &self.nats()]);
        assert!(repaired.status.success(), "{}{}", text(&repaired.stdout), text(&repaired.stderr));
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        for (name, mut child) in self.roles.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
            eprintln!(
                "{name}: {}",
                fs::read_to_string(self.folder.join(&name).with_extension("txt")).unwrap_or_default()
            );
        }
        if let Some(nats) = self.nats.take() {
            self.runtime.block_on(nats.stop());
        }
    }
}
