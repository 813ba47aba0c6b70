"""What can happen to a file while it is read, and what can be in the way of reading it."""

import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
from datetime import datetime
from unittest import mock

import lmdb
import synthetic

import fieldstream_reader as fr

PACKAGE = pathlib.Path(fr.__file__).parent
NOBODY = 65534


class FileCase(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)

    def storer(self, **arguments):
        """A storer's folder, with its first generation."""
        synthetic.make(str(self.root / "storer/generations/1"), **arguments)
        os.symlink("generations/1", self.root / "storer/db")
        return self.root / "storer"

    def switch(self, generation, **arguments):
        synthetic.make(str(self.root / f"storer/generations/{generation}"), **arguments)
        os.symlink(f"generations/{generation}", self.root / "storer/db.new")
        os.rename(self.root / "storer/db.new", self.root / "storer/db")

    def open(self, path, **arguments):
        reader = fr.open(path, **arguments)
        self.addCleanup(reader.close)
        return reader


class Finding(FileCase):
    def test_every_way_to_name_a_file(self):
        storer = self.storer(documents=1)
        ways = [self.root, storer, storer / "db", storer / "generations/1", storer / "db/data.mdb", f"{storer}/"]
        for path in ways:
            with fr.open(path) as reader:
                self.assertEqual(reader.path, os.path.realpath(storer / "db"), path)
                self.assertEqual(reader.get("d00000").body, "text 0")
        copy = self.root / "copy"
        shutil.copytree(storer / "generations/1", copy)
        with fr.open(copy) as reader:
            self.assertEqual(reader.path, os.path.realpath(copy))

    def test_nothing_there(self):
        for path in (self.root, self.root / "nowhere"):
            with self.assertRaisesRegex(fr.NoFile, "name the storer's folder"):
                fr.open(path)
        os.mkdir(self.root / "storer")
        os.symlink("generations/9", self.root / "storer/db")
        with self.assertRaises(fr.NoFile):
            fr.open(self.root)

    def test_no_storers_file(self):
        (self.root / "a").mkdir()
        (self.root / "a/data.mdb").write_bytes(b"\7" * 8192)
        with self.assertRaisesRegex(fr.DamagedFile, "not a file of LMDB"):
            fr.open(self.root / "a")
        lmdb.open(str(self.root / "b"), max_dbs=4).close()
        with self.assertRaisesRegex(fr.MissingDatabase, "no database meta"):
            fr.open(self.root / "b")
        synthetic.make(str(self.root / "c"), name="another")
        with self.assertRaises(fr.DamagedFile):
            fr.open(self.root / "c")

    def test_another_version(self):
        synthetic.make(str(self.root / "a"), version=2)
        with self.assertRaisesRegex(fr.VersionDiffers, "version 2"):
            fr.open(self.root / "a")


class Earlier(FileCase):
    """Files of earlier versions."""

    def test_no_database_by_time(self):
        synthetic.make(str(self.root / "a"), documents=2, without=["by_time"])
        reader = self.open(self.root / "a")
        self.assertEqual(len(list(reader.latest())), 2)
        with self.assertRaisesRegex(fr.MissingDatabase, "earlier version"):
            list(reader.changes())
        with self.assertRaises(fr.MissingDatabase):
            reader.changes_begin_at_us()
        # A newer storer opens the file: it has the database then.
        reader.close()
        synthetic.in_process("make", str(self.root / "a"))
        reader = self.open(self.root / "a")
        self.assertEqual(list(reader.changes()), [])
        self.assertIsNone(reader.changes_begin_at_us())

    def test_history_without_a_whole_state(self):
        path = str(self.root / "a")
        synthetic.old_history(path, first=5, last=9)
        with mock.patch("fieldstream_reader._change._xxh3", None), fr.open(path) as reader:
            for revision, reason in [(4, "begins at revision 5$"), (7, "begins at revision 5 without a whole state")]:
                with self.assertRaisesRegex(fr.NotAvailable, reason):
                    reader.at("old", revision)
            with self.assertRaisesRegex(fr.NotAvailable, "begins at revision 5, 1970-01-01T00:00:00.005Z"):
                reader.at("old", time=4999)
            # The newest row of it tells the whole state, and the current one is a row of documents.
            self.assertEqual(reader.at("old").body, "." * 9)
            self.assertEqual(list(reader.states("old")), [])
        synthetic.in_process("whole", path, revision=7)
        with mock.patch("fieldstream_reader._change._xxh3", None), fr.open(path) as reader:
            self.assertEqual([state.body for state in reader.states("old")], ["." * 7, "." * 8, "." * 9])
            self.assertEqual(reader.at("old", 8).body, "." * 8)
            with self.assertRaises(fr.NotAvailable):
                reader.at("old", 6)


