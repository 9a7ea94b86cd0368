"""Knowledge retrieval: known-item search over the manual pages of this machine, and what it costs.

    python benchmarks/knowledge.py [--documents 150] [--split test] [--folder DIR] [--scale 100000]

The query is a page's one-line description, the target the page without that line. Pages are split by
a hash of their name; weights and chunking of Atlas were chosen on ``--split dev`` only. Gains are
compared query by query, with a bootstrap interval. Every contestant sees the same texts and the same
embedding model: bm25s on whole pages, Chroma as its documentation shows it, and, where they are
installed, LlamaIndex and Haystack with their defaults and rank fusion.

``--folder`` keeps vectors between runs. ``--scale`` measures queries and disk over that many passages
of all manual pages, with vectors that are made up, instead of quality.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import resource
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from atlas.knowledge import (
    CallableEmbedder,
    Document,
    Knowledge,
    MiniLM,
    Ranking,
)
from atlas.knowledge.formats.manual import read_manual
from atlas.knowledge.vectors import VectorCache

PAGES = Path("/usr/share/man")
Search = Callable[[str], Sequence[str]]
Built = TypeVar("Built")


# -- the corpus: pages without their description, and the descriptions as queries --


def corpus(split: str, wanted: int) -> list[tuple[Document, str]]:
    """Return pages and their queries, in an order that does not depend on the machine."""
    found = []
    descriptions: set[str] = set()
    for path in sorted(
        PAGES.glob("man[1578]/*.gz"), key=lambda path: zlib.crc32(path.name.encode())
    ):
        if path.is_symlink() or (zlib.crc32(path.name.encode(), 7) % 2 == 0) != (split == "dev"):
            continue
        pair = known_item(path)
        if pair is not None and pair[1] not in descriptions:
            descriptions.add(pair[1])
            found.append(pair)
        if len(found) == wanted:
            break
    return found


def known_item(path: Path) -> tuple[Document, str] | None:
    """Return a page without its description, and the description; None for unusable ones."""
    if path.name.startswith("gcloud"):  # 16,000 pages of one kind would be the whole corpus
        return None
    if not 1_500 < len(gzip.decompress(path.read_bytes())) < 80_000:
        return None
    page = manual(path)
    span = description(page)
    if span is None:
        return None
    start, end = span
    said = page.text[start:end]
    text = page.text[:start] + page.text[end:]
    text = text.replace(said.strip(), " " * len(said.strip()))
    headings = [
        replace(h, offset=h.offset - (len(said) if h.offset > start else 0)) for h in page.headings
    ]
    return replace(page, text=text, headings=headings), " ".join(said.split())


def manual(path: Path) -> Document:
    content = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    return read_manual(path.name.removesuffix(".gz"), content)


def description(page: Document) -> tuple[int, int] | None:
    """Return where in a page its one-line description is; None when it has none of three words."""
    for heading, after in zip(page.headings, page.headings[1:], strict=False):
        if heading.title.upper() == "NAME":
            begin = heading.offset + len(heading.title)
            match = re.match(r"\s*.*?\s[-–—]+\s+(.*)", page.text[begin : after.offset], re.DOTALL)
            if match is None or len(match[1].split()) < 3:
                return None
            return begin + match.start(1), begin + match.end(1)
    return None


# -- measures --


def measure(pairs: Sequence[tuple[Document, str]], search: Search) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each target (0: not among ten), and the seconds of each query."""
    places, seconds = [], []
    for document, query in pairs:
        began = time.perf_counter()
        found = list(dict.fromkeys(search(query)))[:10]
        seconds.append(time.perf_counter() - began)
        places.append(found.index(document.source) + 1 if document.source in found else 0)
    return np.array(places), np.array(seconds)


def gains(places: np.ndarray) -> np.ndarray:
    return np.where(places > 0, 1 / np.log2(np.maximum(places, 1) + 1), 0)


def report(name: str, places: np.ndarray, seconds: np.ndarray, best: np.ndarray | None) -> None:
    gain = gains(places)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(gain), (2_000, len(gain)))
    low, high = np.percentile(gain[drawn].mean(1), [2.5, 97.5])
    against = ""
    if best is not None:
        difference = gain - gains(best)
        less, more = np.percentile(difference[drawn].mean(1), [2.5, 97.5])
        against = f"  {difference.mean():+.3f} [{less:+.3f}, {more:+.3f}]"
    reciprocal = np.where(places > 0, 1 / np.maximum(places, 1), 0).mean()
    p50, p95 = np.percentile(seconds * 1e3, [50, 95])
    print(
        f"{name:<38} {gain.mean():.3f} [{low:.3f}, {high:.3f}]  {(places > 0).mean():.3f}  "
        f"{reciprocal:.3f}  {p50:6.1f} {p95:6.1f}{against}",
        flush=True,
    )


