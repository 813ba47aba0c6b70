//! Damaged logs and roles that run by themselves, each in a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "site/roles.rs"]
mod roles;
mod site;

use fieldstream_nats::{
    BatchWriter, Claim, Connection, Credentials, Log, NatsError, RepairRecord, RepairState, Server, Topology, Workshop,
    damage,
};
use roles::Roles;
use site::{Up, until};
use std::process::{Child, Stdio};
use std::time::Duration;

fn all(folder: &std::path::Path) -> Roles {
    let mut roles = Roles::new(folder);
    for role in ["storer", "processor", "gateway"] {
        roles.start(role);
    }
    roles.put("d0", "at first");
    roles
}

#[test]
fn behind_a_repair_all_go_on_by_themselves_also_who_saw_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let mut roles = all(folder.path());
    // Only a processor reads INSTRUCTIONS: the storer and the gateway notice nothing.
    roles.kill("processor");
    roles.log("d1", "logged");
    let missing = roles.last() + 1;
    for document in ["d2", "d3"] {
        roles.log(document, "logged");
    }
    roles.runtime.block_on(damage::remove(&roles.connection, Log::Instructions, 0, missing)).unwrap();
    roles.start("processor");
    until("the hole is found", || roles.said("processor").contains("has a hole").then_some(()));
    roles.repair();
    roles.put("d4", "behind");
    for (document, body) in [("d0", "at first"), ("d1", "logged"), ("d3", "logged"), ("d4", "behind")] {
        assert_eq!(roles.get(document), body, "{document}");
    }
    roles.assert_running();
}

#[test]
fn what_only_roles_can_see_is_mended_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut roles = all(folder.path());
    let writer = BatchWriter::new(&roles.connection, Log::Events, 0);
    roles.runtime.block_on(writer.append(vec![0xc1].into())).unwrap();
    let said = until("it is found", || Some(roles.check()).filter(|(whole, _)| !whole)).1;
    assert!(said.contains("said by "), "{said}");
    until("all wait", || {
        let said = roles.status();
        ["gateway-", "processor-"].iter().all(|role| said.contains(role)).then_some(())
    });
    roles.repair();
    roles.put("d1", "behind");
    assert_eq!(roles.get("d0"), "at first");
    until("it is whole", || roles.check().0.then_some(()));
}

/// What a repair that is killed at once leaves behind: its record, and closed streams.
async fn begin_repair(
    connection: &Connection,
    change: impl FnOnce(RepairRecord) -> RepairRecord,
) -> Result<(), NatsError> {
    let topology = Topology::load(connection).await?;
    let first = RepairRecord {
        state: RepairState::Closing,
        from_log_id: topology.log_id,
        to_log_id: 7,
        storer: 1,
        begun_us: 1,
        lanes: vec![],
        losses: vec![],
    };
    let record = change(RepairRecord::load(connection).await?.unwrap_or(first));
    Claim::begin(connection, record).await?;
    Workshop::new(connection).close(0, topology.stream_bytes).await
}

fn put_meanwhile(url: &str) -> Child {
    let arguments = ["put", "d1", "meanwhile", "--ack", "stored", "--timeout", "60s", "--server", url];
    site::program().args(arguments).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn in_the_fast_profile_a_repair_that_was_begun_is_continued_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::spawn(folder.path(), "fast");
    let url = up.url();
    site::put(&url, 0..1, "at first");
    let ready: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("up.json")).unwrap()).unwrap();
    let nats = ready["nats"].as_str().unwrap();
    let (scheme, rest) = nats.split_once("://").unwrap();
    let (login, host) = rest.split_once('@').unwrap();
    let (user, password) = login.split_once(':').unwrap();
    let credentials = Credentials::UserPassword { user: user.into(), password: password.into() };
    let server = Server { url: format!("{scheme}://{host}"), credentials };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let connection = Connection::connect(&server, "test").await.unwrap();
        begin_repair(&connection, |record| record).await.unwrap();
    });
    assert!(put_meanwhile(&url).wait().unwrap().success());
    site::assert_there(&url, 0..1, "at first");
    let said = std::fs::read_to_string(folder.path().join("err.txt")).unwrap();
    assert!(said.contains("the log is repaired"), "{said}");
}

#[test]
fn a_repair_that_was_begun_is_seen_by_all_and_continued_wherever_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut roles = all(folder.path());
    roles.runtime.block_on(begin_repair(&roles.connection, |record| record)).unwrap();
    // Nothing is damaged; but nothing can be written either.
    let url = roles.url();
    let mut put = put_meanwhile(&url);
    until("the gateway says it", || roles.said("gateway").contains("not finished").then_some(()));
    assert!(roles.status().contains("a repair of the log was begun"), "{}", roles.status());
    let (whole, said) = roles.check();
    assert!(!whole && said.contains("continues it"), "{said}");
    roles.repair();
    assert!(put.wait().unwrap().success());
    // One that was killed when all was done but to say so.
    let opening = |record| RepairRecord { state: RepairState::Opening, ..record };
    roles.runtime.block_on(begin_repair(&roles.connection, opening)).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    roles.repair();
    roles.put("d2", "behind");
    for (document, body) in [("d0", "at first"), ("d1", "meanwhile"), ("d2", "behind")] {
        assert_eq!(roles.get(document), body, "{document}");
    }
    assert!(roles.check().0);
}

#[test]
fn a_storer_of_another_log_disturbs_nobody() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut others = all(elsewhere.path());
    for n in 0..10 {
        others.put(&format!("e{n}"), "elsewhere");
    }
    drop(others);
    let mut roles = all(folder.path());
    std::fs::rename(elsewhere.path().join("storer"), folder.path().join("storer-other")).unwrap();
    roles.start("storer-other");
    until("it waits", || roles.said("storer-other").contains("log-of-another-file").then_some(()));
    for role in ["processor", "gateway"] {
        roles.kill(role);
        roles.start(role);
    }
    for n in 0..10 {
        roles.put(&format!("d{n}"), "at first");
        assert_eq!(roles.get(&format!("d{n}")), "at first");
    }
    let (whole, said) = roles.check();
    assert!(whole, "{said}");
}

#[test]
fn roles_end_when_they_are_told_to_also_when_the_log_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut roles = all(folder.path());
    roles.lose_nats();
    for role in ["gateway", "processor", "storer"] {
        roles.stop(role);
    }
}
