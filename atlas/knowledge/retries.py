"""Asking an embedding model again after a failure that passes: when, and who is told.

The policy is that of calls to models, `atlas.providers.resilience.RetryPolicy`: how often, after how long,
and no sooner than a busy server asks for. Who embeds on behalf of a knowledge base is attended by it:
each retry becomes an event, and a wait ends when the work is called off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Final, NamedTuple, TypeVar

from atlas.errors import EmbeddingError, ProviderError
from atlas.providers.resilience import RetryPolicy

__all__ = ["PATIENT", "FailedAttempt", "attended", "patiently"]

T = TypeVar("T")

PATIENT: Final = RetryPolicy(attempts=4, max_delay=8.0)
"""What embedding models on servers get: an ingest is long, so it waits rather than fails."""


class FailedAttempt(NamedTuple):
    """An attempt that failed and is followed by another.

    Attributes:
        model: The embedding model.
        attempt: Its number, from 1.
        delay: Seconds until the next.
        error: Why it failed.
    """

    model: str
    attempt: int
    delay: float
    error: ProviderError


@dataclass(frozen=True, slots=True)
class _Attention:
    told: Callable[[FailedAttempt], object]
    stopped: threading.Event


# One that embeds for itself is told nothing, and waits in full.
_ATTENTION: ContextVar[_Attention] = ContextVar("attention")


@contextmanager
def attended(told: Callable[[FailedAttempt], object], stopped: threading.Event) -> Iterator[None]:
    """Watch over what is embedded within, in this thread.

    Args:
        told: Called before the wait that precedes a new attempt.
        stopped: When it is set, nothing is waited for any more.
    """
    token = _ATTENTION.set(_Attention(told, stopped))
    try:
        yield
    finally:
        _ATTENTION.reset(token)


def patiently(ask: Callable[[], T], *, model: str, retries: RetryPolicy) -> T:
    """Return what a model answers, which is asked again as the policy says.

    Raises:
        EmbeddingError: It refused, or failed once too often, or the work was called off meanwhile.
    """
    attention = _ATTENTION.get(None) or _Attention(lambda attempt: None, threading.Event())
    for attempt in count(1):
        try:
            return ask()
        except ProviderError as error:
            delay = retries.delay(attempt, error)
            if delay is None:
                raise EmbeddingError(_given_up(model, attempt, error, retries)) from error
            attention.told(FailedAttempt(model, attempt, delay, error))
            if attention.stopped.wait(delay):
                raise EmbeddingError(
                    f"The embedding model {model!r} was not asked again: the work was called off "
                    f"while it waited, after {error}"
                ) from error
    raise AssertionError("unreachable")


def _given_up(model: str, attempt: int, error: ProviderError, retries: RetryPolicy) -> str:
    asked = error.retry_after or 0.0
    if error.retryable and asked > retries.max_retry_after:
        why = f" It asks to wait {asked:g} s, and {retries.max_retry_after:g} s are waited at most."
    else:
        why = f" (after {attempt} attempts)" if attempt > 1 else ""
    return f"The embedding model {model!r} cannot be asked: {error}{why}"
