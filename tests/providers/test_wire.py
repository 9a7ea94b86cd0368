"""The decoders: the same events whatever the cuts, by the specification, in bounded memory."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.errors import InvalidResponseError
from atlas.providers.wire import NdjsonDecoder, SseDecoder, SseEvent


def decode(*chunks: bytes) -> list[SseEvent]:
    decoder = SseDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_may_end_in_lf_cr_or_crlf_cut_anywhere(end: str) -> None:
    stream = end.join(["event: ping", "data: né", "data: 2", "", "data: 3", "", ""]).encode()

    for size in (1, 2, 3, 5, 1000):
        chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert decode(*chunks) == [SseEvent("né\n2", "ping"), SseEvent("3")]


def test_mixed_line_ends_keep_their_meaning() -> None:
    assert decode(b"data: 1\r", b"\n\r", b"data: 2\r\r\ndata: 3\n\n") == [
        SseEvent("1"),
        SseEvent("2"),
        SseEvent("3"),
    ]


def test_a_leading_byte_order_mark_is_dropped_once() -> None:
    assert decode(b"\xef", b"\xbb\xbfdata: 1\n\n", b"\xef\xbb\xbfdata: 2\n\n") == [SseEvent("1")]
    assert decode(b"data: 1\n\n", b"\xef\xbb\xbfdata: 2\n\n") == [SseEvent("1")]


def test_comments_and_unknown_fields_are_ignored() -> None:
    assert decode(b": ping\n\nfoo: bar\nbare\n\ndata: 1\n\n") == [SseEvent("1")]


def test_only_one_space_after_the_colon_is_dropped() -> None:
    assert decode(b"data:1\n\ndata:  2\n\ndata: a:b\n\n") == [
        SseEvent("1"),
        SseEvent(" 2"),
        SseEvent("a:b"),
    ]


def test_empty_data_is_an_event_and_no_data_is_none() -> None:
    stream = b"data\n\ndata\ndata\n\nevent: alone\n\ndata: x\n\ndata:"

    assert decode(stream) == [SseEvent(""), SseEvent("\n"), SseEvent("x")]


def test_ids_stay_and_event_types_do_not() -> None:
    events = decode(b"id: 7\nevent: a\ndata: 1\n\ndata: 2\n\nid: no\0\ndata: 3\n\nid\ndata: 4\n\n")

    assert events == [
        SseEvent("1", "a", "7"),
        SseEvent("2", "message", "7"),
        SseEvent("3", "message", "7"),
        SseEvent("4", "message", ""),
    ]


def test_retry_takes_digits_only() -> None:
    decoder = SseDecoder()
    decoder.feed(b"retry: 12x\n\n")

    assert decoder.retry is None

    decoder.feed(b"retry: 1500\nretry: " + b"9" * 5000 + b"\n\n")

    assert decoder.retry == 1500


def test_unicode_line_separators_are_ordinary_characters() -> None:
    text = "a\u2028b\u2029c\x85d\x0be"

    assert decode(f"data: {text}\n\n".encode()) == [SseEvent(text)]


def test_what_is_not_utf8_becomes_the_replacement_character() -> None:
    assert decode(b"data: \xff\n\n") == [SseEvent("\ufffd")]


def test_the_end_of_the_stream_shows_the_event_it_cut_off() -> None:
    decoder = SseDecoder()

    assert decoder.feed(b"data: 1\n\ndata: [DONE]") == [SseEvent("1")]
    assert decoder.finish() == SseEvent("[DONE]")
    assert SseDecoder().finish() is None


def test_a_line_without_end_is_refused() -> None:
    decoder = SseDecoder(limit=100)
    decoder.feed(b"x" * 100)

    with pytest.raises(InvalidResponseError, match="100 bytes"):
        decoder.feed(b"x")


def test_an_event_longer_than_the_limit_is_refused_in_one_piece_too() -> None:
    decoder = SseDecoder(limit=100)
    decoder.feed(b"data: 1\n\n")

    with pytest.raises(InvalidResponseError, match="100 bytes"):
        decoder.feed(b"data: " + b"x" * 200 + b"\n\n")


def test_pieces_of_an_event_do_not_hide_a_whole_one() -> None:
    events = decode(b":\n\n", b"event: a\n", b"data: 1\n\n", b"id: 7\n\n", b"data: 2\n\n")

    assert events == [SseEvent("1", "a"), SseEvent("2", "message", "7")]


@pytest.mark.parametrize("line", [b"data: 1\n", b"data\n"])
def test_an_event_without_end_is_refused(line: bytes) -> None:
    decoder = SseDecoder(limit=1000)

    with pytest.raises(InvalidResponseError, match="1000 bytes"):
        decoder.feed(line * 1001)


def test_a_long_line_in_small_pieces_costs_linear_time() -> None:
    def once(pieces: int) -> float:
        decoder = SseDecoder()
        started = time.process_time()
        for _ in range(pieces):
            decoder.feed(b"x" * 64)
        decoder.feed(b"\n\n")
        return time.process_time() - started

    def cost(pieces: int) -> float:
        return min(once(pieces) for _ in range(3))

    # Ten times the pieces: about ten times the cost; were it quadratic, a hundred times.
    assert cost(100_000) < 50 * max(cost(10_000), 0.001)


texts = st.text(alphabet=st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))


@given(st.lists(texts.filter(bool), max_size=8), st.lists(st.integers(0, 10_000)), st.booleans())
def test_sse_decoding_does_not_depend_on_the_cuts(
    payloads: list[str], places: list[int], crlf: bool
) -> None:
    end = "\r\n" if crlf else "\n"
    stream = "".join(f"data: {p}{end}{end}" for p in payloads).encode()

    assert [event.data for event in decode(*cut(stream, places))] == payloads


@given(st.lists(texts.filter(lambda t: not t.isspace() and t), max_size=8), st.lists(st.integers()))
def test_ndjson_decoding_does_not_depend_on_the_cuts(
    payloads: list[str], places: list[int]
) -> None:
    decoder = NdjsonDecoder()
    stream = "".join(f'"{p}"\n' for p in payloads).encode()
    lines = [line for chunk in cut(stream, places) for line in decoder.feed(chunk)]

    assert lines == [f'"{p}"' for p in payloads]
    assert decoder.finish() is None


def test_ndjson_skips_blank_lines_and_keeps_a_last_line_without_end() -> None:
    decoder = NdjsonDecoder()

    assert decoder.feed(b'\xef\xbb\xbf{"a":1}\r\n\n \n{"b"') == ['{"a":1}\r']
    assert decoder.feed(b":2}") == []
    assert decoder.finish() == '{"b":2}'


def test_ndjson_refuses_a_line_without_end() -> None:
    decoder = NdjsonDecoder(limit=10)

    with pytest.raises(InvalidResponseError):
        decoder.feed(b"x" * 11)
