use super::*;
use proptest::prelude::*;

/// What a frame said: number, settled, resent, operation.
type Sent = (u64, u64, bool, u8);

fn instruction(tag: u8, ack: AckLevel) -> Instruction {
    Instruction {
        document: DocumentId::new("d").unwrap(),
        if_revision: None,
        operation: Box::from([tag]),
        ack,
        traced: false,
    }
}

fn fresh() -> Numbers {
    let mut numbers = Numbers::new(Restored { epoch: 7, ..Restored::default() }, false);
    numbers.connected(32);
    numbers
}

fn submit(numbers: &mut Numbers, tag: u8) -> (u64, oneshot::Receiver<Result<Receipt, ClientError>>) {
    let (waiter, receiver) = oneshot::channel();
    (numbers.submit(instruction(tag, AckLevel::Applied), Some(waiter)), receiver)
}

fn sent(numbers: &mut Numbers, hold_new: bool) -> Vec<Sent> {
    let mut out = Vec::new();
    numbers.write_frames(hold_new, &mut out, usize::MAX);
    let mut deframer = fieldstream_shared::frame::Deframer::default();
    deframer.push(&out);
    let mut frames = Vec::new();
    while let Some(payload) = deframer.next(1 << 20).unwrap() {
        match FromClient::decode(payload).unwrap() {
            FromClient::Instruct(i) => frames.push((i.number, i.settled, i.resent, i.content.operation[0])),
            other => panic!("{other:?}"),
        }
    }
    frames
}

fn apply(numbers: &mut Numbers, number: u64) {
    let epoch = numbers.epoch();
    numbers.outcome(epoch, number, AckLevel::Applied, Some(Outcome::Applied { revision: number }));
}

fn refuse(numbers: &mut Numbers, number: u64, code: Code) -> Option<LateRefusal> {
    let epoch = numbers.epoch();
    numbers.outcome(epoch, number, AckLevel::Applied, Some(Outcome::Refused(code)))
}

#[test]
fn numbers_count_from_one_and_say_what_is_settled() {
    let mut numbers = fresh();
    let (first, mut receiver) = submit(&mut numbers, 1);
    submit(&mut numbers, 2);
    assert_eq!(first, 1);
    assert_eq!(sent(&mut numbers, false), [(1, 1, false, 1), (2, 1, false, 2)]);
    assert_eq!(sent(&mut numbers, false), [], "once per connection");
    apply(&mut numbers, 1);
    let receipt = Receipt { number: 1, level: AckLevel::Applied, revision: Some(1) };
    assert_eq!(receiver.try_recv().unwrap(), Ok(receipt));
    submit(&mut numbers, 3);
    assert_eq!(sent(&mut numbers, false), [(3, 2, false, 3)]);
    apply(&mut numbers, 2);
    apply(&mut numbers, 3);
    submit(&mut numbers, 4);
    assert_eq!(sent(&mut numbers, false), [(4, 4, false, 4)], "settled is the number itself if none is open");
}

#[test]
fn the_window_is_the_servers_but_never_wider_than_ours() {
    for (offered, window) in [(32, 32), (1000, 32), (4, 4), (0, 1)] {
        let mut numbers = fresh();
        numbers.connected(offered);
        for _ in 0..window {
            assert!(numbers.has_room());
            submit(&mut numbers, 0);
        }
        assert!(!numbers.has_room(), "{offered}");
        apply(&mut numbers, 2.min(window));
        assert_eq!(numbers.has_room(), window == 1, "the lowest counts, not how many");
        apply(&mut numbers, 1);
        assert!(numbers.has_room());
    }
}

#[test]
fn unresolved_ones_go_out_again_in_order_before_anything_new() {
    let mut numbers = fresh();
    for tag in 1..=3 {
        submit(&mut numbers, tag);
    }
    sent(&mut numbers, false);
    apply(&mut numbers, 2);
    numbers.disconnected();
    submit(&mut numbers, 4);
    assert_eq!(sent(&mut numbers, false), [], "no connection");
    assert_eq!(numbers.sent_upto(), 3);
    numbers.connected(32);
    let again = [(1, 1, true, 1), (3, 1, true, 3), (4, 1, false, 4)];
    assert_eq!(sent(&mut numbers, false), again);
}

