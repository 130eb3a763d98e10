"""What the benchmarks that were run have found, with the goals beside it.

    python -m benchmarks.summary

Reads `benchmarks/results/*.json`.
"""

from __future__ import annotations

import json
import sys

from benchmarks import common


def main() -> None:
    """The command line."""
    found = {path.stem: json.loads(path.read_text()) for path in common.RESULTS.glob("*.json")}
    if not found:
        sys.exit("summary: no results yet; `make bench` runs the benchmarks")
    for name, result in sorted(found.items()):
        print(f"\n{name} ({result['device']}, JAX {result['jax']})")
        common.show(result["rows"])
    goals = [{"benchmark": n, **goal} for n, r in sorted(found.items()) for goal in r["goals"]]
    if goals:
        print("\ngoals")
        common.show(goals)


if __name__ == "__main__":
    main()
