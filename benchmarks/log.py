"""The log against raw SQLite and other stores: ``python benchmarks/log.py [section …]``.

Sections: append, waiters, reads, rebuild, size (default: all). Contestants take turns within one
process, in short rounds and one round in reverse; a ratio is the median of the ratios of the rounds,
with its quartiles beside it, so that a busy machine slows both sides and shows. What a sync of the disk
costs meanwhile is told with it: everything that waits for one depends on it. What the log has to reach
is listed at the end, as met or missed. ``--full`` also reads from 10^6 events, which takes half a minute
to build. Peers that are not installed are named and left out (``pip install --group peers``).

``x`` is a cost as a multiple of raw SQLite with ``synchronous=FULL``: one table with an index on stream
and version, one commit per append, no hashes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import _log_history as chats
import _log_stores as stores

now = time.perf_counter


@dataclass(frozen=True, slots=True)
class Target:
    """What the log has to reach: ``value`` at most ``limit``, or at least."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        sign = ">=" if self.at_least else "<="
        return f"{'met   ' if met else 'MISSED'} {self.value:10.2f} {sign} {self.limit:<6g} {self.name}"


TARGETS: list[Target] = []


@dataclass(frozen=True, slots=True)
class Budget:
    rounds: int
    full: bool
    folder: Path


# -- append ---------------------------------------------------------------------------------------


COMMITS = 10
"""How many appends a turn is."""


