"""What turns texts into vectors: the protocol, any function of your own, and servers by HTTP.

The local model is in `atlas.knowledge.minilm`, and is what a knowledge base takes when it is given
no embedder.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from atlas.errors import ConfigurationError, EmbeddingError, MissingCredentialsError

__all__ = [
    "CallableEmbedder",
    "Embedder",
    "OllamaEmbedder",
    "OpenAIEmbedder",
    "embed_checked",
    "word_starts",
]

Vectors = NDArray[np.float32]
_WORD: Final = re.compile(r"\w{1,6}|[^\w\s]")


class Embedder(Protocol):
    """Turns texts into vectors whose angles tell how alike the texts are. Blocking and thread-safe."""

    @property
    def name(self) -> str:
        """The model; vectors of different names are never compared."""
        ...

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, as rows.

        Raises:
            EmbeddingError: It cannot be done now.
        """
        ...

    def token_starts(self, text: str) -> NDArray[np.int64]:
        """Return where in a text each of its tokens begins; about, when the model does not tell."""
        ...


def word_starts(text: str) -> NDArray[np.int64]:
    """Return about where the tokens of a text begin, for models that do not tell."""
    return np.fromiter((match.start() for match in _WORD.finditer(text)), np.int64)


def embed_checked(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Return the vectors of texts, as unit vectors, after a look at what the embedder gave.

    Raises:
        EmbeddingError: It is not one vector of finite numbers, and the promised length, per text.
    """
    try:
        vectors = np.asarray(embedder.embed(texts), np.float32)
    except (TypeError, ValueError) as error:
        raise EmbeddingError(
            f"The embedding model {embedder.name!r} did not return a vector of numbers for each of "
            f"{len(texts)} texts: {error}"
        ) from error
    if vectors.shape != (len(texts), embedder.dimension):
        raise EmbeddingError(
            f"The embedding model {embedder.name!r} returned numbers of shape {vectors.shape} for "
            f"{len(texts)} texts; {(len(texts), embedder.dimension)} was promised. Give it the "
            f"`dimension` it has."
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if len(bad):
        text = texts[int(bad[0])]
        raise EmbeddingError(
            f"The embedding model {embedder.name!r} returned zeros, NaN or infinity for the text "
            f"{text[:60]!r}. Nothing was stored of it; try another model."
        )
    unit: Vectors = vectors / lengths
    return unit


class CallableEmbedder:
    """An `Embedder` of any function.

    Args:
        function: Takes a list of texts and returns one sequence of numbers for each.
        name: What the model is called; change it when the function changes.
        dimension: How many numbers a vector has.
        token_starts: Where the tokens of a text begin; default: about, by its words.
    """

    def __init__(
        self,
        function: Callable[[Sequence[str]], Sequence[Sequence[float]] | Vectors],
        *,
        name: str,
        dimension: int,
        token_starts: Callable[[str], NDArray[np.int64]] = word_starts,
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.token_starts = token_starts
        self._function = function

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, as rows."""
        return np.asarray(self._function(texts), np.float32)


class _ServerEmbedder:
    """What embedders on servers share: batches, and patience with failures that pass."""

    def __init__(
        self,
        name: str,
        dimension: int,
        url: str,
        *,
        headers: dict[str, str],
        batch: int,
        timeout: float,
        attempts: int,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"base_url is {url!r}. It begins with http:// or https://.")
        self.name = name
        self.dimension = dimension
        self._url = url
        self._headers = headers
        self._batch = batch
        self._timeout = timeout
        self._attempts = attempts

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, as rows."""
        parts = [
            np.asarray(self._ask(texts[begin : begin + self._batch]), np.float32)
            for begin in range(0, len(texts), self._batch)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def token_starts(self, text: str) -> NDArray[np.int64]:
        """Return about where the tokens of a text begin."""
        return word_starts(text)

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError

    def _post(self, body: dict[str, object]) -> dict[str, object]:
        request = urllib.request.Request(  # noqa: S310 - the scheme is looked at above
            self._url,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **self._headers},
        )
        for attempt in range(1, self._attempts + 1):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310
                    return cast("dict[str, object]", json.load(answer))
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(500).decode("utf-8", "replace")
                if error.code not in {408, 409, 429} and error.code < 500:
                    raise self._failed(f"it answered {error.code}: {said}") from error
                problem: Exception = error
            except (OSError, ValueError) as error:
                problem = error
            if attempt == self._attempts:
                raise self._failed(f"{problem} (after {attempt} attempts)") from problem
            time.sleep(min(8.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _failed(self, why: str) -> EmbeddingError:
        return EmbeddingError(
            f"The embedding model {self.name!r} at {self._url} cannot be asked: {why}."
        )


class OpenAIEmbedder(_ServerEmbedder):
    """An `Embedder` on OpenAI's servers, or any that speaks its ``/embeddings``.

    Args:
        model: The model's name.
        dimension: How many numbers a vector shall have.
        api_key: The key; default: ``OPENAI_API_KEY``.
        base_url: Where the API is; default: ``OPENAI_BASE_URL``, else OpenAI's.
        batch: Most texts to send at once.
        timeout: Seconds to wait for an answer.
        attempts: How often to ask when the server is busy or cannot be reached.

    Raises:
        MissingCredentialsError: There is no key.
    """

    def __init__(
        self,
        model: str = "text-embedding-3-small",
        *,
        dimension: int = 1536,
        api_key: str | None = None,
        base_url: str | None = None,
        batch: int = 256,
        timeout: float = 60.0,
        attempts: int = 4,
    ) -> None:
        key = api_key or os.environ.get("OPENAI_API_KEY", "")
        if not key:
            raise MissingCredentialsError(
                "The embedder 'openai' needs a key. Set OPENAI_API_KEY, or give `api_key`.",
            )
        root = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        super().__init__(
            model,
            dimension,
            root.rstrip("/") + "/embeddings",
            headers={"Authorization": f"Bearer {key}"},
            batch=batch,
            timeout=timeout,
            attempts=attempts,
        )

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        answer = self._post(
            {"model": self.name, "input": list(texts), "dimensions": self.dimension}
        )
        try:
            items = cast("list[dict[str, object]]", answer["data"])
            ordered = sorted(items, key=lambda item: cast("int", item["index"]))
            return [cast("list[float]", item["embedding"]) for item in ordered]
        except (KeyError, TypeError) as error:
            raise self._failed(f"its answer has no vectors: {str(answer)[:200]}") from error


class OllamaEmbedder(_ServerEmbedder):
    """An `Embedder` on an Ollama server.

    Args:
        model: The model's name.
        dimension: How many numbers its vectors have.
        host: Where the server is; default: ``OLLAMA_HOST``, else this machine.
        batch: Most texts to send at once.
        timeout: Seconds to wait for an answer.
        attempts: How often to ask when the server is busy or cannot be reached.
    """

    def __init__(
        self,
        model: str = "nomic-embed-text",
        *,
        dimension: int = 768,
        host: str | None = None,
        batch: int = 64,
        timeout: float = 120.0,
        attempts: int = 4,
    ) -> None:
        root = host or os.environ.get("OLLAMA_HOST") or "127.0.0.1:11434"
        root = root if "://" in root else f"http://{root}"
        super().__init__(
            model,
            dimension,
            root.rstrip("/") + "/api/embed",
            headers={},
            batch=batch,
            timeout=timeout,
            attempts=attempts,
        )

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        answer = self._post({"model": self.name, "input": list(texts), "truncate": True})
        try:
            return cast("list[list[float]]", answer["embeddings"])
        except (KeyError, TypeError) as error:
            raise self._failed(f"its answer has no vectors: {str(answer)[:200]}") from error
