"""What the tests of the log share."""

from support.postgres import postgres_server

__all__ = ["postgres_server"]