#[test]
fn a_pause_or_a_narrower_window_holds_what_is_new_only() {
    let mut numbers = fresh();
    submit(&mut numbers, 1);
    submit(&mut numbers, 2);
    sent(&mut numbers, false);
    numbers.disconnected();
    submit(&mut numbers, 3);
    numbers.connected(2);
    assert_eq!(sent(&mut numbers, true), [(1, 1, true, 1), (2, 1, true, 2)], "paused");
    assert_eq!(sent(&mut numbers, false), [], "outside the window of this server");
    apply(&mut numbers, 1);
    assert_eq!(sent(&mut numbers, false), [(3, 2, false, 3)]);
}

#[test]
fn a_narrower_window_holds_what_was_sent_in_a_wider_one() {
    let mut numbers = fresh();
    (1..=3).for_each(|tag| drop(submit(&mut numbers, tag)));
    sent(&mut numbers, false);
    numbers.disconnected();
    numbers.connected(2);
    assert_eq!(sent(&mut numbers, false), [(1, 1, true, 1), (2, 1, true, 2)]);
    apply(&mut numbers, 1);
    assert_eq!(sent(&mut numbers, false), [(3, 2, true, 3)]);
}

#[test]
fn each_ack_level_resolves_what_asked_for_it() {
    let outcome = Some(Outcome::Applied { revision: 9 });
    let reports = [(AckLevel::Logged, None), (AckLevel::Applied, outcome), (AckLevel::Stored, outcome)];
    for (wanted, ack) in [AckLevel::Logged, AckLevel::Applied, AckLevel::Stored].into_iter().enumerate() {
        let mut numbers = fresh();
        let (waiter, mut receiver) = oneshot::channel();
        numbers.submit(instruction(1, ack), Some(waiter));
        sent(&mut numbers, false);
        for (i, (level, outcome)) in reports.into_iter().enumerate() {
            assert_eq!(numbers.outcome(7, 1, level, outcome), None);
            assert_eq!(numbers.open(), usize::from(i < wanted), "{ack:?} at {level:?}");
        }
        let revision = (ack != AckLevel::Logged).then_some(9);
        assert_eq!(receiver.try_recv().unwrap(), Ok(Receipt { number: 1, level: ack, revision }));
    }
}

#[test]
fn a_refusal_resolves_at_any_level_and_a_late_one_is_reported_once() {
    let mut numbers = fresh();
    let (waiter, mut receiver) = oneshot::channel();
    numbers.submit(instruction(1, AckLevel::Stored), Some(waiter));
    assert_eq!(refuse(&mut numbers, 1, Code::CONFLICT), None, "somebody waited");
    assert_eq!(receiver.try_recv().unwrap(), Err(ClientError::Refused(Code::CONFLICT)));
    assert_eq!(refuse(&mut numbers, 1, Code::CONFLICT), None, "told already");
    let (waiter, receiver) = oneshot::channel();
    numbers.submit(instruction(2, AckLevel::Logged), Some(waiter));
    numbers.outcome(7, 2, AckLevel::Logged, None);
    drop(receiver);
    let late = LateRefusal { epoch: 7, number: 2, code: Code::NOT_FOUND, dead: false };
    assert_eq!(refuse(&mut numbers, 2, Code::NOT_FOUND), Some(late));
    assert_eq!(refuse(&mut numbers, 2, Code::NOT_FOUND), None);
    let (_, receiver) = submit(&mut numbers, 3);
    drop(receiver);
    let dead = numbers.outcome(7, 3, AckLevel::Applied, Some(Outcome::Dead(Code::HANDLER_PANICKED)));
    assert!(dead.unwrap().dead, "nobody waits any more");
    assert_eq!(refuse(&mut numbers, 99, Code::CONFLICT), None, "never numbered");
    assert_eq!(numbers.outcome(6, 1, AckLevel::Applied, Some(Outcome::Refused(Code::CONFLICT))), None, "other epoch");
}

