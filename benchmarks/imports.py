"""What importing costs: ``python benchmarks/imports.py``.

Each statement runs in fresh interpreters, taking turns; the median wall time is compared with that
of ``import asyncio``, which everything here needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

STATEMENTS = [
    "import asyncio",
    "import atlas",
    "from atlas import Event, EventBus, message",
    "from atlas import StreamBuffer",
    "from atlas import Atlas",
    "import anthropic",
    "import openai",
    "import ollama",
]

PROBE = """
import sys, time
started = time.perf_counter()
{statement}
print(time.perf_counter() - started, len(sys.modules))
"""


def measure(statement: str) -> tuple[float, int] | None:
    """Return seconds and modules, or None where the package is not installed."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return None
    seconds, modules = done.stdout.split()
    return float(seconds), int(modules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    samples: dict[str, list[tuple[float, int]]] = {statement: [] for statement in STATEMENTS}
    for _ in range(options.rounds):
        for statement, taken in samples.items():
            sample = measure(statement)
            if sample is not None:
                taken.append(sample)
    rows = {
        statement: {
            "ms": statistics.median(seconds for seconds, _ in taken) * 1e3,
            "modules": taken[0][1],
        }
        for statement, taken in samples.items()
        if taken
    }
    if options.json:
        print(json.dumps(rows))
        return
    base = rows[STATEMENTS[0]]["ms"]
    print(f"Python {sys.version.split()[0]}, median of {options.rounds} rounds\n")
    print(f"{'statement':46}{'time':>9}{'ratio':>8}{'modules':>9}")
    for statement, row in rows.items():
        ms = row["ms"]
        print(f"{statement:46}{ms:>6.0f} ms{ms / base:>7.1f}x{row['modules']:>9}")


if __name__ == "__main__":
    main()