def against_each(ours: np.ndarray, others: dict[str, np.ndarray]) -> None:
    """Print how much better one is than each of the others, query by query, and how sure that is."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(ours), (10_000, len(ours)))
    print("\nAtlas hybrid against each, nDCG@10 query by query [95 %], better : worse")
    for name, places in others.items():
        difference = gains(ours) - gains(places)
        low, high = np.percentile(difference[drawn].mean(1), [2.5, 97.5])
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        print(f"{name:<38} {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]  {better} : {worse}")


def resident() -> int:
    """Return how much memory the process holds, in bytes."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# -- contestants --


Build = Callable[[], Search]


def peers(
    documents: Sequence[Document], folder: Path, model: CallableEmbedder
) -> Iterator[tuple[str, Build, Path | None]]:
    """Yield each peer's name, what builds its index and returns its search, and its folder."""
    yield "bm25s, whole pages", lambda: bm25s_search(documents), None
    whole = folder / "whole-chroma"
    yield (
        "Chroma, whole pages as in its guide",
        lambda: chroma_search(documents, whole, model, size=None),
        whole,
    )
    chroma = folder / "plain-chroma"
    yield "Chroma, 1,000 characters", lambda: chroma_search(documents, chroma, model), chroma
    yield (
        "LlamaIndex, defaults, rank fusion",
        lambda: llama_index_search(documents, model),
        None,
    )
    yield "Haystack, words/200, rank fusion", lambda: haystack_search(documents, model), None


def ours(kb: Knowledge) -> Iterator[tuple[str, Search]]:
    yield "Atlas keyword", lambda q: [h.source for h in kb.search_sync(q, k=60, mode="keyword")]
    yield "Atlas dense", lambda q: [h.source for h in kb.search_sync(q, k=60, mode="dense")]
    rrf = Ranking(fusion="rrf")
    yield "Atlas hybrid, rrf", lambda q: [h.source for h in kb.search_sync(q, k=60, ranking=rrf)]
    yield "Atlas hybrid, k=10 as it comes", lambda q: [h.source for h in kb.search_sync(q, k=10)]
    yield (
        "Atlas hybrid",
        lambda q: [h.source for h in kb.search_sync(q, k=10, per_document=1)],
    )


def bm25s_search(documents: Sequence[Document]) -> Search:
    import bm25s

    texts = [f"{document.title}\n{document.text}" for document in documents]
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)

    def search(query: str) -> list[str]:
        tokens = bm25s.tokenize([query], stopwords="en", show_progress=False)
        found, _ = retriever.retrieve(tokens, k=min(10, len(documents)), show_progress=False)
        return [documents[int(index)].source for index in found[0]]

    return search


def windows(text: str, size: int, overlap: int) -> list[str]:
    step = size - overlap
    return [text[begin : begin + size] for begin in range(0, max(1, len(text) - overlap), step)]


def chroma_search(
    documents: Sequence[Document],
    folder: Path,
    model: CallableEmbedder,
    *,
    size: int | None = 1_000,
) -> Search:
    import chromadb

    client = chromadb.PersistentClient(str(folder))
    collection = client.get_or_create_collection("pages", embedding_function=None)
    texts, ids, names = [], [], []
    for document in documents:
        parts = windows(document.text, size, 200) if size else [document.text]
        for number, part in enumerate(parts):
            texts.append(part)
            ids.append(f"{document.source}#{number}")
            names.append({"source": document.source})
    vectors = model.embed(texts)
    for begin in range(0, len(ids), 1_000):
        part = slice(begin, begin + 1_000)
        collection.upsert(
            ids=ids[part], embeddings=vectors[part], documents=texts[part], metadatas=names[part]
        )

    def search(query: str) -> list[str]:
        found = collection.query(query_embeddings=model.embed([query]), n_results=60)
        return [str(each["source"]) for each in (found["metadatas"] or [[]])[0]]

    return search


def llama_index_search(documents: Sequence[Document], model: CallableEmbedder) -> Search:
    from llama_index.core import Document as Page
    from llama_index.core import VectorStoreIndex
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.retrievers.bm25 import BM25Retriever

    class Same(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return model.embed([text])[0].tolist()

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return model.embed(texts).tolist()

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    pages = [Page(text=d.text, metadata={"source": d.source}) for d in documents]
    nodes = SentenceSplitter().get_nodes_from_documents(pages)
    dense = VectorStoreIndex(nodes, embed_model=Same()).as_retriever(similarity_top_k=60)
    sparse = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=60)
    return fused(lambda r, q: [n.metadata["source"] for n in r.retrieve(q)], dense, sparse)


