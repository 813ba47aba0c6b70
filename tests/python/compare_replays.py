"""Compares replayed documents in a live Fieldstream file with what the data sets say they must be.

    compare_replays.py DB_PATH DATA_FOLDER

Documents are named <transport>/<trace> and <transport>/nab/<series>, as scripts/replays names them.
"""
import glob
import gzip
import json
import os
import sys

import lmdb
import msgpack

db, data = sys.argv[1:]
expected = {}
for path in glob.glob(f"{data}/editing-traces/*.json.gz"):
    with gzip.open(path) as file:
        expected[os.path.basename(path).removesuffix(".json.gz")] = json.load(file)["endContent"]
for path in glob.glob(f"{data}/nab/*.csv"):
    with open(path, newline="", encoding="utf-8") as file:
        expected["nab/" + os.path.basename(path).removesuffix(".csv")] = file.read()

env = lmdb.open(db, readonly=True, create=False, max_dbs=16, map_size=0)
documents = env.open_db(b"documents", create=False)
differ = []
with env.begin() as txn:
    for transport in ("tcp", "tls", "quic"):
        for name, body in expected.items():
            value = txn.get(f"{transport}/{name}".encode(), db=documents)
            if value is None or msgpack.unpackb(value)["body"] != body:
                differ.append(f"{transport}/{name}")
print(f"stock py-lmdb: {3 * len(expected) - len(differ)} of {3 * len(expected)} documents equal what was expected", *differ)
sys.exit(bool(differ))
