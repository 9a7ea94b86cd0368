"""Stream a model's answer token by token, and watch every event of it.

    python examples/02_streaming_chat.py                      # a conversation in a terminal
    echo "Say hello." | python examples/02_streaming_chat.py  # or scripted
    python examples/02_streaming_chat.py --provider openai --model gpt-5-mini

With no argument, no key and no network this runs a small language model on this machine. The
answer you see is printed by an ordinary loop; everything else is done by handlers subscribed to
the bus, which is how you would add logging, metrics or a second screen to your own application.
"""

import argparse
import asyncio
import sys

from atlas import Atlas, AtlasError
from atlas.providers.messages import StreamCompleted, StreamStarted, StreamToken

# What handlers print is dimmed, to tell it from the answer; only where a terminal shows it.
DIM, BOLD, PLAIN = ("\033[2m", "\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
SCRIPT = ["Explain event sourcing in one line.", "Name one advantage of it."]


def watch(app: Atlas, *, verbose: bool) -> None:
    """Subscribe handlers: by class, with a predicate, and by topic pattern."""
    seen = {"tokens": 0, "longest": ""}

    @app.bus.on(StreamStarted)
    def announce(event: StreamStarted) -> None:
        print(f"{DIM}  [started: {event.provider}, {event.model}]{PLAIN}")

    @app.bus.on(StreamToken)
    def count(event: StreamToken) -> None:
        seen["tokens"] += 1

    @app.bus.on(StreamToken, where=lambda event: len(event.text) > len(seen["longest"]))
    async def remember(event: StreamToken) -> None:
        seen["longest"] = event.text.strip()

    @app.bus.on(StreamCompleted)
    def summarise(event: StreamCompleted) -> None:
        timing = event.timing
        print(
            f"\n{DIM}  [{seen['tokens']} tokens so far, the longest {seen['longest']!r}; first after "
            f"{timing.first_token or 0:.2f} s, then {timing.tokens_per_second or 0:.0f} per second]{PLAIN}"
        )

    if verbose:
        app.bus.subscribe(
            "stream.**", lambda event: print(f"{DIM}{event.meta.sequence:>6} {event}{PLAIN}")
        )


def questions() -> list[str] | None:
    """Return the questions to ask; None when a person will type them."""
    if sys.stdin.isatty():
        return None
    piped = [line.strip() for line in sys.stdin if line.strip()]
    return piped or SCRIPT


async def typed() -> str:
    """Return the line that a person types: input() in a thread would not let itself be interrupted."""
    print(f"\n{BOLD}you ›{PLAIN} ", end="", flush=True)
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip()


async def converse(options: argparse.Namespace) -> None:
    """Hold one conversation: the model sees all that was said before."""
    scripted = questions()
    async with Atlas(provider=options.provider, model=options.model) as app:
        watch(app, verbose=options.verbose)
        conversation = app.conversation(system=options.system, max_tokens=options.max_tokens)
        while True:
            if scripted is None:
                question = await typed()
            else:
                question = scripted.pop(0) if scripted else ""
                print(f"\n{BOLD}you ›{PLAIN} {question}" if question else "")
            if not question:
                return
            print(f"{BOLD}model ›{PLAIN}", flush=True)
            async for token in conversation.chat(question):
                print(token, end="", flush=True)


def main() -> int:
    """Read the options and run the conversation; errors become one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--provider", help="anthropic, openai, ollama, local or scripted")
    parser.add_argument("--model", help="the provider's name of a model, or a GGUF file")
    parser.add_argument("--system", default="You answer in one short sentence.")
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--verbose", action="store_true", help="print every event of the stream")
    try:
        asyncio.run(converse(parser.parse_args()))
    except AtlasError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nInterrupted. This conversation was kept nowhere; `atlas chat --db FILE` keeps one."
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
