"""Whether the checker would notice: a small history with its log is bent in every way it must find.

    test_check_history.py

Exits 1 if one is not noticed. No file and no server is needed.
"""

import copy
import sys
import zlib

import msgpack
from check_history import check

ALL = bytes([255] * 32)


def pack(value):
    return msgpack.packb(value, use_bin_type=True)


def record(device, number, document):
    operation = [3, f"{device}.{number};"]
    return pack([1, device, 1, number, number, 0, 5, document, None, operation])


def event(sequence, device, number, document, revision):
    origin = [device, 1, number, number, 0, document]
    return pack([1, 0, sequence, 0, origin, 5, revision, 0, 5, [[3, f"{device}.{number};"]]])


def batch(counter, after, previous, upto, events):
    return pack([1, [7, counter], [[ALL, after, previous, upto]], events])


def whole():
    """A history of three instructions, and its two streams."""
    sent = [("a", 1, "d", 1), ("b", 1, "d", 2), ("a", 2, "d", 3)]
    instructions, events = {}, {}
    previous, after = None, [0, 0]
    for sequence, (device, number, document, revision) in enumerate(sent, 1):
        instructions[sequence] = pack([1, [record(device, number, document)]])
        upto = [sequence, 1]
        one = event(sequence, device, number, document, revision)
        events[sequence] = batch(sequence, after, previous, upto, [one])
        previous, after = [7, sequence], upto
    history = {
        "attempts": {f"{d}.{n}": document for d, n, document, _ in sent},
        "acked": {f"{d}.{n}": revision for d, n, _, revision in sent},
        "times": {f"{d}.{n}": (revision * 10, revision * 10 + 9) for d, n, _, revision in sent},
        "shown": {"d": {"2": zlib.crc32(b"a.1;b.1;")}},
        "refused": [],
        "unknown": [],
        "violations": [],
    }
    return history, instructions, events


def lost_ack(history, instructions, events):
    history["attempts"]["c.1"] = "d"
    history["acked"]["c.1"] = 9


def event_gone(history, instructions, events):
    del events[3]


def applied_twice(history, instructions, events):
    again = [event(4, "a", 2, "d", 4)]
    instructions[4] = pack([1, [record("a", 2, "d")]])
    events[4] = batch(4, [3, 1], [7, 3], [4, 1], again)


def two_events_for_a_record(history, instructions, events):
    again = [event(3, "a", 2, "d", 4)]
    events[4] = batch(4, [3, 1], [7, 3], [4, 0], again)


def out_of_order(history, instructions, events):
    events[1] = batch(1, [0, 0], None, [1, 1], [event(1, "a", 2, "d", 1)])
    events[3] = batch(3, [2, 1], [7, 2], [3, 1], [event(3, "a", 1, "d", 3)])
    history["acked"].update({"a.2": 1, "a.1": 3})


def revision_skipped(history, instructions, events):
    events[3] = batch(3, [2, 1], [7, 2], [3, 1], [event(3, "a", 2, "d", 4)])
    history["acked"]["a.2"] = 4


def other_revision_told(history, instructions, events):
    history["acked"]["b.1"] = 3


def never_sent(history, instructions, events):
    del history["attempts"]["b.1"], history["acked"]["b.1"]


def refused_and_applied(history, instructions, events):
    del history["acked"]["b.1"]
    history["refused"].append("b.1")


def undecided(history, instructions, events):
    instructions[4] = pack([1, [record("b", 2, "d")]])


def never_logged(history, instructions, events):
    instructions[2] = pack([1, []])


def later_sent_comes_first(history, instructions, events):
    # Told of the second before the first was sent, though the log has them the other way round.
    history["times"].update({"b.1": (1, 2), "a.1": (3, 4)})


def shown_what_never_was(history, instructions, events):
    history["shown"]["d"]["3"] = zlib.crc32(b"a.1;b.1;b.2;")


def told_before_it_was_applied(history, instructions, events):
    history["times"]["b.1"] = (12, 14)


def told_before_it_was_logged(history, instructions, events):
    history["acked"]["b.1"] = 0
    history["times"]["b.1"] = (10, 11)


def stale_part_carries_an_event(history, instructions, events):
    # A zombie's batch, built on a cursor that was overtaken: its event must not count.
    events[4] = batch(9, [2, 1], [7, 2], [3, 1], [event(3, "a", 2, "d", 3)])


BENT = [
    lost_ack,
    event_gone,
    applied_twice,
    two_events_for_a_record,
    out_of_order,
    revision_skipped,
    other_revision_told,
    never_sent,
    refused_and_applied,
    undecided,
    never_logged,
    later_sent_comes_first,
    shown_what_never_was,
    told_before_it_was_applied,
    told_before_it_was_logged,
]
COUNTS = ("lost", "duplicated", "reordered", "diverged", "phantom")


def found(bend):
    history, instructions, events = copy.deepcopy(whole())
    bend(history, instructions, events)
    times = ({n: n * 10 + 2 for n in instructions}, {n: n * 10 + 5 for n in events})
    report = check(history, instructions, events, [], times)
    return {name: report[name] for name in COUNTS if report[name]}, report


def main():
    stderr, sys.stderr = sys.stderr, open("/dev/null", "w", encoding="utf-8")
    failures = []
    for harmless in (lambda *_: None, stale_part_carries_an_event):
        if found(harmless)[0]:
            failures.append(f"something is found that is not there: {found(harmless)[0]}")
    if found(stale_part_carries_an_event)[1]["stale_parts"] != 256:
        failures.append("stale parts are not counted")
    for bend in BENT:
        noticed = found(bend)[0]
        print(f"{bend.__name__:24} {noticed}")
        if not noticed:
            failures.append(f"{bend.__name__} is not noticed")
    sys.stderr = stderr
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
