"""Checks what a fault run left behind: the log, the LMDB files, and what devices were told.

    check_history.py NATS_URL HISTORY_JSON DB_PATH...

Reads both streams message by message over a plain connection to nats-server, decodes them by
docs/LOG.md alone, decides by its own reading of the acceptance rule what counts, folds it, and
compares it with what devices were told and with every LMDB file (docs/FORMAT.md). Prints one line
of JSON; what is wrong stands on stderr.
"""

import base64
import datetime
import json
import socket
import struct
import sys
import zlib
from urllib.parse import urlsplit

import lmdb
import msgpack


class Nats:
    """As much of the NATS protocol as it takes to ask for messages."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=20)
        self.file = self.socket.makefile("rb")
        login = {"verbose": False, "user": parts.username, "pass": parts.password}
        self.send(f"CONNECT {json.dumps(login)}\r\nSUB answer 1\r\nPING\r\n".encode())
        while self.file.readline() != b"PONG\r\n":
            pass

    def send(self, data):
        self.socket.sendall(data)

    def answers(self, subject, bodies):
        """The answers to requests, in order."""
        for begin in range(0, len(bodies), 256):
            some = bodies[begin : begin + 256]
            self.send(b"".join(b"PUB %s answer %d\r\n%s\r\n" % (subject, len(b), b) for b in some))
            got = 0
            while got < len(some):
                line = self.file.readline()
                if line == b"PING\r\n":
                    self.send(b"PONG\r\n")
                elif line.startswith(b"MSG "):
                    size = int(line.split()[-1])
                    yield json.loads(self.file.read(size + 2)[:-2])
                    got += 1

    def stream(self, name):
        """All messages of a stream by sequence, when they were stored, and what is missing."""
        (info,) = self.answers(b"$JS.API.STREAM.INFO." + name, [b"{}"])
        first, last = info["state"]["first_seq"], info["state"]["last_seq"]
        asked = [json.dumps({"seq": n}).encode() for n in range(first, last + 1)]
        messages, times = {}, {}
        for answer in self.answers(b"$JS.API.STREAM.MSG.GET." + name, asked):
            if "message" in answer:
                sequence = answer["message"]["seq"]
                messages[sequence] = base64.b64decode(answer["message"].get("data", ""))
                times[sequence] = microseconds(answer["message"]["time"])
        missing = [n for n in range(first, last + 1) if n not in messages]
        return messages, times, missing


def microseconds(text):
    """Microseconds since the Unix epoch of a time as the server writes it."""
    whole, _, rest = text.rstrip("Z").partition(".")
    seconds = datetime.datetime.fromisoformat(whole + "+00:00").timestamp()
    return int(seconds) * 1_000_000 + int((rest + "000000")[:6])


def unpack(data):
    return msgpack.unpackb(data, strict_map_key=False)


class Log:
    """What the two streams say."""

    def __init__(self, instructions, events):
        self.wrong = []
        self.stale_parts = 0
        self.cursors = {p: ((0, 0), None) for p in range(256)}
        self.texts, self.revisions, self.applied, self.outcomes = {}, {}, [], {}
        self.crcs, self.sequences = {}, {}
        self.dead = 0
        self.logged = {}
        for sequence, data in sorted(instructions.items()):
            for index, record in enumerate(unpack(data)[1]):
                self.record(sequence, index, record)
        for sequence, data in sorted(events.items()):
            self.batch(sequence, data)

    def record(self, sequence, index, record):
        try:
            self.logged[sequence, index] = unpack(record)
        except Exception:
            self.logged[sequence, index] = None

    def batch(self, sequence, data):
        _, batch_id, parts, events = unpack(data)
        accepted = set()
        for partitions, after, previous, upto in parts:
            for p in range(256):
                if not partitions[p // 8] >> (p % 8) & 1:
                    continue
                previous_id = tuple(previous) if previous else None
                if self.cursors[p] == (tuple(after), previous_id) and tuple(after) < tuple(upto):
                    self.cursors[p] = (tuple(upto), tuple(batch_id))
                    accepted.add(p)
                else:
                    self.stale_parts += 1
        for event in events:
            event = unpack(event)
            if event[1] in accepted:
                self.event(sequence, event)

    def event(self, sequence, event):
        kind, _, at, index, origin = event[:5]
        key = (at, index)
        if key in self.outcomes:
            self.wrong.append(f"EVENTS {sequence}: record {key} has two accepted events")
        self.outcomes[key] = kind
        if (at, index) not in self.logged:
            self.wrong.append(f"EVENTS {sequence}: record {key} is not in INSTRUCTIONS")
        if kind == 3:
            self.dead += 1
        if kind != 1:
            return
        document, (revision, change) = origin[5], (event[6], event[9])
        if revision != self.revisions.get(document, 0) + 1:
            self.wrong.append(f"EVENTS {sequence}: {document} goes from {self.revisions.get(document, 0)} to {revision}")
        self.revisions[document] = revision
        for operation in change:
            if operation[0] not in (1, 3):
                self.wrong.append(f"EVENTS {sequence}: operation {operation[0]} was never sent")
                continue
            before = self.texts.get(document, "") if operation[0] == 3 else ""
            crc = self.crcs.get((document, revision - 1), 0) if operation[0] == 3 else 0
            self.texts[document] = before + operation[1]
            self.crcs[document, revision] = zlib.crc32(operation[1].encode(), crc)
            for tag in operation[1].split(";")[:-1]:
                self.applied.append((tag, document, revision))
                self.sequences[tag] = (at, sequence)

    def undecided(self):
        """Records without an accepted event."""
        return [key for key in self.logged if key not in self.outcomes]


def rows(path):
    """Documents and the history's revisions of an LMDB file, and its checkpoint, in one transaction."""
    env = lmdb.open(path, readonly=True, create=False, max_dbs=16, map_size=0)
    names = ("meta", "documents", "history", "dead_letters")
    meta, documents, history, dead = (env.open_db(name.encode(), create=False) for name in names)
    with env.begin() as txn:
        checkpoint = unpack(txn.get(b"checkpoint/00000", db=meta))
        texts = {key.decode(): unpack(value) for key, value in txn.cursor(db=documents)}
        revisions = {}
        for key, _ in txn.cursor(db=history):
            revisions.setdefault(key[:-9].decode(), []).append(struct.unpack(">Q", key[-8:])[0])
        letters = txn.stat(dead)["entries"]
    env.close()
    return checkpoint, texts, revisions, letters


