"""Ask your documents: passages found by meaning and by words, answers that cite them.

    python examples/12_knowledge_retrieval.py
    python examples/12_knowledge_retrieval.py "How do I stop a handler?" --docs 'notes/**/*.md'
    python examples/12_knowledge_retrieval.py --provider openai --db kb/

With no argument, no key and no network this reads Atlas' own documentation, embeds it with
a model on this machine, shows what three kinds of search find, lets a small language model answer
from the passages, and searches a changed document as it was before.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from atlas import Atlas, AtlasError
from atlas.knowledge import Document, Knowledge
from atlas.knowledge.messages import DocumentIngested, IngestStarted, SearchPerformed
from atlas.providers.messages import StreamContextFound

DOCS = Path(__file__).resolve().parent.parent / "docs"
WRITTEN = [DOCS / "tutorial", DOCS / "how-to", DOCS / "design"]  # the rest is made from the code
QUESTION = "How can my own function see each token of an answer?"
DIM, BOLD, PLAIN = ("\033[2m", "\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def watch(app: Atlas, *, verbose: bool) -> None:
    """Every step is an event on the bus."""

    @app.bus.on(IngestStarted)
    def started(event: IngestStarted) -> None:
        print(f"{DIM}reading and embedding {event.sources} documents{PLAIN}")

    @app.bus.on(DocumentIngested)
    def stored(event: DocumentIngested) -> None:
        print(f"{DIM}  {Path(event.source).name}: {event.chunks} passages{PLAIN}")

    if verbose:
        app.bus.subscribe(SearchPerformed, lambda event: print(f"{DIM}  {event}{PLAIN}"))


async def compare(kb: Knowledge, question: str) -> None:
    """Show what search by words, by meaning, and by both finds."""
    for mode in ("keyword", "dense", "hybrid"):
        print(f"\n{BOLD}{mode}{PLAIN}")
        for hit in await kb.search(question, k=3, mode=mode, per_document=2):
            print(f"  {hit.score:.2f}  {hit.heading}  {DIM}{Path(hit.citation).name}{PLAIN}")


async def answer(app: Atlas, kb: Knowledge, question: str) -> None:
    """Let a model answer from the passages, and resolve the numbers it cites."""
    given: list[str] = []
    app.bus.subscribe(StreamContextFound, lambda event: given.extend(event.citations))
    print(f"\n{BOLD}{question}{PLAIN}")
    reply = app.chat(question, context=kb.searching(k=3), max_tokens=80)
    async for token in reply:
        print(token, end="", flush=True)
    print()
    for number, passage in reply.citations.items():
        print(f"{DIM}  [{number}] {passage.title}: {passage.citation}{PLAIN}")
    if not reply.citations:  # a very small model forgets to
        print(f"{DIM}  The answer cites none of the passages that the model was given:{PLAIN}")
        for number, citation in enumerate(given, 1):
            print(f"{DIM}  [{number}] {citation}{PLAIN}")


async def change(kb: Knowledge) -> None:
    """Change a document, and search it as it is and as it was."""
    before = await kb.ingest(Document(source="rules", text="The office opens at nine."))
    await kb.ingest(Document(source="rules", text="The office opens at ten."))
    for name, at in (("now", None), (f"as of version {before.version}", before.version)):
        (hit,) = await kb.search(
            "When does the office open?", k=1, at=at, where="source == 'rules'"
        )
        print(f"  {name}: {hit.text} {DIM}(version {hit.version} of the document){PLAIN}")


async def run(options: argparse.Namespace, folder: str) -> None:
    """Ingest, search, answer, look back."""
    async with (
        Atlas(provider=options.provider, model=options.model) as app,
        Knowledge(folder, bus=app.bus) as kb,
    ):
        watch(app, verbose=options.verbose)
        done = await kb.ingest(*(options.docs or WRITTEN))
        print(f"{done.chunks} passages of {done.ingested} documents in {done.seconds:.1f} s")
        await compare(kb, options.question)
        await answer(app, kb, options.question)
        print(f"\n{BOLD}a document that changes{PLAIN}")
        await change(kb)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--docs", nargs="+", help="files, folders or patterns to read")
    parser.add_argument("--provider")
    parser.add_argument("--model")
    parser.add_argument("--db", help="folder to keep the knowledge base in; default: none is kept")
    parser.add_argument("--verbose", action="store_true", help="show each search as an event")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(run(options, options.db or folder))
    except AtlasError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
