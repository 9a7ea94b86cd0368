"""The promises of `atlas.providers.base.Provider`, as checks that any provider can be put through.

Run it from a test of your provider, with a factory and, if you like, requests of your own::

    async def test_my_provider_keeps_its_promises():
        await check_provider(lambda: MyProvider(base_url=server.url))

The provider must be able to answer about ten requests. Nothing is patched and no network is used
beyond what the provider itself does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from atlas.errors import AtlasError, ProviderError
from atlas.providers.assembler import Assembler
from atlas.providers.base import (
    Capabilities,
    ChatRequest,
    Delta,
    ModelCatalogue,
    Provider,
    ResponseStarted,
    UsageDelta,
)
from atlas.providers.messages import ChatMessage, Completion, TextPart

__all__ = ["check_provider"]

_PATIENCE = 60.0  # seconds that one check may take
_MOMENT = 1.0  # seconds in which a task that is ending must have ended
_PREAMBLE = (ResponseStarted, UsageDelta)


async def check_provider(
    make: Callable[[], Provider],
    *,
    request: ChatRequest | None = None,
    failing: ChatRequest | None = None,
) -> None:
    """Check that the providers which ``make`` returns keep every promise of the protocol.

    Args:
        make: Returns a new provider; called once for each check, inside a running loop.
        request: What to ask; it must be answered with text. Default: a short question to the
            provider's default model, ``max_tokens=32``.
        failing: A request that the provider must refuse, such as one for a model that does not
            exist; without it, failing is not checked.

    Raises:
        AssertionError: A promise is broken; the text says which one.
    """
    asked = request or ChatRequest(
        messages=(ChatMessage("user", (TextPart("Say hello in a few words."),)),),
        model="",
        max_tokens=32,
    )
    checks: list[Callable[[Provider, ChatRequest], Awaitable[None]]] = [
        _describes_itself,
        _answers_whole,
        _answers_again,
        _answers_several_at_once,
        _can_be_left,
        _can_be_cancelled,
        _lists_its_models,
    ]
    for check in checks:
        await _run(check, make, asked)
    if failing is not None:
        await _run(_fails_in_neutral_terms, make, failing)


async def _run(
    check: Callable[[Provider, ChatRequest], Awaitable[None]],
    make: Callable[[], Provider],
    request: ChatRequest,
) -> None:
    before = asyncio.all_tasks()
    provider = make()
    try:
        async with asyncio.timeout(_PATIENCE):
            await check(provider, request)
    except TimeoutError as error:
        raise AssertionError(
            f"{check.__name__.strip('_')}: not done within {_PATIENCE:g} s."
        ) from error
    finally:
        await provider.aclose()
        await provider.aclose()  # closing twice is allowed
    left = await _left_after(before)
    _hold(not left, f"aclose() ends every task the provider started, yet {left!r} still run")


async def _left_after(before: set[asyncio.Task[object]]) -> set[asyncio.Task[object]]:
    """Return the tasks started since ``before`` that do not end by themselves within a moment.

    HTTP clients leave generators of theirs to the loop, which finishes them in tasks of its own.
    """
    started = asyncio.all_tasks() - before
    if not started:
        return set()
    _, left = await asyncio.wait(started, timeout=_MOMENT)
    return left


def _hold(promise: object, text: str) -> None:
    if not promise:
        raise AssertionError(f"A provider promises this: {text}.")


async def _answer(provider: Provider, request: ChatRequest) -> Completion:
    assembler = Assembler(provider=provider.name)
    deltas: list[Delta] = []
    async for delta in provider.stream(request):
        assembler.feed(delta)
        deltas.append(delta)
    _hold(assembler.finished, f"a whole answer ends with `Finished`, yet {deltas[-3:]!r} came last")
    return assembler.completion()


@contextlib.asynccontextmanager
async def _begun(provider: Provider, request: ChatRequest) -> AsyncIterator[None]:
    """Read a stream up to its first content, and close it at the end of the block."""
    stream = provider.stream(request)
    _hold(
        hasattr(stream, "aclose"),
        f"stream() is an async generator, which can be closed, yet it returned {stream!r}",
    )
    # Whoever has an `aclose` is a generator for our purpose.
    async with contextlib.aclosing(stream):  # type: ignore[type-var]
        async for delta in stream:
            if not isinstance(delta, _PREAMBLE):
                break
        yield


async def _describes_itself(provider: Provider, request: ChatRequest) -> None:
    _hold(isinstance(provider, Provider), f"it has the methods of the protocol; {provider!r} lacks")
    _hold(bool(provider.name), "`name` is a text, and not empty")
    _hold(isinstance(provider.capabilities, Capabilities), "`capabilities` is a `Capabilities`")


async def _answers_whole(provider: Provider, request: ChatRequest) -> None:
    answer = await _answer(provider, request)
    _hold(answer.parts, f"an answer has content, yet {answer!r} has none")


async def _answers_again(provider: Provider, request: ChatRequest) -> None:
    for _ in range(2):
        await _answer(provider, request)


async def _answers_several_at_once(provider: Provider, request: ChatRequest) -> None:
    answers = await asyncio.gather(*(_answer(provider, request) for _ in range(3)))
    _hold(all(answer.parts for answer in answers), "one instance serves several streams at once")


async def _can_be_left(provider: Provider, request: ChatRequest) -> None:
    before = asyncio.all_tasks()
    async with _begun(provider, request):
        pass
    left = await _left_after(before)
    _hold(not left, f"closing a stream ends what runs for it, yet {left!r} still run")
    await _answer(provider, request)


async def _can_be_cancelled(provider: Provider, request: ChatRequest) -> None:
    reached = asyncio.Event()

    async def read() -> None:
        async with _begun(provider, request):
            reached.set()
            await asyncio.Event().wait()

    for wait in (reached.wait, lambda: asyncio.sleep(0)):
        reader = asyncio.create_task(read())
        await asyncio.wait(
            {asyncio.ensure_future(wait()), reader}, return_when=asyncio.FIRST_COMPLETED
        )
        reader.cancel()
        done, _ = await asyncio.wait({reader})
        _hold(
            all(task.cancelled() for task in done),
            "cancelling the task that reads a stream cancels it, and nothing else comes out",
        )
        reached.clear()
    await _answer(provider, request)


async def _lists_its_models(provider: Provider, request: ChatRequest) -> None:
    if not isinstance(provider, ModelCatalogue):
        return
    _hold(isinstance(provider.default_model, str), "`default_model` is a text, empty for none")
    try:
        models = await provider.models()
    except ProviderError:
        return
    _hold(all(isinstance(m, str) for m in models), f"models() gives texts, yet it gave {models!r}")


async def _fails_in_neutral_terms(provider: Provider, request: ChatRequest) -> None:
    try:
        answer = await _answer(provider, request)
    # The point is to see whatever else comes out.
    except Exception as error:  # noqa: BLE001
        _hold(
            isinstance(error, AtlasError),
            f"only a `ProviderError` comes out of a stream, yet {error!r} did",
        )
        _hold(str(error), f"an error says what was wrong and what to do, yet {error!r} is silent")
    else:
        raise AssertionError(f"The request was to fail, yet it was answered: {answer!r}.")
