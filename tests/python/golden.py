"""Reads the golden files (storer/golden) with nothing but stock tools, and compares them with what they must hold.

    golden.py [MDB_DUMP]

With the `lmdb` and `msgpack` packages, and, if the program is named, with what `mdb_dump -a` of Debian's lmdb-utils
prints. Exits 1 at the first row that differs.
"""

import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

import lmdb
import msgpack

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "storer" / "golden"


def plain(value):
    """A value as it stands in expected.json."""
    if isinstance(value, bytes):
        return {"$bin": value.hex()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def history_key(key):
    assert key[-9] == 0, key
    return [key[:-9].decode(), struct.unpack(">Q", key[-8:])[0]]


KEYS = {
    "meta": bytes.decode,
    "documents": bytes.decode,
    "history": history_key,
    "by_time": lambda key: [struct.unpack(">Q", key[:8])[0], *history_key(key[8:])],
    "clients": lambda key: [key[:-2].decode(), key[-1]],
    "dead_letters": lambda key: list(struct.unpack(">HQI", key)),
}


def with_lmdb(path):
    """Rows by database, as bytes."""
    env = lmdb.open(path, readonly=True, create=False, max_dbs=16, map_size=0)
    with env.begin() as txn:
        names = [bytes(name) for name in txn.cursor().iternext(keys=True, values=False)]
    databases = {name: env.open_db(name, create=False) for name in names}
    with env.begin() as txn:
        rows = {name.decode(): list(txn.cursor(database)) for name, database in databases.items()}
    env.close()
    return rows


def with_mdb_dump(program, path):
    """The same from what `mdb_dump -a` prints: a header and lines of hex, key and value in turn, per database."""
    printed = subprocess.run([program, "-a", path], check=True, capture_output=True, text=True).stdout
    rows, name, lines = {}, None, []
    for line in printed.splitlines():
        if line.startswith("database="):
            name = line.removeprefix("database=")
        elif line.startswith("format="):
            assert line == "format=bytevalue", line
        elif line == "DATA=END":
            values = [bytes.fromhex(line) for line in lines]
            rows[name], name, lines = list(zip(values[::2], values[1::2])), None, []
        elif line.startswith(" "):
            lines.append(line.strip())
    return rows


def compare(rows, expected, how):
    """The number of rows, if they are those expected."""
    assert set(rows) == set(expected), f"{how}: databases {sorted(rows)}, expected {sorted(expected)}"
    count = 0
    for name, listed in expected.items():
        assert len(rows[name]) == len(listed), f"{how}: {name} has {len(rows[name])} rows, expected {len(listed)}"
        for (key, value), wanted in zip(rows[name], listed):
            found = [KEYS[name](key), plain(msgpack.unpackb(value))]
            # As text, which tells 1 from 1.0.
            if json.dumps(found, sort_keys=True) != json.dumps(wanted, sort_keys=True):
                raise SystemExit(f"{how}: {name} has\n{found}\nexpected\n{wanted}")
            count += 1
    return count


def main():
    mdb_dump = sys.argv[1] if len(sys.argv) > 1 else None
    for folder in sorted(path for path in GOLDEN.iterdir() if path.is_dir()):
        expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["rows"]
        with tempfile.TemporaryDirectory() as copy:
            shutil.copy(folder / "data.mdb", copy)
            print(f"golden {folder.name}: py-lmdb: {compare(with_lmdb(copy), expected, 'py-lmdb')} rows as expected")
            if mdb_dump:
                count = compare(with_mdb_dump(mdb_dump, copy), expected, "mdb_dump")
                print(f"golden {folder.name}: mdb_dump: {count} rows as expected")
            else:
                print(f"golden {folder.name}: no mdb_dump; SKIPPED")


if __name__ == "__main__":
    main()
