"""Where an application's settings come from: arguments, profile, environment; and fallbacks."""

import asyncio
from pathlib import Path

import pytest
from dependency_injector import providers

from atlas import Atlas, EventBus
from atlas.container import Container
from atlas.core.registry import Registry
from atlas.core.schedules import Linear
from atlas.errors import (
    ConfigurationError,
    MissingCredentialsError,
    ProfileError,
    RegistrationError,
    UnknownProviderError,
    ValidationError,
)
from atlas.providers import choose
from atlas.providers.messages import ProviderFallbackTaken
from atlas.providers.profile import ChatProfile
from atlas.providers.resilience import Deadlines, RetryPolicy
from atlas.providers.selection import inspect_provider, provider_registry

from support.providers import ListProvider

PROFILE = """
provider = "acme"
model = "large"
api_key = "${ACME_KEY:-}"
system = "Be brief."
temperature = 0.5
max_tokens = 20
stop = ["END"]
fallback = ["spare"]

[deadlines]
first_token = 7

[retries]
attempts = 4
delays = {kind = "linear", start = 1, end = 5, steps = 3}
"""


class Built(ListProvider):
    """Remembers what it was built with."""

    def __init__(self, name: str, **config: object) -> None:
        super().__init__([["Yes."]] * 9)
        self.name = name
        self.config = config


class Shop:
    """A container whose providers are ``acme`` and ``spare``, and two that cannot be built."""

    def __init__(self) -> None:
        self.built: dict[str, Built] = {}
        self.registry = Registry(kind="provider", unknown_error=UnknownProviderError)
        for name in ("acme", "spare"):
            self.registry.register(name, self._factory(name))
        self.registry.register("locked", self._locked)
        self.registry.register("bolted", self._locked)
        self.container = Container()
        self.container.model_providers.override(providers.Object(self.registry))

    def _factory(self, name: str):
        def build(**config: object) -> Built:
            self.built[name] = Built(name, **config)
            return self.built[name]

        return build

    def _locked(self, **config: object) -> Built:
        raise MissingCredentialsError("Set LOCKED_KEY.")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATLAS_PROVIDER", "ATLAS_MODEL", "ACME_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "assistant.toml"
    path.write_text(PROFILE)
    return path


# -- profiles -------------------------------------------------------------------------------------


async def test_a_profile_sets_the_provider_and_the_options_of_every_call(
    shop, profile, monkeypatch
) -> None:
    monkeypatch.setenv("ACME_KEY", "k-123")
    async with Atlas(profile=profile, container=shop.container) as app:
        await app.chat("Well?")
        described = app.describe()

    asked = shop.built["acme"].requests[0]
    assert shop.built["acme"].config == {"api_key": "k-123"}
    assert described == "acme · large (the profile asks for it)"
    assert (asked.model, asked.temperature, asked.max_tokens) == ("large", 0.5, 20)
    assert (asked.stop, asked.messages[0].text) == (("END",), "Be brief.")
    assert app.profile.deadlines == Deadlines(first_token=7)
    assert app.profile.retries == RetryPolicy(attempts=4, delays=Linear(1, 5, steps=3))


async def test_what_is_said_wins_over_the_profile(shop, profile) -> None:
    app = Atlas(profile=str(profile), provider="spare", model="small", container=shop.container)
    async with app:
        talk = app.conversation(temperature=0.1, system="Be kind.")
        await talk.chat("Well?", max_tokens=3, stop=None)

    asked = shop.built["spare"].requests[0]
    assert "acme" not in shop.built
    assert (asked.model, asked.temperature, asked.max_tokens) == ("small", 0.1, 3)
    assert (asked.stop, asked.messages[0].text) == (("END",), "Be kind.")


async def test_the_profile_wins_over_the_environment(shop, profile, monkeypatch) -> None:
    monkeypatch.setenv("ATLAS_PROVIDER", "spare")
    monkeypatch.setenv("ATLAS_MODEL", "small")
    async with Atlas(profile=profile, container=shop.container) as app:
        assert app.describe().startswith("acme · large")
    async with Atlas(profile=ChatProfile(temperature=0.5), container=Shop().container) as app:
        assert app.describe().startswith("spare · small")


@pytest.mark.parametrize(
    ("said", "profile", "environment", "chosen"),
    [
        ({"provider": "b"}, {"provider": "a", "model": "m"}, {}, ("b", "")),
        ({"provider": "a"}, {"provider": "a", "model": "m"}, {}, ("a", "m")),
        ({"provider": "b"}, {"model": "m"}, {}, ("b", "m")),
        ({"model": "n"}, {"provider": "a", "model": "m"}, {}, ("a", "n")),
        ({}, {"model": "m"}, {"ATLAS_PROVIDER": "e", "ATLAS_MODEL": "x"}, ("e", "m")),
        ({}, {"provider": "a"}, {"ATLAS_PROVIDER": "e", "ATLAS_MODEL": "x"}, ("a", "")),
        ({}, {"provider": "a"}, {"ATLAS_MODEL": "x"}, ("a", "x")),
    ],
)
def test_a_model_goes_only_to_the_provider_it_was_meant_for(
    said, profile, environment, chosen
) -> None:
    choice = choose(**said, profile=ChatProfile(**profile), environment=environment)

    assert (choice.provider, choice.model) == chosen