def haystack_search(documents: Sequence[Document], model: CallableEmbedder) -> Search:
    from haystack import Document as Page
    from haystack.components.preprocessors import DocumentSplitter
    from haystack.components.retrievers.in_memory import (
        InMemoryBM25Retriever,
        InMemoryEmbeddingRetriever,
    )
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    splitter = DocumentSplitter(split_by="word", split_length=200)
    pages = [Page(content=d.text, meta={"source": d.source}) for d in documents]
    parts = splitter.run(documents=pages)["documents"]
    vectors = model.embed([part.content for part in parts]).tolist()
    parts = [replace(part, embedding=each) for part, each in zip(parts, vectors, strict=True)]
    store.write_documents(parts)
    dense = InMemoryEmbeddingRetriever(store, top_k=60)
    sparse = InMemoryBM25Retriever(store, top_k=60)

    def ask(retriever, query: str) -> list[str]:
        if retriever is dense:
            found = retriever.run(query_embedding=model.embed([query])[0].tolist())
        else:
            found = retriever.run(query=query)
        return [each.meta["source"] for each in found["documents"]]

    return fused(ask, dense, sparse)


def fused(ask: Callable[[object, str], list[str]], *retrievers: object) -> Search:
    """Reciprocal rank fusion of passages, the best of a document counting."""

    def search(query: str) -> list[str]:
        scores: dict[str, float] = {}
        for retriever in retrievers:
            for place, source in enumerate(dict.fromkeys(ask(retriever, query)), 1):
                scores[source] = scores.get(source, 0) + 1 / (60 + place)
        return sorted(scores, key=lambda source: -scores[source])

    return search


def quality(options: argparse.Namespace, folder: Path) -> None:
    pairs = corpus(options.split, options.documents)
    documents = [document for document, _ in pairs]
    size = sum(len(document.text.encode()) for document in documents)
    print(
        f"{len(pairs)} pages, {size / 1e6:.1f} MB, split {options.split!r}; the query is the "
        f"description. What building costs is told without the time of the embedding model.\n"
    )
    local = MiniLM()
    cache = VectorCache(folder / "benchmark.vectors", local.dimension)
    spent = [0.0]

    def embed(texts: Sequence[str]) -> np.ndarray:
        began = time.perf_counter()
        for begin in range(0, len(texts), 256):
            cache.embed(texts[begin : begin + 256], local.embed)
            cache.flush()
        vectors = cache.take(cache.embed(texts, local.embed)[0])
        spent[0] += time.perf_counter() - began
        return vectors

    model = CallableEmbedder(
        embed, name=local.name, dimension=local.dimension, token_starts=local.token_starts
    )
    model.embed([query for _, query in pairs])  # so that a query's time is that of the search
    shutil.rmtree(folder / "kb", ignore_errors=True)
    shutil.rmtree(folder / "plain-chroma", ignore_errors=True)
    shutil.rmtree(folder / "whole-chroma", ignore_errors=True)

    def built(name: str, build: Callable[[], Built], kept: Path | None) -> Built:
        spent[0], held, began = 0.0, resident(), time.perf_counter()
        made = build()
        took = time.perf_counter() - began - spent[0]
        room = f"{disk(kept) / size:.2f} x the text on disk" if kept else "nothing on disk"
        print(
            f"({name}: {len(documents) / took:.0f} documents/s, "
            f"{max(0, resident() - held) / 1e6:.0f} MB more memory, {room})"
        )
        return made

    def ingested() -> Knowledge:
        kb = Knowledge(folder / "kb", embedder=model)
        kb.ingest_sync(*documents)
        return kb

    title = "nDCG@10 [95 %]        recall MRR    p50    p95 ms  against the best peer"
    print(f"{'':<38} {title}")
    best: np.ndarray | None = None
    others: dict[str, np.ndarray] = {}
    for name, build, kept in peers(documents, folder, model):
        try:
            search = built(name, build, kept)
        except ImportError as error:
            print(f"({name} left out: {error})")
            continue
        places, seconds = measure(pairs, search)
        report(name, places, seconds, None)
        others[name] = places
        if best is None or gains(places).mean() > gains(best).mean():
            best = places
    with built("Atlas", ingested, folder / "kb") as kb:
        for name, search in ours(kb):
            places, seconds = measure(pairs, search)
            report(name, places, seconds, best)
            others.setdefault(name, places)
    against_each(others.pop("Atlas hybrid"), others)
    cache.close()