def seconds(contestant: stores.Contestant, batch: int) -> float:
    """Return seconds per event, of one turn."""
    if contestant.slow:
        started = now()
        contestant.append(COMMITS // 2)
        return (now() - started) / (COMMITS // 2)
    step = batch if contestant.batches else 1
    started = now()
    for _ in range(COMMITS):
        contestant.append(step)
    return (now() - started) / (COMMITS * step)


@dataclass(frozen=True, slots=True)
class Ratio:
    """What the ratios of the rounds say: the middle one, and those a quarter is below and above of."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], others: Iterable[float]) -> Ratio:
        found = [value / other for value, other in zip(values, others, strict=True)]
        low, middle, high = statistics.quantiles(found, n=4)
        return cls(middle, low, high)

    def __str__(self) -> str:
        return f"{self.middle:8.2f}x ({self.low:.2f}-{self.high:.2f})"


def append_section(budget: Budget) -> dict[str, object]:
    """Durable appends of one writer."""
    results: dict[str, object] = {}
    for batch in (1, 100):
        folder = budget.folder / f"append{batch}"
        folder.mkdir()
        with stores.contestants(folder) as found:
            taken: dict[str, list[float]] = {name: [] for name in found}
            syncs = []
            for contestant in found.values():
                seconds(contestant, batch)
            for round_ in range(budget.rounds * 2):
                syncs.append(stores.sync_seconds(folder))
                turns = list(found.items())
                for name, contestant in reversed(turns) if round_ % 2 else turns:
                    if not contestant.slow or round_ < max(2, budget.rounds // 3):
                        taken[name].append(seconds(contestant, batch))
        title = f"append, batch {batch}, {len(stores.EVENT)} bytes"
        results[f"batch {batch}"] = show_append(title, taken, statistics.median(syncs))
    return results


def show_append(title: str, taken: dict[str, list[float]], sync: float) -> dict[str, float]:
    (base_name, base), *_ = taken.items()
    print(f"\n{title}; a sync of the disk takes {sync * 1e6:,.0f} us")
    ratios = {name: Ratio.of(values, base[: len(values)]) for name, values in taken.items()}
    for name, values in taken.items():
        print(f"  {name:26}{statistics.median(values) * 1e6:12,.1f} us/event {ratios[name]}")
    limit = 1.3 if "batch 1," in title else 2.0
    TARGETS.append(Target(f"{title}: x {base_name}", ratios["Atlas (power)"].middle, limit))
    return {name: ratio.middle for name, ratio in ratios.items()}


# -- waiters --------------------------------------------------------------------------------------


async def waiters(engine: stores.Engine, count: int, each: int) -> tuple[float, float]:
    """Return seconds per append, and how long the median waiter waited in s."""
    waited: list[float] = []

    async def wait_for_each() -> None:
        for _ in range(each):
            started = now()
            await engine.append(stores.new_records(1))
            waited.append(now() - started)

    started = now()
    await asyncio.gather(*(wait_for_each() for _ in range(count)))
    return (now() - started) / (count * each), statistics.median(waited)


def waiters_section(budget: Budget) -> dict[str, object]:
    """Tasks that each await their own appends, against a loop that commits one by one."""
    results: dict[str, object] = {}
    lines, syncs = [], []
    folder = budget.folder / "waiters"
    folder.mkdir()
    with stores.raw(folder, "FULL") as alone, stores.opened(folder / "atlas.db") as engine:
        for count in (1, 8, 64, 512):
            commits, appends, waits = [], [], []
            for _ in range(budget.rounds):
                syncs.append(stores.sync_seconds(folder))
                # The first ones write what others have left to the disk.
                seconds(alone, 1)
                commits.append(statistics.mean(seconds(alone, 1) for _ in range(5)))
                took, wait = asyncio.run(waiters(engine, count, max(4, 400 // count)))
                appends.append(took)
                waits.append(wait)
            gain = Ratio.of(commits, appends)
            results[str(count)] = gain.middle
            lines.append(
                f"  {count:4} waiters {1 / statistics.median(appends):10,.0f} appends/s {gain}"
                f"   one commit {statistics.median(commits) * 1e6:8,.0f} us"
                f"   ack p50 {statistics.median(waits) * 1e3:.2f} ms"
            )
            if count == 64:
                target = "64 waiters: x one commit per event"
                TARGETS.append(Target(target, gain.middle, 30, at_least=True))
    print(
        "\nconcurrent waiters, each for its own event: throughput against one commit per event; a sync "
        f"of the disk takes {statistics.median(syncs) * 1e6:,.0f} us"
    )
    print("\n".join(lines))
    return results


# -- reading back ---------------------------------------------------------------------------------


def reads_section(budget: Budget) -> dict[str, object]:
    """The state of 1,000 keys at moments of ever longer histories, each read as if for the first time.

    The events were appended 100 at a time.
    """
    sizes = [1_000, 10_000, 100_000] + [1_000_000] * budget.full
    taken: dict[str, dict[int, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        found = {
            size: chats.readers(
                stack.enter_context(chats.history(budget.folder / f"history{size}.db", size)), size
            )
            for size in sizes
        }
        for _ in range(budget.rounds * 4):
            for size, readers in found.items():
                for name, read in readers.items():
                    started = now()
                    read()
                    taken.setdefault(name, {}).setdefault(size, []).append(now() - started)
    print("\nstate of 1,000 keys after n events, ms: p50 (p99)")
    print(" " * 18 + "".join(f"{size:>20,}" for size in sizes) + "    growth")
    results: dict[str, object] = {}
    for name, columns in taken.items():
        middle = {size: statistics.median(values) * 1e3 for size, values in columns.items()}
        worst = {
            size: sorted(values)[-1 - len(values) // 100] * 1e3 for size, values in columns.items()
        }
        growth = middle[sizes[-1]] / middle[sizes[0]]
        cells = "".join(f"{middle[size]:12.2f} ({worst[size]:5.1f})" for size in sizes)
        print(f"  {name:16}{cells} {growth:8.2f}x")
        results[name] = middle
        TARGETS.append(Target(f"state {name}, {sizes[-1]:,} events: ms p50", middle[sizes[-1]], 2))
        TARGETS.append(
            Target(f"state {name}: growth from 1,000 to {sizes[-1]:,} events", growth, 2)
        )
    return results


def rebuild_section(budget: Budget) -> dict[str, object]:
    """CPU time to compute a state from its first event, without snapshots."""
    count = 100_000
    floor = chats.Floor(budget.folder / "floor.db", count)
    with (
        chats.history(budget.folder / "together.db", count) as together,
        chats.history(budget.folder / "single.db", count, together=1) as single,
    ):
        contestants = {
            "a sum: SQLite and json": floor.rebuild,
            "a sum, appended together": lambda: chats.rebuild_sum(together),
            "a sum, one by one": lambda: chats.rebuild_sum(single),
            "a map, appended together": lambda: chats.rebuild_map(together),
            "a map, one by one": lambda: chats.rebuild_map(single),
        }
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(max(3, budget.rounds // 4)):
            for name, run in contestants.items():
                started = time.process_time()
                run()
                taken[name].append((time.process_time() - started) / count * 1e6)
    floor.connection.close()
    print(f"\nrebuild of a state from {count:,} events, us CPU per event")
    column = {name: statistics.median(values) for name, values in taken.items()}
    for name, value in column.items():
        print(f"  {name:26}{value:8.2f} us {value / column['a sum: SQLite and json']:8.2f}x")
    TARGETS.extend(
        Target(f"rebuild, {how}: us CPU per event", column[f"a sum, {how}"], 3)
        for how in ("appended together", "one by one")
    )
    return {**column}


def size_section(budget: Budget) -> dict[str, object]:
    """What a chat weighs on disk, closed, against the bytes that were said."""
    said = sum(len(text) for turn in chats.said() for text in turn)
    print(f"\na chat of {chats.TURNS} turns, {said:,} bytes said: bytes on disk")
    results: dict[str, object] = {}
    for name, keep in {
        "as a timeline": chats.chat_timeline,
        "by an application": chats.chat_app,
    }.items():
        path = budget.folder / f"{name}.db"
        keep(path)
        ratio = stores.weight(path) / said
        results[name] = ratio
        print(f"  {name:26}{stores.weight(path):12,} {ratio:8.2f}x")
        TARGETS.append(Target(f"chat {name}: bytes on disk x bytes said", ratio, 2))
    return results


SECTIONS: dict[str, Callable[[Budget], dict[str, object]]] = {
    "append": append_section,
    "waiters": waiters_section,
    "reads": reads_section,
    "rebuild": rebuild_section,
    "size": size_section,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--full", action="store_true", help="read from 10^6 events, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"no section is called {unknown.pop()!r}; there are {', '.join(SECTIONS)}")
    print(f"Python {sys.version.split()[0]}, SQLite {stores.sqlite3.sqlite_version}")
    for peer in stores.missing_peers():
        print(f"{peer} is not installed and left out: pip install --group peers")
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-log-") as folder:
        budget = Budget(options.rounds, options.full, Path(folder))
        results = {name: SECTIONS[name](budget) for name in options.sections or SECTIONS}
    print("\ntargets")
    for target in TARGETS:
        print(f"  {target}")
    if options.json:
        options.json.write_text(json.dumps([results, [asdict(target) for target in TARGETS]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
