"""Reads the file of a running Fieldstream while it is written, its map grows, and it is made again.

    live.py PROGRAM [NAB]

PROGRAM is `fieldstream`; nats-server is found as it always is. Takes some 20 seconds, in a folder of its own
and on free ports. Four readers in processes of their own check every page they see. With a folder of NAB's CSV
files the example examples/nab.py is run too. Exits 1 if anything is not as it should be; prints what the
readers saw as JSON.
"""

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time

import fieldstream_reader as fr

READERS = 4
LINES = 6000
PAUSE_S = 0.3
MAP_BYTES = 1 << 20
PATIENCE_S = 60


def check_page(page, kind, wrong):
    """Whether a page is one consistent state."""
    for row in page.rows:
        if row.sequence > page.as_of.lanes[row.lane].events_sequence:
            wrong.append(f"a row of {kind} is ahead of its lane's checkpoint")
        if kind == "changes" and row.change and row.change.time_us != row.time_us:
            wrong.append(f"revision {row.revision} of {row.document} has two times")
        if kind == "latest" and not isinstance(row.body, {"text": str, "structured": dict, "absent": type(None)}[row.kind]):
            wrong.append(f"the body of {row.id} is not of its kind")


def read_once(reader, seen, wrong):
    """One pass over everything."""
    for kind in ("latest", "changes", "dead_letters"):
        for page in getattr(reader, kind)().pages():
            check_page(page, kind, wrong)
            now = [lane.events_sequence for lane in page.as_of.lanes]
            if any(now[lane] < before for lane, before in enumerate(seen["last"])):
                wrong.append(f"a checkpoint went from {seen['last']} to {now}")
            seen["last"] = now
            seen["states"].add(tuple(now))
            seen["rows"] += len(page.rows)
    for document in reader.latest("live/"):
        newest = reader.at(document.id)
        state = reader.at(document.id, revision=document.revision)
        if state.body != document.body or newest.revision < document.revision:
            wrong.append(f"{document.id} at {document.revision} is not what its history makes of it")
        seen["rebuilt"] += 1
    seen["passes"] += 1
    seen["generations"].add(reader.path)


def read(path):
    """A reader: until its input ends."""
    seen = {"passes": 0, "rows": 0, "rebuilt": 0, "states": set(), "generations": set(), "last": []}
    wrong, maps = [], set()
    with fr.open(path) as reader:
        print("reading", flush=True)
        while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
            read_once(reader, seen, wrong)
            maps.add(reader._file._shared.env.info()["map_size"])
    seen.update(states=len(seen["states"]), generations=len(seen["generations"]), maps=len(maps), wrong=wrong[:5])
    print(json.dumps(seen))