# -- cost --


def speed(folder: Path, split: str) -> None:
    """Compare an ingest with the bare embedding model on the same passages."""
    documents = [document for document, _ in corpus(split, 12)]
    local = MiniLM()
    local.embed(["warm up"])
    spent = [0.0]

    def embed(texts: Sequence[str]) -> np.ndarray:
        began = time.perf_counter()
        vectors = local.embed(texts)
        spent[0] += time.perf_counter() - began
        return vectors

    model = CallableEmbedder(
        embed, name=local.name, dimension=local.dimension, token_starts=local.token_starts
    )
    with Knowledge(folder / "speed", embedder=model) as kb:
        began = time.perf_counter()
        kb.ingest_sync(documents[0])  # opens Chroma, once for a process
        opened = time.perf_counter() - began
        spent[0] = 0.0
        began = time.perf_counter()
        done = kb.ingest_sync(*documents[1:])
        took = time.perf_counter() - began
        began = time.perf_counter()
        kb.ingest_sync(*documents[1:])
        again = time.perf_counter() - began
    print(
        f"\ningest: {done.chunks} passages, {done.chunks / took:.1f}/s; {spent[0] / took:.2f} x the "
        f"speed of the model alone; the first document, which opens Chroma: {opened:.1f} s; "
        f"unchanged again: {took / again:.0f} x as fast"
    )


def scale(rows: int, folder: Path) -> None:
    """Measure queries and disk with many passages: manual pages, with vectors that are made up."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((500, 384)).astype(np.float32)

    def embed(texts: Sequence[str]) -> np.ndarray:
        seeds = [zlib.crc32(text.encode("utf-8", "replace")) for text in texts]
        noise = [np.random.default_rng(seed).standard_normal(384) for seed in seeds]
        return centres[[seed % 500 for seed in seeds]] + 0.8 * np.array(noise, np.float32)

    model = CallableEmbedder(
        embed, name="made-up", dimension=384, token_starts=MiniLM().token_starts
    )
    shutil.rmtree(folder / "scale", ignore_errors=True)
    size = passages = 0
    queries: list[str] = []
    began = time.perf_counter()
    with Knowledge(folder / "scale", embedder=model) as kb:
        paths = (path for path in PAGES.glob("man*/*.gz") if not path.is_symlink())
        everything = sorted(paths, key=lambda path: zlib.crc32(path.name.encode()))
        for first in range(0, len(everything), 300):
            batch = []
            for number, path in enumerate(everything[first : first + 300]):
                page = manual(path)
                batch.append(replace(page, metadata={**page.metadata, "group": number % 100}))
                size += len(page.text.encode())
                span = description(page)
                if span is not None and len(queries) < 400:
                    queries.append(" ".join(page.text[slice(*span)].split()))
            passages += kb.ingest_sync(*batch).chunks
            if passages >= rows:
                break
    took = time.perf_counter() - began
    print(f"{passages} passages of {size / 1e6:.0f} MB of manual pages stored in {took:.0f} s")
    began = time.perf_counter()
    with Knowledge(folder / "scale", embedder=model) as kb:
        kb.search_sync("warm up")
        print(f"opened and first search: {time.perf_counter() - began:.1f} s")
        files = [path for path in (folder / "scale").rglob("*") if path.is_file()]
        parts = {path.relative_to(folder / "scale").parts[0]: 0 for path in files}
        for path in files:
            parts[path.relative_to(folder / "scale").parts[0]] += path.stat().st_size
        told = ", ".join(f"{name} {part / size:.2f}" for name, part in sorted(parts.items()))
        print(f"disk: {sum(parts.values()) / size:.2f} x the text ({told})")
        for name, where in (("hybrid", None), ("hybrid, filter keeps 1 %", "group == 7")):
            spent = []
            for query in queries:
                kb._vectors([query], kb._collection("main"))  # the query's embedding is not counted
                at = time.perf_counter()
                kb.search_sync(query, where=where)
                spent.append(time.perf_counter() - at)
            p50, p95 = np.percentile(np.array(spent[100:]) * 1e3, [50, 95])
            print(f"{name:<28} p50 {p50:.1f} ms  p95 {p95:.1f} ms")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory of the process at most: {peak:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--scale", type=int, default=0, metavar="PASSAGES")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.scale:
            scale(options.scale, folder)
            return
        quality(options, folder)
        speed(Path(temporary), options.split)


if __name__ == "__main__":
    main()