#[test]
fn a_stale_epoch_is_left_when_all_of_it_is_resolved() {
    let mut numbers = fresh();
    let mut receivers: Vec<_> = (1..=4).map(|tag| submit(&mut numbers, tag).1).collect();
    sent(&mut numbers, false);
    let unsent = submit(&mut numbers, 5).1;
    refuse(&mut numbers, 3, Code::STALE_EPOCH);
    assert!(!numbers.has_room(), "nothing new in an epoch that ends");
    assert!(!numbers.wants_epoch(), "others may be applied under it");
    refuse(&mut numbers, 1, Code::STALE_EPOCH);
    refuse(&mut numbers, 1, Code::STALE_EPOCH);
    apply(&mut numbers, 2);
    assert_eq!(receivers[1].try_recv().unwrap().unwrap().number, 2);
    numbers.disconnected();
    numbers.connected(32);
    assert_eq!(sent(&mut numbers, false), [(4, 1, true, 4)], "the old epoch is still asked about");
    refuse(&mut numbers, 4, Code::CONFLICT);
    assert!(numbers.wants_epoch());
    numbers.take_epoch(3);
    assert_eq!((numbers.epoch(), numbers.sent_upto(), numbers.open()), (8, 0, 3), "higher even if the clock is behind");
    numbers.connected(32);
    assert_eq!(sent(&mut numbers, false), [(1, 1, false, 1), (2, 1, false, 3), (3, 1, false, 5)]);
    assert!(receivers[2].try_recv().is_err(), "not told of the refusal");
    apply(&mut numbers, 2);
    assert_eq!(receivers[2].try_recv().unwrap().unwrap().number, 2);
    drop(unsent);
}

#[test]
fn what_a_connection_before_has_sent_is_not_numbered_anew() {
    let mut numbers = fresh();
    let mut before = submit(&mut numbers, 1).1;
    sent(&mut numbers, false);
    numbers.disconnected();
    numbers.connected(32);
    let mut here = submit(&mut numbers, 2).1;
    assert_eq!(sent(&mut numbers, false), [(1, 1, true, 1), (2, 1, false, 2)]);
    let none = refuse(&mut numbers, 1, Code::STALE_EPOCH);
    assert_eq!((before.try_recv().unwrap(), none), (Err(ClientError::OutcomeUnknown), None));
    assert!(!numbers.wants_epoch());
    refuse(&mut numbers, 2, Code::STALE_EPOCH);
    numbers.take_epoch(100);
    numbers.connected(32);
    assert_eq!(sent(&mut numbers, false), [(1, 1, false, 2)], "the first might be applied twice");
    apply(&mut numbers, 1);
    assert!(here.try_recv().unwrap().is_ok());
}

#[test]
fn a_stale_epoch_of_what_was_logged_is_reported_and_left() {
    let mut numbers = fresh();
    for number in 1..=2 {
        numbers.submit(instruction(1, AckLevel::Logged), None);
        sent(&mut numbers, false);
        numbers.outcome(7, number, AckLevel::Logged, None);
    }
    let late = |number| LateRefusal { epoch: 7, number, code: Code::STALE_EPOCH, dead: false };
    assert_eq!(refuse(&mut numbers, 1, Code::STALE_EPOCH), Some(late(1)));
    assert!(numbers.wants_epoch());
    numbers.take_epoch(100);
    numbers.connected(32);
    let of_before = |numbers: &mut Numbers, number| {
        numbers.outcome(7, number, AckLevel::Applied, Some(Outcome::Refused(Code::STALE_EPOCH)))
    };
    assert_eq!(of_before(&mut numbers, 2), Some(late(2)), "told under the next epoch only");
    assert_eq!(
        (of_before(&mut numbers, 1), of_before(&mut numbers, 2), of_before(&mut numbers, 3)),
        (None, None, None)
    );
    assert!(numbers.has_room(), "the present epoch goes on");
}