class Fieldstream:
    """`fieldstream up`, and commands to it."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.data, ready = folder / "data", folder / "ready.json"
        environment = {**os.environ, "FIELDSTREAM_STORER__MAP_BYTES": str(MAP_BYTES)}
        command = [program, "up", "--data", self.data, "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--lanes", "2"]
        with open(folder / "up.log", "w", encoding="utf-8") as log:
            command += ["--demo", "2", "--ready-file", ready]
            self.up = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE_S
        while not ready.exists() or not ready.read_text():
            if self.up.poll() is not None or time.monotonic() > end:
                self.stop()
                raise SystemExit((folder / "up.log").read_text())
            time.sleep(0.05)
        self.addresses = json.loads(ready.read_text())

    def run(self, *arguments):
        ran = subprocess.run([self.program, *arguments], capture_output=True, text=True, timeout=PATIENCE_S)
        if ran.returncode != 0:
            raise SystemExit(f"{arguments}: {ran.stdout}{ran.stderr}")
        return ran.stdout

    def write(self, *arguments):
        return self.run(*arguments, "--server", self.addresses["tcp"])

    def stop(self):
        if self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            try:
                self.up.wait(30)
            except subprocess.TimeoutExpired:
                self.up.kill()
                self.up.wait()


def start_readers(path):
    command = [sys.executable, __file__, "read", str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(READERS)]
    for reader in readers:
        assert reader.stdout.readline() == "reading\n", "a reader did not begin"
    return readers


def finish(readers):
    """What each of them saw."""
    return [json.loads(reader.communicate(timeout=PATIENCE_S)[0]) for reader in readers]


def play(fieldstream, csv, server):
    """Writes a document line by line, and some others."""
    fieldstream.run("replay", csv, "--doc", "live/series", "--watchers", "1", "--ack", "stored", "--server", server)
    for n in range(3):
        fieldstream.write("merge", "live/boiler", json.dumps({"temperature_c": 60.5 + n, "old": None, "n": {str(n): n}}))
    fieldstream.write("put", "live/notes", "Hello, wörld 🙂", "--ack", "stored")
    fieldstream.write("splice", "live/notes", "7", "5", "field", "--ack", "stored")


def check_end(path, series, wrong):
    """What the documents must be in the end, at every revision that can be told."""
    with fr.open(path) as reader:
        if reader.get("live/series").body != series:
            wrong.append("the series is not what was replayed")
        lines = series.splitlines(keepends=True)
        for state in reader.states("live/series"):
            if state.body != "".join(lines[: state.revision]):
                wrong.append(f"the series at revision {state.revision} has {len(state.body)} characters")
                break
        if reader.at("live/notes", 1).body != "Hello, wörld 🙂" or reader.get("live/notes").body != "Hello, field 🙂":
            wrong.append("the notes are not what was written")
        boiler = {"temperature_c": 62.5, "n": {"0": 0, "1": 1, "2": 2}}
        if reader.get("live/boiler").body != boiler or reader.at("live/boiler", 1).body != {"temperature_c": 60.5, "n": {"0": 0}}:
            wrong.append("the boiler is not what was written")
        first = next(iter(reader.history("live/notes")))
        if reader.at("live/notes", time=first.time).revision != 1:
            wrong.append("the notes are not found by time")
        if not reader.checkpoint().behind_s < PATIENCE_S:
            wrong.append(str(reader.checkpoint()))


def run_example(fieldstream, nab, wrong):
    """The example, with one of NAB's series that is replayed for it."""
    series = sorted(nab.glob("*.csv"), key=lambda path: path.stat().st_size)[0]
    document, plot = f"nab/{series.stem}", fieldstream.folder / "plot.svg"
    fieldstream.write("replay", str(series), "--doc", document, "--watchers", "1", "--ack", "stored")
    example = pathlib.Path(__file__).resolve().parents[1] / "examples" / "nab.py"
    command = [sys.executable, example, fieldstream.data, document, plot]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    lines = len(series.read_text(encoding="utf-8").splitlines()) - 1
    if ran.returncode != 0 or f"plot.svg: {lines:,} values" not in ran.stdout:
        wrong.append(f"the example says {ran.stdout}{ran.stderr}")
    elif "<polyline" not in plot.read_text(encoding="utf-8"):
        wrong.append("the example's plot has no line")


def run(program, nab):
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        csv = folder / "series.csv"
        series = "timestamp,value\n" + "".join(f"{n},{20 + n % 7}.5 °C\n" for n in range(LINES))
        csv.write_text(series, encoding="utf-8")
        fieldstream = Fieldstream(program, folder)
        try:
            readers = start_readers(fieldstream.data)
            play(fieldstream, csv, fieldstream.addresses["tcp"])
            fieldstream.run("storer", "rebuild", "--data", str(fieldstream.data), "--from-log")
            fieldstream.write("append", "live/rebuilt", "yes", "--ack", "stored")
            time.sleep(2)
            seen = finish(readers)
            check_end(fieldstream.addresses["db"], series, wrong)
            if nab and nab.is_dir():
                run_example(fieldstream, nab, wrong)
            else:
                print("SKIPPED: no NAB data, examples/nab.py is not run", file=sys.stderr)
        finally:
            fieldstream.stop()
    for reader in seen:
        wrong += reader["wrong"]
        for what, least in {"passes": 2, "rows": 100, "rebuilt": 2, "states": 2, "generations": 2, "maps": 2}.items():
            if reader[what] < least:
                wrong.append(f"a reader saw {what}: {reader[what]}")
    print(json.dumps({"readers": [{key: reader[key] for key in reader if key not in ("last", "wrong")} for reader in seen]}))
    for what in wrong:
        print(what, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(sys.argv[2])
    else:
        sys.exit(run(sys.argv[1], pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None))
