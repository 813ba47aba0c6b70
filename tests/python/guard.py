"""Compares what the hot paths cost per instruction with the committed baseline. See scripts/guard."""

import argparse
import sys

FIELDS = ["allocations", "allocated_bytes", "instructions"]

# More than this above the baseline fails; as much below it asks for a new one. Allocations come out
# the same in every run, and a single one more per instruction is far beyond. Instructions differ by
# where hashes fall (0.1 %), by the C library's allocator, and by what the compiler inlines when
# something else in a crate changes.
TOLERANCES = {"allocations": 0.02, "allocated_bytes": 0.02, "instructions": 0.04}
# Below so much nothing is compared by ratio.
GRAINS = {"allocations": 0.05, "allocated_bytes": 16.0, "instructions": 50.0}

MEASURED = "fieldstream_guard::measured::"


def read_allocations(path):
    """{path: {field: per instruction}}, and the number of instructions driven."""
    costs, driven = {}, 0
    for line in open(path):
        name, count, allocations, allocated_bytes = line.split("\t")
        driven = int(count)
        costs[name] = {"allocations": int(allocations) / driven, "allocated_bytes": int(allocated_bytes) / driven}
    return costs, driven


def read_callgrind(path):
    """{path: instructions} inside of the functions that mark the paths, callees included."""
    totals, function = {}, None
    for line in open(path):
        key, equals, value = line.rstrip("\n").partition("=")
        if equals and key == "fn":
            function = value
        elif function and function.startswith(MEASURED) and line[:1].isdigit():
            # A line of the function itself, or of a call it made with everything below.
            name = function[len(MEASURED) :].split("::")[0]
            totals[name] = totals.get(name, 0) + int(line.split()[1])
    return totals


def read_baseline(path):
    try:
        lines = [line for line in open(path) if not line.startswith("#")]
    except FileNotFoundError:
        return {}
    rows = [line.rstrip("\n").split("\t") for line in lines]
    return {row[0]: dict(zip(FIELDS, map(float, row[1:]))) for row in rows[1:]}


def write_baseline(path, costs):
    with open(path, "w") as out:
        out.write("# Cost per instruction (500 bytes of text, three watchers). Written by scripts/guard --update.\n")
        out.write("\t".join(["path", *FIELDS]) + "\n")
        for name, cost in costs.items():
            out.write(f"{name}\t{cost['allocations']:.2f}\t{cost['allocated_bytes']:.0f}\t{cost['instructions']:.0f}\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--allocations", required=True)
    parser.add_argument("--callgrind")
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    costs, driven = read_allocations(arguments.allocations)
    if arguments.callgrind:
        totals = read_callgrind(arguments.callgrind)
        missing = sorted(set(costs) - set(totals))
        if missing:
            sys.exit(f"error: callgrind has not seen {', '.join(missing)}")
        for name, cost in costs.items():
            cost["instructions"] = totals[name] / driven
    baseline = read_baseline(arguments.baseline)
    over, under = [], []
    print(f"{'path':<18}{'per instruction':<18}{'baseline':>12}{'now':>12}{'ratio':>8}")
    for name, cost in costs.items():
        for field, now in cost.items():
            then = baseline.get(name, {}).get(field)
            if then is None:
                over.append(f"{name} has no baseline of {field}")
                print(f"{name:<18}{field:<18}{'-':>12}{now:>12,.2f}")
                continue
            ratio = now / then if then else 1.0
            print(f"{name:<18}{field:<18}{then:>12,.2f}{now:>12,.2f}{ratio:>8.3f}")
            tolerated = max(then * TOLERANCES[field], GRAINS[field])
            if now > then + tolerated:
                over.append(f"{name}: {field} per instruction went from {then:,.2f} to {now:,.2f} ({ratio - 1:+.1%})")
            elif now < then - tolerated:
                under.append(f"{name}: {field} {ratio - 1:+.1%}")
    gone = sorted(set(baseline) - set(costs))
    over.extend(f"{name} is in the baseline and was not measured" for name in gone)
    if arguments.update:
        if not arguments.callgrind:
            sys.exit("error: without instructions the baseline is not written")
        write_baseline(arguments.baseline, costs)
        print(f"written to {arguments.baseline}")
        return
    if under:
        print(f"note: {'; '.join(under)}: better than the baseline; keep it so with scripts/guard --update")
    if over:
        sys.exit("error: a hot path costs more than before:\n  " + "\n  ".join(over) + "\n"
                 "If that is worth it, say why in the commit and write the new baseline with scripts/guard --update.")


main()
