"""Who answers for models where no application does: for agents that bring their own provider."""

from __future__ import annotations

from atlas.core.messages import Message
from atlas.errors import ConfigurationError
from atlas.providers.base import ModelCatalogue, Provider
from atlas.providers.reply import StreamOptions

__all__ = ["BareHost"]


class BareHost:
    """Asks the providers that agents bring. Knows no names, and keeps decisions in memory."""

    def __init__(self) -> None:
        self._options = StreamOptions()
        self._answers: dict[str, str] = {}
        self.questions: dict[str, Message] = {}

    @property
    def stream_options(self) -> StreamOptions:
        """How answers are streamed: as by default."""
        return self._options

    def choose_model(
        self, provider: str | Provider | None = None, model: str | None = None
    ) -> tuple[Provider, str]:
        """Return the provider itself, and its default model.

        Raises:
            ConfigurationError: It is a name, which only an application knows.
        """
        if isinstance(provider, str | None):
            raise ConfigurationError(
                f"Nobody on this bus knows the model {provider!r}. Start an application on the bus "
                f"(`async with Atlas() as app:` and bus=app.bus), give the team app=..., or give the "
                f"agent a provider of your own as model=."
            )
        default = provider.default_model if isinstance(provider, ModelCatalogue) else ""
        return provider, model or default

    async def stored_answer(self, approval: str) -> str | None:
        """Return what was decided on an approval."""
        return self._answers.get(approval)

    async def store_answer(self, approval: str, answer: str) -> None:
        """Keep what was decided on an approval."""
        self._answers.setdefault(approval, answer)
