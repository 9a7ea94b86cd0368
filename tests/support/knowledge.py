"""A small embedding model without weights, and documents about things it can tell apart."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atlas.knowledge import CallableEmbedder, Document

DIMENSION = 64


def bag_of_words(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return vectors that are alike when texts share words; the same for the same text, always."""
    vectors = np.zeros((len(texts), DIMENSION), np.float32)
    for row, text in zip(vectors, texts, strict=True):
        row[0] = 0.1
        for word in text.lower().split():
            row[
                1 + zlib.crc32(word.strip(".,?#").encode("utf-8", "replace")) % (DIMENSION - 1)
            ] += 1
    return vectors


def small_model(name: str = "bag-of-words") -> CallableEmbedder:
    """Return an embedder that needs nothing."""
    return CallableEmbedder(bag_of_words, name=name, dimension=DIMENSION)


def note(source: str, text: str, **metadata: str | float) -> Document:
    """Return a document that consists of a title and a text."""
    return Document(source=source, text=text, title=source, metadata=metadata)