class Changing(FileCase):
    def test_a_switch_between_two_pages(self):
        storer = self.storer(documents=25, sequence=1)
        reader = self.open(storer)
        with mock.patch("fieldstream_reader._reader._PAGE_ROWS", 10):
            pages = reader.latest().pages()
            first = next(pages)
            self.switch(2, documents=30, sequence=7)
            shutil.rmtree(storer / "generations/1")
            rest = list(pages)
        self.assertEqual(first.as_of.lanes[0].events_sequence, 1)
        self.assertEqual({page.as_of.lanes[0].events_sequence for page in rest}, {7})
        rows = [row.id for page in [first, *rest] for row in page.rows]
        self.assertEqual(rows, [f"d{n:05}" for n in range(30)])
        self.assertTrue(reader.path.endswith("generations/2"))

    def test_another_file_in_the_same_place(self):
        storer = self.storer(documents=1, sequence=1)
        reader = self.open(storer)
        shutil.rmtree(storer / "generations/1")
        synthetic.in_process("make", str(storer / "generations/1"), documents=2, sequence=5)
        self.assertEqual(reader.checkpoint().lanes[0].events_sequence, 5)
        self.assertEqual(len(list(reader.latest())), 2)

    def test_the_map_grows(self):
        path = str(self.root / "a")
        synthetic.make(path, documents=30, map_bytes=1 << 20)
        reader = self.open(path)
        with mock.patch("fieldstream_reader._reader._PAGE_ROWS", 10):
            pages = reader.latest().pages()
            next(pages)
            synthetic.in_process("grow", path, map_bytes=1 << 26, megabytes=8)
            rest = list(pages)
        self.assertEqual([page.as_of.lanes[0].events_sequence for page in rest], [2] * len(rest))
        self.assertEqual(sum(len(page.rows) for page in rest), 20 + 8)
        self.assertEqual(len(reader.get("large7").body), 500_000)

    def test_no_transaction_is_open_between_pages(self):
        path = str(self.root / "a")
        synthetic.make(path, documents=30)
        reader = self.open(path)
        with mock.patch("fieldstream_reader._reader._PAGE_ROWS", 10):
            for number, _ in enumerate(reader.latest()):
                if number in (0, 15, 29):
                    slots = reader._file._shared.env.readers().splitlines()[1:]
                    self.assertTrue(slots)
                    self.assertEqual([slot for slot in slots if not slot.rstrip().endswith("-")], [])

    def test_large_bodies_make_short_pages(self):
        path = str(self.root / "a")
        synthetic.make(path, map_bytes=1 << 26)
        synthetic.in_process("grow", path, map_bytes=1 << 26, megabytes=20)
        pages = [len(page.rows) for page in self.open(path).latest().pages()]
        self.assertEqual(sum(pages), 20)
        self.assertEqual(pages[0], 17, "8 MiB and the row that passes them")


