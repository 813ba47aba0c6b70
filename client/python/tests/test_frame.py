"""Frames, Parquet and CSV. What takes a package that is not installed is SKIPPED."""

import csv
import importlib.util
import os
import unittest
from unittest import mock

import fieldstream_reader as fr
from golden import GoldenCase

FIELDS = ("temperature_c", "burner.starts", "zone", "alarms")


def has(package):
    return importlib.util.find_spec(package) is not None


class Frames(GoldenCase):
    kinds = {
        "latest": {}, "changes": {}, "dead_letters": {}, "clients": {},
        "history": {"document": "site7/boiler-1"}, "states": {"document": "site7/boiler-1"},
    }  # fmt: skip

    def setUp(self):
        super().setUp()
        self.reader = fr.open(self.path)
        self.addCleanup(self.reader.close)

    def count(self, kind):
        return len(list(getattr(self.reader, kind)(**self.kinds[kind])))

    def test_csv(self):
        for kind, arguments in self.kinds.items():
            path = os.path.join(self.path, f"{kind}.csv")
            self.assertEqual(self.reader.to_csv(kind, path, **arguments), self.count(kind))
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.assertEqual(len(rows), self.count(kind))
            self.assertTrue(all(None not in row and None not in row.values() for row in rows))
        path = os.path.join(self.path, "states.csv")
        self.reader.to_csv("states", path, FIELDS, document="site7/boiler-1")
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        wanted = self.expected["states"]["site7/boiler-1"]
        self.assertEqual([row["temperature_c"] for row in rows][:4], ["", "", "58.25", "58.75"])
        self.assertEqual([row["burner.starts"] for row in rows][:4], ["1", "1", "2", "3"])
        self.assertEqual(rows[0]["zone"], "B")
        self.assertEqual(rows[-1]["zone"], '{"floor": 2, "name": "B"}')
        self.assertEqual(int(rows[-1]["state_hash"]), wanted[-1]["state_hash"])
        self.assertEqual(fr.to_us(__import__("datetime").datetime.fromisoformat(rows[3]["time"])), wanted[3]["time_us"])

    @unittest.skipUnless(has("pandas"), "SKIPPED: no pandas")
    def test_pandas(self):
        for kind, arguments in self.kinds.items():
            frame = self.reader.frame(kind, **arguments)
            self.assertEqual(len(frame), self.count(kind))
        frame = self.reader.frame("states", fields=FIELDS, document="site7/boiler-1")
        self.assertEqual(str(frame["time"].dtype), "datetime64[us, UTC]")
        self.assertEqual(frame["temperature_c"].dropna().tolist(), [58.25 + 0.5 * n for n in range(12)] + [63.75] * 2)
        wanted = self.expected["states"]["site7/boiler-1"]
        self.assertEqual([int(n) for n in frame["state_hash"]], [state["state_hash"] for state in wanted])
        self.assertEqual(frame["time"][3].value // 1000, wanted[3]["time_us"])

    @unittest.skipUnless(has("polars"), "SKIPPED: no polars")
    def test_polars(self):
        for kind, arguments in self.kinds.items():
            frame = self.reader.frame(kind, "polars", **arguments)
            self.assertEqual(len(frame), self.count(kind))
        frame = self.reader.frame("states", "polars", FIELDS, document="site7/boiler-1")
        wanted = self.expected["states"]["site7/boiler-1"]
        self.assertEqual(frame["state_hash"].to_list(), [state["state_hash"] for state in wanted])
        self.assertEqual([fr.to_us(time) for time in frame["time"]], [state["time_us"] for state in wanted])
        self.assertEqual(frame["temperature_c"][3], 58.75)

    @unittest.skipUnless(has("pyarrow"), "SKIPPED: no pyarrow")
    def test_parquet(self):
        import pyarrow.parquet as parquet

        path = os.path.join(self.path, "a.parquet")
        for kind, arguments in self.kinds.items():
            with mock.patch("fieldstream_reader._reader._PAGE_ROWS", 7):
                self.assertEqual(self.reader.to_parquet(kind, path, **arguments), self.count(kind))
            self.assertEqual(parquet.read_table(path).num_rows, self.count(kind))
        self.reader.to_parquet("states", path, FIELDS, document="site7/boiler-1")
        table = parquet.read_table(path).to_pydict()
        wanted = self.expected["states"]["site7/boiler-1"]
        self.assertEqual(table["state_hash"], [state["state_hash"] for state in wanted])
        self.assertEqual(table["temperature_c"][3], "58.75")

    def test_what_there_is_not(self):
        for call, reason in [
            (lambda: self.reader.frame("close"), "no frame 'close'"),
            (lambda: self.reader.frame("latest", engine="excel"), "no engine"),
            (lambda: self.reader.to_csv("clients", "unused", ("a",)), "fields are of"),
        ]:
            with self.assertRaisesRegex(ValueError, reason):
                call()
        with mock.patch.dict("sys.modules", {"pandas": None}):
            with self.assertRaisesRegex(ImportError, r"fieldstream-reader\[pandas\]"):
                self.reader.frame("latest")


if __name__ == "__main__":
    unittest.main()
