"""An answer without the secrets in it, however the vendor cuts it into deltas.

What the program, the bus and the log see of an answer is the same: it is redacted before any of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Sequence
from contextlib import aclosing
from typing import Any, cast

from atlas.core.redaction import Secrets, StreamRedactor
from atlas.providers.base import Delta, RefusalDelta, TextDelta, ThinkingDelta, ToolCallDelta

__all__ = ["redacted_deltas"]


async def redacted_deltas(
    deltas: AsyncIterator[Delta], secrets: Secrets
) -> AsyncGenerator[Delta, None]:
    """Yield the deltas of an answer, as many and in the same order, without the secrets in their texts.

    Text, thinking, refusals and the arguments of tool calls are looked through, each block and each
    call by itself. A delta that may end with the beginning of a secret comes with the next one.
    Signatures and other words of the vendor's own are left as they are.

    Args:
        deltas: Those of one answer.
        secrets: What must not be in it.
    """
    redactor: StreamRedactor[Delta] = StreamRedactor(secrets)
    async with aclosing(cast("Any", deltas)):
        try:
            async for delta in deltas:
                for each, texts in redactor.feed(delta, _texts(delta)):
                    yield each if texts is None else _with_texts(each, texts)
        except Exception:
            # what had arrived is part of what is told of the failure
            for each, texts in redactor.flush():
                yield each if texts is None else _with_texts(each, texts)
            raise
    for each, texts in redactor.flush():
        yield each if texts is None else _with_texts(each, texts)


def _texts(delta: Delta) -> Sequence[tuple[Hashable, str]]:
    if isinstance(delta, TextDelta | ThinkingDelta | RefusalDelta):
        return (((type(delta), delta.block), delta.text),)
    if isinstance(delta, ToolCallDelta):
        return (
            (("id", delta.call), delta.id),
            (("name", delta.call), delta.name),
            (("arguments", delta.call), delta.arguments),
        )
    return ()


def _with_texts(delta: Delta, texts: Sequence[str]) -> Delta:
    if isinstance(delta, TextDelta | ThinkingDelta | RefusalDelta):
        return delta._replace(text=texts[0])
    assert isinstance(delta, ToolCallDelta)
    return delta._replace(id=texts[0], name=texts[1], arguments=texts[2])
