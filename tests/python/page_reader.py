"""Reads a storer's documents while they are written, as a reporting tool would (docs/FORMAT.md).

    page_reader.py read|size DB_PATH

read: all documents once a second, one read transaction for each page, in which no row may be ahead of its
lane's checkpoint. size: only notes how large the file is. Both go on until SIGTERM and print one line of
JSON. Exit code 1 if a page was torn.
"""

import json
import os
import signal
import sys
import time

import lmdb

from live_reader import body_fits, checkpoints, unpack

PAGE_ROWS = 1_000
EVERY_S = 1.0


class Reader:
    def __init__(self, path):
        self.env = lmdb.open(path, readonly=True, create=False, max_dbs=16, map_size=0)
        self.meta, self.documents = (self.env.open_db(name, create=False) for name in (b"meta", b"documents"))
        self.torn, self.rows, self.pages, self.took_s, self.seen = [], 0, 0, [], {}

    def page(self, start):
        """Reads one page; the key to go on at."""
        with self.env.begin() as txn, txn.cursor(self.documents) as cursor:
            lanes = {lane: row["events_sequence"] for lane, row in checkpoints(txn, self.meta).items()}
            if any(lanes.get(lane, 0) < sequence for lane, sequence in self.seen.items()):
                self.torn.append(f"the checkpoint went from {self.seen} to {lanes}")
            self.seen, rows, key = lanes, 0, b""
            if cursor.set_range(start):
                for key, value in cursor:
                    row, rows = unpack(value), rows + 1
                    if row["sequence"] > lanes[row["lane"]]:
                        self.torn.append(f"{bytes(key)!r} of {row['sequence']} is ahead of {lanes}")
                    if not body_fits(row):
                        self.torn.append(f"the body of {bytes(key)!r} is not of its kind")
                    if rows == PAGE_ROWS:
                        break
            self.pages, self.rows = self.pages + 1, self.rows + rows
            return bytes(key) + b"\0" if rows == PAGE_ROWS else None

    def scan(self):
        begun, start = time.monotonic(), b"\0"
        while start:
            start = self.page(start)
        self.took_s.append(time.monotonic() - begun)

    def run(self, is_over):
        begun, due = time.monotonic(), time.monotonic()
        while not is_over():
            self.scan()
            due = max(due + EVERY_S, time.monotonic())
            while not is_over() and time.monotonic() < due:
                time.sleep(min(0.05, max(0.0, due - time.monotonic())))
        took = sorted(self.took_s)
        return {
            "scans": len(took),
            "scans_per_s": len(took) / (time.monotonic() - begun),
            "rows": self.rows,
            "pages": self.pages,
            "scan_ms_p50": took[len(took) // 2] * 1e3,
            "scan_ms_max": took[-1] * 1e3,
            "torn": len(self.torn),
            "first_torn": self.torn[:1],
        }


def sizes(path, is_over):
    file, seen = os.path.join(path, "data.mdb"), []
    while not is_over():
        seen.append(os.path.getsize(file))
        time.sleep(EVERY_S / 2)
    return {"file_bytes_start": seen[0], "file_bytes_end": seen[-1], "file_bytes_half": seen[len(seen) // 2]}


def main():
    what, path = sys.argv[1:]
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    # At least one pass, however soon it is told to end.
    result = Reader(path).run(lambda: bool(over)) if what == "read" else sizes(path, lambda: bool(over))
    print(json.dumps(result))
    return 1 if result.get("torn") else 0


if __name__ == "__main__":
    sys.exit(main())
