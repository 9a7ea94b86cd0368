"""Other wordings of a question, by a model: what nobody wrote like that is found like this."""

from __future__ import annotations

import re
from typing import Final

from atlas.errors import ConfigurationError
from atlas.providers.base import ChatRequest, Provider, TextDelta
from atlas.providers.messages import ChatMessage, TextPart

__all__ = ["ProviderExpander"]

_INSTRUCTION: Final = (
    "Rewrite the question in {count} other ways, with other words for the same things, as they may "
    "stand in a manual. One per line, nothing else."
)
_LEADING: Final = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s*")


class ProviderExpander:
    """A `QueryExpander` that asks a model.

    Args:
        provider: Whom to ask; it stays yours to close.
        model: Which model; default: the provider's own.
        count: Most wordings to use.

    Raises:
        ConfigurationError: The count is below 1.
    """

    def __init__(self, provider: Provider, *, model: str = "", count: int = 3) -> None:
        if count < 1:
            raise ConfigurationError(f"count is {count!r}. Ask for at least 1 other wording.")
        self._provider = provider
        self._model = model
        self._count = count

    async def __call__(self, query: str) -> list[str]:
        """Return other wordings of a question, as many as the model gave and fit.

        Raises:
            ProviderError: The model cannot be asked.
        """
        instruction = _INSTRUCTION.format(count=self._count)
        request = ChatRequest(
            messages=(
                ChatMessage("system", (TextPart(instruction),)),
                ChatMessage("user", (TextPart(query),)),
            ),
            model=self._model,
            max_tokens=60 * self._count,
        )
        deltas = [delta async for delta in self._provider.stream(request)]
        said = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        lines = (_LEADING.sub("", line).strip() for line in said.splitlines())
        different = dict.fromkeys(line for line in lines if line and line != query)
        return list(different)[: self._count]
