//! A tiny server that speaks the frames over real sockets, keeps documents in memory, and fails on
//! request. It stands in for a gateway only here, to test the client's shell.

use fieldstream_client::{Change, Code, Document, Version};
use fieldstream_shared::change::write_change;
use fieldstream_shared::frame::{
    Deframer, FromClient, FromServer, Instruct, Limits, Update, Watch, Welcome, encode_document,
};
use fieldstream_shared::ids::DocumentId;
use fieldstream_shared::instruction::decide;
use fieldstream_shared::outcome::{AckLevel, Outcome};
use fieldstream_shared::read::Listed;
use fieldstream_shared::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

type Rustls = tokio_rustls::rustls::ServerConfig;

/// What was seen and what is to go wrong.
#[derive(Default)]
pub(crate) struct State {
    documents: BTreeMap<String, Document>,
    history: BTreeMap<String, Vec<(Version, String, u64, Change)>>,
    /// Outcomes per client and epoch.
    marks: BTreeMap<(String, u64), BTreeMap<u64, Outcome>>,
    connections: BTreeMap<u64, Connection>,
    last_session: u64,
    /// Every HELLO: client, epoch, sent_upto, watches.
    pub(crate) hellos: Vec<(String, u64, u64, usize)>,
    /// Every instruction as it arrived: epoch, number, resent.
    pub(crate) arrived: Vec<(u64, u64, bool)>,
    /// How many BYEs were heard.
    pub(crate) byes: usize,
    /// Cut the connection after carrying out so many instructions more, without an answer.
    pub(crate) cut_after: Option<usize>,
    /// Answer HELLO with this.
    pub(crate) close_with: Option<(Code, u64)>,
    /// Say nothing to HELLO.
    pub(crate) mute: bool,
    /// Epochs below this are stale.
    pub(crate) stale_below: u64,
    /// Answer at level `logged` first.
    pub(crate) log_first: bool,
    pub(crate) keepalive_ms: u64,
    /// The time WELCOME tells.
    pub(crate) time_us: u64,
}

struct Connection {
    client: String,
    watches: BTreeSet<String>,
    out: mpsc::Sender<Option<Vec<u8>>>,
}

impl Connection {
    fn send(&self, frame: &FromServer<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let _ = self.out.try_send(Some(bytes));
    }
}

/// A running fake.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) tcp: String,
    pub(crate) tls: String,
    pub(crate) quic: String,
    pub(crate) ca_file: PathBuf,
    _folder: Arc<tempfile::TempDir>,
}

impl Fake {
    pub(crate) async fn start() -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, ca_certificate.pem()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut config = Rustls::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"fieldstream/1".to_vec()];
        let config = Arc::new(config);
        let state = Arc::new(Mutex::new(State { keepalive_ms: 30_000, ..State::default() }));
        let tcp = listen_tcp(Arc::clone(&state), None).await;
        let tls = listen_tcp(Arc::clone(&state), Some(Arc::clone(&config))).await;
        let quic = listen_quic(Arc::clone(&state), config);
        Fake {
            state,
            tcp: format!("tcp://127.0.0.1:{tcp}"),
            tls: format!("tls://localhost:{tls}"),
            quic: format!("quic://localhost:{quic}"),
            ca_file,
            _folder: Arc::new(folder),
        }
    }

    /// Looks at or changes the state.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.state.lock().unwrap())
    }

    pub(crate) fn document(&self, id: &str) -> Document {
        self.with(|state| state.documents.get(id).cloned().unwrap_or_default())
    }

    /// Cuts every connection.
    pub(crate) fn cut_all(&self) {
        self.with(|state| state.connections.values().for_each(|c| drop(c.out.try_send(None))));
    }
}

async fn listen_tcp(state: Arc<Mutex<State>>, tls: Option<Arc<Rustls>>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (state, tls) = (Arc::clone(&state), tls.clone());
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                match tls {
                    None => serve(state, stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                            serve(state, stream).await;
                        }
                    }
                }
            });
        }
    });
    port
}

