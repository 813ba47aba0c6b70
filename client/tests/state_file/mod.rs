//! Clients with a state file.

use crate::fake::Fake;
use crate::{PATIENCE, append, eventually, options};
use fieldstream_client::{AckLevel, Body, Client, ClientError, Code, How};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_client_or_one_that_never_began_leaves_its_state_file_free() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let with_file = || options(&fake).state_file(folder.path().join("state"));
    for _ in 0..20 {
        let client = Client::connect(&fake.tcp, with_file()).await.unwrap();
        let pending = client.submit("d", append("x"), How::default()).await.unwrap();
        // Not waited for: the file is still being written to.
        let _ = client.close(Duration::ZERO).await;
        drop(pending);
        let nobody = Client::connect("tcp://127.0.0.1:1", with_file()).await.err().unwrap();
        assert!(matches!(nobody, ClientError::Io(_)), "{nobody}");
    }
}

#[tokio::test]
async fn what_a_state_file_brought_is_refused_to_who_asks_later() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let with_file = || options(&fake).state_file(folder.path().join("state"));
    let client = Client::connect(&fake.tcp, with_file().reconnect(false)).await.unwrap();
    fake.with(|state| state.cut_after = Some(0));
    let how = How { if_revision: Some(9), ack: AckLevel::Applied };
    assert!(client.instruct_with("d", append("x"), how).await.is_err());
    assert!(client.close(PATIENCE).await.is_err());
    let client = Client::connect(&fake.tcp, with_file()).await.unwrap();
    eventually("the restored instruction is answered", || client.status().unresolved == 0).await;
    let refusal = tokio::time::timeout(PATIENCE, client.late_refusals().next()).await.unwrap().unwrap();
    assert_eq!((refusal.number, refusal.code), (1, Code::CONFLICT));
}

#[tokio::test]
async fn a_state_file_brings_what_was_unresolved() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let with_file = || options(&fake).state_file(folder.path().join("state"));
    let client = Client::connect(&fake.tcp, with_file().reconnect(false)).await.unwrap();
    let id = client.id().clone();
    client.instruct("d", append("1")).await.unwrap();
    // Carried out, but the answer to the second and all of the third get lost.
    fake.with(|state| state.cut_after = Some(0));
    let second = client.submit("d", append("2"), How::default()).await.unwrap();
    assert!(second.await.is_err());
    assert!(client.close(PATIENCE).await.is_err());
    let client = Client::connect(&fake.tcp, with_file()).await.unwrap();
    assert_eq!(*client.id(), id);
    client.instruct("d", append("3")).await.unwrap();
    client.close(PATIENCE).await.unwrap();
    assert_eq!(fake.document("d").body, Body::Text("123".into()));
    let epochs: std::collections::BTreeSet<u64> = fake.with(|state| state.arrived.iter().map(|a| a.0).collect());
    assert_eq!(epochs.len(), 1, "the epoch goes on");
    let marks: Vec<(u64, bool)> = fake.with(|state| state.arrived.iter().map(|a| (a.1, a.2)).collect());
    assert_eq!(marks, [(1, false), (2, false), (2, true), (3, false)]);
}

#[tokio::test]
async fn a_state_file_costs_one_write_for_many_instructions() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let client = Client::connect(&fake.tcp, options(&fake).state_file(folder.path().join("state"))).await.unwrap();
    let mut pending = Vec::new();
    for i in 0..500 {
        pending.push(client.submit("d", append(&format!("{i},")), How::default()).await.unwrap());
        if i == 250 {
            client.interrupt();
        }
    }
    for pending in pending {
        pending.await.unwrap();
    }
    let expect = Body::Text((0..500).map(|i| format!("{i},")).collect());
    assert_eq!(fake.document("d").body, expect);
    client.close(PATIENCE).await.unwrap();
}