class InTheWay(FileCase):
    def test_all_slots_taken(self):
        path = str(self.root / "a")
        synthetic.make(path, readers_max=126)
        # The slots are those of whoever opens it first: a holder with few of them cannot be had read-only.
        os.remove(os.path.join(path, "lock.mdb"))
        script = (
            "import lmdb, sys; env = lmdb.open(sys.argv[1], max_readers=2, max_dbs=16, map_size=1 << 24);"
            "held = [env.begin(), env.begin()]; print('held', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", script, path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            self.assertEqual(holder.stdout.readline(), b"held\n")
            with self.assertRaisesRegex(fr.ReadersFull, "end some readers"):
                fr.open(path)
            holder.stdin.close()
        # Slots of ended processes stay taken until somebody looks; a storer does so every minute.
        with lmdb.open(path, max_dbs=16) as env:
            env.reader_check()
        self.assertEqual(list(self.open(path).latest()), [])

    def test_a_lock_file_that_cannot_be_written(self):
        path = self.root / "a"
        synthetic.make(str(path))
        os.chmod(self.root, 0o755)
        os.chmod(path / "lock.mdb", 0o444)
        # Everything is imported before root's rights are given up: another user may not see the packages.
        script = (
            "import os, sys; sys.path.insert(0, sys.argv[1]); import fieldstream_reader as fr\n"
            "if os.geteuid() == 0: os.setuid(int(sys.argv[3]))\n"
            "try:\n    fr.open(sys.argv[2])\nexcept fr.LockNotWritable as error:\n    print(error)\n"
        )
        command = [sys.executable, "-c", script, str(PACKAGE.parent), str(path), str(NOBODY)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertIn("put the user into the storer's group", ran.stdout, ran.stderr)

    def test_a_filesystem_that_is_mounted_read_only(self):
        path = str(self.root / "a")
        synthetic.make(path)
        status = mock.Mock(f_flag=os.ST_RDONLY)
        with mock.patch("os.statvfs", return_value=status):
            with self.assertRaisesRegex(fr.LockNotWritable, "mounted read-only"):
                fr.open(path)
            self.open(path, allow_unlocked=True).checkpoint()

    def test_another_lmdb(self):
        path = str(self.root / "a")
        synthetic.make(path)
        script = "import synthetic, sys; synthetic.hold(sys.argv[1], 1)"
        command = [sys.executable, "-c", script, path]
        folder = os.path.dirname(synthetic.__file__)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, cwd=folder, **pipes) as holder:
            self.assertEqual(holder.stdout.readline(), b"held\n")
            # The format word behind the magic number becomes that of another LMDB, while it is open.
            with open(os.path.join(path, "lock.mdb"), "r+b") as lock:
                lock.seek(4)
                lock.write(b"\2")
            with self.assertRaisesRegex(fr.OtherLmdb, "LMDB 0.9 releases"):
                fr.open(path)

    def test_opened_by_other_means_in_this_process(self):
        path = str(self.root / "a")
        synthetic.make(path)
        env = lmdb.open(path, readonly=True, max_dbs=16)
        with self.assertRaisesRegex(fr.ReaderError, "by other means"):
            fr.open(path)
        env.close()
        self.open(path).checkpoint()

    def test_a_fork(self):
        path = str(self.root / "a")
        synthetic.make(path)
        reader = self.open(path)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            said = []
            for attempt in (reader.checkpoint, lambda: fr.open(path)):
                try:
                    attempt()
                except fr.Forked as error:
                    said.append(str(error))
            os.write(write_end, json.dumps(said).encode())
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            said = json.loads(pipe.read())
        os.waitpid(child, 0)
        self.assertEqual(len(said), 2)
        self.assertIn("spawn", said[0])
        reader.checkpoint()

    def test_a_damaged_row(self):
        path = str(self.root / "a")
        synthetic.make(path, documents=1)
        for value, reason in [(b"\xc1", "not MessagePack"), (b"\x93", "not MessagePack"), (b"\x01", "not a map"),
                              (b"\x80", "no 'revision'")]:  # fmt: skip
            env = lmdb.open(path, max_dbs=16)
            documents = env.open_db(b"documents")
            with env.begin(write=True) as txn:
                txn.put(b"d00000", value, db=documents)
            env.close()
            with fr.open(path) as reader, self.assertRaisesRegex(fr.DamagedFile, reason):
                list(reader.latest())


class Using(FileCase):
    def test_readers_and_threads_share_a_file(self):
        path = str(self.root / "a")
        synthetic.make(path, documents=2500)
        counts, readers = [], [self.open(path), self.open(path)]

        def read(reader):
            counts.append(sum(1 for _ in reader.latest()))

        threads = [threading.Thread(target=read, args=(reader,)) for reader in readers * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(counts, [2500] * 6)
        readers[0].close()
        self.assertEqual(len(list(readers[1].latest())), 2500)
        with self.assertRaisesRegex(fr.ReaderError, "closed"):
            readers[0].checkpoint()
        readers[0].close()

    def test_a_loop_that_is_left_early_leaves_nothing_behind(self):
        path = str(self.root / "a")
        synthetic.make(path, documents=10)
        reader = self.open(path)
        for _ in reader.latest():
            break
        reader.close()
        gc.collect()
        lmdb.open(path).close()

    def test_pages_tell_what_they_are_as_of(self):
        path = str(self.root / "a")
        synthetic.make(path, documents=10, sequence=3)
        pages = self.open(path).latest()
        self.assertIsNone(pages.as_of)
        self.assertEqual(len(list(pages)), 10)
        self.assertEqual(pages.as_of.lanes[0].events_sequence, 3)
        self.assertEqual(len(list(pages)), 10)

    def test_times(self):
        self.assertEqual(fr.to_us(fr.from_us(1_790_000_000_000_001)), 1_790_000_000_000_001)
        with self.assertRaisesRegex(ValueError, "timezone"):
            fr.to_us(datetime(2026, 1, 1))


if __name__ == "__main__":
    unittest.main()
