"""Conditions on metadata: what the language means, and what it refuses."""

from __future__ import annotations

import pytest

from atlas.errors import ConfigurationError
from atlas.knowledge import parse_filter
from atlas.knowledge.filters import matches

PAGE = {"author": "Ann Lee", "year": 2021, "draft": False, "score": 0.5, "and": "x"}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ('author == "Ann Lee"', True),
        ("author = 'Ann Lee'", True),
        ("author != 'Bob'", True),
        ("missing != 'Bob'", True),
        ("missing == 'Bob'", False),
        ("missing < 3", False),
        ("year >= 2021 and year < 2022", True),
        ("year > 2021 or draft == false", True),
        ("year in [2020, 2021]", True),
        ("year not in [2020, 2021]", False),
        ("author contains 'LEE'", True),
        ("author not contains 'lee'", False),
        ("not (draft == true)", True),
        ("not draft == true and year == 1", False),
        ("draft == 0", False),
        ("score <= 0.5", True),
        ("year > 'text'", False),
        ("author > 'Aaa'", True),
        ("year == 1 or year == 2021 and score == 0.5", True),
        ("author == 'it\\'s'", False),
        ("score > -1", True),
    ],
)
def test_what_a_condition_means(condition: str, holds: bool) -> None:
    assert matches(parse_filter(condition), PAGE) is holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "year",
        "year ==",
        "== 3",
        "year == 3 3",
        "(year == 3",
        "year in 3",
        "year in []",
        "year ~ 3",
        "year not == 3",
        "a == b",
        "and == 'x'",
    ],
)
def test_what_is_no_condition_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigurationError, match="condition"):
        parse_filter(text)