fn listen_quic(state: Arc<Mutex<State>>, tls: Arc<Rustls>) -> u16 {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let port = endpoint.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                let Ok((send, recv)) = connection.accept_bi().await else { return };
                serve(state, tokio::io::join(recv, send)).await;
                // Closing at once would lose what was just written.
                let _ = tokio::time::timeout(std::time::Duration::from_secs(1), connection.closed()).await;
            });
        }
    });
    port
}

async fn serve(state: Arc<Mutex<State>>, stream: impl AsyncRead + AsyncWrite) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (out, mut outgoing) = mpsc::channel::<Option<Vec<u8>>>(4096);
    let session = {
        let mut state = state.lock().unwrap();
        state.last_session += 1;
        state.last_session
    };
    let read = async {
        let mut deframer = Deframer::default();
        let mut buffer = vec![0; 4096];
        loop {
            let n = reader.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                return;
            }
            deframer.push(&buffer[..n]);
            while let Some(payload) = deframer.next(1 << 20).unwrap() {
                let frame = FromClient::decode(payload).unwrap();
                state.lock().unwrap().handle(session, frame, &out);
            }
        }
    };
    let write = async {
        while let Some(Some(bytes)) = outgoing.recv().await {
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    tokio::select! { () = read => {} () = write => {} }
    state.lock().unwrap().connections.remove(&session);
}

impl State {
    fn handle(&mut self, session: u64, frame: FromClient<'_>, out: &mpsc::Sender<Option<Vec<u8>>>) {
        let reply = |frame: FromServer<'_>| {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let _ = out.try_send(Some(bytes));
        };
        match frame {
            FromClient::Hello(hello) => {
                self.hellos.push((hello.client.into(), hello.epoch, hello.sent_upto, hello.watches.len()));
                if self.mute {
                    return;
                }
                if let Some((code, retry_after_ms)) = self.close_with {
                    reply(FromServer::Close { code, reason: "as told", retry_after_ms });
                    let _ = out.try_send(None);
                    return;
                }
                let limits =
                    Limits { window: 32, frame_bytes: 1 << 18, watches: 1000, keepalive_ms: self.keepalive_ms };
                reply(FromServer::Welcome(Welcome { session, limits, time_us: self.time_us, log_id: 1 }));
                let client = hello.client.to_owned();
                let taken: Vec<u64> =
                    self.connections.iter().filter(|(_, c)| c.client == client).map(|(id, _)| *id).collect();
                for old in taken.into_iter().filter_map(|id| self.connections.remove(&id)) {
                    old.send(&FromServer::Close { code: Code::TAKEN_OVER, reason: "another", retry_after_ms: 0 });
                    let _ = old.out.try_send(None);
                }
                self.marks.entry((client.clone(), hello.epoch)).or_default();
                let connection = Connection { client, watches: BTreeSet::new(), out: out.clone() };
                self.connections.insert(session, connection);
                hello.watches.iter().for_each(|watch| self.watch(session, watch));
            }
            FromClient::Instruct(instruct) => self.instruct(session, &instruct),
            FromClient::Watch(watch) => self.watch(session, &watch),
            FromClient::Unwatch { document } => {
                self.connections.get_mut(&session).map(|c| c.watches.remove(document));
            }
            FromClient::Get { request, document } => {
                let mut bytes = Vec::new();
                let found = self.documents.get(document).cloned().unwrap_or_default();
                encode_document(Some(request), document, &found, &mut bytes);
                let _ = out.try_send(Some(bytes));
            }
            FromClient::List { request, prefix, after, limit } => {
                let documents = self.documents.iter().filter(|(id, _)| id.starts_with(prefix) && id.as_str() > after);
                let documents = documents.take(limit as usize).map(|(id, document)| Listed {
                    document: DocumentId::new(id).unwrap(),
                    revision: document.revision,
                    kind: document.body.kind(),
                    bytes: document.body.encoded_bytes() as u64,
                    time_us: document.time_us,
                });
                reply(FromServer::Listed { request, documents: documents.collect() });
            }
            FromClient::Ping { nonce } | FromClient::PingClock { nonce } => {
                reply(FromServer::Pong { nonce, time_us: 1 });
            }
            FromClient::Sync { request } => reply(FromServer::Synced { request }),
            FromClient::Bye => self.byes += 1,
        }
    }

    fn watch(&mut self, session: u64, watch: &Watch<'_>) {
        let Some(connection) = self.connections.get_mut(&session) else { return };
        let id = watch.document;
        if id.starts_with("secret") {
            connection.send(&FromServer::Refused { request: 0, document: id, code: Code::FORBIDDEN });
            return;
        }
        connection.watches.insert(id.into());
        let history = self.history.get(id).map_or(&[][..], Vec::as_slice);
        let held = history.iter().position(|(v, ..)| (v.revision, v.state_hash) == (watch.revision, watch.state_hash));
        connection.send(&FromServer::Watching { document: id, recovered: held.is_some() });
        match held {
            Some(held) => {
                for (version, client, number, change) in &history[held + 1..] {
                    connection.send(&FromServer::Update(Update {
                        document: id,
                        version: *version,
                        client,
                        number: *number,
                        change: &encoded(change),
                    }));
                }
            }
            None => {
                let mut bytes = Vec::new();
                let document = self.documents.get(id).cloned().unwrap_or_default();
                encode_document(None, id, &document, &mut bytes);
                let _ = connection.out.try_send(Some(bytes));
            }
        }
    }

    fn instruct(&mut self, session: u64, instruct: &Instruct<'_>) {
        let Some(client) = self.connections.get(&session).map(|c| c.client.clone()) else { return };
        let epoch = self.marks.keys().filter(|(c, _)| *c == client).map(|(_, e)| *e).max().unwrap_or(0);
        let number = instruct.number;
        self.arrived.push((epoch, number, instruct.resent));
        let seen = self.marks.get(&(client.clone(), epoch)).and_then(|mark| mark.get(&number)).copied();
        let outcome = match seen {
            Some(outcome) => outcome,
            None if epoch < self.stale_below => Outcome::Refused(Code::STALE_EPOCH),
            None => self.apply(&client, instruct),
        };
        self.marks.entry((client, epoch)).or_default().insert(number, outcome);
        if let Some(left) = &mut self.cut_after {
            if *left == 0 {
                self.cut_after = None;
                let cut = self.connections.remove(&session);
                cut.map(|c| c.out.try_send(None));
                return;
            }
            *left -= 1;
        }
        let Some(connection) = self.connections.get(&session) else { return };
        if self.log_first {
            connection.send(&FromServer::Outcome { epoch, number, level: AckLevel::Logged, outcome: None });
        }
        let level = AckLevel::Stored;
        connection.send(&FromServer::Outcome { epoch, number, level, outcome: Some(outcome) });
    }

    fn apply(&mut self, client: &str, instruct: &Instruct<'_>) -> Outcome {
        let id = instruct.content.document;
        let document = self.documents.entry(id.into()).or_default();
        let decided = instruct
            .content
            .check()
            .and_then(|operation| decide(document, instruct.content.if_revision, operation, &Registry::default()));
        let change = match decided {
            Ok(change) => change,
            Err(code) => return Outcome::Refused(code),
        };
        change.iter().for_each(|primitive| primitive.apply(&mut document.body).unwrap());
        document.revision += 1;
        let version = Version { revision: document.revision, state_hash: document.hash(), time_us: 1 };
        document.time_us = 1;
        let update = Update { document: id, version, client, number: instruct.number, change: &encoded(&change) };
        for connection in self.connections.values().filter(|c| c.watches.contains(id)) {
            connection.send(&FromServer::Update(update.clone()));
        }
        let line = (version, client.to_owned(), instruct.number, change);
        self.history.entry(id.into()).or_default().push(line);
        Outcome::Applied { revision: version.revision }
    }
}

fn encoded(change: &Change) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_change(change, &mut bytes);
    bytes
}
