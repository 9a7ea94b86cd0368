"""What turns texts into vectors: the protocol, any function of your own, and servers by HTTP.

The local model is in `atlas.knowledge.minilm`, and is what a knowledge base takes when it is given
no embedder.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from atlas.errors import (
    ConfigurationError,
    EmbeddingError,
    IncompleteStreamError,
    InvalidResponseError,
    MissingCredentialsError,
)
from atlas.knowledge.retries import PATIENT, patiently
from atlas.providers.http import error_from, hide_sent, transport_error
from atlas.providers.resilience import RetryPolicy

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

    When the function raises a `ConnectionError`, a `TimeoutError` or a `ProviderError` that may pass, it
    is called again as ``retries`` say.

    Args:
        function: Takes a list of texts and returns one sequence of numbers for each.
        name: What the model is called; change it when the function changes.
        dimension: How many numbers a vector has.
        token_starts: Where the tokens of a text begin; default: about, by its words.
        retries: How often to call it, and after how long.
    """

    def __init__(
        self,
        function: Callable[[Sequence[str]], Sequence[Sequence[float]] | Vectors],
        *,
        name: str,
        dimension: int,
        token_starts: Callable[[str], NDArray[np.int64]] = word_starts,
        retries: RetryPolicy = PATIENT,
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.token_starts = token_starts
        self._function = function
        self._retries = retries

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, as rows."""

        def ask() -> Sequence[Sequence[float]] | Vectors:
            try:
                return self._function(texts)
            except (ConnectionError, TimeoutError) as error:
                raise transport_error(error, model=self.name) from error

        return np.asarray(patiently(ask, model=self.name, retries=self._retries), np.float32)


class _ServerEmbedder(ABC):
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
        retries: RetryPolicy,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"base_url is {url!r}. It begins with http:// or https://.")
        self.name = name
        self.dimension = dimension
        self._url = url
        self._headers = headers
        self._batch = batch
        self._timeout = timeout
        self._retries = retries

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, as rows."""
        parts = []
        for begin in range(0, len(texts), self._batch):
            part = texts[begin : begin + self._batch]
            vectors = self._ask(part)
            # Of each request: too many in one and too few in another would move those between.
            if len(vectors) != len(part):
                raise self._failed(f"it returned {len(vectors)} vectors for {len(part)} texts")
            parts.append(np.asarray(vectors, np.float32))
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def token_starts(self, text: str) -> NDArray[np.int64]:
        """Return about where the tokens of a text begin."""
        return word_starts(text)

    @abstractmethod
    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of texts that fit into one request."""

    def _post(self, body: dict[str, object]) -> dict[str, object]:
        return patiently(lambda: self._posted(body), model=self.name, retries=self._retries)

    def _posted(self, body: dict[str, object]) -> dict[str, object]:
        """Return the answer to one request.

        Raises:
            ProviderError: There was none, or one that says no.
        """
        hide_sent(self._headers, self._url)
        request = urllib.request.Request(  # noqa: S310 - the scheme is looked at above
            self._url,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **self._headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310
                content = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(2_000)
            headers = {name.lower(): value for name, value in error.headers.items()}
            raise error_from(
                said, status=error.code, headers=headers, provider=self._url, model=self.name
            ) from error
        except http.client.IncompleteRead as error:
            raise IncompleteStreamError(
                f"{self._url} broke off its answer after {len(error.partial)} bytes."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            # What urllib wraps is what went wrong.
            reason = getattr(error, "reason", None)
            cause = reason if isinstance(reason, OSError) else error
            raise transport_error(cause, provider=self._url, model=self.name) from error
        try:
            return cast("dict[str, object]", json.loads(content))
        except ValueError as error:
            raise InvalidResponseError(
                f"{self._url} did not answer in JSON, but {content[:60]!r}. Check the address."
            ) from error

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
        retries: How often to ask when the server is busy or cannot be reached, and after how long.

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
        retries: RetryPolicy = PATIENT,
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
            retries=retries,
        )

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        answer = self._post(
            {"model": self.name, "input": list(texts), "dimensions": self.dimension}
        )
        try:
            items = cast("list[dict[str, object]]", answer["data"])
            found = {item["index"]: cast("list[float]", item["embedding"]) for item in items}
            return [found[number] for number in range(len(items))]
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
        retries: How often to ask when the server is busy or cannot be reached, and after how long.
    """

    def __init__(
        self,
        model: str = "nomic-embed-text",
        *,
        dimension: int = 768,
        host: str | None = None,
        batch: int = 64,
        timeout: float = 120.0,
        retries: RetryPolicy = PATIENT,
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
            retries=retries,
        )

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        answer = self._post({"model": self.name, "input": list(texts), "truncate": True})
        try:
            return cast("list[list[float]]", answer["embeddings"])
        except (KeyError, TypeError) as error:
            raise self._failed(f"its answer has no vectors: {str(answer)[:200]}") from error
