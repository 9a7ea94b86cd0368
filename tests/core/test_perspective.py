"""Perspectives: a role sees what its view names, and secrets only when they were granted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Generic, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.core.messages import Event, message, value
from atlas.core.perspective import Perspectives, without_secrets
from atlas.errors import ConfigurationError, RegistrationError, SchemaError, UnknownNameError
from atlas.typing import JSON, SECRET

T = TypeVar("T")


@value("perspective.card")
class Card:
    number: Annotated[str, SECRET]
    owner: str = "Ada"


@value("perspective.gold_card")
class GoldCard(Card):
    limit: int = 100
    pin: Annotated[str, SECRET] = "0000"


@dataclass(frozen=True)
class Address:
    city: str
    door_code: Annotated[str, SECRET] | None = None


@value("perspective.box")
class Box(Generic[T]):
    content: T


@value("perspective.word")
class Word:
    text: str


@message("perspective.paid", version=1)
class Paid(Event):
    amount: float
    card: Card
    cards: tuple[Card, ...] = ()
    by_name: dict[str, Card] = field(default_factory=dict)
    maybe: Card | None = None
    either: Card | Word | None = None
    wrapped: tuple[Card, ...] | frozenset[int] = ()
    members: frozenset[Card] = frozenset()
    box: Box[Card] | None = None
    address: Address | None = None
    token: Annotated[str, SECRET] | None = None
    tokens: tuple[Annotated[str, SECRET], ...] = ()
    extra: JSON = None


PAID = Paid(
    amount=5.0,
    card=GoldCard("s3cret-1", pin="s3cret-2"),
    cards=[Card("s3cret-3", "Bob"), Card("s3cret-4")],
    by_name={"b": Card("s3cret-5", "B"), "a": Card("s3cret-6", "A")},
    maybe=Card("s3cret-7"),
    either=Card("s3cret-8", "E"),
    wrapped=[Card("s3cret-9", "W")],
    members={Card("s3cret-11", "N"), Card("s3cret-10", "M")},
    box=Box(Card("s3cret-12", "X")),
    address=Address("Paris", "s3cret-13"),
    token="s3cret-14",
    tokens=["s3cret-15"],
    extra={"free": [1, {"a": None}]},
)


@pytest.fixture
def perspectives():
    return Perspectives(marker="***")


def test_secrets_are_redacted_at_every_depth_when_nothing_is_granted(perspectives):
    perspectives.define(Paid, "internal")

    shown = perspectives.show(PAID, "internal")

    assert "s3cret" not in json.dumps(shown)
    assert shown["card"] == {
        "$type": "perspective.gold_card",
        "number": "***",
        "owner": "Ada",
        "limit": 100,
        "pin": "***",
    }
    assert shown["cards"] == [{"number": "***", "owner": "Bob"}, {"number": "***", "owner": "Ada"}]
    assert shown["by_name"]["a"] == {"number": "***", "owner": "A"}
    assert shown["by_name"]["b"] == {"number": "***", "owner": "B"}
    assert [each["owner"] for each in shown["members"]] == ["M", "N"]
    assert shown["wrapped"]["value"] == [{"number": "***", "owner": "W"}]
    assert shown["box"] == {"content": {"number": "***", "owner": "X"}}
    assert shown["address"] == {"city": "Paris", "door_code": "***"}
    assert shown["token"] == shown["tokens"] == "***"
    assert shown["extra"] == {"free": [1, {"a": None}]}


def test_only_what_a_view_names_is_shown(perspectives):
    perspectives.define(Paid, "public", only=["amount", "cards.owner", "by_name.owner"])

    assert perspectives.show(PAID, "public") == {
        "amount": 5.0,
        "cards": [{"owner": "Bob"}, {"owner": "Ada"}],
        "by_name": {"b": {"owner": "B"}, "a": {"owner": "A"}},
    }


def test_a_field_named_as_a_whole_needs_no_part_of_it_named(perspectives):
    perspectives.define(Paid, "public", only=["maybe.owner", "maybe"])

    assert perspectives.show(PAID, "public") == {"maybe": {"number": "***", "owner": "Ada"}}


def test_an_empty_view_shows_nothing(perspectives):
    perspectives.define(Paid, "nothing", only=())

    assert perspectives.show(PAID, "nothing") == {}


def test_fields_are_left_out_or_redacted(perspectives):
    perspectives.define(
        Paid,
        "x",
        only=["amount", "maybe", "address"],
        without=["maybe.number"],
        redact=["amount", "address.city"],
    )

    assert perspectives.show(PAID, "x") == {
        "amount": "***",
        "maybe": {"owner": "Ada"},
        "address": {"city": "***", "door_code": "***"},
    }


def test_a_secret_is_shown_only_by_the_view_that_was_granted_it(perspectives):
    perspectives.define(Paid, "vault", only=["maybe", "token", "tokens"], grant=["maybe.number"])
    perspectives.define(Paid, "all", only=["maybe", "tokens"], grant=["tokens"])

    assert perspectives.show(PAID, "vault") == {
        "maybe": {"number": "s3cret-7", "owner": "Ada"},
        "token": "***",
        "tokens": "***",
    }
    assert perspectives.show(PAID, "all") == {
        "maybe": {"number": "***", "owner": "Ada"},
        "tokens": ["s3cret-15"],
    }


def test_a_grant_of_something_inside_does_not_grant_what_is_around_it(perspectives):
    @message("perspective.sealed")
    class Sealed(Event):
        card: Annotated[Card, SECRET]

    sealed = Sealed(card=Card("s3cret"))
    perspectives.define(Sealed, "inner", grant=["card.number"])
    perspectives.define(Sealed, "outer", grant=["card"])
    perspectives.define(Sealed, "both", grant=["card", "card.number"])

    assert perspectives.show(sealed, "inner") == {"card": "***"}
    assert perspectives.show(sealed, "outer") == {"card": {"number": "***", "owner": "Ada"}}
    assert perspectives.show(sealed, "both") == {"card": {"number": "s3cret", "owner": "Ada"}}


def test_a_secret_argument_of_a_generic_class_keeps_the_field_secret(perspectives):
    @message("perspective.boxed")
    class Boxed(Event):
        box: Box[Annotated[str, SECRET]]

    perspectives.define(Boxed, "internal")

    assert perspectives.show(Boxed(box=Box("s3cret")), "internal") == {"box": "***"}


def test_an_unknown_view_is_an_error_and_never_replaced_by_another(perspectives):
    perspectives.define(Paid, "public", only=["amount"])
    perspectives.define(Paid, "internal")

    with pytest.raises(UnknownNameError) as raised:
        perspectives.show(PAID, "pubic")

    assert "Paid has no view 'pubic'; the nearest is 'public'" in str(raised.value)
    assert "'internal', 'public'" in str(raised.value)
    assert perspectives.views(Paid) == ("internal", "public")
    with pytest.raises(UnknownNameError, match="Views: none"):
        perspectives.show(Card("1"), "public")


def test_a_secret_of_a_subclass_of_a_subclass_is_found():
    @value("perspective.plain")
    class Plain:
        owner: str

    @value("perspective.plainer")
    class Plainer(Plain):
        town: str

    @value("perspective.secretive")
    class Secretive(Plainer):
        code: Annotated[str, SECRET]

    @message("perspective.told")
    class Told(Event):
        what: Plain

    shown = without_secrets(Told(Secretive("Ada", "Turin", "0000")), marker="*")

    assert shown == {
        "what": {"$type": "perspective.secretive", "owner": "Ada", "town": "Turin", "code": "*"}
    }


def test_a_secret_of_a_subclass_that_is_declared_later_is_found():
    @value("perspective.early")
    class Early:
        owner: str

    @message("perspective.told_early")
    class Told(Event):
        what: Early

    assert without_secrets(Told(Early("Ada"))) is None

    @value("perspective.late")
    class Late(Early):
        code: Annotated[str, SECRET]

    shown = without_secrets(Told(Late("Ada", "0000")), marker="*")

    assert shown == {"what": {"$type": "perspective.late", "owner": "Ada", "code": "*"}}
    assert without_secrets(Told(Early("Ada"))) is not None


def test_a_view_of_a_class_is_not_one_of_its_subclasses(perspectives):
    perspectives.define(Card, "public")

    with pytest.raises(UnknownNameError, match="GoldCard has no view 'public'"):
        perspectives.show(GoldCard("1"), "public")


@pytest.mark.parametrize("option", ["only", "without", "redact", "grant"])
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("amonut", "'amonut' is unknown; the nearest is 'amount'"),
        ("cards.ower", "'ower' is unknown; the nearest is 'owner'"),
        ("amount.x", "'x' is unknown. Fields: none"),
        ("address.town", "Fields: city, door_code"),
        ("box.content.nummer", "the nearest is 'number'"),
        ("", "'' is unknown"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(perspectives, option, path, told):
    with pytest.raises(UnknownNameError, match="Paid has no field") as raised:
        perspectives.define(Paid, "public", **{option: [path]})

    assert told in str(raised.value)
    assert perspectives.views(Paid) == ()


def test_what_is_not_secret_cannot_be_granted(perspectives):
    with pytest.raises(ConfigurationError, match=r"Paid\.amount is granted and is not secret"):
        perspectives.define(Paid, "public", grant=["amount"])


def test_paths_go_through_everything_that_can_hold_fields(perspectives):
    paths = ["maybe", "either", "cards", "by_name", "wrapped", "members", "box.content", "card"]

    perspectives.define(
        Paid, "vault", grant=[f"{path}.number" for path in paths] + ["address.door_code"]
    )

    shown = json.dumps(perspectives.show(PAID, "vault"))
    hidden = {"s3cret-2", "s3cret-14", "s3cret-15"}
    assert {f"s3cret-{n}" for n in range(1, 16) if f'"s3cret-{n}"' not in shown} == hidden


def test_a_view_is_defined_once(perspectives):
    perspectives.define(Paid, "public")

    with pytest.raises(RegistrationError, match="already has a view 'public'"):
        perspectives.define(Paid, "public", only=["amount"])


def test_a_class_that_is_not_declared_has_no_views(perspectives):
    with pytest.raises(SchemaError, match="put @message or @value above it"):
        perspectives.define(dict, "public")


def test_a_set_that_mixes_kinds_is_refused_rather_than_shown_wrongly(perspectives):
    @message("perspective.mixed")
    class Mixed(Event):
        members: frozenset[Card | str]

    perspectives.define(Mixed, "internal")
    perspectives.define(Mixed, "public", without=["members"])

    with pytest.raises(ConfigurationError, match="'members' is a set that mixes"):
        perspectives.show(Mixed(members={Card("s3cret"), "x"}), "internal")
    assert perspectives.show(Mixed(members={Card("s3cret"), "x"}), "public") == {}
    assert perspectives.show(Mixed(members={"x"}), "internal") == {"members": ["x"]}


cards = st.builds(Card, st.just("s3cret"), st.text(max_size=3)) | st.builds(
    GoldCard, st.just("s3cret"), st.text(max_size=3), st.integers(0, 9), st.just("s3cret")
)


@settings(deadline=None)
@given(
    st.builds(
        Paid,
        amount=st.floats(0, 9),
        card=cards,
        cards=st.lists(cards, max_size=3),
        by_name=st.dictionaries(st.text(max_size=2), cards, max_size=3),
        maybe=st.none() | cards,
        either=st.none() | cards | st.builds(Word, st.text(max_size=2)),
        wrapped=st.lists(cards, max_size=2) | st.sets(st.integers(), max_size=2),
        members=st.sets(cards, max_size=3),
        box=st.none() | st.builds(Box, cards),
        token=st.just("s3cret"),
        tokens=st.lists(st.just("s3cret"), max_size=2),
    )
)
def test_no_secret_is_ever_in_a_view_that_was_granted_none(paid):
    perspectives = Perspectives()
    perspectives.define(Paid, "internal")

    assert "s3cret" not in json.dumps(perspectives.show(paid, "internal"))


@pytest.mark.parametrize("view", ["", None, 5])
def test_a_view_needs_a_name(view):
    with pytest.raises(ConfigurationError, match="Give it a name"):
        Perspectives().define(Card, view)


@pytest.mark.parametrize("option", ["only", "without", "redact", "grant"])
def test_one_path_where_a_list_is_expected_is_refused(option):
    with pytest.raises(ConfigurationError, match=f"{option} of the view 'v' is the text 'number'"):
        Perspectives().define(Card, "v", **{option: "number"})


@pytest.mark.parametrize("option", ["only", "without", "redact", "grant"])
def test_fields_of_a_view_are_a_list_of_texts(perspectives, option):
    with pytest.raises(ConfigurationError, match=f"{option} of the view 'public' is 5"):
        perspectives.define(Paid, "public", **{option: 5})
    with pytest.raises(UnknownNameError, match="Paid has no field 5"):
        perspectives.define(Paid, "public", **{option: [5]})


@pytest.mark.parametrize("view", [5, None, []])
def test_what_is_no_text_is_no_view(perspectives, view):
    with pytest.raises(UnknownNameError, match="Paid has no view"):
        perspectives.show(PAID, view)


def test_a_marker_is_a_text():
    with pytest.raises(ConfigurationError, match="The marker is 5"):
        Perspectives(marker=5)
