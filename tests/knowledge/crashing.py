"""A process that ingests until it is killed; started by test_crash.py, with tests/ as its folder."""

from __future__ import annotations

import sys

from atlas.knowledge import CallableEmbedder, Document, Knowledge, MemoryStore, StructureChunker

from support.knowledge import bag_of_words

DOCUMENTS = 40
# So that an ingest of all takes several batches, of some 256 passages each.
PARTS = 20


def paper(number: int) -> Document:
    """Return one of the documents that the process ingests."""
    parts = (f"paper{number} part{part} about the sea and ships." for part in range(PARTS))
    return Document(source=f"paper{number}", title="paper", text="\n\n".join(parts))


def opened(path: str, *, chroma: bool) -> Knowledge:
    """Open the knowledge base as the process does."""
    model = CallableEmbedder(bag_of_words, name="bag-of-words", dimension=64)
    store = None if chroma else MemoryStore()
    return Knowledge(path, embedder=model, chunker=StructureChunker(12), store=store)


def main() -> None:
    """Ingest document by document or all at once, saying each time how far it is."""
    path, store, way = sys.argv[1:]
    papers = [paper(number) for number in range(DOCUMENTS)]
    with opened(path, chroma=store == "chroma") as kb:
        print("open", flush=True)
        if way == "all":
            kb.ingest_sync(*papers, on_progress=lambda now: print(now.done, flush=True))
        else:
            for number, each in enumerate(papers):
                kb.ingest_sync(each)
                print(number, flush=True)


if __name__ == "__main__":
    main()
