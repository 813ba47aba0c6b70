//! The one table of configuration keys: name, default, form and explanation. The commented file,
//! the defaults, the check for unknown keys and `config show` all come from it.

use super::parse;

/// What a value must look like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// Any text; empty for none.
    Text,
    /// Where a NATS server is; empty for none.
    NatsUrl,
    /// A socket address.
    Address,
    /// A socket address or `off`.
    OptionalAddress,
    /// A number of bytes, at least this many.
    Size(u64),
    /// A duration.
    Duration,
    /// A whole number within bounds.
    Integer(u64, u64),
    /// `true` or `false`.
    Boolean,
    /// Permission bits.
    FileMode,
    /// `shared`, or a set of partitions.
    Partitions,
    /// Rules for history, separated by commas; empty for none.
    HistoryRules,
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl Form {
    /// Checks one value.
    pub(crate) fn check(self, text: &str) -> Result<(), String> {
        match self {
            Form::Text => Ok(()),
            Form::NatsUrl => parse::nats_url(text).map(drop),
            Form::Address => parse::address(text).map(drop),
            Form::OptionalAddress => parse::optional_address(text).map(drop),
            Form::Size(least) => match parse::size(text)? {
                bytes if bytes < least => Err(format!("expected at least {least} bytes")),
                _ => Ok(()),
            },
            Form::Duration => parse::duration(text).map(drop),
            Form::Integer(least, most) => match text.parse::<u64>() {
                Ok(n) if (least..=most).contains(&n) => Ok(()),
                _ => Err(format!("expected a whole number from {least} to {most}")),
            },
            Form::Boolean => match text {
                "true" | "false" => Ok(()),
                _ => Err("expected true or false".to_owned()),
            },
            Form::FileMode => parse::file_mode(text).map(drop),
            Form::HistoryRules => parse::history_rules(text).map(drop),
            Form::Partitions => parse::ownership(text).map(drop),
            Form::Choice(words) if words.contains(&text) => Ok(()),
            Form::Choice(words) => {
                let near = parse::nearest(text, words.iter().copied());
                let meant = near.map(|w| format!("; did you mean {w}?")).unwrap_or_default();
                Err(format!("expected one of {}{meant}", words.join(", ")))
            }
        }
    }

    /// Whether the value is written without quotes in TOML.
    pub(crate) fn is_bare(self) -> bool {
        matches!(self, Form::Integer(..) | Form::Boolean)
    }
}

/// One configuration key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// `section.name`.
    pub(crate) name: &'static str,
    /// Its default.
    pub(crate) default: &'static str,
    /// What it must look like.
    pub(crate) form: Form,
    /// What it is for, line by line.
    pub(crate) about: &'static str,
}

impl Key {
    /// Section and name within it.
    pub(crate) fn parts(&self) -> (&'static str, &'static str) {
        self.name.split_once('.').unwrap_or(("", self.name))
    }

    /// The environment variable that sets it.
    pub(crate) fn variable(&self) -> String {
        format!("FIELDSTREAM_{}", self.name.replace('.', "__").to_uppercase())
    }
}

const fn key(name: &'static str, default: &'static str, form: Form, about: &'static str) -> Key {
    Key { name, default, form, about }
}

/// What each section is about.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    (
        "nats",
        "Where the log is. `fieldstream up` starts a nats-server of its own and ignores url and\ncredentials_file; roles run by themselves need url.",
    ),
    ("gateway", "Where devices connect."),
    ("processor", "Where instructions are applied."),
    ("storer", "Where documents are kept for reports."),
    ("up", "Everything on one machine: `fieldstream up`."),
    ("admin", "For operators: readiness and metrics over HTTP."),
    ("log", "What the program says about itself, on stderr."),
];

