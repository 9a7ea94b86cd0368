"""Costs of state, patches and projections as ratios: ``python benchmarks/state.py``.

The contestants of a line take turns in one process; medians are compared. Below 1.0 is cheaper than
what the line is measured against.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from atlas.core.patches import apply_patch, diff, plain
from atlas.core.persistent import PMap, pmap
from atlas.core.state import State
from atlas.core.state_projector import StateProjector
from atlas.core.transitions import Transitions


@dataclass(frozen=True, slots=True)
class Counted:
    name: str


@dataclass(frozen=True, slots=True)
class Tally:
    total: int = 0
    counts: PMap[str, int] = field(default_factory=pmap)


transitions = Transitions[Tally]()


@transitions.on(Counted)
def count(state: Tally, event: Counted) -> Tally:
    return replace(state, total=state.total + 1)


EVENT = Counted("a")


def nothing(state: Tally, event: Counted) -> Tally:
    return state


def contestants(
    size: int,
) -> dict[str, tuple[str, Callable[[], object], str, Callable[[], object]]]:
    """Return lines: name -> (what it is measured against, that, what we do, ours)."""
    projector = StateProjector(Tally(), transitions, max_pending=sys.maxsize)
    state = State(Tally(), transitions)
    idle = State(Tally(), nothing)
    gathered: list[object] = []
    before = Tally(0, pmap({f"key {n}": n for n in range(size)}))
    after = replace(before, counts=before.counts.set("key 7", -1))
    patch = diff(before, after)
    lines: dict[str, tuple[str, Callable[[], object], str, Callable[[], object]]] = {
        "an event applied": (
            "the bare transition",
            lambda: count(before, EVENT),
            "state.apply",
            lambda: state.apply(EVENT),
        ),
        "the container alone": (
            "a call that does nothing",
            lambda: nothing(before, EVENT),
            "state.apply",
            lambda: idle.apply(EVENT),
        ),
        f"a patch of one key in {size}": (
            "plain() of both versions",
            lambda: (plain(before), plain(after)),
            "diff",
            lambda: diff(before, after),
        ),
        f"applying it to {size} keys": (
            "plain() of the state",
            lambda: plain(before),
            "apply_patch",
            lambda: apply_patch(before, patch),
        ),
    }
    lines |= {
        "an event on the publisher's side": (
            "list.append",
            lambda: gathered.append(EVENT),
            "projector.project",
            lambda: projector.project(EVENT),
        ),
    }
    try:
        jsonpatch = importlib.import_module("jsonpatch")
    except ImportError:
        return lines
    lines[f"a patch of one key in {size} (jsonpatch)"] = (
        "jsonpatch.make_patch",
        lambda: jsonpatch.make_patch(plain(before), plain(after)),
        "diff",
        lambda: diff(before, after),
    )
    return lines


def seconds(run: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def compare(size: int, rounds: int) -> dict[str, dict[str, object]]:
    results = {}
    for name, (base_name, base, our_name, ours) in contestants(size).items():
        once = max(seconds(base, 3), seconds(ours, 3))
        times = max(1, min(5_000, int(0.01 / once)))
        taken = [(seconds(base, times), seconds(ours, times)) for _ in range(rounds)]
        base_ns, our_ns = (statistics.median(side) * 1e9 for side in zip(*taken, strict=True))
        results[name] = {
            "against": base_name,
            "against_ns": base_ns,
            "ours": our_name,
            "ours_ns": our_ns,
            "ratio": our_ns / base_ns,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000, help="keys in the state")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = compare(options.size, options.rounds)
    if options.json:
        print(json.dumps(results))
        return
    print(f"Python {sys.version.split()[0]}, median of {options.rounds} rounds")
    for name, row in results.items():
        print(
            f"{name:42}{row['ours']} {row['ours_ns']:,.0f} ns; "
            f"{row['against']} {row['against_ns']:,.0f} ns: {row['ratio']:.2f}x"
        )


if __name__ == "__main__":
    main()
