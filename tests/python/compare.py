"""Compares the documents of two live Fieldstream files with stock lmdb and msgpack, by docs/FORMAT.md alone."""
import sys

import lmdb
import msgpack


def documents(path):
    env = lmdb.open(path, readonly=True, max_dbs=16)
    with env.begin() as txn:
        table = env.open_db(b"documents", txn=txn, create=False)
        rows = [(key.decode(), msgpack.unpackb(value)) for key, value in txn.cursor(table)]
    env.close()
    return {key: {k: row[k] for k in ("revision", "state_hash", "kind", "body", "time_us")} for key, row in rows}


first, second = documents(sys.argv[1]), documents(sys.argv[2])
if first != second:
    differ = [key for key in first.keys() | second.keys() if first.get(key) != second.get(key)]
    sys.exit(f"the files differ in {len(differ)} documents: {differ[:5]}")
print(f"{len(first)} documents, equal in both files")