async def test_the_key_of_a_profile_goes_to_its_provider_alone(shop) -> None:
    given = ChatProfile(provider="acme", api_key="k-123", base_url="http://127.0.0.1:9")
    async with Atlas(profile=given, provider="spare", container=shop.container) as app:
        await app.chat("Well?")
        await app.chat("Well?", provider="acme")

    assert shop.built["spare"].config == {}
    assert shop.built["acme"].config == {"api_key": "k-123", "base_url": "http://127.0.0.1:9"}
    assert "k-123" not in repr(given)


async def test_a_provider_that_is_given_is_asked_with_the_options_of_the_profile(profile) -> None:
    given = ListProvider([["Yes."]])
    async with Atlas(profile=profile, provider=given) as app:
        await app.chat("Well?")

    assert (given.requests[0].temperature, given.requests[0].model) == (0.5, "list-model")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temprature = 1", "unknown; the nearest is 'temperature'"),
        ("temperature = 9", "a number from 0 to 2 is expected"),
        ("max_tokens = '5'", "'max_tokens' is '5' where int or nothing is expected"),
        ("[deadlines]\ngap = -1", "give a number of seconds above 0"),
        ("api_key = 'k'", 'no provider. Say whose they are: add provider = "..."'),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused_with_its_file_and_key(
    tmp_path, text, says
) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)

    with pytest.raises(ProfileError, match="a.toml") as raised:
        Atlas(profile=path)
    assert says in str(raised.value)


def test_a_profile_is_a_path_or_a_value_and_is_checked_when_it_is_made() -> None:
    with pytest.raises(ConfigurationError, match="Give the path"):
        Atlas(profile={"provider": "local"})
    with pytest.raises(ProfileError, match="cannot be read"):
        Atlas(profile="no-such.toml")
    with pytest.raises(ValidationError, match="temperature"):
        ChatProfile(temperature=9.0)


# -- fallbacks ------------------------------------------------------------------------------------


async def test_a_fallback_is_taken_visibly_when_the_provider_cannot_be_built(shop) -> None:
    bus, seen = EventBus(), []
    bus.subscribe(ProviderFallbackTaken, seen.append)
    app = Atlas(
        provider="locked", model="x", fallback=("spare",), bus=bus, container=shop.container
    )
    async with app:
        reply = app.chat("Well?")
        assert (await reply).text == "Yes."
        described = app.describe()

    assert seen == [ProviderFallbackTaken("locked", "spare", ("locked: Set LOCKED_KEY.",))]
    assert described == "spare · list-model (locked could not be built)"
    assert (reply.provider, reply.model) == ("spare", "list-model")
    await bus.aclose()


async def test_a_fallback_may_have_its_own_configuration(shop) -> None:
    app = Atlas(provider="locked", fallback={"spare": {"context": 5}}, container=shop.container)
    async with app:
        pass

    assert shop.built["spare"].config == {"context": 5}


async def test_a_fallback_that_is_the_provider_of_the_profile_gets_its_key(shop) -> None:
    given = ChatProfile(provider="acme", api_key="k-123")
    app = Atlas(profile=given, provider="locked", fallback=["acme"], container=shop.container)
    async with app:
        pass

    assert shop.built["acme"].config == {"api_key": "k-123"}


async def test_a_fallback_named_by_a_profile_is_overruled_by_an_explicit_one(shop) -> None:
    given = ChatProfile(provider="locked", fallback=("spare",))
    async with Atlas(profile=given, container=shop.container) as app:
        assert app.describe().startswith("spare")
    with pytest.raises(MissingCredentialsError):
        async with Atlas(profile=given, fallback=(), container=Shop().container):
            pass


async def test_no_fallback_is_taken_when_none_is_needed_or_none_is_named(shop) -> None:
    bus, seen = EventBus(), []
    bus.subscribe(ProviderFallbackTaken, seen.append)
    async with Atlas(provider="acme", fallback=["spare"], bus=bus, container=shop.container):
        pass
    with pytest.raises(MissingCredentialsError, match="LOCKED_KEY"):
        async with Atlas(provider="locked", bus=bus, container=shop.container):
            pass
    with pytest.raises(RegistrationError, match="all its fallbacks failed") as raised:
        async with Atlas(provider="locked", fallback=["bolted"], bus=bus, container=shop.container):
            pass

    assert seen == []
    assert "spare" not in shop.built
    assert len(raised.value.errors) == 2
    await bus.aclose()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"provider": "acme", "fallback": "spare"}, r"Give a list of names: \['spare'\]"),
        ({"provider": ListProvider([]), "fallback": ["spare"]}, "built already"),
    ],
)
def test_a_fallback_that_makes_no_sense_is_refused(arguments, says) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Atlas(**arguments)


async def test_a_mistyped_fallback_fails_before_anything_is_built(shop) -> None:
    with pytest.raises(UnknownProviderError, match="nearest is 'spare'"):
        async with Atlas(provider="acme", fallback=["spar"], container=shop.container):
            pass

    assert shop.built == {}


async def test_all_providers_are_checked_before_the_first_is_built(shop) -> None:
    shop.registry.register("search", lambda: None, depends_on=["index"])

    with pytest.raises(RegistrationError, match="'index', which is not registered"):
        async with Atlas(provider="acme", container=shop.container):
            pass
    assert shop.built == {}


async def test_a_provider_that_never_names_its_models_is_not_waited_for() -> None:
    class Silent(ListProvider):
        async def models(self) -> list[str]:
            await asyncio.Event().wait()
            return []

    registry = provider_registry()
    registry.register("silent", lambda: Silent([]))
    status = await inspect_provider(registry, "silent", patience=0.01)

    assert status.reachable is False
    assert status.problem.startswith("silent did not answer within 0.01 s; check its address")
