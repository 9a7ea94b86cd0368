"""Secrets reach no log on PostgreSQL either."""

from __future__ import annotations

from collections.abc import AsyncIterator

from atlas import Atlas, effect
from atlas.core.log.controller import LOGS
from atlas.core.message_pages import may_tell_of, unpack

from support.postgres import PostgresServer

KEY = "sk-live-0123456789abcdef"


async def test_a_cut_secret_is_in_no_record(postgres_server: PostgresServer) -> None:
    @effect("words", pure=True)
    async def words(key: str) -> AsyncIterator[str]:
        for piece in (key[:5], key[5:9], key[9:]):
            yield piece

    address = postgres_server.new_log()
    async with Atlas(address, provider="scripted", secrets=[KEY]) as app:
        async with app.recording("cut"):
            heard = [piece async for piece in words(KEY)]
    engine = LOGS.open_log(address)
    try:
        pages = [record.payload for record in engine.read_all() if record.payload]
    finally:
        LOGS.close_log(engine)

    assert heard == ["<redacted>", "", ""]
    assert any(may_tell_of(page, "effect.delivered") for page in pages)
    assert KEY not in str([unpack(page) for page in pages])
