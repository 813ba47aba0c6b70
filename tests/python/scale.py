"""Takes the time of a storer at size, on a log that is there already. See scripts/scale."""

import argparse
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

import lmdb
import msgpack

from live_reader import checkpoints

DATABASES = (b"meta", b"documents", b"history", b"by_time", b"clients", b"dead_letters")
LOOK_S = 0.05
POINT_READS = 20_000
PAST_READS = 5_000
# Primitives that set the whole state.
WHOLE = (1, 2, 7)
DOCUMENTS_PER_CLIENT = 1_000
# A storer that gets no further for so long never will.
PATIENCE_S = 120
MIB = 1 << 20


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def document_id(n):
    return f"site-{n // DOCUMENTS_PER_CLIENT:05}/device-{n:010}".encode()


def applied(text, change):
    """A text after a change; only what the generated log has."""
    for primitive, argument in change:
        if primitive == 1:
            text = argument
        elif primitive == 4:
            for position, deleted, inserted in argument:
                text = text[:position] + inserted + text[position + deleted :]
        else:
            sys.exit(f"the generated log has no primitive {primitive}")
    return text


class Usage:
    """What a process takes, looked at again and again."""

    def __init__(self, pid):
        self.pid, self.own_kb, self.mapped_kb, self.cpu_s, self.written_bytes = pid, 0, 0, 0.0, 0

    def look(self):
        try:
            with open(f"/proc/{self.pid}/status") as status:
                kb = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssFile"))}
            with open(f"/proc/{self.pid}/stat") as stat:
                ticks = stat.read().rpartition(")")[2].split()
            with open(f"/proc/{self.pid}/io") as io:
                # What is handed to the system: its own count of what is written takes large folios as wholes.
                written = int(next(line for line in io if line.startswith("wchar")).split()[1])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return
        self.written_bytes = max(self.written_bytes, written)
        self.own_kb = max(self.own_kb, kb.get("RssAnon", 0))
        self.mapped_kb = max(self.mapped_kb, kb.get("RssFile", 0))
        self.cpu_s = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


class File:
    """A storer's file, read as any reporting tool would."""

    def __init__(self, path):
        self.path = path
        self.env = lmdb.open(path, readonly=True, create=False, max_dbs=16, map_size=0)
        self.databases = {name: self.env.open_db(name, create=False) for name in DATABASES}

    def stored(self):
        """Messages of EVENTS in the file, of all lanes."""
        with self.env.begin() as txn:
            return sum(row["events_sequence"] for row in checkpoints(txn, self.databases[b"meta"]).values())

    def sizes(self):
        """Bytes of the file, of the pages in use, and of keys and values."""
        pages = 4
        with self.env.begin() as txn:
            for database in self.databases.values():
                stat = txn.stat(database)
                pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return os.path.getsize(os.path.join(self.path, "data.mdb")), pages * stat["psize"]

    def scan(self, name):
        """One full pass, page by page: rows, bytes of keys and values, seconds."""
        begun, rows, size, start = time.monotonic(), 0, 0, b"\0"
        while start:
            with self.env.begin() as txn, txn.cursor(self.databases[name]) as cursor:
                page = 0
                if cursor.set_range(start):
                    for key, value in cursor:
                        msgpack.unpackb(value)
                        size += len(key) + len(value)
                        page += 1
                        if page == 1_000:
                            break
                start = key + b"\0" if page == 1_000 else None
                rows += page
        return rows, size, time.monotonic() - begun

    def at(self, document, revision):
        """A document as it was at a revision, and how many rows of history that took (docs/FORMAT.md)."""
        with self.env.begin() as txn, txn.cursor(self.databases[b"history"]) as cursor:
            found, changes, text = cursor.set_key(document + b"\0" + struct.pack(">Q", revision)), [], None
            while found:
                row = msgpack.unpackb(cursor.value())
                if "body" in row:
                    text = row["body"]
                    break
                changes.append(row["change"])
                if row["revision"] == 1 or any(primitive in WHOLE for primitive, *_ in row["change"]):
                    break
                found = cursor.prev()
        for change in reversed(changes):
            text = applied(text, change)
        return text, len(changes) + (1 if found and "body" in row else 0)

    def past_reads(self, revisions):
        """Seconds and rows of many reads of the document that has many revisions, as it was."""
        chooser, took, rows = random.Random(2), [], []
        for _ in range(PAST_READS):
            revision = chooser.randrange(2, revisions + 2)
            begun = time.perf_counter()
            text, read = self.at(document_id(0), revision)
            took.append(time.perf_counter() - begun)
            rows.append(read)
            # Revision 2 is the first edit, which writes 0 in front.
            if text is None or len(text) != 500 or int(text[:10]) != revision - 2:
                sys.exit(f"revision {revision} reads as {text!r}")
        return took, rows

    def point_reads(self, documents):
        """Seconds of each of many reads of a document, a transaction each."""
        chooser, took, missing = random.Random(1), [], 0
        for _ in range(POINT_READS):
            key = document_id(chooser.randrange(documents))
            begun = time.perf_counter()
            with self.env.begin() as txn:
                value = txn.get(key, db=self.databases[b"documents"])
                row = msgpack.unpackb(value) if value else None
            took.append(time.perf_counter() - begun)
            missing += row is None or len(row["body"]) != 500
        return took, missing


