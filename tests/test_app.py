"""The application object and its replies, with scripted answers."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest
from dependency_injector import providers

from atlas import Atlas, ChatMessage, Completion, EventBus
from atlas.container import Container
from atlas.errors import (
    AppNotRunningError,
    BlockingCallError,
    ConfigurationError,
    ConversationBusyError,
    ServerError,
    UnknownProviderError,
)
from atlas.providers.base import ChatRequest, Delta, Finished, TextDelta, UsageDelta
from atlas.providers.messages import (
    MessageAdded,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamPaused,
    StreamResumed,
    StreamStarted,
    StreamToken,
    TextPart,
    Usage,
)
from atlas.providers.resilience import RetryPolicy
from atlas.testing import ManualClock

from support.providers import GatedProvider, ListProvider
from support.skipped_time import skipping_time

WORDS = ["Events ", "are ", "facts."]


def seen_by(bus: EventBus, selector: object = "**") -> list[object]:
    seen: list[object] = []
    bus.subscribe(selector, seen.append)
    return seen


# -- reading --------------------------------------------------------------------------------------


async def test_a_reply_is_iterated_piece_by_piece() -> None:
    async with Atlas(provider=ListProvider([WORDS])) as app:
        assert [token async for token in app.chat("What?")] == WORDS


async def test_a_reply_is_awaited_for_the_whole_completion() -> None:
    deltas = [*map(TextDelta, WORDS), UsageDelta(Usage(input_tokens=3, output_tokens=4))]
    async with Atlas(provider=ListProvider([[*deltas, Finished("length", "max")]])) as app:
        reply = app.chat("What?")
        completion = await reply

    assert isinstance(completion, Completion)
    assert completion.text == reply.text == "Events are facts."
    assert (reply.finish_reason, completion.raw_finish_reason) == ("length", "max")
    assert reply.usage == Usage(input_tokens=3, output_tokens=4)
    assert reply.status == "completed"
    assert reply.timing.first_token is not None
    assert reply.timing.first_token <= reply.timing.total


async def test_a_reply_can_be_iterated_and_awaited_many_times_and_late() -> None:
    async with Atlas(provider=ListProvider([WORDS])) as app:
        reply = app.chat("What?")
        first = "".join([token async for token in reply])
        await reply
        late = [token async for token in reply]

    assert first == "".join(late) == (await reply).text


async def test_two_loops_read_the_same_reply_side_by_side() -> None:
    async def read(reply) -> str:
        return "".join([token async for token in reply])

    async with Atlas(provider=ListProvider([WORDS * 400]), capacity=4) as app:
        reply = app.chat("What?")
        one, two = await asyncio.gather(read(reply), read(reply))

    assert one == two == "".join(WORDS * 400)


async def test_a_reply_that_nobody_reads_runs_to_its_end_beyond_the_capacity() -> None:
    async with Atlas(provider=ListProvider([["x"] * 1000]), capacity=8) as app:
        waiting = asyncio.create_task(app.bus.wait_for(StreamCompleted, timeout=5))
        await asyncio.sleep(0)
        reply = app.chat("What?")
        event = await waiting

    assert event.completion.text == reply.text == "x" * 1000


async def test_a_slow_reader_holds_the_vendor_back() -> None:
    provider = ListProvider([["x"] * 1000])
    async with Atlas(provider=provider, capacity=8) as app:
        reply = app.chat("What?")
        reader = aiter(reply)
        await anext(reader)
        for _ in range(50):
            await asyncio.sleep(0)
        taken = provider.yielded
        await reader.aclose()

    assert taken < 20


async def test_the_callback_gets_each_piece_and_the_text_so_far() -> None:
    calls: list[tuple[str, str]] = []

    async def later(delta: str, full_text: str) -> None:
        await asyncio.sleep(0)
        calls.append((delta, full_text))

    async with Atlas(provider=ListProvider([WORDS, WORDS])) as app:
        await app.chat("What?", on_token=lambda delta, full_text: calls.append((delta, full_text)))
        plain, calls = calls, []
        await app.chat("What?", on_token=later)

    assert plain == calls
    assert plain == [
        ("Events ", "Events "),
        ("are ", "Events are "),
        ("facts.", "Events are facts."),
    ]


async def test_what_the_callback_raises_ends_the_reply_and_reaches_the_caller() -> None:
    def broken(delta: str, full_text: str) -> None:
        raise KeyError("mine")

    async with Atlas(provider=ListProvider([WORDS])) as app:
        failed = seen_by(app.bus, StreamFailed)
        with pytest.raises(KeyError, match="mine"):
            await app.chat("What?", on_token=broken)

    assert [event.kind for event in failed] == ["KeyError"]


# -- events ---------------------------------------------------------------------------------------


async def test_every_step_of_a_reply_is_an_event_caused_by_its_start() -> None:
    async with Atlas(provider=ListProvider([WORDS])) as app:
        seen = seen_by(app.bus)
        reply = app.chat("What?")
        await reply

    started = seen[0]
    assert [type(event) for event in seen] == [
        StreamStarted,
        StreamToken,
        StreamToken,
        StreamToken,
        MessageAdded,
        MessageAdded,
        StreamCompleted,
    ]
    assert started == StreamStarted(reply.id, reply.conversation, "list", "list-model", "What?")
    assert {event.meta.causation for event in seen[1:]} == {started.meta.id}
    assert {event.meta.correlation for event in seen} == {started.meta.id}
    assert [event.index for event in seen[1:4]] == [0, 1, 2]


async def test_a_failing_subscriber_does_not_disturb_the_reply() -> None:
    def broken(event: StreamToken) -> None:
        raise RuntimeError("mine")

    async with Atlas(provider=ListProvider([WORDS])) as app:
        app.bus.subscribe(StreamToken, broken)
        failures = seen_by(app.bus, "bus.handler_failed")
        assert (await app.chat("What?")).text == "Events are facts."

    assert len(failures) == 3


async def test_the_reply_waits_for_a_slow_reliable_subscriber() -> None:
    handled: list[str] = []

    async def slow(event: StreamToken) -> None:
        await asyncio.sleep(0)
        handled.append(event.text)

    async with Atlas(provider=ListProvider([WORDS])) as app:
        app.bus.subscribe(StreamToken, slow)
        await app.chat("What?")

        assert handled == WORDS


async def test_cancelling_a_reply_leaves_the_handlers_of_others_to_their_work() -> None:
    saving, saved = asyncio.Event(), asyncio.Event()
    go_on = asyncio.Event()

    async def save(event: StreamToken) -> None:
        saving.set()
        await go_on.wait()
        saved.set()

    async with Atlas(provider=ListProvider([WORDS])) as app:
        failures = seen_by(app.bus, "bus.handler_failed")
        app.bus.subscribe(StreamToken, save)
        reply = app.chat("What?")
        await asyncio.wait_for(saving.wait(), 5)
        await reply.cancel()
        go_on.set()
        await asyncio.wait_for(saved.wait(), 5)

    assert (reply.status, failures) == ("cancelled", [])


# -- steering -------------------------------------------------------------------------------------


async def test_cancel_stops_the_vendor_and_keeps_what_had_arrived() -> None:
    provider = GatedProvider(WORDS, gate_after=2)
    async with Atlas(provider=provider) as app:
        cancelled = seen_by(app.bus, StreamCancelled)
        reply = app.chat("What?")
        got = []
        async for token in reply:
            got.append(token)
            if len(got) == 2:
                await reply.cancel()
                assert provider.closed == 1

    assert got == WORDS[:2]
    assert reply.status == reply.finish_reason == "cancelled"
    assert (await reply).text == "Events are "
    assert [event.partial for event in cancelled] == ["Events are "]


async def test_cancel_before_the_first_step_still_ends_the_reply() -> None:
    async with Atlas(provider=ListProvider([WORDS])) as app:
        reply = app.chat("What?")
        await reply.cancel()

        assert reply.finish_reason == "cancelled"
        assert [token async for token in reply] == []


@pytest.mark.parametrize("leave", ["break", "raise", "cancel"])
async def test_leaving_the_loop_early_cancels_the_reply_and_closes_the_stream(leave: str) -> None:
    provider = GatedProvider(WORDS, gate_after=1)

    async def read(reply) -> None:
        async for _ in reply:
            if leave == "break":
                break
            if leave == "raise":
                raise LookupError

    async with Atlas(provider=provider) as app:
        ended = asyncio.create_task(app.bus.wait_for(StreamCancelled, timeout=5))
        await asyncio.sleep(0)
        reply = app.chat("What?")
        reader = asyncio.create_task(read(reply))
        await asyncio.wait_for(provider.at_gate.wait(), 5)
        if leave == "cancel":
            reader.cancel()
        await asyncio.wait([reader])
        await ended

        assert provider.closed == 1
        assert reader.cancelled() or leave != "cancel"
        if leave == "raise":
            assert isinstance(reader.exception(), LookupError)


async def test_whoever_awaits_the_rest_after_a_break_gets_it() -> None:
    async with Atlas(provider=ListProvider([WORDS])) as app:
        reply = app.chat("What?")
        async for _ in reply:
            break

        assert (await reply).text == "Events are facts."


async def test_a_handler_cancels_the_reply_that_waits_for_it_and_goes_on() -> None:
    provider = GatedProvider(WORDS, gate_after=3)
    done: list[str] = []
    async with Atlas(provider=provider) as app:

        @app.bus.on(StreamToken)
        async def stop(event: StreamToken) -> None:
            await replies[0].cancel()
            await asyncio.sleep(0)
            done.append(event.text)

        failures = seen_by(app.bus, "bus.handler_failed")
        replies = [app.chat("What?")]
        await replies[0]

    assert done == WORDS[:1]
    assert failures == []
    assert replies[0].finish_reason == "cancelled"


async def test_a_callback_cancels_its_reply() -> None:
    async def stop(delta: str, text: str) -> None:
        await replies[0].cancel()

    async with Atlas(provider=GatedProvider(WORDS, gate_after=3)) as app:
        replies = [app.chat("What?", on_token=stop)]
        await replies[0]

    assert replies[0].finish_reason == "cancelled"
    assert replies[0].text == WORDS[0]


async def test_cancelling_again_leaves_the_provider_to_close_its_connection() -> None:
    closing, may_close = asyncio.Event(), asyncio.Event()
    closed: list[bool] = []

    class SlowToClose(GatedProvider):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
            try:
                async for delta in super().stream(request):
                    yield delta
            finally:
                closing.set()
                await may_close.wait()
                closed.append(True)

    provider = SlowToClose(WORDS, gate_after=1)
    async with Atlas(provider=provider) as app:
        reply = app.chat("What?")
        await provider.at_gate.wait()
        first = asyncio.create_task(reply.cancel())
        await closing.wait()
        second = asyncio.create_task(reply.cancel())
        await asyncio.sleep(0)
        may_close.set()
        await asyncio.gather(first, second)

    assert closed == [True]


async def test_a_provider_that_swallows_its_cancellation_is_left_at_its_next_delta() -> None:
    class Deaf(ListProvider):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
                yield TextDelta("again ")

    async with Atlas(provider=Deaf([])) as app:
        async for _ in (reply := app.chat("What?")):
            await reply.cancel()

    assert reply.status == "cancelled"


@pytest.mark.parametrize("ask", ["cancel", "await", "iterate"])
async def test_a_reply_may_be_used_from_another_loop(ask: str) -> None:
    provider = GatedProvider(WORDS, gate_after=3)

    async def elsewhere() -> None:
        if ask == "cancel":
            await reply.cancel()
        elif ask == "await":
            waiting = asyncio.ensure_future(reply)
            await asyncio.sleep(0)
            await reply.cancel()
            assert (await waiting).text == "".join(WORDS)
        else:
            async for _ in reply:
                break

    async with Atlas(provider=provider) as app:
        reply = app.chat("What?")
        await provider.at_gate.wait()
        await asyncio.to_thread(asyncio.run, elsewhere())
        async for _ in reply:
            pass

    assert reply.status == "cancelled"
    assert provider.closed == 1


async def test_leaving_the_context_of_a_reply_cancels_it() -> None:
    provider = GatedProvider(WORDS, gate_after=1)
    async with Atlas(provider=provider) as app:
        async with app.chat("What?") as reply:
            await asyncio.wait_for(provider.at_gate.wait(), 5)

        assert (reply.status, provider.closed) == ("cancelled", 1)


async def test_pause_holds_the_readers_and_resume_lets_them_go_on() -> None:
    async with Atlas(provider=ListProvider([WORDS])) as app:
        steered = seen_by(app.bus, (StreamPaused, StreamResumed))
        reply = app.chat("What?")
        reply.pause()
        reply.pause()
        reading = asyncio.create_task(anext(aiter(reply)))
        done, _ = await asyncio.wait([reading], timeout=0.02)
        held = not done and reply.status == "paused"
        reply.resume()
        reply.resume()

        assert held
        assert await reading == "Events "
        assert [type(event) for event in steered] == [StreamPaused, StreamResumed]
        await reply.cancel()


async def test_a_paused_reply_can_be_cancelled() -> None:
    async with Atlas(provider=ListProvider([["x"] * 100]), capacity=4) as app:
        reply = app.chat("What?")
        reply.pause()
        await asyncio.sleep(0)
        await reply.cancel()

        assert reply.status == "cancelled"


# -- failures -------------------------------------------------------------------------------------


async def test_an_error_reaches_every_reader_after_what_had_arrived() -> None:
    error = ServerError("It broke.", provider="list")
    async with Atlas(provider=ListProvider([[*WORDS, error]])) as app:
        failed = seen_by(app.bus, StreamFailed)
        reply = app.chat("What?")
        got = []
        with pytest.raises(ServerError):
            async for token in reply:
                got.append(token)
        with pytest.raises(ServerError) as raised:
            await reply

    assert got == WORDS
    assert raised.value.partial == "Events are facts."
    assert (reply.status, reply.error, reply.finish_reason) == ("failed", error, None)
    assert [(e.kind, e.partial) for e in failed] == [("server_error", "Events are facts.")]


async def test_a_failure_before_the_first_token_is_retried_and_seen_on_the_bus() -> None:
    provider = ListProvider([[ServerError("Busy.")], WORDS])
    async with Atlas(provider=provider, retries=RetryPolicy(base_delay=0)) as app:
        retried = seen_by(app.bus, "stream.retried")
        reply = app.chat("What?")
        assert (await reply).text == "Events are facts."

    assert [(event.attempt, event.kind) for event in retried] == [(1, "server_error")]
    assert reply.timing.attempts == 2


# -- state ----------------------------------------------------------------------------------------


async def test_the_state_of_a_reply_can_be_read_live_and_at_earlier_versions() -> None:
    provider = GatedProvider(WORDS, gate_after=2)
    async with Atlas(provider=provider) as app:
        reply = app.chat("What?")
        await asyncio.wait_for(provider.at_gate.wait(), 5)
        live = app.state.value.replies[reply.id]
        reply.pause()
        paused = app.state.value.replies[reply.id].status
        before = app.state.at(2).replies[reply.id]
        patch = app.state.patch(1, 2)
        await reply.cancel()

    assert (live.status, live.text, live.prompt) == ("streaming", "Events are ", "What?")
    assert before.text == "Events "
    assert [operation["value"] for operation in patch] == ["Events "]
    assert paused == "paused"
    assert app.state.value.replies[reply.id].status == "cancelled"


async def test_the_state_forgets_the_oldest_finished_replies() -> None:
    async with Atlas(provider=ListProvider([["x"]] * 70)) as app:
        replies = [app.chat("What?") for _ in range(70)]
        for reply in replies:
            await reply
        kept = app.state.value.replies

    assert len(kept) == 64
    assert replies[-1].id in kept


# -- conversations --------------------------------------------------------------------------------


async def test_a_conversation_shows_the_model_all_that_was_said_before() -> None:
    provider = ListProvider([["One."], ["Two."]])
    async with Atlas(provider=provider) as app:
        talk = app.conversation(system="Be brief.")
        await talk.chat("First?")
        await talk.chat("Second?")

    sent = provider.requests[1].messages
    assert [(m.role, m.text) for m in sent] == [
        ("system", "Be brief."),
        ("user", "First?"),
        ("assistant", "One."),
        ("user", "Second?"),
    ]
    assert [m.text for m in talk.messages] == ["First?", "One.", "Second?", "Two."]
    assert [m.text for m in talk.state.at(2)] == ["First?", "One."]


async def test_options_of_a_call_go_before_those_of_its_conversation() -> None:
    provider = ListProvider([["a"], ["b"]])
    async with Atlas(provider=provider) as app:
        talk = app.conversation(max_tokens=5, temperature=0.5)
        await talk.chat("One?")
        await talk.chat("Two?", max_tokens=7, model="other")

    assert [r.max_tokens for r in provider.requests] == [5, 7]
    assert [r.model for r in provider.requests] == ["list-model", "other"]
    assert [r.temperature for r in provider.requests] == [0.5, 0.5]


async def test_a_failed_turn_leaves_the_conversation_as_it_was() -> None:
    provider = ListProvider([[ServerError("no")], ["Yes."]])
    async with Atlas(provider=provider, retries=RetryPolicy(attempts=1)) as app:
        talk = app.conversation()
        with pytest.raises(ServerError):
            await talk.chat("Well?")
        assert talk.messages == ()
        await talk.chat("Well?")

    assert [m.text for m in talk.messages] == ["Well?", "Yes."]


async def test_a_cancelled_turn_joins_with_the_text_that_had_arrived() -> None:
    provider = GatedProvider(WORDS, gate_after=2)
    async with Atlas(provider=provider) as app:
        talk = app.conversation()
        reply = talk.chat("Well?")
        await asyncio.wait_for(provider.at_gate.wait(), 5)
        await reply.cancel()

    assert [m.text for m in talk.messages] == ["Well?", "Events are "]


async def test_a_conversation_takes_one_question_at_a_time() -> None:
    provider = GatedProvider(WORDS, gate_after=1)
    async with Atlas(provider=provider) as app:
        talk = app.conversation()
        reply = talk.chat("First?")
        with pytest.raises(ConversationBusyError, match="First"):
            talk.chat("Second?")
        await reply.cancel()


async def test_whole_messages_can_be_said() -> None:
    provider = ListProvider([["ok"]])
    history = [
        ChatMessage("user", (TextPart("a"),)),
        ChatMessage("assistant", (TextPart("b"),)),
        ChatMessage("user", (TextPart("c"),)),
    ]
    async with Atlas(provider=provider) as app:
        reply = app.chat(history)
        await reply

    assert provider.requests[0].messages == tuple(history)
    assert reply.prompt == "c"


# -- the application ------------------------------------------------------------------------------


async def test_closing_the_application_cancels_what_is_unfinished() -> None:
    provider = GatedProvider(WORDS, gate_after=1)
    async with Atlas(provider=provider) as app:
        reply = app.chat("What?")
        await asyncio.wait_for(provider.at_gate.wait(), 5)
        assert app.replies == (reply,)

    assert (reply.status, provider.closed, app.replies) == ("cancelled", 1, ())
    assert app.bus.is_closed


async def test_closing_the_application_leaves_no_thread_on_a_loop_that_goes_on() -> None:
    before = set(threading.enumerate())
    async with Atlas(provider="scripted") as app:
        await app.chat("What?")

    assert set(threading.enumerate()) == before


def test_an_interrupted_application_waits_for_no_handler_that_waits_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, ended = asyncio.Event(), []

    async def ask_somebody(event: MessageAdded) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(event)

    async def program() -> None:
        async with Atlas(provider=ListProvider([])) as app:
            app.bus.subscribe(MessageAdded, ask_somebody)
            app.bus.publish(MessageAdded("talk", ChatMessage("user", (TextPart("May I?"),))))
            await begun.wait()
            this = asyncio.current_task()
            assert this is not None
            this.cancel()  # as an interrupt does
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        skipping_time(program())

    assert len(ended) == 1
    assert "Traceback" not in caplog.text


def test_nor_does_one_without_a_loop_of_the_callers_own() -> None:
    ended = []

    async def ask_somebody(event: MessageAdded) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(event)

    with pytest.raises(KeyboardInterrupt), Atlas(provider=ListProvider([])) as app:
        app.bus.subscribe(MessageAdded, ask_somebody)
        app.bus.publish(MessageAdded("talk", ChatMessage("user", (TextPart("May I?"),))))
        raise KeyboardInterrupt

    assert len(ended) == 1


async def test_a_given_bus_stays_open_and_a_given_provider_stays_with_its_owner() -> None:
    bus, provider = EventBus(), ListProvider([WORDS])
    async with Atlas(bus=bus, provider=provider) as app:
        await app.chat("What?")

    assert not bus.is_closed
    assert not provider.is_closed
    await bus.aclose()


async def test_parts_can_be_overridden_through_the_container() -> None:
    container = Container()
    container.identify.override(providers.Callable(iter(["talk", "reply"]).__next__))
    async with Atlas(provider=ListProvider([WORDS]), container=container) as app:
        reply = app.chat("What?")
        await reply

    assert (reply.conversation, reply.id) == ("talk", "reply")


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("clock", ManualClock),
        ("bus", 5),
        ("bus", EventBus),
        ("model_providers", {}),
        ("identify", 5),
        ("identify", lambda: "an id"),
    ],
)
def test_what_cannot_take_a_part_is_refused_before_it_is_used(part: str, other: object) -> None:
    container = Container()
    getattr(container, part).override(other)
    with pytest.raises(ConfigurationError, match=f"The container's {part} is .*Override it with"):
        Atlas(container=container)


def test_what_is_no_container_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="container is 5"):
        Atlas(container=5)  # type: ignore[arg-type]  # on purpose


async def test_an_application_that_does_not_run_says_so() -> None:
    app = Atlas(provider=ListProvider([WORDS]))
    with pytest.raises(AppNotRunningError, match="async with"):
        app.chat("What?")
    async with app:
        await app.chat("What?")
    with pytest.raises(AppNotRunningError):
        app.chat("What?")
    with pytest.raises(AppNotRunningError, match="make a new|Make a new"):
        await app.start()


async def test_a_call_from_another_thread_is_told_about_chat_sync() -> None:
    async with Atlas(provider=ListProvider([WORDS, WORDS])) as app:
        with pytest.raises(AppNotRunningError, match="chat_sync"):
            await asyncio.to_thread(app.chat, "What?")

        def in_thread() -> str:
            return "".join(app.chat_sync("What?"))

        assert await asyncio.to_thread(in_thread) == "Events are facts."


async def test_a_blocking_call_on_the_applications_own_loop_is_refused() -> None:
    async with Atlas(provider=ListProvider([WORDS])) as app:
        with pytest.raises(BlockingCallError, match="wait for ever"):
            app.chat_sync("What?")


@pytest.mark.parametrize("wrong", [object(), ListProvider, 3])
async def test_what_is_no_provider_is_refused_with_what_one_needs(wrong) -> None:
    with pytest.raises(
        ConfigurationError, match="Give a registered name, or an object with `name`"
    ):
        Atlas(provider=wrong)

    async with Atlas(provider=ListProvider([WORDS])) as app:
        with pytest.raises(ConfigurationError, match="Give a registered name"):
            app.chat("What?", provider=wrong)


async def test_an_unknown_provider_fails_at_the_start_with_the_known_names() -> None:
    with pytest.raises(UnknownProviderError, match=r"opnai.*nearest is 'openai'"):
        async with Atlas(provider="opnai"):
            pass


async def test_a_start_that_fails_leaves_nothing_on_a_given_bus_and_closes_its_own() -> None:
    bus = EventBus()
    before = bus.explain(StreamToken)
    given, own = Atlas(provider="opnai", bus=bus), Atlas(provider="opnai")
    for app in (given, own):
        with pytest.raises(UnknownProviderError):
            await app.start()

    assert str(bus.explain(StreamToken)) == str(before)
    assert (bus.is_closed, own.bus.is_closed) == (False, True)
    await bus.aclose()


@pytest.mark.parametrize(
    ("prompt", "options", "text"),
    [
        ("  ", {}, "prompt is empty"),
        ([], {}, "Give a text"),
        ("x", {"temprature": 1}, "no option 'temprature'; the nearest is 'temperature'"),
        ("x", {"max_tokens": 0}, "max_tokens"),
        ("x", {"max_tokens": "many"}, "max_tokens"),
        ("x", {"temperature": -1.0}, "temperature"),
        ("x", {"json_schema": "{"}, "json_schema"),
    ],
)
async def test_options_that_make_no_sense_are_refused(prompt, options, text) -> None:
    async with Atlas(provider=ListProvider([WORDS])) as app:
        with pytest.raises((ConfigurationError, ValueError), match=text):
            app.chat(prompt, **options)


async def test_fifty_replies_at_once_do_not_mix() -> None:
    async with Atlas(provider=ListProvider([[str(i), "-", str(i)] for i in range(50)])) as app:
        replies = [app.chat(f"{i}?") for i in range(50)]
        texts = [(await reply).text for reply in replies]

    assert texts == [f"{i}-{i}" for i in range(50)]


# -- without a loop -------------------------------------------------------------------------------


def test_a_plain_program_streams_converses_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with Atlas(provider=ListProvider([WORDS, ["Again."]])) as app:
        talk = app.conversation()
        reply = talk.chat_sync("What?")
        assert list(reply) == WORDS
        assert talk.chat_sync("And?").result().text == "Again."
        assert reply.finish_reason == "stop"
        assert [m.text for m in talk.messages] == ["What?", "Events are facts.", "And?", "Again."]

    assert threading.active_count() == before


def test_a_finished_reply_outlives_its_application() -> None:
    with Atlas(provider=ListProvider([WORDS])) as app:
        reply = app.chat_sync("What?")
        reply.result()

    assert reply.result().text == "".join(reply) == "Events are facts."
    reply.cancel()


def test_leaving_a_plain_loop_early_cancels_the_reply() -> None:
    provider = GatedProvider(WORDS, gate_after=1)
    with Atlas(provider=provider) as app:
        seen = []
        ended = threading.Event()
        app.bus.subscribe(StreamCancelled, lambda event: (seen.append(event), ended.set()))
        for _ in app.chat_sync("What?"):
            break

        assert ended.wait(5)
        assert provider.closed == 1


def test_a_plain_program_gets_the_error_of_the_reply() -> None:
    with Atlas(provider=ListProvider([[*WORDS, ServerError("no")]])) as app:
        got = []
        reply = app.chat_sync("What?")
        with pytest.raises(ServerError):
            for token in reply:
                got.append(token)

    assert got == WORDS


def test_a_plain_program_cancels_from_inside_the_loop() -> None:
    provider = GatedProvider(WORDS, gate_after=2)
    with Atlas(provider=provider) as app:
        reply = app.chat_sync("What?")
        got = []
        for token in reply:
            got.append(token)
            if len(got) == 2:
                reply.cancel()

    assert got == WORDS[:2]
    assert reply.status == "cancelled"
