"""Error answers of any vendor become one neutral error with its facts."""

from __future__ import annotations

import itertools
import ssl

import pytest

from atlas.errors import (
    AuthenticationError,
    BadRequestError,
    ConnectionFailedError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidResponseError,
    ModelNotFoundError,
    OverloadedError,
    QuotaExceededError,
    RateLimitedError,
    ServerError,
)
from atlas.providers.http import (
    VendorError,
    error_from,
    retry_after_seconds,
    transport_error,
    vendor_error,
)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds) -> None:
    assert retry_after_seconds(headers, now=10.0) == seconds


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "m", "code": "c", "type": "t"}}', VendorError("m", "c", "t")),
        ({"type": "error", "error": {"type": "t", "message": "m"}}, VendorError("m", "", "t")),
        ('{"error": "words"}', VendorError("words")),
        ({"message": "m", "code": 7}, VendorError("m", "7")),
        ({"detail": [{"loc": "x"}]}, VendorError('[{"loc": "x"}]')),
        ([{"error": {"message": "m"}}], VendorError("m")),
        ({"error": {"message": None, "code": None, "type": None}}, VendorError()),
        (b"<!DOCTYPE html><p>Oops", VendorError("(a web page, not an answer of the API)")),
        (b"plain\n  words \xff", VendorError("plain words \ufffd")),
        (b"", VendorError()),
        (None, VendorError()),
        ("[" * 100_000, VendorError("[" * 297 + "...")),
    ],
)
def test_error_bodies_are_read_whatever_their_form(body, said) -> None:
    assert vendor_error(body) == said


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, {}, AuthenticationError),
        (402, {}, QuotaExceededError),
        (408, {}, ServerError),
        (409, {}, OverloadedError),
        (413, {}, ContextLengthError),
        (418, {}, BadRequestError),
        (429, {}, RateLimitedError),
        (429, {"type": "insufficient_quota"}, QuotaExceededError),
        (599, {}, ServerError),
        (304, {}, InvalidResponseError),
        (400, {"message": "Your credit balance is too low"}, QuotaExceededError),
        (400, {"message": "prompt is too long: 9 tokens > 8"}, ContextLengthError),
        (404, {"message": "model: claude-x", "type": "not_found_error"}, ModelNotFoundError),
        (404, {"message": 'model "x" not found, try pulling it first'}, ModelNotFoundError),
        (500, {"message": "the model was not found in the cache"}, ServerError),
        (None, {"type": "overloaded_error"}, OverloadedError),
        (None, {"type": "invalid_request_error"}, BadRequestError),
        (None, {"code": 429}, RateLimitedError),
        (None, {}, ServerError),
    ],
)
def test_the_kind_follows_from_words_then_status(status, error, kind) -> None:
    assert type(error_from({"error": error}, status=status)) is kind


def test_an_error_carries_the_vendors_facts_in_one_sentence_and_its_words() -> None:
    error = error_from(
        b'{"error": {"message": "Slow down!", "code": "rate_limit_exceeded"}}',
        status=429,
        headers={"x-request-id": "req_1", "retry-after": "2"},
        provider="openai",
        model="m",
        partial="so far",
    )

    assert str(error) == (
        "openai was asked too often; wait before the next try or ask for a higher limit "
        "(HTTP 429, rate_limit_exceeded). It said: Slow down!"
    )
    assert (error.status, error.code, error.request_id) == (429, "rate_limit_exceeded", "req_1")
    assert (error.retry_after, error.partial, error.model) == (2.0, "so far", "m")
    assert error.retryable


class ConnectTimeout(Exception):
    pass


class ConnectError(Exception):
    pass


def chained(*errors: Exception) -> Exception:
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (chained(Exception("outer"), ConnectionRefusedError(111, "refused")), "refused the connec"),
        (chained(ConnectError("x"), ssl.SSLError(1, "certificate")), "TLS"),
        (ConnectError("x"), "cannot be reached"),
        (ExceptionGroup("all failed", [ConnectionRefusedError(111, "no")]), "refused the connec"),
        (OSError("pipe"), "broke off"),
    ],
)
def test_a_failed_connection_says_why(error, words) -> None:
    named = transport_error(error, provider="openai", address="http://x/v1")

    assert type(named) is ConnectionFailedError
    assert words in str(named)
    assert "openai at http://x/v1" in str(named)


def test_a_connection_that_takes_too_long_breaks_the_connect_deadline() -> None:
    named = transport_error(chained(Exception(), ConnectTimeout()), connect_timeout=3.0)

    assert isinstance(named, DeadlineExceededError)
    assert (named.deadline, named.seconds) == ("connect", 3.0)


def test_a_cycle_of_causes_ends() -> None:
    first, second = OSError("a"), OSError("b")
    first.__cause__, second.__cause__ = second, first

    assert isinstance(transport_error(first), ConnectionFailedError)
