"""What recording a run costs, and how fast it is replayed: ``python benchmarks/runs.py``.

The same chat with the local model, taking turns: without a log, with everything logged, recorded as a
run; tokens per second of each, as a ratio to the first of the same round. Then processor time per
piece with a provider that costs nothing, and the time that a replay takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from atlas import Atlas
from atlas.providers.base import Capabilities, ChatRequest, Delta, Finished, TextDelta

PIECES = 2_000


class Instant:
    """A provider that answers with many pieces at once."""

    name = "instant"
    default_model = "instant"
    capabilities = Capabilities()

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        for number in range(PIECES):
            yield TextDelta(f"word{number % 97} ")
        yield Finished("stop")

    async def aclose(self) -> None:
        """Nothing to close."""


async def speed(app: Atlas, tokens: int) -> float:
    """Return tokens per second of one answer, from its first token on."""
    reply = app.chat("Tell a long story about the sea.", max_tokens=tokens, seed=7)
    await reply
    return reply.timing.tokens_per_second or 0.0


async def with_the_local_model(folder: Path, rounds: int, tokens: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {"no log": [], "logged": [], "recorded": []}
    async with Atlas(provider="local") as bare, Atlas(folder / "a.db", provider="local") as logged:
        for _ in range(rounds):
            speeds["no log"].append(await speed(bare, tokens))
            speeds["logged"].append(await speed(logged, tokens))
            async with logged.recording("story", strict=True):
                speeds["recorded"].append(await speed(logged, tokens))
    return speeds


async def per_piece(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return microseconds of processor time per piece, the log's thread included."""
    costs: dict[str, list[float]] = {"no log": [], "logged": [], "recorded": [], "replayed": []}
    provider = Instant()

    async def spent(app: Atlas) -> float:
        began = time.process_time()
        await app.chat("Go")
        return (time.process_time() - began) / PIECES * 1e6

    for number in range(rounds):
        async with Atlas(provider=provider) as app:
            costs["no log"].append(await spent(app))
        async with Atlas(folder / f"b{number}.db", provider=provider) as app:
            costs["logged"].append(await spent(app))
            async with app.recording("run", strict=True) as run:
                costs["recorded"].append(await spent(app))
            async with app.replaying(run.id):
                costs["replayed"].append(await spent(app))
    return costs


def ratios(samples: dict[str, list[float]]) -> dict[str, float]:
    base = samples["no log"]
    return {
        name: statistics.median(one / other for one, other in zip(taken, base, strict=True))
        for name, taken in samples.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        speeds = asyncio.run(with_the_local_model(Path(folder), options.rounds, options.tokens))
        costs = asyncio.run(per_piece(Path(folder), options.rounds))
    told = {"tokens_per_second": ratios(speeds), "processor_time_per_piece": ratios(costs)}
    if options.json:
        print(json.dumps(told))
        return 0
    print(f"{'':10} {'tokens/s':>9} {'ratio':>7}   {'us/piece':>9} {'ratio':>7}")
    for name, taken in costs.items():
        said = ""
        if name in speeds:
            ratio = told["tokens_per_second"][name]
            said = f"{statistics.median(speeds[name]):9.1f} {ratio:7.3f}"
        cost = told["processor_time_per_piece"][name]
        print(f"{name:10} {said:17}   {statistics.median(taken):9.1f} {cost:7.2f}")
    kept = told["tokens_per_second"]["recorded"]
    print(f"\nrecording keeps {kept:.1%} of the local model's speed (target: at least 95 %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
