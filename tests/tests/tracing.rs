//! Traced instructions: every hop is heard of, in the order of cause and effect.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_client::{Client, ClientOptions, Hop, How, OWN_CLOCK, Operation, Trace};
use fieldstream_nats::Health;
use fieldstream_shared::partition::PartitionSet;
use fieldstream_tests::{Cluster, Shape};
use std::collections::BTreeMap;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

/// What had to be before what.
const ORDER: [(Hop, Hop); 14] = [
    (Hop::ClientSent, Hop::GatewayFirstByte),
    (Hop::GatewayFirstByte, Hop::GatewayLastByte),
    (Hop::GatewayLastByte, Hop::GatewayQueued),
    (Hop::GatewayQueued, Hop::GatewayPublished),
    (Hop::GatewayPublished, Hop::GatewayLogged),
    (Hop::GatewayPublished, Hop::ProcessorRead),
    (Hop::ProcessorRead, Hop::ProcessorApplied),
    (Hop::ProcessorApplied, Hop::ProcessorPublished),
    (Hop::ProcessorPublished, Hop::ProcessorLogged),
    (Hop::ProcessorPublished, Hop::GatewayEvent),
    (Hop::GatewayEvent, Hop::GatewayWritten),
    (Hop::GatewayWritten, Hop::ClientReceived),
    (Hop::ProcessorPublished, Hop::StorerRead),
    (Hop::StorerRead, Hop::StorerCommitted),
];

/// When each hop had it, by the client's clock, and how far that may be off.
fn times(client: &Client, trace: &Trace) -> BTreeMap<Hop, (i64, i64)> {
    let clocks = client.clocks();
    let mut times = BTreeMap::new();
    for stamps in &trace.stamps {
        let offset = clocks.offset(stamps.clock).expect("a clock that is known");
        for stamp in &stamps.stamps {
            let doubt = offset.uncertainty_us as i64;
            assert!(times.insert(stamp.hop, (offset.to_own(stamp.at_us), doubt)).is_none(), "{:?} twice", stamp.hop);
        }
    }
    times
}

async fn ask_clocks(client: &Client) {
    for _ in 0..10 {
        assert!(client.ask_clocks().await.unwrap());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hop_is_heard_of_in_causal_order() {
    let shape = Shape { lanes: 2, gateways: 2, ..Shape::default() };
    let cluster = Cluster::start(shape).await;
    for (gateway, transport) in [(0, "tcp"), (1, "tls"), (1, "quic")] {
        let client = cluster.client(gateway, transport).await;
        ask_clocks(&client).await;
        for n in 0..4 {
            let (document, line) = (format!("{transport}/{n}"), Operation::Append("x".repeat(500)));
            let trace = client.trace(&document, line, How::default(), LONG).await.unwrap();
            let times = times(&client, &trace);
            assert_eq!(times.keys().copied().collect::<Vec<_>>(), Hop::ALL, "{transport}");
            for (before, after) in ORDER {
                let ((from, doubt), (to, more)) = (times[&before], times[&after]);
                assert!(from <= to + doubt + more, "{transport}: {before:?} at {from}, {after:?} at {to}");
            }
            let took = times[&Hop::ClientReceived].0 - times[&Hop::ClientSent].0;
            assert!((1..20_000_000).contains(&took), "{took}");
        }
    }
    let counted = |health: &Health| health.hops().iter().map(|(_, hop)| hop.counts().total()).min();
    assert!(cluster.gateway_healths.iter().all(|health| counted(health) > Some(0)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_trace_is_told_nothing_and_one_that_does_not_ask_for_clocks_nearly_all() {
    let cluster = Cluster::start(Shape { processors: vec![PartitionSet::ALL], ..Shape::default() }).await;
    let plain = cluster.client(0, "tcp").await;
    plain.instruct("d", Operation::Append("x".into())).await.unwrap();
    assert_eq!((plain.clocks().gateway, plain.clocks().others.len()), (None, 0));
    let hasty = Client::connect(&cluster.url(0, "tcp"), ClientOptions::default()).await.unwrap();
    let first = hasty.trace("d", Operation::Append("x".into()), How::default(), Duration::from_secs(1)).await.unwrap();
    let hops = |trace: &Trace| trace.stamps.iter().flat_map(|s| s.stamps.iter().map(|s| s.hop)).collect::<Vec<_>>();
    assert!(hops(&first).contains(&Hop::GatewayLogged), "{first:?}");
    let second = hasty.trace("d", Operation::Append("x".into()), How::default(), LONG).await.unwrap();
    assert_eq!(hops(&second).len(), Hop::ALL.len(), "by now the gateway listens: {second:?}");
    let own = second.stamps.iter().filter(|stamps| stamps.clock == OWN_CLOCK).count();
    assert_eq!(own, 2);
    cluster.stop().await;
}