def check_file(path, log, events_last, wrong):
    checkpoint, documents, history, letters = rows(path)
    if checkpoint["events_sequence"] != events_last:
        wrong.append(f"{path}: stands at {checkpoint['events_sequence']}, EVENTS ends at {events_last}")
    texts = {name: row["body"] for name, row in documents.items() if row["kind"] == "text"}
    if texts != log.texts:
        differ = [name for name in set(texts) | set(log.texts) if texts.get(name) != log.texts.get(name)]
        wrong.append(f"{path}: other texts than the log has: {sorted(differ)[:5]}")
    for name, row in documents.items():
        if row["revision"] != log.revisions.get(name) or history.get(name) != list(range(1, row["revision"] + 1)):
            wrong.append(f"{path}: {name} at {row['revision']}: its revisions are not 1 to {log.revisions.get(name)}")
    if letters != log.dead:
        wrong.append(f"{path}: {letters} dead letters, the log has {log.dead}")


def check_devices(history, log, report):
    """Lost, duplicated, reordered, phantom; what is wrong as text."""
    wrong, seen = [], {}
    for tag, document, revision in log.applied:
        if tag in seen:
            report["duplicated"] += 1
            wrong.append(f"{tag} was applied twice")
        seen[tag] = (document, revision)
        if history["attempts"].get(tag) != document:
            report["phantom"] += 1
            wrong.append(f"{tag} in {document} was never sent there")
        if tag in history["refused"]:
            report["phantom"] += 1
            wrong.append(f"{tag} was refused and is applied")
    for tag, revision in history["acked"].items():
        if tag not in seen:
            report["lost"] += 1
            wrong.append(f"{tag} was acknowledged and is lost")
        elif revision and seen[tag][1] != revision:
            report["diverged"] += 1
            wrong.append(f"{tag} was acknowledged at revision {revision}, the log has {seen[tag][1]}")
    last = {}
    for tag, document, _ in log.applied:
        device, number = tag.rsplit(".", 1)
        if last.get((device, document), 0) >= int(number):
            report["reordered"] += 1
            wrong.append(f"{tag} came into {document} behind {last[device, document]}")
        last[device, document] = int(number)
    wrong += check_real_time(history, log, report)
    return wrong


