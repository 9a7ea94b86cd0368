"""Secrets are found in texts, whole and cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas.core.redaction import REDACTED, Secrets, StreamRedactor
from atlas.errors import ConfigurationError

# Few letters, so that beginnings, repetitions and overlaps are frequent.
SECRETS = st.lists(st.text("ab<d>", min_size=4, max_size=9), min_size=1, max_size=4)
PIECES = st.lists(st.text("ab<d>", max_size=5), max_size=24)


def streamed(secrets: Secrets, pieces: list[tuple[str, str]]) -> list[str]:
    redactor: StreamRedactor[str] = StreamRedactor(secrets)
    came: list[str] = []
    for channel, piece in pieces:
        for item, texts in redactor.feed(piece, [(channel, piece)]):
            came.append(item if texts is None else texts[0])
    for item, texts in redactor.flush():
        came.append(item if texts is None else texts[0])
    return came


@given(SECRETS, PIECES)
@example(["abab"], ["a", "b", "a", "ba", "b"])
@example(["abbb", "aabbbd"], ["aab", "bb", "d"])
@example(["abbb", "abbbd"], ["abb", "b"])
def test_pieces_are_redacted_as_their_whole_is(values: list[str], pieces: list[str]) -> None:
    secrets = Secrets(values)

    came = streamed(secrets, [("", piece) for piece in pieces])

    assert len(came) == len(pieces)
    assert "".join(came) == secrets.redacted("".join(pieces))


@given(
    SECRETS, st.lists(st.tuples(st.sampled_from("xyz"), st.text("ab<d>", max_size=5)), max_size=24)
)
def test_channels_do_not_disturb_each_other(
    values: list[str], pieces: list[tuple[str, str]]
) -> None:
    secrets = Secrets(values)

    came = streamed(secrets, pieces)

    assert len(came) == len(pieces)
    for channel in "xyz":
        before = "".join(text for name, text in pieces if name == channel)
        after = "".join(
            text for (name, _), text in zip(pieces, came, strict=True) if name == channel
        )
        assert after == secrets.redacted(before)


@given(st.text(min_size=8), st.text(), st.text(), st.data())
def test_a_secret_cut_anywhere_is_nowhere_in_what_comes(
    secret: str, before: str, after: str, data: st.DataObject
) -> None:
    text = before + secret + after
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    came = "".join(streamed(Secrets([secret]), [("", piece) for piece in pieces]))

    assert secret not in came.replace(REDACTED, "\0") or secret in REDACTED


def test_a_piece_waits_no_longer_than_it_may_be_the_beginning_of_a_secret() -> None:
    redactor: StreamRedactor[int] = StreamRedactor(Secrets(["sk-12345"]))

    assert redactor.feed(1, [("", "Tables")]) == []
    assert redactor.feed(2, [("", "pread")]) == [(1, None), (2, None)]
    assert redactor.feed(3, [("", "is sk-1")]) == []
    assert redactor.feed(4, [("", "")]) == []
    assert redactor.feed(5, [("", "2345.")]) == [(3, [f"is {REDACTED}"]), (4, None), (5, ["."])]
    assert redactor.is_idle


@given(st.integers(1, 15), st.integers(0, 15))
def test_a_cut_in_the_middle_shows_less_than_half(first: int, second: int) -> None:
    secret = "0123456789abcdef"
    parts = secret[:first], secret[first : first + second], secret[first + second :]
    redactor: StreamRedactor[int] = StreamRedactor(Secrets([secret]))
    came: list[str] = []
    for at, part in enumerate(parts):
        found = [*redactor.feed(at, [("", part)]), *redactor.cut()]
        came += [part if texts is None else texts[0] for _, texts in found]

    assert len(came) == 3
    assert secret[:8] not in "".join(came)
    assert secret[8:] not in "".join(came)


def test_what_never_goes_on_holds_nobody_up_for_ever() -> None:
    redactor: StreamRedactor[int] = StreamRedactor(Secrets(["sk-12345"]))
    redactor.feed(0, [("text", "s")])

    came = [item for at in range(1, 200) for item, _ in redactor.feed(at, [("other", "x")])]

    assert came == list(range(200))
    assert redactor.feed(200, [("text", "k-12345!")]) == [(200, [f"{REDACTED}!"])]


def test_a_secret_is_found_as_it_is_quoted() -> None:
    secrets = Secrets(['pass"wörd\n1'])

    for quoted in (
        'pass"wörd\n1',
        'pass\\"wörd\\n1',
        "pass%22w%C3%B6rd%0A1",
        'pass\\\\\\"wörd\\\\n1',
    ):
        assert secrets.redacted(f"({quoted})") == f"({REDACTED})"


@pytest.mark.parametrize("wrong", ["", "abc", 12345])
def test_what_is_no_secret_is_refused_and_not_shown(wrong: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Secrets([wrong])

    assert not wrong or repr(wrong) not in str(caught.value)
