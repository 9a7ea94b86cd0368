"""Record a conversation, replay it with the model unplugged, look into its past, and fork it.

    python examples/05_time_travel.py
    python examples/05_time_travel.py --db runs.db      # then: atlas runs; atlas show; atlas replay
    python examples/05_time_travel.py --provider openai --model gpt-5-mini

With no argument, no key and no network this runs a small language model on this machine.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from atlas import Atlas, AtlasError, ReplayDiverged, effect
from atlas.core.effects import now
from atlas.providers.messages import MessageAdded

BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")


@effect(pure=True)
async def shelf(item: str) -> str:
    """Stand for a call into your own systems: recorded and replayed like a call of a model."""
    await asyncio.sleep(0.05)
    return f"shelf {sum(map(ord, item)) % 40}"


async def support(app: Atlas, item: str, style: str = "You answer in one short sentence.") -> str:
    """Answer a customer. Ordinary code: nothing in it knows whether it is recorded or replayed."""
    talk = app.conversation(system=style, max_tokens=40)
    await talk.chat(f"A customer asks for a {item}. Greet them.")
    place, answer = await asyncio.gather(shelf(item), talk.chat("Say something nice about it."))
    return f"[{now():%H:%M:%S.%f}] {answer.text.strip()} You find it on {place}."


async def travel(db: str, options: argparse.Namespace) -> None:
    """Do it once for real, and then everything else that the record allows."""
    async with Atlas(db, provider=options.provider, model=options.model) as app:
        title("1. Record")
        began = time.perf_counter()
        async with app.recording("support") as run:
            said = await support(app, "kettle")
        stored = app.runs[run.id]
        print(said)
        print(f"{len(stored)} events in {time.perf_counter() - began:.2f} s, as run {run.id}")
        if options.verbose:
            print(stored.tree())

    # `scripted` has nothing to say: if anything were asked now, it would fail.
    async with Atlas(db, provider="scripted") as app:
        title("2. Replay, with the model unplugged")
        began = time.perf_counter()
        async with app.replaying(run.id):
            again = await support(app, "kettle")
        print(again)
        print(f"the same to the byte: {again == said}, in {time.perf_counter() - began:.2f} s")

        title("3. A program that does something else is found out")
        try:
            async with app.replaying(run.id):
                await support(app, "teapot")
        except ReplayDiverged as error:
            lines = str(error).splitlines()
            print(f"{error.effect} differs:", *(line for line in lines if line[:2] in ("- ", "+ ")))

        title("4. What was known in the middle of it")
        stored = app.runs[run.id]
        middle = next(n for n, e in enumerate(stored.events, 1) if isinstance(e, MessageAdded)) - 9
        for number in (middle, middle + 6):
            (reply, *_) = stored.at(number).replies.values()
            print(f"after event {number:>3}: {reply.text!r} ({reply.status})")
        print(f"between them: {len(stored.diff(middle, middle + 6))} changes of the state")

    async with Atlas(db, provider=options.provider, model=options.model) as app:
        title("5. Fork: the same up to the first answer, then in other words")
        first = next(
            n for n, e in enumerate(app.runs[run.id].events, 1) if isinstance(e, MessageAdded)
        )
        async with app.forking(run.id, at=first) as fork:
            print(await support(app, "kettle"))
        compared = app.compare(run.id, fork.id)
        print(f"{fork.id} did the same for {compared.shared} of {len(compared.lines)} events")

        title("6. Another prompt, from the beginning")
        async with app.forking(run.id, at=0, name="pirate") as fork:
            print(await support(app, "kettle", style="You are a pirate. Answer in one sentence."))
        print(f"runs in {Path(db).name}: {', '.join(app.runs)}")


def title(text: str) -> None:
    """Print what comes next."""
    print(f"\n{BOLD}{text}{PLAIN}")


def main() -> int:
    """Read the options and run the example; errors become one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--provider", help="anthropic, openai, ollama, local or scripted")
    parser.add_argument("--model", help="the provider's name of a model, or a GGUF file")
    parser.add_argument("--db", help="keep the runs in this file; default: a temporary one")
    parser.add_argument("--verbose", action="store_true", help="print the run as a tree")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(travel(options.db or str(Path(folder, "runs.db")), options))
    except AtlasError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
