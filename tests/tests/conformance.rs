//! The simulated log and a real nats-server behave alike, as far as the product relies on it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use fieldstream_tests::logs::{Full, LogLike, Nats, Noticed, Simulated};

fn message(n: u64) -> Bytes {
    Bytes::from(format!("message {n}"))
}

fn sequences(read: &[(u64, Bytes)]) -> Vec<u64> {
    read.iter().map(|(sequence, _)| *sequence).collect()
}

fn conforms(log: &mut dyn LogLike) {
    assert_eq!(log.ends(), (1, 0), "an empty log");
    for n in 1..=3 {
        assert_eq!(log.append(message(n)).unwrap(), n, "contiguous from 1");
    }
    log.append_unheard(message(4));
    assert_eq!(log.ends(), (1, 4), "a lost acknowledgement leaves the message in");
    assert_eq!(log.append(message(4)).unwrap(), 5, "sent again, it is stored twice");
    let (read, noticed) = log.read(0, None, 5);
    assert_eq!((sequences(&read), noticed), (vec![1, 2, 3, 4, 5], None), "one writer's order");
    assert_eq!(read[3].1, read[4].1);
    let (read, noticed) = log.read(3, Some(&message(3)), 2);
    assert_eq!((sequences(&read), noticed), (vec![4, 5], None), "from a position");
    assert_eq!(log.read(3, Some(b"another"), 2).1, Some(Noticed::Diverged), "a replaced message");
    assert_eq!(log.read(9, None, 1).1, Some(Noticed::Diverged), "a log that went backwards");
    log.restart();
    assert_eq!(log.ends(), (1, 5), "what was acknowledged survives a kill");
    log.purge(3);
    assert_eq!(log.ends(), (3, 5), "purging keeps sequences");
    assert_eq!(log.read(1, None, 1).1, Some(Noticed::Outrun));
    assert_eq!(sequences(&log.read(2, None, 3).0), [3, 4, 5]);
    log.remove(4);
    let (read, noticed) = log.read(3, Some(&message(3)), 2);
    assert_eq!((sequences(&read), noticed), (vec![], Some(Noticed::Hole)));
    log.purge(100);
    assert_eq!(log.append(message(6)).unwrap(), 100, "beyond the end, a purge jumps");
    log.restart();
    assert_eq!(log.ends(), (100, 100), "and the jump survives a kill");
}

fn fills(log: &mut dyn LogLike) {
    let large = Bytes::from(vec![7; 100_000]);
    let mut last = 0;
    let full = (0..200).find_map(|_| match log.append(large.clone()) {
        Ok(sequence) => {
            last = sequence;
            None
        }
        Err(full) => Some(full),
    });
    assert_eq!(full, Some(Full), "a full log says so");
    assert_eq!(log.ends(), (1, last), "and drops nothing");
    log.purge(last);
    assert_eq!(log.append(large).unwrap(), last + 1, "with room again, it goes on");
}

#[test]
fn the_simulated_log_conforms() {
    conforms(&mut Simulated::new(0));
    fills(&mut Simulated::new(4 << 20));
}

#[test]
fn a_real_log_conforms() {
    conforms(&mut Nats::start());
}

#[test]
fn a_real_log_that_is_full_conforms() {
    fills(&mut Nats::with_room(8 << 20));
}
