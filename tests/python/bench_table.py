"""Compares the figures of a sitting with the committed ones, as ratios. See scripts/bench."""

import argparse
import json
import sys

# Field, and how it is called.
FIELDS = {
    "max_rate": "highest sustained/s",
    "achieved": "achieved/s",
    "del_p50": "delivery p50 ms",
    "del_p99": "delivery p99 ms",
    "cpu_us_per_pub": "CPU us",
    "cpu_fieldstream": "CPU us fieldstream",
    "cpu_nats": "CPU us nats-server",
    "rss_per_conn_kb": "KiB per connection",
}
# Any of these is a defect or makes the other figures worthless.
ZEROS = ["lost", "lost_acked", "dup", "corrupt", "gaps", "refused", "coalesced", "unacked", "dead_conns"]
OTHER_CORES_MAX = 0.25


def read(path):
    try:
        return [json.loads(line) for line in open(path) if line.strip()]
    except FileNotFoundError:
        return []


def key(figures):
    """What is compared with what."""
    scene = figures["note"] or figures.get("mode", "")
    return (figures.get("peer", "fieldstream"), scene, figures.get("transport", ""), figures.get("profile", ""))


def flat(figures):
    split = figures.get("cpu_split") or {}
    return {**figures, "cpu_fieldstream": split.get("fieldstream"), "cpu_nats": split.get("nats-server")}


def show(value):
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def row(*cells):
    print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--figures", required=True)
    parser.add_argument("--committed", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    today = {key(figures): {**figures, "machine": arguments.machine} for figures in read(arguments.figures)}
    committed = {key(figures): figures for figures in read(arguments.committed)}
    print(f"now: {arguments.machine}")
    for machine in sorted({committed[k].get("machine", "?") for k in today if k in committed}):
        print(f"then: {machine}")
    print()
    row("scene", "figure", "then", "now", "ratio")
    row(*["---"] * 5)
    notes = []
    for k, figures in today.items():
        peer, scene, transport, profile = k
        name = " ".join(part for part in (peer if peer not in ("fieldstream", scene) else "", scene, transport, profile) if part)
        then, now = flat(committed.get(k, {})), flat(figures)
        for field, label in FIELDS.items():
            a, b = then.get(field), now.get(field)
            # A search is judged by what it found, and the limit by its latency.
            if b is None or field == "achieved" and ("max_rate" in now or peer == "limit"):
                continue
            row(name, label, show(a), show(b), f"{b / a:.2f}" if a else "-")
        wrong = [f"{figures[field]} {field}" for field in ZEROS if figures.get(field)]
        if wrong:
            notes.append(f"{name}: {', '.join(wrong)}")
        if (figures.get("other_cores") or 0) > OTHER_CORES_MAX:
            notes.append(f"{name}: other programs used {figures['other_cores']} cores; do not trust it")
    bare = next((figures for k, figures in today.items() if k[0] == "limit"), None)
    light = next((figures for k, figures in today.items() if k[:2] == ("fieldstream", "light")), None)
    if bare and light:
        for field in ("del_p50", "del_p99"):
            row("light / bare limit", FIELDS[field], show(bare[field]), show(light[field]), f"{light[field] / bare[field]:.2f}")
    print()
    for note in notes:
        print(f"note: {note}")
    if arguments.save:
        with open(arguments.committed, "w") as out:
            for figures in {**committed, **today}.values():
                out.write(json.dumps(figures) + "\n")
        print(f"written to {arguments.committed}")
    sys.exit(any(figures.get(field) for figures in today.values() for field in ("lost_acked", "dup", "corrupt", "gaps")))


main()
