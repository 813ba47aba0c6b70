"""Reads storers' LMDB files again and again while faults are injected, as a reporting tool would.

    watch_files.py DB_PATH...

Every transaction must show one checkpoint that never goes back, whatever was killed meanwhile, and
rows that fit it. Ends when stdin is closed; prints one line of JSON, what is wrong stands on stderr.
"""

import json
import random
import select
import struct
import sys

import lmdb
from live_reader import body_fits, checkpoints, unpack

PAUSE_S = 0.1
SAMPLES = 4


class File:
    """One storer's file, opened once it is there."""

    def __init__(self, path):
        self.path, self.env, self.seen, self.reads = path, None, {}, 0

    def open(self):
        try:
            env = lmdb.open(self.path, readonly=True, create=False, max_dbs=16, map_size=0)
        except lmdb.Error:
            return False
        try:
            self.databases = [env.open_db(n, create=False) for n in (b"meta", b"documents", b"history")]
        except lmdb.Error:
            env.close()
            return False
        self.env = env
        return True

    def read(self, wrong):
        if self.env is None and not self.open():
            return
        meta, documents, history = self.databases
        with self.env.begin() as txn:
            lanes = checkpoints(txn, meta)
            now = {lane: row["events_sequence"] for lane, row in lanes.items()}
            if any(now.get(lane, 0) < sequence for lane, sequence in self.seen.items()):
                wrong.append(f"{self.path}: its checkpoint went from {self.seen} to {now}")
            self.seen = now
            keys = list(txn.cursor(db=documents).iternext(keys=True, values=False))
            for key in random.sample(keys, min(SAMPLES, len(keys))):
                self.sample(txn, key, documents, history, lanes, wrong)
        self.reads += 1

    def sample(self, txn, key, documents, history, lanes, wrong):
        row = unpack(txn.get(key, db=documents))
        cursor = txn.cursor(db=history)
        # The last revision of a document is in front of where the highest there can be would stand.
        found = cursor.set_range(key + b"\0" + b"\xff" * 9)
        newest = cursor.prev() if found else cursor.last()
        if not newest or struct.unpack(">Q", cursor.key()[-8:])[0] != row["revision"]:
            wrong.append(f"{self.path}: {key!r} at {row['revision']} and its history disagree")
        if row["sequence"] > lanes[row["lane"]]["events_sequence"] or not body_fits(row):
            wrong.append(f"{self.path}: {key!r} does not fit its checkpoint or its kind")


def main():
    files, wrong = [File(path) for path in sys.argv[1:]], []
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        for file in files:
            file.read(wrong)
    for what in wrong[:20]:
        print(what, file=sys.stderr)
    print(json.dumps({"live_reads": sum(file.reads for file in files), "live_violations": len(wrong)}))


if __name__ == "__main__":
    main()
