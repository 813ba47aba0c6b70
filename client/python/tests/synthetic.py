"""Files as storers make them, with few rows. LMDB opens a file once per process: `in_process` writes from another.

    synthetic.py FUNCTION PATH ARGUMENTS-AS-JSON
"""

import json
import os
import struct
import subprocess
import sys

import lmdb
import msgpack

DATABASES = ("meta", "documents", "history", "clients", "dead_letters", "by_time")
ORIGIN = {"client": "c", "epoch": 1, "number": 1, "lane": 0}


def make(path, documents=0, without=(), version=1, name="fieldstream", map_bytes=1 << 24, readers_max=126, sequence=1):
    """A file with documents d00000, d00001, … of one revision each."""
    os.makedirs(path, exist_ok=True)
    env = lmdb.open(path, map_size=map_bytes, max_dbs=16, max_readers=readers_max)
    handles = {name: env.open_db(name.encode()) for name in DATABASES if name not in without}
    with env.begin(write=True) as txn:
        row = {"name": name, "version": version, "lanes": 1, "partitions": 256, "storer": 1, "created_at_us": 0}
        txn.put(b"format", msgpack.packb(row), db=handles["meta"])
        put_checkpoint(txn, handles, sequence)
        for n in range(documents):
            put(txn, handles, f"d{n:05}", 1, [[1, f"text {n}"]], sequence)
    env.close()


def put_checkpoint(txn, handles, sequence):
    row = {"log_id": 1, "events_sequence": sequence, "instructions_sequence": 1, "committed_at_us": sequence}
    txn.put(b"checkpoint/00000", msgpack.packb(row), db=handles["meta"])


def put(txn, handles, document, revision, change, sequence, body=None, **more):
    """A change and the document after it."""
    version = {"revision": revision, "state_hash": 0, "time_us": 1000 * revision, "sequence": sequence, **ORIGIN}
    body = body if body is not None else change[-1][-1]
    kind = "text" if isinstance(body, str) else "structured"
    row = {**version, "instruction_sequence": 1, "instruction_index": 0, "received_at_us": 0, "change": change, **more}
    key = document.encode() + b"\0" + struct.pack(">Q", revision)
    txn.put(key, msgpack.packb(row), db=handles["history"])
    txn.put(document.encode(), msgpack.packb({**version, "kind": kind, "body": body}), db=handles["documents"])
    if "by_time" in handles:
        time = struct.pack(">Q", version["time_us"])
        txn.put(time + key, msgpack.packb({"lane": 0, "sequence": sequence}), db=handles["by_time"])


def grow(path, map_bytes, megabytes):
    """Makes the map larger, and fills it beyond what it was."""
    env = lmdb.open(path, map_size=map_bytes, max_dbs=16)
    handles = {name: env.open_db(name.encode()) for name in DATABASES}
    for n in range(megabytes):
        with env.begin(write=True) as txn:
            put(txn, handles, f"large{n}", 1, [[1, "x" * 500_000]], 2)
            put_checkpoint(txn, handles, 2)
    env.close()


def old_history(path, first, last):
    """A document of which history begins in the middle, with changes that do not tell the whole state."""
    make(path)
    env = lmdb.open(path, map_size=1 << 24, max_dbs=16)
    handles = {name: env.open_db(name.encode()) for name in DATABASES}
    with env.begin(write=True) as txn:
        for revision in range(first, last):
            put(txn, handles, "old", revision, [[3, "."]], 1, body="." * revision)
        text = "." * last
        put(txn, handles, "old", last, [[3, "."]], 1, body=text, kind="text")
    env.close()


def whole(path, revision):
    """Has the row of a revision of `old` tell the whole state."""
    env = lmdb.open(path, map_size=1 << 24, max_dbs=16)
    history = env.open_db(b"history")
    key = b"old\0" + struct.pack(">Q", revision)
    with env.begin(write=True) as txn:
        row = msgpack.unpackb(txn.get(key, db=history))
        row.update(kind="text", body="." * revision)
        txn.put(key, msgpack.packb(row), db=history)
    env.close()


def hold(path, readers):
    """Takes slots in the table of readers until its input ends."""
    env = lmdb.open(path, readonly=True, create=False, max_dbs=16, map_size=0)
    held = [env.begin() for _ in range(readers)]
    print("held", flush=True)
    sys.stdin.read()
    del held


def in_process(function, path, **arguments):
    """Runs a function in a process of its own, to its end."""
    command = [sys.executable, __file__, function, path, json.dumps(arguments)]
    subprocess.run(command, check=True, timeout=60)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], **json.loads(sys.argv[3]))
