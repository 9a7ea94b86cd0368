import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.core.log.records import Record
from atlas.core.log.types import (
    COLUMNS,
    TYPES,
    column,
    record_from_json,
    record_to_json,
    table_of_types,
)

DOCUMENT = Path(__file__).parents[3] / "docs" / "design" / "log.md"

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
numbers = st.integers(1, 2**63 - 1)
hashes = st.binary(min_size=32, max_size=32)
records = st.builds(
    Record,
    numbers,
    texts,
    numbers,
    texts,
    numbers,
    numbers,
    st.none() | st.binary(),
    hashes,
    hashes,
)


@given(records)
def test_a_record_goes_through_json(record):
    assert record_from_json(json.loads(json.dumps(record_to_json(record)))) == record


@pytest.mark.parametrize(
    "change",
    [
        {"position": "1"},
        {"position": 1.0},
        {"position": True},
        {"stream": 5},
        {"time_ns": 17},
        {"time_ns": "soon"},
        {"payload": "no base64!"},
        {"digest": "ab"},
        {"digest": None},
        {"more": 1},
    ],
)
def test_what_is_no_record_is_refused(change):
    found = record_to_json(Record(1, "s", 1, "n", 1, 1, b"", bytes(32), bytes(32)))
    with pytest.raises(ValueError, match="record"):
        record_from_json(found | change)


def test_every_field_of_a_record_has_a_type():
    assert set(Record._fields) <= set(COLUMNS)
    assert set(COLUMNS.values()) == set(TYPES)
    assert column("stream", "sqlite") == "stream TEXT"
    assert column("stream", "postgresql") == 'stream text COLLATE "C"'


def test_the_documentation_has_the_table_of_types():
    assert table_of_types() in DOCUMENT.read_text(encoding="utf-8")
