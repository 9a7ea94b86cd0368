"""The log in a PostgreSQL database; the only package that imports ``psycopg``.

The tables live in one schema, their names begin with one prefix, so that a database holds as many
logs as wanted. Whoever appends holds the lock of the only row of ``…log`` until its commit: positions
become visible in their order, and none fills up later. Readers take no lock. Whoever follows is woken
by ``NOTIFY``, which carries a position and nothing of what was appended.

The server may go away and come back: calls meanwhile raise `LogUnavailableError`, and later ones
connect anew. An append whose commit was not answered is looked up before anything is said about it.

Erased payloads are gone for every reader at once, and vacuumed; archived WAL and backups of the
server are its owner's to renew.
"""

from atlas.errors import MissingDependencyError

try:
    import psycopg as _psycopg  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "A log on PostgreSQL needs the package psycopg. Run: pip install 'atlas[postgres]'",
        extra="postgres",
    ) from error

from atlas.core.log.postgres.engine import PostgresEngine

__all__ = ["PostgresEngine"]