def check_real_time(history, log, report):
    """What was acknowledged before something else was sent comes before it in its document."""
    wrong, latest = [], {}
    for tag, document, _ in log.applied:
        sent, told = history["times"].get(tag, (0, 0))
        before, when = latest.get(document, ("", 0))
        if told and told < when:
            report["reordered"] += 1
            wrong.append(f"{tag} was acknowledged before {before} was sent and comes behind it in {document}")
        if sent > when:
            latest[document] = (tag, sent)
    return wrong


def check_shown(history, log):
    """Whether every state that a watcher was shown is the one that the log leads to."""
    for document, shown in history["shown"].items():
        for revision, crc in shown.items():
            if log.crcs.get((document, int(revision))) != crc:
                yield f"{document} was shown at revision {revision} in a state that it never had"


def check_honesty(history, log, instruction_times, event_times):
    """Nothing is acknowledged before it is in the log."""
    for tag, (_, told) in history["times"].items():
        logged, applied = log.sequences.get(tag, (None, None))
        is_logged_only = history["acked"].get(tag) == 0
        stored = instruction_times.get(logged) if is_logged_only else event_times.get(applied)
        if stored is not None and told < stored:
            yield f"{tag} was acknowledged {stored - told} us before it was in the log"


def check(history, instructions, events, paths, times=({}, {})):
    """The report on a history, the two streams with the times of their messages, and the files."""
    log = Log(instructions, events)
    names = ("lost", "duplicated", "reordered", "diverged", "phantom")
    report = dict.fromkeys(names, 0)
    wrong = check_devices(history, log, report)
    other = list(log.wrong)
    other += check_shown(history, log)
    other += check_honesty(history, log, *times)
    undecided = log.undecided()
    if undecided:
        other.append(f"{len(undecided)} records have no event, the first is {undecided[0]}")
    for path in paths:
        check_file(path, log, max(events, default=0), other)
    report["diverged"] += len(other)
    for what in (wrong + other)[:20]:
        print(what, file=sys.stderr)
    report.update(
        checked=True,
        attempted=len(history["attempts"]),
        acked=len(history["acked"]),
        refused=len(history["refused"]),
        unknown=len(history["unknown"]),
        dead=log.dead,
        stale_parts=log.stale_parts,
        instructions=len(instructions),
        events=len(events),
        states_shown=sum(map(len, history["shown"].values())),
    )
    return report


def main():
    url, history, *paths = sys.argv[1:]
    with open(history, encoding="utf-8") as file:
        history = json.load(file)
    nats = Nats(url)
    instructions, instruction_times, missing = nats.stream(b"INSTRUCTIONS_0")
    events, event_times, gone = nats.stream(b"EVENTS_0")
    report = check(history, instructions, events, paths, (instruction_times, event_times))
    if missing or gone:
        print(f"messages are missing: {missing[:5]} {gone[:5]}", file=sys.stderr)
        report["diverged"] += 1
    print(json.dumps(report))


if __name__ == "__main__":
    main()