#[test]
fn what_was_numbered_anew_is_not_reported_under_its_old_number() {
    let mut numbers = fresh();
    let _waiting = submit(&mut numbers, 1).1;
    sent(&mut numbers, false);
    refuse(&mut numbers, 1, Code::STALE_EPOCH);
    numbers.take_epoch(100);
    let copy = numbers.outcome(7, 1, AckLevel::Applied, Some(Outcome::Refused(Code::STALE_EPOCH)));
    assert_eq!((copy, numbers.open()), (None, 1));
}

/// How many epochs it takes until a server whose mark is at `mark` carries an instruction out.
fn epochs_until(numbers: &mut Numbers, mark: u64, now_us: u64) -> u32 {
    let (number, _receiver) = submit(numbers, 1);
    let mut taken = 0;
    numbers.connected(32);
    sent(numbers, false);
    let mut number = number;
    while numbers.epoch() < mark {
        refuse(numbers, number, Code::STALE_EPOCH);
        assert!(numbers.wants_epoch());
        assert_eq!(numbers.take_epoch(now_us), taken == 0, "only the present is worth trying at once");
        taken += 1;
        assert!(taken < 50, "at {}", numbers.epoch());
        numbers.connected(32);
        assert_eq!(sent(numbers, false).len(), 1);
        number = 1;
    }
    apply(numbers, number);
    assert_eq!(numbers.open(), 0);
    taken
}

#[test]
fn however_far_in_the_future_an_earlier_run_was_its_epoch_is_passed_soon() {
    const NOW_US: u64 = 1_800_000_000_000_000;
    const YEAR_US: u64 = 31_557_600_000_000;
    for (mark, expect) in
        [(8, 1), (NOW_US, 1), (NOW_US + 1, 2), (NOW_US + YEAR_US, 26), (NOW_US + 100 * YEAR_US, 33), (u64::MAX, 46)]
    {
        let mut numbers = fresh();
        assert_eq!(epochs_until(&mut numbers, mark, NOW_US), expect, "{mark}");
        assert!(numbers.epoch() - mark <= mark.saturating_sub(NOW_US).max(NOW_US), "not much further than needed");
        // It begins anew when it succeeded.
        let mark = numbers.epoch();
        if mark < u64::MAX {
            assert_eq!(epochs_until(&mut numbers, mark + 1, NOW_US), 1);
        }
    }
}

#[test]
fn an_epoch_good_enough_for_one_partition_is_not_a_success_for_another() {
    let mut numbers = fresh();
    for epochs in 1..=5 {
        let future = submit(&mut numbers, 1).0;
        numbers.connected(32);
        sent(&mut numbers, false);
        // What was refused before comes first; then one more that another partition takes.
        refuse(&mut numbers, 1, Code::STALE_EPOCH);
        for other in 2..=future {
            apply(&mut numbers, other);
        }
        numbers.take_epoch(0);
        let steps_us = if epochs == 1 { 0 } else { (1 << (epochs - 1)) - 1 };
        assert_eq!(numbers.epoch(), 8 + steps_us * 1_000_000, "{epochs}");
    }
}

#[test]
fn behind_the_highest_epoch_there_is_none() {
    let mut numbers = Numbers::new(Restored { epoch: u64::MAX, ..Restored::default() }, false);
    numbers.connected(32);
    let (number, mut receiver) = submit(&mut numbers, 1);
    sent(&mut numbers, false);
    refuse(&mut numbers, number, Code::STALE_EPOCH);
    assert_eq!(receiver.try_recv().unwrap(), Err(ClientError::Refused(Code::STALE_EPOCH)));
    assert!(!numbers.wants_epoch(), "its numbers would stand for something else");
}

