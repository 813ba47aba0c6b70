//! Where everything is: the banner for people, the ready file for programs.

use crate::config::Profile;
use crate::exit::Failure;
use serde_json::json;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// All that the banner and the ready file say.
#[derive(Debug, Clone)]
pub(crate) struct Overview {
    pub(crate) data: PathBuf,
    pub(crate) profile: Profile,
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) tls: Option<SocketAddr>,
    pub(crate) quic: Option<SocketAddr>,
    /// URL of NATS with user and password in it.
    pub(crate) nats: String,
    pub(crate) nats_version: String,
    pub(crate) nats_pid: u32,
    pub(crate) lanes: u16,
    pub(crate) stream_bytes: u64,
    pub(crate) disk_free_bytes: Option<u64>,
    pub(crate) database: PathBuf,
    /// The CA to trust; `None` if the certificate is not our own making.
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) token_file: PathBuf,
    pub(crate) token_on_loopback: bool,
    pub(crate) demo: usize,
    /// The admin endpoint.
    pub(crate) admin: Option<SocketAddr>,
}

/// A URL that works on this machine, also if the listener takes every address.
pub(crate) fn url(scheme: &str, address: SocketAddr) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("{scheme}://{}", SocketAddr::new(host, address.port()))
}

impl Overview {
    /// The ready file's content.
    pub(crate) fn ready_json(&self) -> serde_json::Value {
        json!({
            "tcp": self.tcp.map(|a| url("tcp", a)),
            "tls": self.tls.map(|a| url("tls", a)),
            "quic": self.quic.map(|a| url("quic", a)),
            "admin": self.admin.map(|a| url("http", a)),
            "nats": self.nats,
            "db": self.database,
            "ca_file": self.ca_file,
            "token_file": self.token_file,
            "pid": std::process::id(),
        })
    }

    /// What people see at the start.
    pub(crate) fn banner(&self, program: &Path) -> String {
        let mut text = format!("Fieldstream {}\n", crate::version::line());
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<12} {value}");
        };
        let survives = match self.profile {
            Profile::Durable => "what is acknowledged survives a power cut",
            Profile::Fast => "what is acknowledged survives every process, not a power cut",
        };
        row("data", self.data.display().to_string());
        row("profile", format!("{}: {survives}", self.profile.name()));
        let nats = crate::config::commented::hide_password(&self.nats);
        row("nats-server", format!("{}  {nats}  process {}", self.nats_version, self.nats_pid));
        let total = u64::from(self.lanes) * 2 * self.stream_bytes;
        let free = self.disk_free_bytes.map_or_else(String::new, |free| format!(" ({} free on the disk)", bytes(free)));
        row(
            "streams",
            format!(
                "{} lane{}, {} of log at most{free}",
                self.lanes,
                if self.lanes == 1 { "" } else { "s" },
                bytes(total)
            ),
        );
        let without_token = if self.token_on_loopback { "with a token" } else { "no token needed on this machine" };
        if let Some(tcp) = self.tcp {
            row("gateway", format!("{:<28} {without_token}", url("tcp", tcp)));
        }
        for (scheme, address) in [("tls", self.tls), ("quic", self.quic)] {
            if let Some(address) = address {
                row("", url(scheme, address));
            }
        }
        row("tokens", self.token_file.display().to_string());
        row("storer", format!("{}  (LMDB, database `documents`)", self.database.display()));
        if let Some(admin) = self.admin {
            row("admin", format!("{}  /livez /readyz /metrics", url("http", admin)));
        }
        if self.demo > 0 {
            row("demo", format!("{} devices, documents under demo/", self.demo));
        }
        let _ = write!(text, "\nTry, from any folder:\n{}", self.commands(program));
        text
    }

    fn commands(&self, program: &Path) -> String {
        let program = quoted(&program.display().to_string());
        let flags = self.connection_flags();
        let watched = if self.demo > 0 { super::demo::BOARD } else { "hello" };
        let mut text = String::new();
        for command in ["put hello 'Hello, world'".to_owned(), "get hello".to_owned(), format!("watch {watched}")] {
            let _ = writeln!(text, "  {program} {command} {flags}");
        }
        text
    }

    /// `--server … --ca …`: over QUIC if we made the certificate, so that the CA is known.
    fn connection_flags(&self) -> String {
        let mut flags = match (self.quic, &self.ca_file, self.tcp) {
            (Some(quic), Some(ca), _) => {
                format!("--server {} --ca {}", url("quic", quic), quoted(&ca.display().to_string()))
            }
            (_, _, Some(tcp)) => format!("--server {}", url("tcp", tcp)),
            (Some(quic), None, None) => format!("--server {} --ca CA_FILE", url("quic", quic)),
            (None, _, None) => "--server URL".to_owned(),
        };
        if self.token_on_loopback {
            let file = quoted(&self.token_file.display().to_string());
            let _ = write!(flags, " --token \"$(sed -n 's/^token = \"\\(.*\\)\"$/\\1/p' {file} | head -n 1)\"");
        }
        flags
    }
}

/// Writes the ready file, whole or not at all. It holds the password of NATS.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_ready_file(file: &Path, content: &serde_json::Value) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::failed(format_args!("cannot write {}: {error}", file.display()));
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = file.with_file_name(name);
    let _ = std::fs::remove_file(&temporary);
    let mut created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(cannot)?;
    created.write_all(format!("{content}\n").as_bytes()).and_then(|()| created.sync_all()).map_err(cannot)?;
    std::fs::rename(&temporary, file).map_err(cannot)
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Bytes for people.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| n >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", n as f64 / *unit as f64),
        None => format!("{n} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn overview() -> Overview {
        Overview {
            data: "/d".into(),
            profile: Profile::Durable,
            tcp: Some("127.0.0.1:1".parse().unwrap()),
            tls: Some("0.0.0.0:2".parse().unwrap()),
            quic: Some("[::]:2".parse().unwrap()),
            nats: "nats://u:secret@127.0.0.1:3".into(),
            nats_version: "2.15.1".into(),
            nats_pid: 7,
            lanes: 1,
            stream_bytes: 1 << 30,
            disk_free_bytes: Some(1 << 40),
            database: "/d/storer/db".into(),
            ca_file: Some("/d e/ca.pem".into()),
            token_file: "/d/tokens.toml".into(),
            token_on_loopback: false,
            demo: 0,
            admin: None,
        }
    }

    #[test]
    fn the_banner_has_addresses_that_work_and_commands_to_paste() {
        let banner = overview().banner(Path::new("/opt/field stream/fieldstream"));
        for part in [
            "tcp://127.0.0.1:1",
            "tls://127.0.0.1:2",
            "quic://[::1]:2",
            "2.0 GiB",
            "'/opt/field stream/fieldstream' get hello --server quic://[::1]:2 --ca '/d e/ca.pem'",
        ] {
            assert!(banner.contains(part), "{part} is missing in\n{banner}");
        }
        assert!(!banner.contains("secret"));
        let with_token = Overview { token_on_loopback: true, ..overview() }.banner(Path::new("/f"));
        assert!(with_token.contains("--token \"$(sed"), "{with_token}");
    }

    #[test]
    fn the_ready_file_is_private_and_complete() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ready.json");
        write_ready_file(&file, &overview().ready_json()).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        for key in ["tcp", "tls", "quic", "nats", "db", "ca_file", "token_file"] {
            assert!(read[key].is_string(), "{key}");
        }
        assert_eq!(read["pid"], std::process::id());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn words_are_quoted_for_shells() {
        assert_eq!(quoted("/a/b-c.pem"), "/a/b-c.pem");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
