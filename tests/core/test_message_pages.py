"""Pages: what goes in comes out, whatever the messages are."""

from __future__ import annotations

import zlib
from hashlib import sha256
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas import Event, EventBus, message, value
from atlas.core.message_pages import (
    MARKER,
    OUTSIDE,
    ends_with,
    joined,
    logical_lines,
    may_tell_of,
    pack,
    page_text,
    plain,
    unpack,
)
from atlas.core.messages import Message
from atlas.core.page_words import WORDS
from atlas.core.schema.codec import UnknownMessage
from atlas.errors import LogFormatError
from atlas.typing import SECRET


@message("pages.noted")
class Noted(Event):
    text: str
    number: int = 0


@message("pages.asked")
class Asked(Event):
    question: str


@value
class Key:
    secret: Annotated[str, SECRET]


@message("pages.key_given")
class KeyGiven(Event):
    key: Key
    pin: Annotated[int, SECRET]
    label: str


def published(*messages: Event, **links: object) -> list[Event]:
    bus = EventBus()
    for each in messages:
        bus.publish(each, run="r1", **links)  # type: ignore[arg-type]
    return list(bus.history)  # type: ignore[arg-type]


def check_meta(read: list[Message], messages: list[Message]) -> None:
    for one, other in zip(read, messages, strict=True):
        for fact in ("id", "sequence", "time_ns", "causation", "correlation", "run", "source"):
            assert getattr(one.meta, fact) == getattr(other.meta, fact), fact
        assert dict(one.meta.headers) == dict(other.meta.headers)
    assert logical_lines(read) == logical_lines(messages)


texts = st.text(max_size=20)


@given(
    st.lists(
        st.tuples(
            texts, st.integers(), st.none() | texts.filter(bool), st.dictionaries(texts, texts)
        )
    )
)
def test_whatever_is_packed_comes_out_as_it_was(
    notes: list[tuple[str, int, str | None, dict[str, str]]],
) -> None:
    bus = EventBus()
    cause = bus.publish(Asked("why?"), run="r1").message
    for text, number, source, headers in notes:
        bus.publish(Noted(text, number), run="r1", causation=cause, source=source, headers=headers)
    messages = list(bus.history)

    read = unpack(pack("r1", messages))

    assert read == messages
    check_meta(read, messages)


halves = st.sampled_from(["", "a", "\ud83d", "\ude00", "\U0001f600", "é"])


@given(st.lists(st.tuples(halves, st.integers(-5, 5)), min_size=4, max_size=12), st.booleans())
def test_many_of_one_name_come_out_as_they_were(
    notes: list[tuple[str, int]], alternate: bool
) -> None:
    many: list[Event] = []
    for number, (text, count) in enumerate(notes):
        many.append(Noted(text, count))
        if alternate and number % 5 == 4:
            many.append(Asked(text))
    messages = published(*many)

    read = unpack(pack("r1", messages))

    assert read == messages
    check_meta(read, messages)


@given(
    st.lists(
        st.lists(st.tuples(st.text(), st.integers(-5, 5)), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_pages_that_are_joined_hold_the_messages_of_all_of_them_in_their_order(
    told: list[list[tuple[str, int]]], is_plain: bool
) -> None:
    parts = [published(*(Noted(text, number) for text, number in part)) for part in told]
    pages = [plain(page_text("r1", part)) if is_plain else pack("r1", part) for part in parts]
    page = joined(pages)

    check_meta(unpack(page), [each for part in parts for each in part])
    assert unpack(page) == [each for part in parts for each in part]
    assert may_tell_of(page, "pages.noted")
    assert not may_tell_of(page, "pages.asked")
    assert ends_with(page, pages[-1])
    assert ends_with(joined([page, pages[0]]), pages[0])
    assert not ends_with(page, pack("r1", published(Noted("other", 7))))


@pytest.mark.parametrize("damaged", [b'j{"run":"r"}\n', b"j[]\n{}", b"j\n", b"d\0"])
def test_joined_bytes_that_are_no_pages_are_refused(damaged: bytes) -> None:
    with pytest.raises(LogFormatError):
        unpack(damaged)


def test_a_packed_page_can_be_packed_again_as_it_is() -> None:
    page = pack("r1", published(Asked("why?"), Noted("so", 1)))

    assert pack("r1", unpack(page)) == page


def test_tokens_cost_little_more_than_their_letters() -> None:
    messages = published(*(Noted(f"word{n % 7} ", n) for n in range(500)))

    assert len(pack("r1", messages)) < 500 * 12


def test_secrets_never_enter_a_page_however_deep_they_are() -> None:
    (read,) = unpack(pack("r1", published(KeyGiven(Key("swordfish"), 1234, "mine"))))

    assert isinstance(read, UnknownMessage)
    assert read.name == "pages.key_given"
    assert read.fields == {"key": {"secret": MARKER}, "label": "mine", "pin": MARKER}


def test_a_message_that_this_process_does_not_know_is_kept_as_it_was() -> None:
    unknown = UnknownMessage(name="pages.of_another", version=3, fields={"a": [1]})

    (read,) = unpack(pack("r1", published(unknown)))

    assert read == unknown


def test_what_others_published_because_of_a_run_is_marked_and_no_part_of_what_it_did() -> None:
    messages = published(Asked("why?"), Noted("by a handler"), Noted("so"))

    read = unpack(pack("r1", messages, outside={1}))

    assert [OUTSIDE in each.meta.headers for each in read] == [False, True, False]
    assert logical_lines(read) == logical_lines([messages[0], messages[2]])


def test_lines_are_the_same_for_two_runs_that_did_the_same_at_other_times() -> None:
    def done(bus: EventBus) -> list[str]:
        with bus.scope(run="r1"):
            asked = bus.publish(Asked("why?")).message
            bus.publish(Noted("so"), causation=asked, correlation=asked)
        return logical_lines(list(bus.history))

    busy = EventBus()
    busy.publish(Noted("before"))
    busy.history.kept.clear()

    assert done(EventBus()) == done(busy)


@pytest.mark.parametrize("data", [b"", b"zrubbish", b"j[1]", b'x{"run":1}', b"j{"])
def test_bytes_that_are_no_page_are_refused(data: bytes) -> None:
    with pytest.raises(LogFormatError, match="no page"):
        unpack(data)


def test_what_pages_are_compressed_with_never_changes():
    # the logs of users can only be read with it
    digest = "50ade4fdbe95f92624641896f36e7553153cad57f8f935cc3c77ccdb391565c2"

    assert sha256(WORDS).hexdigest() == digest


def test_pages_as_they_were_compressed_before_are_read_as_ever():
    messages = published(*(Noted(f"text {number}") for number in range(20)))
    text = zlib.decompressobj(-15, zdict=WORDS).decompress(pack("r1", messages)[1:])
    packer = zlib.compressobj(zdict=WORDS)

    check_meta(unpack(b"z" + zlib.compress(text)), messages)
    check_meta(unpack(b"w" + packer.compress(text) + packer.flush()), messages)


@pytest.mark.parametrize("kept", [1, 20, -4])
def test_a_page_that_is_cut_off_is_refused(kept: int):
    data = pack("r1", published(*(Noted(f"text {number}") for number in range(20))))

    with pytest.raises(LogFormatError, match="no page of messages"):
        unpack(data[:kept])
