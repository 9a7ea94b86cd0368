"""The cache of vectors: found again, never wrong, whatever happened to its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas.knowledge.vectors import VectorCache, key_of


def numbers(texts):
    return np.array([[len(text), ord(text[0]), 1.0] for text in texts], np.float32)


def alike(vectors, texts):
    """Whether vectors are those of texts, but for the rounding to 8 bits."""
    expected = numbers(texts)
    lengths = np.linalg.norm(expected, axis=1)
    return (
        np.allclose(np.linalg.norm(vectors, axis=1), lengths)
        and (np.abs(vectors - expected).max(axis=1) <= lengths / 127).all()
    )


def test_a_text_is_embedded_once(tmp_path: Path) -> None:
    asked = []

    def embed(texts):
        asked.extend(texts)
        return numbers(texts)

    cache = VectorCache(tmp_path / "v", 3)
    places, made = cache.embed(["a", "bb", "a"], embed)
    cache.close()
    again = VectorCache(tmp_path / "v", 3)

    assert made == 2
    assert again.embed(["bb", "a", "ccc"], embed)[1] == 1
    again.close()
    assert asked == ["a", "bb", "ccc"]
    assert alike(cache.take(places), ["a", "bb", "a"])


@pytest.mark.parametrize("dimension", [1, 3, 4, 7, 384])
def test_six_bits_a_number_keep_direction_and_length(tmp_path: Path, dimension: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, dimension)).astype(np.float32)
    vectors[7] = 0
    cache = VectorCache(tmp_path / "v", dimension, bits=6)
    cache.add([key_of(str(number)) for number in range(50)], vectors)
    cache.close()
    again = VectorCache(tmp_path / "v", dimension, bits=6)
    kept = again.take(np.arange(50)[::-1])[::-1]
    lengths = np.linalg.norm(vectors, axis=1)

    assert np.allclose(np.linalg.norm(kept, axis=1), lengths, rtol=1e-5)
    assert ((kept * vectors).sum(axis=1) >= 0.998 * lengths**2).all()
    assert (np.abs(kept - vectors).max(axis=1) <= lengths / 31).all()


@pytest.mark.parametrize("damage", [b"", b"x" * 5])
def test_an_unfinished_entry_is_overwritten(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "v"
    cache = VectorCache(path, 3)
    cache.embed(["a", "bb"], numbers)
    cache.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 7] if not damage else whole + damage)

    again = VectorCache(path, 3)
    places, _ = again.embed(["a", "bb", "ccc"], numbers)

    assert alike(again.take(places), ["a", "bb", "ccc"])
    again.close()
    assert len(VectorCache(path, 3)) == 3


def test_a_damaged_entry_counts_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "v"
    cache = VectorCache(path, 3)
    cache.embed(["a", "bb"], numbers)
    cache.close()
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)

    assert VectorCache(path, 3).places([key_of("a"), key_of("bb")]).tolist() == [0, -1]


def test_another_reader_sees_more_after_a_refresh(tmp_path: Path) -> None:
    writer = VectorCache(tmp_path / "v", 3)
    writer.embed(["a"], numbers)
    writer.flush()
    reader = VectorCache(tmp_path / "v", 3)
    writer.embed(["bb"], numbers)
    writer.flush()

    assert len(reader) == 1
    reader.refresh()
    assert alike(reader.take(reader.places([key_of("bb")])), ["bb"])
    writer.close()


def test_many_small_additions_stay_in_place() -> None:
    cache = VectorCache(None, 3)
    texts = [f"{chr(97 + number % 26)}{'x' * number}" for number in range(200)]
    for text in texts:
        cache.embed([text], numbers)

    assert alike(cache.take(cache.places([key_of(text) for text in texts])), texts)
