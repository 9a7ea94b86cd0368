"""Which provider and model a user gets: the choice, its reason, and what each provider could do.

The order is the same everywhere: an explicit choice > the profile > ``ATLAS_PROVIDER`` and
``ATLAS_MODEL`` > a provider whose API key is in the environment > an Ollama that answers > the local
model.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from atlas.core.registry import Registry
from atlas.errors import AtlasError, ConfigurationError, UnknownProviderError
from atlas.providers.base import ModelCatalogue, Provider
from atlas.providers.profile import ChatProfile

__all__ = ["Choice", "ProviderStatus", "choose", "inspect_provider", "provider_registry"]

KEYS: Final[Mapping[str, str]] = {
    "anthropic": "ANTHROPIC_API_KEY",
    "openai": "OPENAI_API_KEY",
}
"""The environment variables that configure a provider, in the order they are looked at."""

PACKAGES: Final[Mapping[str, str]] = {
    "anthropic": "anthropic",
    "openai": "openai",
    "ollama": "ollama",
    "local": "xllamacpp",
}
"""The package without which a provider of ours cannot work; installed by the extra of its name."""

_PROFILE: Final = "the profile asks for it"
OLLAMA_PORT: Final = 11434
PROBE_TIMEOUT: Final = 0.25  # seconds; a running Ollama on this machine accepts within 1 ms


@dataclass(frozen=True, slots=True)
class Choice:
    """The provider and model to use, and why.

    ``model`` is empty where the provider's default model is meant.
    """

    provider: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """What is known of one provider.

    Attributes:
        name: Its registered name.
        installed: Whether the packages it needs are there.
        configured: Whether it has what it needs to be asked (a key, weights).
        reachable: Whether it answered just now; None when that was not tried.
        models: The models it can be asked for, as far as it said.
        problem: What stands in the way, in a sentence with the mend; empty when nothing does.
    """

    name: str
    installed: bool
    configured: bool
    reachable: bool | None
    models: tuple[str, ...] = ()
    problem: str = ""


def provider_registry() -> Registry[Provider]:
    """Return a new registry of all installed providers (entry points ``atlas.providers``)."""
    return Registry[Provider](
        kind="provider", group="atlas.providers", unknown_error=UnknownProviderError
    )


def choose(
    provider: str | None = None,
    model: str | None = None,
    *,
    profile: ChatProfile | None = None,
    environment: Mapping[str, str] | None = None,
) -> Choice:
    """Choose a provider and a model.

    Args:
        provider: The user's explicit choice, if any.
        model: The user's explicit choice, if any.
        profile: The user's settings, if any: they come after what is explicit.
        environment: Where to look for settings; default: the process's environment.

    Asks a running Ollama for its models (at most 0.25 s) if nothing earlier in the order decides;
    one without a model is passed over.
    """
    settings = os.environ if environment is None else environment
    if profile is not None:
        model = model or profile.model_of(provider)
        if not provider and profile.provider:
            return replace(choose(profile.provider, model, environment=settings), reason=_PROFILE)
    chosen_model = model or settings.get("ATLAS_MODEL", "")
    if provider:
        # ATLAS_MODEL belongs to ATLAS_PROVIDER: a model of one provider means nothing to another.
        own = settings.get("ATLAS_PROVIDER", provider) == provider
        return Choice(provider, chosen_model if own else model or "", "it was asked for")
    if named := settings.get("ATLAS_PROVIDER"):
        return Choice(named, chosen_model, "ATLAS_PROVIDER is set")
    for name, variable in KEYS.items():
        if settings.get(variable) and is_installed(name):
            return Choice(name, chosen_model, f"{variable} is set")
    if is_installed("ollama") and (models := ollama_models(settings.get("OLLAMA_HOST", ""))):
        return Choice("ollama", chosen_model or models[0], "an Ollama server answers")
    return Choice("local", chosen_model, "no key is set and no Ollama answers")


def is_installed(provider: str) -> bool:
    """Return whether the package a provider needs is there; it is not imported."""
    package = PACKAGES.get(provider)
    return package is None or importlib.util.find_spec(package) is not None


def ollama_models(host: str = "") -> tuple[str, ...]:
    """Return the models of the Ollama that answers at ``host``; none when nothing of it does.

    Args:
        host: As in ``OLLAMA_HOST``: host, ``host:port`` or URL; default ``127.0.0.1:11434``.

    Raises:
        ConfigurationError: ``host`` is not of one of these forms.
    """
    # Imported here: whoever names a provider does not pay for the HTTP machinery.
    from http.client import HTTPConnection, HTTPException, HTTPSConnection  # noqa: PLC0415

    secure, address, port = _ollama_address(host)
    try:
        connection = (HTTPSConnection if secure else HTTPConnection)(
            address, port, timeout=PROBE_TIMEOUT
        )
    except HTTPException as error:
        raise _no_address(host, error) from error
    try:
        connection.request("GET", "/api/tags")
        answer = json.load(connection.getresponse())
        return tuple(model["name"] for model in answer["models"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        # Not there, or something else on its port; `atlas providers` tells the details.
        return ()
    finally:
        connection.close()


def _ollama_address(host: str) -> tuple[bool, str, int]:
    try:
        parts = urlsplit(host if "://" in host else f"http://{host}")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else OLLAMA_PORT)
    except ValueError as error:
        raise _no_address(host, error) from error
    address = parts.hostname or "127.0.0.1"
    # 0.0.0.0 is where a server listens, not where a client finds it.
    return secure, "127.0.0.1" if address in {"0.0.0.0", "::"} else address, port  # noqa: S104


def _no_address(host: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"OLLAMA_HOST is {host!r}, which is no address ({error}). "
        f"Set it to a host, host:port or URL, such as 127.0.0.1:{OLLAMA_PORT}."
    )


async def inspect_provider(
    registry: Registry[Provider], name: str, *, patience: float = 5.0
) -> ProviderStatus:
    """Find out what one provider could do now; asks it for its models.

    Never raises an `AtlasError`: what stands in the way becomes ``problem``.

    Args:
        registry: Where the provider is registered.
        name: Its registered name.
        patience: Seconds to wait for its answer.
    """
    installed = is_installed(name)
    try:
        provider = registry.create(name)
    except AtlasError as error:
        return ProviderStatus(
            name=name, installed=installed, configured=False, reachable=None, problem=str(error)
        )
    try:
        async with asyncio.timeout(patience):
            models = tuple(await provider.models()) if isinstance(provider, ModelCatalogue) else ()
    except (AtlasError, TimeoutError) as error:
        late = f"{name} did not answer within {patience:g} s; check its address and the network."
        problem = str(error) if isinstance(error, AtlasError) else late
        return ProviderStatus(
            name=name, installed=installed, configured=True, reachable=False, problem=problem
        )
    return ProviderStatus(
        name=name, installed=installed, configured=True, reachable=True, models=models
    )
