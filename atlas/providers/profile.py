"""The settings of an assistant as one value: `ChatProfile`, written by hand or read from a file.

A file is TOML or YAML, with ``extends`` and values from the environment; see `atlas.core.profiles`::

    provider = "openai"
    model = "gpt-5-mini"
    system = "You answer in one sentence."
    temperature = 0.2
    fallback = ["local"]

    [deadlines]
    first_token = 20

`atlas.Atlas` takes one as ``profile``; ``atlas profile show`` shows one with its origins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from atlas.core.profiles import Profile, load_profile
from atlas.errors import ConfigurationError
from atlas.providers.base import ChatRequest
from atlas.providers.resilience import Deadlines, RetryPolicy
from atlas.typing import SECRET

__all__ = ["ChatProfile", "chat_profile", "load_chat_profile"]

_OF_THE_REQUEST: Final = (
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "thinking_tokens",
    "json_schema",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatProfile:
    """How an assistant is set up. None leaves a choice to the environment or the vendor.

    Attributes:
        provider: Whom to ask, by registered name.
        model: The provider's name of the model. It belongs to ``provider``: whoever asks another
            one does not get it.
        api_key: The provider's key; write ``"${NAME}"`` and keep it in the environment. Masked
            wherever a profile is shown.
        base_url: Where the provider answers.
        fallback: Providers to build instead, in this order, when ``provider`` cannot be built.
        system: Instructions the model is given first.
        max_tokens: Longest answer, in tokens.
        temperature: 0 for the likeliest words, higher for more variety.
        top_p: Share of the probability mass to draw from.
        seed: Makes the same request give the same answer, as far as the vendor can.
        stop: Texts before which the answer ends.
        thinking_tokens: Most tokens to think with.
        json_schema: JSON Schema, as JSON text, that the answer must fit.
        deadlines: How long to wait for the vendor.
        retries: What to do when a call fails before its first token.

    Raises:
        ValidationError: An option of the answer is out of its range.
        ConfigurationError: A key or an address is given without the provider it is for.
    """

    provider: str | None = None
    model: str | None = None
    api_key: Annotated[str | None, SECRET] = field(default=None, repr=False)
    base_url: str | None = None
    fallback: tuple[str, ...] = ()
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    thinking_tokens: int | None = None
    json_schema: str | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    retries: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        # What a request would refuse is refused here, where it was written.
        # Any: the options have no common type.
        options: dict[str, Any] = {name: getattr(self, name) for name in _OF_THE_REQUEST}
        ChatRequest(messages=(), **options)
        if self.provider is None and self.provider_options():
            raise ConfigurationError(
                f"The profile gives {' and '.join(self.provider_options())} and no provider. "
                f'Say whose they are: add provider = "...".'
            )

    def model_of(self, provider: str | None) -> str:
        """Return the model, where it is one of this provider's; else an empty text.

        Args:
            provider: Who is asked; None: whom the profile names.
        """
        own = provider is None or self.provider in (None, provider)
        return (self.model or "") if own else ""

    def provider_options(self) -> dict[str, object]:
        """Return what the provider is built with; an empty text says as little as None."""
        given = {"api_key": self.api_key, "base_url": self.base_url}
        return {name: value for name, value in given.items() if value}

    def chat_options(self) -> dict[str, object]:
        """Return the options of each call that the profile says something about."""
        given = {name: getattr(self, name) for name in ("system", *_OF_THE_REQUEST)}
        return {name: value for name, value in given.items() if value not in (None, ())}


def load_chat_profile(path: str | Path) -> Profile[ChatProfile]:
    """Read a profile file; the result knows where each value comes from.

    Raises:
        ProfileError: The file cannot be read, or says what `ChatProfile` does not know or take.
    """
    return load_profile(path, ChatProfile)


def chat_profile(given: str | Path | ChatProfile | None) -> ChatProfile:
    """Return a profile given as a value or as the path of its file; an empty one for None.

    Raises:
        ProfileError: As in `load_chat_profile`.
        ConfigurationError: It is neither.
    """
    if given is None:
        return ChatProfile()
    if isinstance(given, str | Path):
        return load_chat_profile(given).value
    if isinstance(given, ChatProfile):
        return given
    raise ConfigurationError(
        f"The profile is {given!r}. Give the path of a TOML or YAML file, or a ChatProfile (for "
        f"one that was loaded, its `.value`)."
    )
