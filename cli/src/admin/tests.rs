use super::*;
use fieldstream_nats::Finding;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn readiness_follows_the_roles_and_liveness_does_not() {
    let (gateway, storer) = (Health::new(), Health::new());
    let roles = vec![("gateway", gateway.clone()), ("storer", storer.clone())];
    let admin = Admin::start(Some("127.0.0.1:0".parse().unwrap()), roles).await.unwrap().unwrap();
    assert!(get(admin.address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(admin.address, "/readyz").await.starts_with("HTTP/1.1 503"));
    gateway.set_ready(true);
    storer.set_ready(true);
    assert!(get(admin.address, "/readyz").await.starts_with("HTTP/1.1 200"));
    storer.raise(Finding::new("not\"stored", Severity::Blocking, "nothing is stored: no space", "make room"));
    let answer = get(admin.address, "/readyz").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("nothing is stored: no space; make room"),
        "{answer}"
    );
    let metrics = get(admin.address, "/metrics").await;
    for line in [
        "fieldstream_ready{role=\"gateway\"} 1",
        "fieldstream_ready{role=\"storer\"} 0",
        "fieldstream_finding{role=\"storer\",code=\"not\\\"stored\",severity=\"blocking\"} 1",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in {metrics}");
    }
    assert!(get(admin.address, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(admin.address, "/").await.starts_with("HTTP/1.1 404"));
    let posted = ask(admin.address, "POST /readyz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert!(posted.starts_with("HTTP/1.1 405"));
}

#[tokio::test]
async fn nobody_holds_the_endpoint_up_by_saying_nothing() {
    let admin = Admin::start(Some("127.0.0.1:0".parse().unwrap()), vec![]).await.unwrap().unwrap();
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 8 {
        silent.push(TcpStream::connect(admin.address).await.unwrap());
    }
    let answer = tokio::time::timeout(HEAD_TIMEOUT * 3, get(admin.address, "/livez")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn an_address_in_use_is_said() {
    let admin = Admin::start(Some("127.0.0.1:0".parse().unwrap()), vec![]).await.unwrap().unwrap();
    let failure = Admin::start(Some(admin.address), vec![]).await.unwrap_err();
    assert!(failure.message.contains(&admin.address.to_string()), "{}", failure.message);
    assert!(Admin::start(None, vec![]).await.unwrap().is_none());
}
