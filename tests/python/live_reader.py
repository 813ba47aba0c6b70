"""Reads a storer's LMDB file while it is written, with the stock `lmdb` and `msgpack` packages.

    live_reader.py DB_PATH SECONDS

Opens the file as any reporting tool would (docs/FORMAT.md), with locking, and reads all of it again
and again, each time in one read transaction. In each of them the rows must fit the checkpoints.
Prints one line of JSON; exits 1 if a transaction showed a torn state.
"""

import json
import struct
import sys
import time

import lmdb
import msgpack


def unpack(value):
    return msgpack.unpackb(value)


def checkpoints(txn, meta):
    """The lanes' checkpoints by lane."""
    with txn.cursor(db=meta) as cursor:
        found = {}
        if cursor.set_range(b"checkpoint/"):
            for key, value in cursor:
                if not key.startswith(b"checkpoint/"):
                    break
                found[int(key.split(b"/")[1])] = unpack(value)
        return found


def last_revisions(txn, history, lanes, torn):
    """The last revision of each document's history, and whether the revisions are contiguous."""
    last = {}
    with txn.cursor(db=history) as cursor:
        for key, value in cursor:
            document, revision = key[:-9], struct.unpack(">Q", key[-8:])[0]
            if revision != last.get(document, 0) + 1:
                torn.append(f"history of {document!r} jumps to revision {revision}")
            last[document] = revision
            row = unpack(value)
            if row["sequence"] > lanes[row["lane"]]["events_sequence"]:
                torn.append(f"history of {document!r} is ahead of its lane's checkpoint")
    return last


def body_fits(row):
    kinds = {"absent": type(None), "text": str, "structured": dict}
    return isinstance(row["body"], kinds[row["kind"]])


def check(txn, databases, torn):
    """One pass over everything; returns the number of documents and the checkpoints' sequences."""
    meta, documents, history = databases
    lanes = checkpoints(txn, meta)
    last = last_revisions(txn, history, lanes, torn)
    count = 0
    with txn.cursor(db=documents) as cursor:
        for key, value in cursor:
            count += 1
            row = unpack(value)
            if row["sequence"] > lanes[row["lane"]]["events_sequence"]:
                torn.append(f"document {key!r} is ahead of its lane's checkpoint")
            if last.pop(key, None) != row["revision"]:
                torn.append(f"document {key!r} and its history disagree")
            if not body_fits(row):
                torn.append(f"the body of document {key!r} is not of its kind")
    if last:
        torn.append(f"{len(last)} documents have history only")
    return count, {lane: row["events_sequence"] for lane, row in lanes.items()}


def main():
    path, seconds = sys.argv[1], float(sys.argv[2])
    env = lmdb.open(path, readonly=True, max_dbs=8, map_size=0, create=False)
    names = (b"meta", b"documents", b"history")
    databases = tuple(env.open_db(name, create=False) for name in names)
    torn, seen, passes, count, before = [], set(), 0, 0, {}
    end = time.monotonic() + seconds
    while passes == 0 or time.monotonic() < end:
        with env.begin() as txn:
            count, now = check(txn, databases, torn)
        if any(now.get(lane, 0) < sequence for lane, sequence in before.items()):
            torn.append("a checkpoint went back")
        before = now
        seen.add(tuple(sorted(now.items())))
        passes += 1
    env.close()
    result = {"passes": passes, "documents": count, "checkpoints_seen": len(seen), "torn": len(torn)}
    if torn:
        result["first_torn"] = torn[0]
    print(json.dumps(result))
    return 1 if torn else 0


if __name__ == "__main__":
    sys.exit(main())
