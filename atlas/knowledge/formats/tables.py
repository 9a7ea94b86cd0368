"""CSV and JSON: the text as it is, after a look whether it is what it says."""

from __future__ import annotations

import csv
import json

from atlas.knowledge.documents import Document, Field
from atlas.knowledge.formats.plain import decoded

__all__ = ["read_json", "read_table"]


def read_table(source: str, content: bytes) -> Document:
    """Return a table as a document; the names of its columns are a fact to filter by.

    Raises:
        ValueError: It is no table.
    """
    text = decoded(content)
    dialect = "excel-tab" if source.removesuffix(".gz").endswith(".tsv") else "excel"
    try:
        columns = next(csv.reader(text.splitlines(), dialect), [])
    except csv.Error as error:
        raise ValueError(f"it is no table ({error})") from error
    facts: dict[str, Field] = {"format": "csv", "columns": ", ".join(columns)[:500]}
    return Document(source=source, text=text, kind="table", metadata=facts)


def read_json(source: str, content: bytes) -> Document:
    """Return JSON, or JSON in lines, as a document; its title is what it calls ``title`` or ``name``.

    Raises:
        ValueError: It is no JSON.
    """
    text = decoded(content)
    try:
        if source.removesuffix(".gz").endswith(".json"):
            values = [json.loads(text)]
        else:
            values = [json.loads(line) for line in text.splitlines() if line.strip()]
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    first = values[0] if values and isinstance(values[0], dict) else {}
    title = first.get("title") or first.get("name") or ""
    return Document(
        source=source,
        text=text,
        title=title if isinstance(title, str) else "",
        kind="table",
        metadata={"format": "json"},
    )
