"""Every row of every golden file, through the reader."""

import dataclasses
import unittest
from datetime import timedelta
from unittest import mock

import fieldstream_reader as fr
from fieldstream_reader import _change
from golden import GoldenCase, exact, folders


class Golden(GoldenCase):
    def setUp(self):
        super().setUp()
        self.reader = fr.open(self.path)
        self.addCleanup(self.reader.close)

    def values(self, row, names):
        return {name: getattr(row, name) for name in names}

    def check(self, rows, database, key_of, without=()):
        """Rows against those expected, key by key and value by value."""
        rows, wanted = list(rows), self.expected["rows"][database]
        self.assertEqual(len(rows), len(wanted))
        for row, (key, value) in zip(rows, wanted):
            self.assertSame(key_of(row), key)
            names = [name for name in value if name not in without]
            self.assertSame(self.values(row, names), {name: value[name] for name in names})

    def test_format_and_checkpoint(self):
        rows = dict(self.expected["rows"]["meta"])
        self.assertEqual(dataclasses.asdict(self.reader.format).items() & rows["format"].items(),
                         dataclasses.asdict(self.reader.format).items())
        checkpoint = self.reader.checkpoint()
        self.assertEqual(len(checkpoint.lanes), rows["format"]["lanes"])
        for lane in checkpoint.lanes:
            row = rows[f"checkpoint/{lane.lane:05}"]
            for name in ("log_id", "events_sequence", "instructions_sequence", "committed_at_us"):
                self.assertEqual(getattr(lane, name), row[name])
        committed = max(lane.committed_at_us for lane in checkpoint.lanes)
        self.assertEqual(checkpoint.committed_at_us, committed)
        self.assertAlmostEqual(checkpoint.behind_s, (checkpoint.read_at_us - committed) / 1e6)
        self.assertIn(f"{checkpoint.lanes[0].events_sequence} (lane 0)", str(checkpoint))

    def test_documents(self):
        self.check(self.reader.latest(include_absent=True), "documents", lambda row: row.id, {"since_whole_bytes"})
        self.assertEqual([row.id for row in self.reader.latest()], self.expected["listed"])
        site7 = [id for id in self.expected["listed"] if id.startswith("site7/")]
        self.assertEqual([row.id for row in self.reader.latest("site7/")], site7)
        self.assertEqual(list(self.reader.latest("nowhere")), [])
        self.assertIsNone(self.reader.get("nowhere"))
        self.assertIsNone(self.reader.get(""))

    def test_history(self):
        rows = [row for id in self.expected["states"] for row in self.reader.history(id)]
        rows.sort(key=lambda row: (row.document, row.revision))
        self.check(rows, "history", lambda row: [row.document, row.revision])
        for row, (_, value) in zip(rows, self.expected["rows"]["history"]):
            self.assertEqual(row.has_whole_state, "body" in value)
        some = self.reader.history("site8/display", 30, 32)
        self.assertEqual([row.revision for row in some], [30, 31, 32])

    def test_changes_by_time(self):
        self.check(self.reader.changes(), "by_time", lambda row: [row.time_us, row.document, row.revision])
        for row in self.reader.changes():
            is_kept = row.revision >= self.expected["history_begins"][row.document]
            self.assertEqual(row.change is not None, is_kept)
            if row.change:
                self.assertEqual((row.change.revision, row.change.time_us), (row.revision, row.time_us))
        all_rows = self.expected["rows"]["by_time"]
        since, until = all_rows[3][0][0], all_rows[20][0][0]
        found = [row.time_us for row in self.reader.changes(since, fr.from_us(until))]
        self.assertEqual(found, [key[0] for key, _ in all_rows[3:20]])
        self.assertEqual({row.document for row in self.reader.changes(prefix="site7/n")}, {"site7/notes"})
        self.assertEqual(self.reader.changes_begin_at_us(), all_rows[0][0][0])

    def test_clients_and_dead_letters(self):
        self.check(self.reader.clients(), "clients", lambda row: [row.client, row.partition], {"window"})
        for row, (_, value) in zip(self.reader.clients(), self.expected["rows"]["clients"]):
            kinds = {"applied": 1, "refused": 2, "dead": 3}
            window = [[o.number, o.content_hash, [kinds[o.kind], o.revision or o.code]] for o in row.window]
            self.assertEqual(window, value["window"])
        letters = self.reader.dead_letters()
        self.check(letters, "dead_letters", lambda row: [row.lane, row.sequence, row.event_index],
                   {"settled", "content_hash"})
        self.assertEqual([row for row in letters if row.lane == 1], list(self.reader.dead_letters(lane=1)))

    def test_states_at_every_revision(self):
        for document, states in self.expected["states"].items():
            begins = self.expected["history_begins"][document]
            for wanted in states:
                if wanted["revision"] < begins:
                    with self.assertRaisesRegex(fr.NotAvailable, f"begins at revision {begins}"):
                        self.reader.at(document, wanted["revision"])
                    continue
                found = self.reader.at(document, wanted["revision"])
                self.assertSame(self.values(found, wanted), wanted)
            told = [self.values(state, states[0]) for state in self.reader.states(document)]
            self.assertSame(told, states[begins - 1 :])
            self.assertSame(self.reader.at(document).body, states[-1]["body"])
            self.assertEqual(self.reader.at(document, 0).kind, "absent")

    def test_states_in_pages_of_any_size(self):
        whole = list(self.reader.states("site8/display"))
        for rows in (1, 2, 7):
            with mock.patch("fieldstream_reader._reader._PAGE_ROWS", rows):
                paged = self.reader.states("site8/display")
                self.assertEqual(list(paged), whole)
                # A full page is followed by another one, empty perhaps.
                self.assertEqual(len(list(paged.pages())), len(whole) // rows + 1)
                self.assertEqual(len(list(self.reader.latest("", True))), len(self.expected["rows"]["documents"]))
        part = self.reader.states("site8/display", 40, 41)
        self.assertEqual([state.revision for state in part], [40, 41])
        self.assertEqual(list(part), [state for state in whole if state.revision in (40, 41)])

    def test_states_at_times(self):
        for document, states in self.expected["states"].items():
            begins = self.expected["history_begins"][document]
            for before, after in zip(states[begins - 1 :], states[begins:]):
                for time_us in (before["time_us"], after["time_us"] - 1):
                    self.assertEqual(self.reader.at(document, time=time_us).revision, before["revision"])
            last = states[-1]
            at = self.reader.at(document, time=fr.from_us(last["time_us"]) + timedelta(days=1))
            self.assertEqual(at.revision, last["revision"])
            if begins == 1:
                self.assertEqual(self.reader.at(document, time=states[0]["time_us"] - 1).revision, 0)
            else:
                with self.assertRaisesRegex(fr.NotAvailable, "begins at revision"):
                    self.reader.at(document, time=states[0]["time_us"])

    def test_no_such_revision_or_document(self):
        with self.assertRaisesRegex(fr.NoSuchRevision, "it is at 4"):
            self.reader.at("site7/alarm", 5)
        with self.assertRaisesRegex(fr.NoSuchRevision, "no document"):
            self.reader.at("nowhere", 1)
        with self.assertRaisesRegex(fr.NoSuchRevision, "no document"):
            self.reader.at("nowhere", time=0)
        with self.assertRaises(ValueError):
            self.reader.at("site7/alarm", 1, 1)

    def test_names_of_codes(self):
        instructions = {int(code): name for code, name in self.expected["codes"].items() if int(code) < 100}
        self.assertEqual(dict(fr.CODE_NAMES), instructions)

    @unittest.skipUnless(_change._xxh3, "SKIPPED: no xxhash, hashes are not compared")
    def test_hashes(self):
        for states in self.expected["states"].values():
            for state in states:
                # Bytes are in the one map that has them under the key calibration.
                if "$bin" not in exact(state["body"]):
                    self.assertEqual(_change.state_hash(state["body"]), state["state_hash"])
        self.assertTrue(self.reader.at("site7/boiler-1", 3).verified)

    def test_a_wrong_body_is_noticed(self):
        with mock.patch("fieldstream_reader._change._xxh3", lambda packed: 1):
            with self.assertRaisesRegex(fr.StateDiffers, "storer noted"):
                self.reader.at("site7/boiler-1", 3)
        with mock.patch("fieldstream_reader._change._xxh3", None):
            self.assertFalse(self.reader.at("site7/boiler-1", 3).verified)


def load_tests(loader, tests, pattern):
    """The same tests for every golden folder."""
    suite = unittest.TestSuite()
    for folder in folders():
        case = type(f"Golden_{folder.name}", (Golden,), {"folder": folder})
        suite.addTests(loader.loadTestsFromTestCase(case))
    return suite
