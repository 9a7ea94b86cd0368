"""The log in one SQLite file; the only package that imports ``sqlite3``."""

from atlas.core.log.sqlite.engine import SqliteEngine

__all__ = ["SqliteEngine"]
