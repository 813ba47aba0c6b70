"""The figures of two runs, without readers and with them, as a table or JSON. See scripts/live-readers."""

import glob
import json
import os
import sys

MIB = 1 << 20


def read(path):
    """The last line of JSON in a file; nothing if its program ended without one."""
    with open(path) as lines:
        said = [line for line in lines if line.strip()]
    return json.loads(said[-1]) if said else None


def figures(work, name):
    bench, size = read(os.path.join(work, f"{name}.bench")), read(os.path.join(work, f"{name}.size"))
    readers = [read(path) for path in glob.glob(os.path.join(work, f"{name}.reader.*"))]
    told = [reader for reader in readers if reader]
    return {
        **{field: bench[field] for field in ("offered", "achieved", "ack_p50", "ack_p99", "del_p50", "del_p99")},
        **{field: bench[field] for field in ("lost", "lost_acked", "dup", "corrupt", "gaps", "limited_by", "other_cores")},
        **size,
        "readers": len(told),
        "readers_failed": len(readers) - len(told),
        "torn": sum(reader["torn"] for reader in told),
        "first_torn": next((reader["first_torn"] for reader in told if reader["torn"]), []),
        "scans": sum(reader["scans"] for reader in told),
        "pages": sum(reader["pages"] for reader in told),
        "scans_per_s_least": min((reader["scans_per_s"] for reader in told), default=None),
        "rows_per_scan": max((reader["rows"] / reader["scans"] for reader in told), default=None),
        "scan_ms_p50": max((reader["scan_ms_p50"] for reader in told), default=None),
        "scan_ms_max": max((reader["scan_ms_max"] for reader in told), default=None),
    }


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


ROWS = [
    ("offered / achieved per s", lambda f: f"{number(f['offered'])} / {number(f['achieved'])}"),
    ("delivery p50 / p99 ms", lambda f: f"{number(f['del_p50'], 1)} / {number(f['del_p99'], 1)}"),
    ("stored p50 / p99 ms", lambda f: f"{number(f['ack_p50'], 1)} / {number(f['ack_p99'], 1)}"),
    ("lost, of acknowledged ones, twice, corrupt", lambda f: f"{f['lost']}, {f['lost_acked']}, {f['dup']}, {f['corrupt']}"),
    ("file MiB at the start, half-way, at the end", lambda f: ", ".join(number(f[f"file_bytes_{at}"] / MIB) for at in ("start", "half", "end"))),
    ("readers; scans of all, pages", lambda f: f"{f['readers']}; {f['scans']:,}, {f['pages']:,}"),
    ("rows per scan; scans per s of the slowest reader", lambda f: f"{number(f['rows_per_scan'])}; {number(f['scans_per_s_least'], 2)}"),
    ("scan p50 / longest ms", lambda f: f"{number(f['scan_ms_p50'])} / {number(f['scan_ms_max'])}"),
    ("torn pages", lambda f: f"**{f['torn']}**" if f["readers"] else "-"),
    ("limited by; cores used by others", lambda f: f"{f['limited_by'] or 'nothing'}; {number(f['other_cores'], 2)}"),
]


def main():
    work, readers, form, machine = sys.argv[1:]
    read_too = figures(work, "read")
    runs = {f"with {readers} readers": read_too}
    if os.path.exists(os.path.join(work, "alone.bench")):
        runs = {"without readers": figures(work, "alone"), **runs}
    if form == "json":
        print(json.dumps({"machine": machine, **runs}))
    else:
        print(f"{machine}.\n\n| what | {' | '.join(runs)} |\n| ---{' | ---' * len(runs)} |")
        for what, cell in ROWS:
            print(f"| {what} | {' | '.join(map(cell, runs.values()))} |")
    wrong = [f"torn: {read_too['first_torn']}"] if read_too["torn"] else []
    if read_too["readers"] != int(readers):
        wrong.append(f"{read_too['readers_failed']} reader(s) ended without a result")
    for name, run in runs.items():
        wrong.extend(f"{name}: {run[field]} {field}" for field in ("lost_acked", "dup", "corrupt") if run[field])
    for what in wrong:
        print(f"error: {what}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
