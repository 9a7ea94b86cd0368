"""Secrets that a stream cuts in two: neither the recording nor the run gets any part that matters of one."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas import Event, message, value
from atlas.core.effects import REDACTED, EffectDelivered, MemoryJournal, RunContext, effect

SECRET = "swordfish-4711"


@value("effect_secrets_delta")
class Delta:
    text: str
    index: int = 0


@value("effect_secrets_arguments")
class ArgumentsDelta:
    text: str


@message("effect_secrets.said")
class Said(Event):
    text: str


async def recorded(program):
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        given = await program()
    return journal.entries, given


async def streamed(pieces, secret=SECRET, fails=False):
    """Return what is written down of a stream, and what its run gets, which a replay repeats."""

    @effect(redact=("key",))
    async def tell(key):
        for piece in pieces:
            yield piece
        if fails:
            raise LookupError(f"no more of {key}")

    async def program():
        got = []
        try:
            async for piece in tell(secret):
                got.append(piece)
        except LookupError as error:
            got.append(str(error))
        return got

    entries, got = await recorded(program)
    async with RunContext("r", mode="replay", recorded=entries):
        assert await program() == got
    return [one.value for one in entries if isinstance(one, EffectDelivered) and one.value], got


def cut(text, places):
    ends = sorted({min(place, len(text)) for place in places})
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


# few letters, so that what is nearly a secret, or begins again within itself, is common
SECRETS = st.text("ab-", min_size=4, max_size=9)


@given(SECRETS, st.lists(st.text("ab-", max_size=6), max_size=6), st.lists(st.integers(0, 60)))
@example("aaaa", ["aaa", "aaa"], [1, 2, 3])
@example("abab", ["aba", "b"], [3])
def test_a_secret_is_hidden_wherever_the_pieces_of_a_stream_cut_it(secret, between, places):
    text = secret.join(between) if between else secret
    pieces = cut(text, places)

    written, got = asyncio.run(streamed(pieces, secret))

    assert "".join(got) == text.replace(secret, REDACTED)
    assert secret not in "".join(json.loads(one) for one in written).replace(REDACTED, "|")
    assert len(got) == len(pieces)


@given(st.lists(st.text("ab-", max_size=5), min_size=1, max_size=8))
def test_pieces_without_a_secret_come_as_they_were(pieces):
    _, got = asyncio.run(streamed(pieces, "ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab!"))

    assert got == pieces


@pytest.mark.parametrize("at", range(1, len(SECRET)))
@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: {"choices": [{"delta": {"content": text}}]},
        lambda text: ("delta", text),
        Delta,
        Said,
        lambda text: text.encode(),
        lambda text: {"$object": text},
        lambda text: ["TextDelta", text, 0],
        lambda text: ["Several", ["Started", "m"], ["TextDelta", text, 0]],
    ],
    ids=["json", "tuple", "value", "message", "bytes", "object", "named", "several"],
)
async def test_a_secret_is_hidden_in_the_fields_of_pieces_too(wrap, at):
    first, second = f"the key {SECRET[:at]}", f"{SECRET[at:]} is mine"

    written, got = await streamed([wrap(first), wrap(second)])

    assert got == [wrap(f"the key {REDACTED}"), wrap(" is mine")]
    assert not any(SECRET[i : i + 4] in one for one in written for i in range(len(SECRET) - 3))


async def test_what_is_between_two_pieces_of_a_text_does_not_hide_the_cut():
    pieces = [
        Delta("a sword"),
        ArgumentsDelta('{"x'),
        7,
        Delta("fish-4711 b"),
        ArgumentsDelta('":1}'),
    ]

    _, got = await streamed(pieces)

    assert got == [Delta(f"a {REDACTED}"), ArgumentsDelta('{"x'), 7, Delta(" b"), pieces[4]]


async def test_a_secret_is_found_between_the_items_of_one_piece():
    pieces = [["Several", ["T", "a sword", 0], ["T", "fish", 1]], ["T", "-4711 b", 2]]

    _, got = await streamed(pieces)

    assert got == [["Several", ["T", f"a {REDACTED}", 0], ["T", "", 1]], ["T", " b", 2]]


async def test_a_piece_kept_back_comes_before_the_error_that_ends_the_stream():
    _, got = await streamed(["a", "b sword"], fails=True)

    assert got == ["a", "b sword", f"no more of {REDACTED}"]


@pytest.mark.parametrize("secret", ['quo"te\\d', "umläut-ß", "line\nbreak"])
async def test_a_secret_is_found_in_json_that_is_streamed_as_text(secret):
    for ensure_ascii in (True, False):
        text = json.dumps({"password": secret}, ensure_ascii=ensure_ascii)

        _, got = await streamed(list(text), secret)

        assert json.loads("".join(got)) == {"password": REDACTED}


async def test_a_secret_that_a_piece_itself_holds_is_hidden_in_those_after_it():
    pieces = [{"key": "abcd-efgh"}, {"text": "it was abcd"}, {"text": "-efgh."}]

    _, got = await streamed(pieces, secret=None)

    assert got == [{"key": REDACTED}, {"text": f"it was {REDACTED}"}, {"text": "."}]


async def test_a_secret_is_found_in_bytes():
    @effect(redact=("key",))
    async def fetch(key):
        return b"\xff token=" + key.encode()

    entries, got = await recorded(lambda: fetch(SECRET))

    assert got == b"\xff token=" + REDACTED.encode()
    assert "c3dvcmRmaXNo" not in repr(entries)
