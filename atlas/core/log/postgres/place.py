"""Where a log in PostgreSQL is: which server, which database, which tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from atlas.core.log.addresses import is_postgresql, without_password
from atlas.errors import ConfigurationError

__all__ = ["Place"]

_NAME: Final = re.compile("[a-z_][a-z0-9_]{0,30}")
_OWN: Final[tuple[str, ...]] = ("schema", "prefix")
_DEFAULTS: Final = {"application_name": "atlas", "connect_timeout": 10, "keepalives_idle": 30}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log is.

    Attributes:
        address: Without the password.
        parameters: What to connect with; may hold the password.
        schema: The schema of the tables.
        prefix: How their names begin.
    """

    address: str
    # As psycopg takes them.
    parameters: Mapping[str, Any] = field(repr=False)
    schema: str
    prefix: str

    @classmethod
    def of(cls, address: str, schema: str | None = None, prefix: str | None = None) -> Place:
        """Return the place that an address names.

        Args:
            address: Such as ``postgresql://user@host/database?schema=…&prefix=…``.
            schema: Instead of the one in the address; by default ``public``.
            prefix: Instead of the one in the address; by default ``atlas_``.

        Raises:
            ConfigurationError: It is no such address, or a name cannot be one of a table.
        """
        parameters, own = _parsed(address)
        schema = schema or own.get("schema") or "public"
        prefix = prefix or own.get("prefix") or "atlas_"
        for name in (schema, prefix):
            if not _NAME.fullmatch(name):
                raise ConfigurationError(
                    f"{name!r} cannot be the schema or the prefix of a log's tables; use up to 31 "
                    f"of a-z, 0-9 and _, beginning with no digit."
                )
        return cls(without_password(address), _DEFAULTS | parameters, schema, prefix)

    @property
    def channel(self) -> str:
        """Where word of new records is sent."""
        return f"{self.schema}.{self.prefix}"

    def table(self, name: str) -> str:
        """Return the full name of a table."""
        return f"{self.schema}.{self.prefix}{name}"


# As psycopg returns them.
def _parsed(address: str) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        if is_postgresql(address):
            parts = urlsplit(address)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            own = {name: query.pop(name, "") for name in _OWN}
            encoded = urlencode(query, quote_via=quote)
            given = dict(conninfo_to_dict(parts._replace(query=encoded).geturl()))
            if all(port.isdigit() for port in str(given.get("port", 5432)).split(",")):
                return given, own
    # Their texts may show a password.
    except (ValueError, psycopg.Error):
        pass
    raise ConfigurationError(
        f"{without_password(address)!r} is no address of a log on PostgreSQL. Such a one looks like "
        f"'postgresql://user@host:5432/database?schema=public'."
    )
