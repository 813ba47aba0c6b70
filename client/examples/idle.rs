//! Holds idle connections and says what each costs the server:
//! `idle URL CA-FILE|- COUNT SERVER-PID`. Prints one JSON line with the server's resident memory
//! before and after, and per connection in KiB.
use fieldstream_client::{Client, ClientError, ClientOptions, QuicSocket};
use std::time::Duration;

fn resident_kib(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, ca, count, pid] = args.as_slice() else {
        eprintln!("usage: idle URL CA-FILE|- COUNT SERVER-PID");
        std::process::exit(2);
    };
    let count: u64 = count.parse().unwrap_or(1000);
    let before = resident_kib(pid).unwrap_or(0);
    let socket = QuicSocket::bind(false)?;
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut options = ClientOptions::default().quic_socket(socket.clone());
        if ca != "-" {
            options = options.ca_file(ca);
        }
        clients.push(Client::connect(url, options).await?);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = resident_kib(pid).unwrap_or(0);
    let connected = clients.iter().filter(|c| c.status().connected).count();
    let each = after.saturating_sub(before) as f64 / count.max(1) as f64;
    println!(
        "{{\"url\":\"{url}\",\"connections\":{connected},\"rss_before_kib\":{before},\"rss_after_kib\":{after},\"per_connection_kib\":{each:.1}}}"
    );
    Ok(())
}
