"""Providers written by hand for tests of what stands above providers."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from atlas.providers.base import Capabilities, ChatRequest, Delta, Finished, TextDelta


class ListProvider:
    """Answers each request with the next list: text, deltas, or errors to raise."""

    name = "list"
    default_model = "list-model"
    capabilities = Capabilities()

    def __init__(self, answers: Sequence[Sequence[str | Delta | Exception]]) -> None:
        self.requests: list[ChatRequest] = []
        self.yielded = 0
        self.is_closed = False
        self._answers = iter(answers)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        self.requests.append(request)
        finished = False
        for item in next(self._answers):
            if isinstance(item, Exception):
                raise item
            finished = isinstance(item, Finished)
            self.yielded += 1
            yield TextDelta(item) if isinstance(item, str) else item
        if not finished:
            yield Finished("stop")

    async def models(self) -> Sequence[str]:
        return [self.default_model]

    async def aclose(self) -> None:
        self.is_closed = True


class GatedProvider:
    """Answers with words and stops before word number ``gate_after`` until it is closed."""

    name = "gated"
    default_model = "gated-model"
    capabilities = Capabilities()

    def __init__(self, words: Sequence[str], *, gate_after: int) -> None:
        self.at_gate = asyncio.Event()
        self.closed = 0
        self._words = words
        self._gate_after = gate_after

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        try:
            for word in self._words[: self._gate_after]:
                yield TextDelta(word)
            self.at_gate.set()
            await asyncio.Event().wait()
        finally:
            self.closed += 1

    async def models(self) -> Sequence[str]:
        return [self.default_model]

    async def aclose(self) -> None:
        pass