/// Every key, in the order of the commented file.
pub(crate) const KEYS: &[Key] = &[
    key(
        "nats.url",
        "",
        Form::NatsUrl,
        "URL of the NATS server, with user and password in it if it wants them:\nnats://user:password@host:4222. Empty: none.",
    ),
    key(
        "nats.credentials_file",
        "",
        Form::Text,
        "A NATS credentials file (.creds) instead of user and password. Empty: none.",
    ),
    key(
        "nats.lanes",
        "1",
        Form::Integer(1, fieldstream_shared::limits::LANES_MAX as u64),
        "Pairs of streams the partitions are spread over. Fixed when the streams are created; a\nsingle machine is fastest with 1.",
    ),
    key(
        "nats.log_bytes_max",
        "0",
        Form::Size(0),
        "Disk space for all streams together. 0: from the free disk, when they are created. More than\nthey have enlarges them; they never shrink. A full log refuses new\ninstructions until there is room; it never drops any.",
    ),
    key(
        "gateway.listen",
        "127.0.0.1:7443",
        Form::Address,
        "TLS over TCP, and QUIC on the same port number. Port 0 takes a free one.",
    ),
    key(
        "gateway.tcp",
        "127.0.0.1:7440",
        Form::OptionalAddress,
        "TCP without encryption, for devices on the same machine. off: none.",
    ),
    key(
        "gateway.certificate_file",
        "",
        Form::Text,
        "PEM file with the certificate chain. Empty: `up` makes one in its data directory.",
    ),
    key("gateway.key_file", "", Form::Text, "PEM file with the certificate's key."),
    key(
        "gateway.tokens_file",
        "",
        Form::Text,
        "TOML file with tokens and rights. Empty: connections from this machine need no token,\nall others are refused; `up` makes one in its data directory.",
    ),
    key(
        "gateway.require_token_on_loopback",
        "false",
        Form::Boolean,
        "Whether connections from this machine need a token, too.",
    ),
    key(
        "gateway.stored_copies",
        "1",
        Form::Integer(1, 16),
        "Storers that must have an instruction on disk before it counts as stored.",
    ),
    key(
        "gateway.connections_max",
        "20000",
        Form::Integer(1, 1_000_000),
        "Connections at once; further ones are told to come again. Each needs an open file\n(`ulimit -n`) and 5 to 60 KiB.",
    ),
    key(
        "gateway.watched_bytes_max",
        "1GiB",
        Form::Size(1 << 20),
        "Memory for the documents that clients watch. When it is full, watches of further ones wait.",
    ),
    key(
        "processor.partitions",
        "shared",
        Form::Partitions,
        "The partitions this processor owns. shared: its share among all processors that share, whoever\ncomes and goes. all, or numbers and ranges such as 0-127,200: these, whatever others do.",
    ),
    key(
        "processor.cache_bytes_max",
        "256MiB",
        Form::Size(1 << 20),
        "Memory for documents and client marks. What does not fit is loaded again when needed.",
    ),
    key(
        "processor.pinned_bytes_max",
        "128MiB",
        Form::Size(1 << 20),
        "Memory for what no storer has on disk yet. When it is full, applying waits.",
    ),
    key("storer.directory", "", Form::Text, "Folder of the LMDB file. Empty: `up` takes one in its data directory."),
    key(
        "storer.file_mode",
        "0664",
        Form::FileMode,
        "Permission bits of the LMDB files. Readers need to write the lock file, so 0664 lets the\ngroup read reports.",
    ),
    key(
        "storer.map_bytes",
        "1TiB",
        Form::Size(1 << 20),
        "Address space reserved for the LMDB file: how large it may become before the map grows. It takes no\ndisk space by itself.",
    ),
    key(
        "storer.map_bytes_max",
        "64TiB",
        Form::Size(1 << 20),
        "A full map is doubled while the storer runs, up to this size. Readers with a smaller map then open the\nfile anew (docs/FORMAT.md).",
    ),
    key(
        "storer.commit_floor",
        "5ms",
        Form::Duration,
        "Least time between two commits. Longer spares the disk, shorter makes `stored` come sooner.",
    ),
    key(
        "storer.copies_directory",
        "",
        Form::Text,
        "Folder of the verified copies, one folder for each storer. Empty: `copies` beside the LMDB file; on\nanother disk they survive the loss of that one. The log is purged only behind a copy.",
    ),
    key(
        "storer.copy_every",
        "10m",
        Form::Duration,
        "How often a copy is made, if anything is new; sooner while the log is filling.",
    ),
    key(
        "storer.client_marks_kept",
        "30days",
        Form::Duration,
        "After so long without any instruction a client's instruction numbers are forgotten; a device that is\naway for longer with an instruction it has no answer to may see that carried out twice. At least 1day; 0s: never.",
    ),
    key(
        "storer.history_revisions",
        "1000",
        Form::Integer(0, 1_000_000_000),
        "Revisions of each document that are kept in history; 0: all, and the file grows for ever. A watcher that\nmissed more gets the document as a whole.",
    ),
    key(
        "storer.history_age_max",
        "0s",
        Form::Duration,
        "Older changes go from history; 0s: whatever their age. The newest change of each document stays.",
    ),
    key(
        "storer.history_bytes_max",
        "0",
        Form::Size(0),
        "The oldest changes go when history takes more of the file than this; 0: a quarter of what the file\ntakes and its disk has free.",
    ),
    key(
        "storer.history_keep",
        "",
        Form::HistoryRules,
        "Other bounds for documents whose ids begin alike, as `PREFIX AGE SIZE`, separated by commas, such as\n`site7/ 90days 2GiB, tmp/ 1h`. Either of the two may be left out; the longest prefix counts.",
    ),
    key("storer.copies_kept", "2", Form::Integer(1, 1000), "Copies that are kept."),
    key("up.data", "fieldstream-data", Form::Text, "The data directory: log, documents, certificates, tokens."),
    key(
        "up.profile",
        "durable",
        Form::Choice(&["durable", "fast"]),
        "durable: everything acknowledged is synced to disk first and survives a power cut.\nfast: synced every two minutes; survives the death of every process, not a power cut.",
    ),
    key("up.demo", "0", Form::Integer(0, 10_000), "Simulated devices that write and watch documents under demo/."),
    key("up.ready_file", "", Form::Text, "A file that gets all addresses as JSON once everything runs. Empty: none."),
    key(
        "up.nats_server",
        "",
        Form::Text,
        "The nats-server program. Empty: FIELDSTREAM_NATS_SERVER, else beside this program, else\nfrom PATH.",
    ),
    key("up.drain_timeout", "20s", Form::Duration, "How long a stopping program waits for what is in flight."),
    key(
        "admin.listen",
        "off",
        Form::OptionalAddress,
        "Address of /livez, /readyz and /metrics (Prometheus). There is no login: keep it on loopback\nor on a private network. off: none.",
    ),
    key(
        "log.level",
        "info",
        Form::Choice(&["error", "warn", "info", "debug", "trace", "off"]),
        "The least severe messages that are shown.",
    ),
    key("log.format", "auto", Form::Choice(&["auto", "text", "json"]), "auto: text on a terminal, JSON otherwise."),
];

/// The key of this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}
