"""Lets a stopped processor go on and prints how fast the backlog goes. See scripts/backlog."""

import json
import os
import signal
import subprocess
import sys
import time

# When nothing has changed for so long, it never will.
PATIENCE_S = 300


def state(program, url):
    """Records not applied, messages not stored."""
    said = subprocess.run([program, "status", "--nats", url, "--json"], capture_output=True, text=True)
    lanes = json.loads(said.stdout)["lanes"]
    return sum(lane["backlog_records"] or 0 for lane in lanes), sum(lane["backlog_messages"] or 0 for lane in lanes), sum(
        lane["storer_lag_messages"] or 0 for lane in lanes
    )


def is_running(pid):
    """Its parent may not have waited for it yet: then it stays as a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main():
    program, url, processor, generator, figures = sys.argv[1:6]
    records, messages, _ = state(program, url)
    begun = time.monotonic()
    os.kill(int(processor), signal.SIGCONT)
    applied_s = stored_s = None
    while stored_s is None:
        if time.monotonic() - begun > PATIENCE_S:
            sys.exit(f"no end after {PATIENCE_S} s: {state(program, url)}")
        asked = time.monotonic() - begun
        now = state(program, url)
        if applied_s is None and now[1] == 0:
            applied_s = asked
        if applied_s is not None and now[2] == 0:
            stored_s = asked
        time.sleep(0.05)
    while is_running(generator) and time.monotonic() - begun < PATIENCE_S:
        time.sleep(0.05)
    agreed_s = time.monotonic() - begun
    line = json.loads(open(figures).readlines()[-1])
    print(
        json.dumps(
            {
                "backlog_messages": messages,
                "backlog_records": records or line["published"],
                "applied_after_s": round(applied_s, 2),
                "stored_after_s": round(stored_s, 2),
                "watchers_agree_after_s": round(agreed_s, 2),
                "applied_per_s": round((records or line["published"]) / applied_s),
                "stored_per_s": round((records or line["published"]) / stored_s),
                **{name: line[name] for name in ["published", "deliveries", "coalesced", "lost", "lost_acked", "dup", "corrupt"]},
                "ack_p50": line["ack_p50"],
                "ack_p99": line["ack_p99"],
            }
        )
    )


main()