class Figures(dict):
    """What was measured so far; said at once, because the whole takes minutes."""

    def update(self, **figures):
        super().update(**figures)
        said = (f"{name} {value:,.1f}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items())
        print(", ".join(said), file=sys.stderr, flush=True)


class Measuring:
    def __init__(self, options):
        self.options = options
        self.filled = json.load(open(options.filled))
        self.figures = Figures()
        self.copies = os.path.join(options.work, "copies")
        self.environment = {
            **os.environ,
            "FIELDSTREAM_STORER__COPIES_DIRECTORY": self.copies,
            # Only the one that is asked for.
            "FIELDSTREAM_STORER__COPY_EVERY": "1day",
            # All of history stays.
            "FIELDSTREAM_STORER__HISTORY_REVISIONS": "0",
            "FIELDSTREAM_STORER__HISTORY_BYTES_MAX": "1TiB",
        }

    def folder(self, name):
        return os.path.join(self.options.work, name)

    def start(self, *arguments, **more):
        command = [self.options.program, "storer", *arguments]
        return subprocess.Popen(command, env=self.environment, text=True, **more)

    def command(self, *arguments):
        """A command that prints JSON or a line; its answer, seconds, and what it took."""
        begun = time.monotonic()
        running = self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        usage = Usage(running.pid)
        while running.poll() is None:
            usage.look()
            time.sleep(LOOK_S)
        took = time.monotonic() - begun
        out, err = running.communicate()
        if running.returncode != 0:
            sys.exit(f"fieldstream storer {' '.join(arguments)} ended with {running.returncode}: {err}{out}")
        return (json.loads(out) if out.startswith("{") else out), took, usage

    def take_in(self):
        """Starts a storer and waits until it has everything; gives back the process."""
        directory, events, messages = self.folder("storer"), self.filled["events"], self.filled["messages"]
        begun = time.monotonic()
        storer = self.start("--nats", self.options.nats, "--data", directory, "--log-level", "warn", stdout=subprocess.DEVNULL)
        usage, file, moved, seen = Usage(storer.pid), None, begun, [(0.0, 0)]
        while seen[-1][1] < messages:
            if storer.poll() is not None or time.monotonic() - moved > PATIENCE_S:
                sys.exit(f"the storer stands at {seen[-1][1]} of {messages} messages")
            usage.look()
            if file is None and os.path.exists(os.path.join(directory, "db", "data.mdb")):
                file = File(os.path.join(directory, "db"))
            stored = file.stored() if file else 0
            if stored > seen[-1][1]:
                moved = time.monotonic()
                seen.append((moved - begun, stored))
            time.sleep(LOOK_S)
        took = seen[-1][0]
        # The last fifth is taken in by a file that has nearly its full size.
        late = [at for at in seen if at[1] >= messages * 0.8]
        late_messages, late_s = late[-1][1] - late[0][1], late[-1][0] - late[0][0]
        self.figures.update(
            live_s=took,
            live_events_per_s=events / took,
            live_events_per_s_last_fifth=late_messages * events / messages / late_s if late_s else None,
            live_cpu_us_per_event=usage.cpu_s * 1e6 / events,
            live_written_mib=usage.written_bytes / MIB,
            live_memory_mib=usage.own_kb / 1024,
            live_mapped_mib=usage.mapped_kb / 1024,
        )
        return storer, file

    def read(self, file):
        file_bytes, used_bytes = file.sizes()
        rows, size, took = file.scan(b"documents")
        row_bytes = size + sum(file.scan(name)[1] for name in (b"history", b"by_time", b"clients"))
        reads, missing = file.point_reads(self.options.documents)
        if missing or rows != self.options.documents:
            sys.exit(f"{missing} documents are not as they were put, {rows} of {self.options.documents} are there")
        self.figures.update(
            file_mib=file_bytes / MIB,
            pages_used_mib=used_bytes / MIB,
            rows_mib=row_bytes / MIB,
            file_per_row_bytes=file_bytes / row_bytes,
            scan_documents_s=took,
            scan_rows_per_s=rows / took,
            point_read_us_p50=percentile(reads, 0.5) * 1e6,
            point_read_us_p99=percentile(reads, 0.99) * 1e6,
        )
        if self.options.revisions > 0:
            took, rows = file.past_reads(self.options.revisions)
            self.figures.update(
                at_us_p50=percentile(took, 0.5) * 1e6,
                at_us_p99=percentile(took, 0.99) * 1e6,
                at_us_max=max(took) * 1e6,
                at_rows_max=max(rows),
            )

    def copy(self):
        copy, took, _ = self.command("snapshot", "--nats", self.options.nats, "--json")
        mib = copy["bytes"] / MIB
        self.figures.update(copy_s=took, copy_mib=mib, copy_mib_per_s=mib / took, copy_s_per_gib=took * 1024 / mib)
        return copy["path"]

    def put_back(self, copy):
        _, took, _ = self.command("restore", copy, "--data", self.folder("restored"))
        self.figures.update(restore_s=took, restore_mib_per_s=self.figures["copy_mib"] / took)

    def rebuild(self):
        where = ("--storer", self.folder("restored"), "--nats", self.options.nats)
        rebuilt, took, usage = self.command("rebuild", *where, "--from-log", "--json")
        if rebuilt["messages"] != self.filled["messages"]:
            sys.exit(f"the rebuilt file has {rebuilt['messages']} messages of {self.filled['messages']}")
        shutil.rmtree(rebuilt["before"])
        self.figures.update(
            rebuild_s=took,
            rebuild_events_per_s=self.filled["events"] / took,
            rebuild_cpu_us_per_event=usage.cpu_s * 1e6 / self.filled["events"],
            rebuild_written_mib=usage.written_bytes / MIB,
            rebuild_memory_mib=usage.own_kb / 1024,
        )

    def compare(self, copy):
        """The file from the log against the copy of the one that was written live."""
        where = ("--storer", self.folder("restored"), "--nats", self.options.nats)
        report, took, _ = self.command("verify", *where, "--copy", copy, "--json")
        if not report["equal"]:
            sys.exit(f"the rebuilt file is not what the copy is: {report}")
        self.figures.update(verify_s=took, verify_rows=report["rows"])

    def run(self):
        storer, file = self.take_in()
        try:
            self.read(file)
            copy = self.copy()
        finally:
            file.env.close()
            storer.send_signal(signal.SIGTERM)
            storer.wait(30)
        self.put_back(copy)
        shutil.rmtree(self.folder("storer"))
        self.rebuild()
        self.compare(copy)


ROWS = [
    ("log: messages / MiB", "{messages:,} / {log_mib:,.0f}"),
    ("storer takes it in live, each commit synced: s, events/s (last fifth)", "{live_s:.1f}, **{live_events_per_s:,.0f}** ({late})"),
    ("its CPU µs per event; MiB written; memory MiB: own, mapped of the file", "{live_cpu_us_per_event:.1f}; {live_written_mib:,.0f}; {live_memory_mib:,.0f}, {live_mapped_mib:,.0f}"),
    ("file MiB: whole, pages in use, keys and values; file / keys and values", "{file_mib:,.0f}, {pages_used_mib:,.0f}, {rows_mib:,.0f}; {file_per_row_bytes:.2f}"),
    ("one document by py-lmdb, a transaction each: p50 / p99 µs", "{point_read_us_p50:.0f} / {point_read_us_p99:.0f}"),
    ("one document of {revisions:,} more revisions *as it was*, by py-lmdb: p50 / p99 / longest µs; most rows read", "{at_us_p50:.0f} / {at_us_p99:.0f} / {at_us_max:.0f}; {at_rows_max}"),
    ("all documents by py-lmdb, page by page: s, rows/s", "{scan_documents_s:.1f}, {scan_rows_per_s:,.0f}"),
    ("`storer snapshot`, verified: MiB, s, s per GiB", "{copy_mib:,.0f}, {copy_s:.1f}, {copy_s_per_gib:.1f}"),
    ("`storer restore` of it: s, MiB/s", "{restore_s:.1f}, {restore_mib_per_s:,.0f}"),
    ("`storer rebuild --from-log`: s, events/s", "{rebuild_s:.1f}, **{rebuild_events_per_s:,.0f}**"),
    ("its CPU µs per event; MiB written; memory MiB", "{rebuild_cpu_us_per_event:.1f}; {rebuild_written_mib:,.0f}; {rebuild_memory_mib:,.0f}"),
    ("`storer verify` of the rebuilt file against the copy: s, rows, result", "{verify_s:.1f}, {verify_rows:,}, equal"),
]


def main():
    parser = argparse.ArgumentParser()
    for name in ("program", "nats", "work", "filled", "order", "machine", "form"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("documents", "revisions"):
        parser.add_argument(f"--{name}", required=True, type=int)
    options = parser.parse_args()
    measuring = Measuring(options)
    measuring.run()
    told = {name: getattr(options, name) for name in ("documents", "order", "revisions", "machine")}
    filled = {"messages": measuring.filled["messages"], "log_mib": measuring.filled["log_bytes"] / MIB}
    figures = {**told, **filled, **measuring.figures}
    if options.form == "json":
        print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}))
        return
    late = figures["live_events_per_s_last_fifth"]
    print(f"{options.documents:,} documents, {options.order}, {options.revisions:,} further revisions of one. {options.machine}.\n")
    print("| what | figures |\n| --- | --- |")
    for what, form in ROWS:
        if "{at_" in form and not options.revisions:
            continue
        print(f"| {what.format(**figures)} | {form.format(late=f'{late:,.0f}' if late else '-', **figures)} |")


main()
