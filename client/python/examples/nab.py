# %% [markdown]
# A sensor's series out of a running Fieldstream, with what is unusual in it, as a plot.
#
# The data are real: numenta/NAB (MIT). With `fieldstream up` running, and the folder of NAB's CSV files at hand:
#
#     fieldstream replay data/nab/*.csv --doc nab --server tcp://127.0.0.1:7440
#     python client/python/examples/nab.py fieldstream-data nab/machine_temperature_system_failure nab.svg
#
# `replay` writes each file line by line into a document, as a device would that appends what it measures. Needs
# no package beyond the reader; with pandas the frame is shown too. In VS Code or Jupyter, run it cell by cell.

# %%
import csv
import io
import statistics
import sys
from bisect import insort
from collections import deque
from datetime import datetime, timedelta, timezone
from html import escape

import fieldstream_reader

ARGUMENTS = sys.argv[1:4]
DEFAULTS = ["fieldstream-data", "nab/machine_temperature_system_failure", "nab.svg"]
DATA, DOCUMENT, PLOT = ARGUMENTS + DEFAULTS[len(ARGUMENTS) :]

reader = fieldstream_reader.open(DATA)
found = reader.get(DOCUMENT)
if found is None:
    print(f"SKIPPED: no document {DOCUMENT} in {reader.path}; see the head of this file for how to get one")
    sys.exit(0)

# %% [markdown]
# ## What there is, and how it came

# %%
print(reader.checkpoint())
print(f"{found.id}: revision {found.revision}, {len(found.body):,} characters, last changed {found.time:%Y-%m-%d %H:%M:%S} by {found.client}")

# Any earlier state can be had as well, as far back as history is kept.
half = found.revision // 2
try:
    body = reader.at(DOCUMENT, revision=half).body or ""
    print(f"at revision {half} it had {len(body.splitlines()):,} lines")
except fieldstream_reader.NotAvailable as reason:
    print(f"at revision {half}: {reason}")

# %% [markdown]
# ## The series

# %%
rows = list(csv.DictReader(io.StringIO(found.body)))
times = [datetime.fromisoformat(row["timestamp"]).replace(tzinfo=timezone.utc) for row in rows]
values = [float(row["value"]) for row in rows]
print(f"{len(values):,} values from {times[0]:%Y-%m-%d} to {times[-1]:%Y-%m-%d}, {min(values):.2f} to {max(values):.2f}")

try:
    print(reader.frame("latest", prefix=DOCUMENT).drop(columns="body").T)
except ImportError as missing:
    print(f"no frame: {missing}")

# %% [markdown]
# ## What is unusual
#
# A value is unusual if it is ten times as far from the median of the values before it (288: a day of one in five
# minutes) as values of the series usually are.

# %%
WINDOW, TIMES = 288, 10


def unusual(values):
    """Indices of unusual values."""
    window, ordered, distances = deque(), [], []
    for value in values:
        distances.append(abs(value - ordered[len(ordered) // 2]) if ordered else 0.0)
        if len(window) == WINDOW:
            ordered.remove(window.popleft())
        window.append(value)
        insort(ordered, value)
    limit = TIMES * statistics.median(distances)
    return [index for index, distance in enumerate(distances) if distance > limit]


marked = unusual(values)
print(f"{len(marked)} unusual values" + (f", the first at {times[marked[0]]:%Y-%m-%d %H:%M}: {values[marked[0]]:.2f}" if marked else ""))

# %% [markdown]
# ## The plot
#
# SVG, which any browser shows: of each column of pixels the least and the greatest value, unusual ones in red.

# %%
WIDTH, HEIGHT, LEFT, TOP = 1000, 300, 60, 30


def plot(times, values, marked, title):
    """The series as SVG."""
    low, high = min(values), max(values)
    begin, span = times[0], max(times[-1] - times[0], timedelta(seconds=1))
    span_y = (high - low) or 1.0

    def x(index):
        return LEFT + (times[index] - begin) / span * WIDTH

    def y(value):
        return TOP + (high - value) / span_y * HEIGHT

    columns = {}
    for index, value in enumerate(values):
        least, most = columns.get(round(x(index)), (value, value))
        columns[round(x(index))] = min(least, value), max(most, value)
    line = " ".join(f"{at},{y(value):.1f}" for at, pair in sorted(columns.items()) for value in pair)
    dots = "\n".join(f'<circle cx="{x(index):.1f}" cy="{y(values[index]):.1f}" r="3" fill="#d62728"/>' for index in marked)
    text = '<text x="{}" y="{}" text-anchor="{}" font-size="12" font-family="sans-serif">{}</text>'
    labels = [
        text.format(LEFT, 18, "start", escape(title)),
        text.format(LEFT - 6, TOP + 8, "end", f"{high:.1f}"),
        text.format(LEFT - 6, TOP + HEIGHT, "end", f"{low:.1f}"),
        text.format(LEFT, TOP + HEIGHT + 18, "start", f"{times[0]:%Y-%m-%d}"),
        text.format(LEFT + WIDTH, TOP + HEIGHT + 18, "end", f"{times[-1]:%Y-%m-%d}"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {TOP + HEIGHT + 30}">\n'
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#ccc"/>\n'
        f'<polyline points="{line}" fill="none" stroke="#1f77b4"/>\n{dots}\n' + "\n".join(labels) + "\n</svg>\n"
    )


with open(PLOT, "w", encoding="utf-8") as file:
    file.write(plot(times, values, marked, f"{DOCUMENT}, revision {found.revision}, {reader.checkpoint()}"))
print(f"{PLOT}: {len(values):,} values, {len(marked)} marked")
reader.close()