#[test]
fn with_a_state_file_nothing_is_sent_or_settled_before_it_is_written() {
    let mut numbers = Numbers::new(Restored { epoch: 7, ..Restored::default() }, true);
    numbers.connected(2);
    submit(&mut numbers, 1);
    assert_eq!(sent(&mut numbers, false), []);
    let batch = numbers.take_journal().unwrap();
    submit(&mut numbers, 2);
    numbers.journal_written(&batch);
    assert_eq!(sent(&mut numbers, false), [(1, 1, false, 1)]);
    apply(&mut numbers, 1);
    assert!(!numbers.has_room(), "the file still holds it as unresolved");
    let batch = numbers.take_journal().unwrap();
    numbers.journal_written(&batch);
    assert!(numbers.has_room());
    assert!(numbers.take_journal().is_none());
    assert_eq!(sent(&mut numbers, false), [(2, 2, false, 2)]);
    assert!(!numbers.is_quiet());
    // A new epoch: what was written before does not count for it.
    refuse(&mut numbers, 2, Code::STALE_EPOCH);
    numbers.take_epoch(100);
    numbers.journal_written(&batch);
    numbers.connected(32);
    assert_eq!(sent(&mut numbers, false), []);
    let batch = numbers.take_journal().unwrap();
    assert!(batch.rewrite && batch.epoch == 100);
    numbers.journal_written(&batch);
    assert_eq!(sent(&mut numbers, false), [(1, 1, false, 2)]);
}

#[test]
fn restored_instructions_are_resent_and_the_counter_goes_on() {
    let unresolved = BTreeMap::from([(4, instruction(4, AckLevel::Applied)), (6, instruction(6, AckLevel::Logged))]);
    let mut numbers = Numbers::new(Restored { epoch: 9, next: 8, unresolved }, true);
    assert_eq!((numbers.epoch(), numbers.sent_upto()), (9, 7));
    numbers.connected(32);
    submit(&mut numbers, 8);
    let batch = numbers.take_journal().unwrap();
    numbers.journal_written(&batch);
    assert_eq!(sent(&mut numbers, false), [(4, 4, true, 4), (6, 4, true, 6), (8, 4, false, 8)]);
    assert!(refuse(&mut numbers, 4, Code::CONFLICT).is_some(), "nobody waits for it in this run");
}

#[test]
fn the_end_is_told_to_everybody() {
    let mut numbers = fresh();
    let (_, mut receiver) = submit(&mut numbers, 1);
    numbers.fail(&ClientError::Ended);
    assert_eq!(receiver.try_recv().unwrap(), Err(ClientError::Ended));
    assert_eq!(numbers.open(), 0);
}

proptest! {
    /// A server that applies what it sees once per number, whose answers and connections get lost.
    #[test]
    fn every_instruction_is_applied_once_and_in_order(
        steps in proptest::collection::vec((0u8..6, any::<u8>()), 1..300),
    ) {
        let mut numbers = fresh();
        let (mut log, mut highest, mut submitted): (Vec<u8>, u64, u8) = (vec![], 0, 0);
        let mut answers: Vec<u64> = vec![];
        for (step, random) in steps {
            match step {
                0 | 1 if numbers.has_room() && submitted < 255 => {
                    submitted += 1;
                    drop(submit(&mut numbers, submitted).1);
                }
                2 | 3 => for (number, settled, resent, tag) in sent(&mut numbers, random % 7 == 0) {
                    prop_assert!(settled <= number && number < settled + numbers.window);
                    prop_assert_eq!(resent, number <= highest, "only what was sent before is marked");
                    if number > highest {
                        prop_assert_eq!(number, highest + 1);
                        highest = number;
                        log.push(tag);
                    }
                    answers.push(number);
                },
                4 if !answers.is_empty() => {
                    let number = answers.remove(random as usize % answers.len());
                    apply(&mut numbers, number);
                }
                5 => {
                    answers.clear();
                    numbers.disconnected();
                    numbers.connected(u64::from(random % 40));
                }
                _ => {}
            }
        }
        numbers.disconnected();
        numbers.connected(32);
        for (number, _, _, tag) in sent(&mut numbers, false) {
            if number > highest {
                highest = number;
                log.push(tag);
            }
        }
        prop_assert_eq!(log, (1..=submitted).collect::<Vec<_>>());
    }
}
