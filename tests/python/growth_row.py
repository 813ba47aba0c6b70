"""One row of a table of scripts/growth: the median of some runs of `fieldstream bench --json`."""

import json
import statistics
import sys

name, path = sys.argv[1:]
runs = [json.loads(line) for line in open(path)]


def median(read):
    values = [read(run) for run in runs]
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def number(value, digits=None):
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if value >= 20 else 1
    return f"{value:,.{digits}f}"


cpu = [run["cpu_us_per_pub"] for run in runs if run["cpu_us_per_pub"]]
noise = f"±{(max(cpu) - min(cpu)) / 2 / statistics.median(cpu):.0%}" if len(cpu) > 1 else "one run"
remarks = [noise]
others = max(run["other_cores"] for run in runs)
if others > 0.25:
    remarks.append(f"others used {others:.1f} cores")
limits = sorted({run["limited_by"] for run in runs if run["limited_by"]})
if limits:
    remarks.append(f"limited by {', '.join(limits)}")
bad = {field: sum(run[field] for run in runs) for field in ("dup", "corrupt", "gaps", "refused", "coalesced", "dead_conns")}
remarks.extend(f"{count} {field}" for field, count in bad.items() if count)
cells = [
    f"{int(name):,}",
    f"{number(median(lambda run: run['offered']), 0)} / {number(median(lambda run: run['achieved']), 0)}",
    f"{number(median(lambda run: run['del_p50']))} / {number(median(lambda run: run['del_p99']))}",
    f"{number(median(lambda run: run['cpu_split'].get('fieldstream')))} / {number(median(lambda run: run['cpu_split'].get('nats-server')))}",
    str(sum(run["lost"] for run in runs)),
    ", ".join(remarks),
]
print("| " + " | ".join(cells) + " |")
