"""What an application does with runs: record, replay, fork, resume and compare them.

`atlas.app.Atlas` is a `Recorder`; what a run is, and how it is repeated, is said in `atlas.core.run_session`.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, cast

from typing_extensions import Unpack

from atlas.agents.approval import decision_on
from atlas.agents.messages import ApprovalAsked
from atlas.container import Container, new_id
from atlas.core.effect_layers import EffectCall, Layer
from atlas.core.effects import Decision, Effect, EffectNoted, InDoubt, Skip, perform
from atlas.core.event_bus import EventBus
from atlas.core.log.engine import Engine
from atlas.core.message_log import MessageLog
from atlas.core.messages import Message
from atlas.core.patches import plain
from atlas.core.programs import check_arguments, program_of
from atlas.core.redaction import Secrets
from atlas.core.run_session import RunSession, SessionOptions
from atlas.core.runs import Comparison, Run, Runs, RunStarted
from atlas.errors import ConfigurationError
from atlas.providers.chat_state import ChatState, transitions
from atlas.providers.recorded import MODEL_CALL
from atlas.typing import JSON

__all__ = ["Recorder"]

T = TypeVar("T")


class Recorder(ABC):
    """The part of an application that has to do with runs. It has a bus, and a log while it runs."""

    bus: EventBus
    container: Container
    secrets: Secrets
    questions: dict[str, Message]
    _engine: Engine | None
    _log: MessageLog | None
    _sessions: dict[str, RunSession]

    @abstractmethod
    def _running(self) -> object:
        """Refuse to do anything while the application is not running."""

    @abstractmethod
    def _refuse_other_loops(self, called: str, mend: str = "") -> None:
        """Refuse to do anything on another loop than the application's."""

    @abstractmethod
    async def stored_answer(self, approval: str) -> str | None:
        """Return what was decided on an approval, as JSON text, or None."""

    @abstractmethod
    def _refuse_unknown(self, provider: str) -> None:
        """Refuse the name of a provider that nobody registered."""

    def recording(
        self,
        name: str = "run",
        *,
        layers: Sequence[Layer] = (),
        strict: bool = False,
        is_durable: bool = True,
        program: str | None = None,
        arguments: Mapping[str, JSON] | None = None,
    ) -> RunSession:
        """Record a run: what is inside ``async with app.recording("name") as run:``.

        Every model call, every function marked ``@effect``, the clock, chance and timers, as seen
        by the code inside and by the tasks it makes, are kept in the log; `replaying` repeats them.

        Args:
            name: What to call it; the beginning of its id.
            layers: Around all its effects, the outermost first; see `atlas.core.effect_layers`.
            strict: Whether input that is not recorded (a socket, a thread, a task outside) ends the
                run, instead of a warning.
            is_durable: Whether the run waits at each effect until what was before is safely stored.
                Without, a crash may lose the last moments of it.
            program: ``module:function`` of what runs, for tools that run it again.
            arguments: What that is called with, by name.

        Raises:
            AppNotRunningError: The application is not running, or on another loop.
        """
        self._refuse_other_loops("recording")
        started = RunStarted(self._run_id(name), name, program=program, arguments=arguments or {})
        return self._session(
            started, mode="record", layers=layers, strict=strict, is_durable=is_durable
        )

    def replaying(
        self, run: str, *, pace: float | None = None, layers: Sequence[Layer] = ()
    ) -> RunSession:
        """Repeat a recorded run: no provider is called, no effect performed, no connection made.

        The code inside must be that which was recorded, with the same arguments.

        Args:
            run: Id of the run.
            pace: At the recorded pace times this; None: as fast as possible.
            layers: As for `recording`.

        Raises:
            UnknownRunError: The log has no such run.
            ReplayDiverged: From the body, or from leaving it: the program does something else.
        """
        self._refuse_other_loops("replaying")
        events = self.runs[run].held()
        started = RunStarted(f"{run}~{self.container.identify()}", self.runs[run].name, parent=run)
        return self._session(started, mode="replay", recorded=events, pace=pace, layers=layers)

    def forking(
        self,
        run: str,
        *,
        at: int,
        provider: str | None = None,
        model: str | None = None,
        name: str | None = None,
        layers: Sequence[Layer] = (),
        strict: bool = False,
        is_durable: bool = True,
        program: str | None = None,
        arguments: Mapping[str, JSON] | None = None,
    ) -> RunSession:
        """Repeat a run up to one of its events, then go on live, as a run of its own.

        Args:
            run: Id of the run.
            at: Number of the event; see `Run.events`. What the world gave up to there is repeated; 0
                repeats nothing. In the middle of a model's answer, the model is asked anew, the one
                given here if one is.
            provider: Whom to ask from there on, whatever the code says.
            model: Which model to ask from there on, whatever the code says.
            name: What to call the new run; default: as the one it is forked from.
            layers: As for `recording`.
            strict: As for `recording`.
            is_durable: As for `recording`.
            program: As for `recording`; default: that of the run.
            arguments: What ``program`` is called with.

        Raises:
            UnknownRunError: The log has no such run.
            UnknownVersionError: The run has no such event.
            UnknownNameError: No provider has this name.
        """
        self._refuse_other_loops("forking")
        parent = self.runs[run]
        called = name or parent.name
        if provider is not None:
            self._refuse_unknown(provider)  # before anything is repeated
        # An answer in the making is another one if another model is to give it.
        kept, last = parent.before_fork(at, anew=MODEL_CALL if provider or model else "")
        started = RunStarted(
            self._run_id(called), called, "fork", run, last, program, arguments or {}
        )
        assert self._log is not None
        self._log.begin(started.run, last)
        return self._session(
            started,
            mode="fork" if kept else "record",
            recorded=kept,
            instead=(provider, model),
            layers=layers,
            strict=strict,
            is_durable=is_durable,
        )

    def resume(
        self,
        run: str,
        *,
        in_doubt: InDoubt | Literal["ask"] = "raise",
        layers: Sequence[Layer] = (),
        strict: bool = False,
        is_durable: bool = True,
    ) -> RunSession:
        """Go on with a run whose process died: what finished is repeated, then it goes on live.

        Args:
            run: Id of the run.
            in_doubt: What to do about an external effect that was started, and of which nobody knows
                whether it happened: ``"raise"`` `InDoubtError`, ``"retry"``, `Skip` with what it
                is to have given, or an async function that is asked and returns one of these.
                ``"ask"`` asks a person, durably: the event ``approval.asked`` is kept with the run,
                which waits until `Atlas.approve` (or ``atlas agents approve``, in another process,
                before or after the next restart) says yes, which performs the effect again, or no,
                which skips it as if it had given None.
            layers: As for `recording`.
            strict: As for `recording`.
            is_durable: As for `recording`.

        Raises:
            UnknownRunError: The log has no such run.
            ConfigurationError: The run is going on in this process, or ended well.
        """
        self._refuse_other_loops("resume")
        stored = self.runs[run]
        if run in self._sessions or stored.status == "completed":
            state = "still going on" if run in self._sessions else "completed"
            raise _not_resumable(run, state)
        seen = len(stored)  # before it is read: who goes on with it meanwhile is found out
        return self._session(
            stored.started,
            mode="resume",
            seen=seen,
            recorded=stored.resumed(),
            in_doubt=partial(self._ask_a_person, stored) if in_doubt == "ask" else in_doubt,
            layers=layers,
            strict=strict,
            is_durable=is_durable,
        )

    async def _ask_a_person(self, run: Run[ChatState], call: EffectCall) -> Decision:
        """Ask about an effect that is in doubt, once for each time that it was performed."""
        before = await asyncio.to_thread(_decisions_on, call.id, run)
        approval = f"{call.run}/{call.id}" + (f"/{before + 1}" if before else "")
        asked = ApprovalAsked(approval, "", "", call.kind, call.request)
        self.questions[approval] = asked
        try:
            self.bus.publish(asked, run=call.run)
            assert self._log is not None
            await self._log.commit()  # so that other processes see at once what waits
            given = await decision_on(self.bus, self.stored_answer, approval)
        finally:
            self.questions.pop(approval, None)
        self.bus.publish(given, run=call.run)
        return "retry" if given.approved else Skip()

    async def record(
        self,
        program: Callable[..., Awaitable[T]],
        /,
        *,
        name: str | None = None,
        **arguments: JSON,
    ) -> tuple[RunSession, T]:
        """Record a run of ``program(app, **arguments)``, and which program and arguments these were.

        So `replay`, and the commands ``atlas replay`` and ``atlas fork``, can run it again.

        Args:
            program: An ``async def`` at the top of a module.
            name: What to call the run; default: the function's name.
            **arguments: For the program, in values that JSON has.

        Returns:
            The run and what the program returned.
        """
        check_arguments(program, arguments)
        called = name or str(getattr(program, "__name__", "run"))
        where = program_of(program)
        async with self.recording(called, program=where, arguments=arguments) as run:
            # as a replay gives them: read from the log
            result = await program(self, **cast("dict[str, Any]", plain(arguments)))
        return run, result

    async def replay(
        self, run: str, *, program: str | None = None, pace: float | None = None
    ) -> tuple[RunSession, Any]:
        """Repeat a run that `record` made, with the program and arguments it was made with.

        Args:
            run: Id of the run.
            program: Where its program is now: ``module:function`` or ``script.py:function``;
                default: where it was.
            pace: As for `replaying`.

        Returns:
            The run as it was repeated, and what the program returned.

        Raises:
            ConfigurationError: The program is not known, or not found.
            ReplayDiverged: It does something else than was recorded.
        """
        function, arguments = self.runs[run].program(program)
        async with self.replaying(run, pace=pace) as session:
            result = await function(self, **arguments)
        return session, result

    async def fork(
        self,
        run: str,
        *,
        at: int,
        provider: str | None = None,
        model: str | None = None,
        program: str | None = None,
        **arguments: JSON,
    ) -> tuple[RunSession, Any]:
        """Fork a run that `record` made, with its program; see `forking`.

        Args:
            run: Id of the run.
            at: Number of the event up to which it is repeated.
            provider: Whom to ask from there on.
            model: Which model to ask from there on.
            program: As for `replay`.
            **arguments: In place of those it was recorded with.

        Returns:
            The new run and what the program returned.
        """
        function, recorded = self.runs[run].program(program)
        given = {**recorded, **cast("dict[str, Any]", plain(arguments))}
        check_arguments(function, given)
        where = program or self.runs[run].origin.program
        async with self.forking(
            run, at=at, provider=provider, model=model, program=where, arguments=given
        ) as session:
            result = await function(self, **given)
        return session, result

    def _run_id(self, name: str) -> str:
        if not isinstance(name, str):
            raise ConfigurationError(f"The name of the run is {name!r}. Give a text.")
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('-') or 'run'}-{new_id()[:8]}"

    def _session(self, started: RunStarted, **options: Unpack[SessionOptions]) -> RunSession:
        assert self._log is not None
        options["secrets"] = self.secrets
        return RunSession(
            self.bus,
            self._log,
            started,
            on_begin=self._began,
            on_end=lambda ended: self._sessions.pop(ended.id, None),
            **options,
        )

    def _began(self, session: RunSession) -> None:
        if session.id in self._sessions:
            raise _not_resumable(session.id, "still going on")
        self._sessions[session.id] = session

    async def flush(self) -> None:
        """Wait until everything published so far is stored, as safely as the log promises.

        Inside a run it is a pure effect.

        Raises:
            AppNotRunningError: The application is not running.
            LogUnavailableError: It cannot be written now; it is kept, and tried again.
        """
        self._running()
        log = self._log
        assert log is not None

        async def stored() -> None:
            await log.commit()

        await perform(Effect("log.flush", declared="pure"), stored)

    @property
    def runs(self) -> Runs[ChatState]:
        """The runs in the log; their states are those of all replies, see `ChatState`.

        Raises:
            AppNotRunningError: The application is not running.
        """
        self._running()
        assert self._engine is not None
        return Runs(self._engine, transitions, ChatState())

    def compare(self, one: str, other: str) -> Comparison:
        """Return where two runs part, and what they did from there on."""
        return self.runs.compare(one, other)


def _not_resumable(run: str, state: str) -> ConfigurationError:
    return ConfigurationError(
        f"Run {run} is {state} and cannot be resumed. Use forking() to do it differently."
    )


def _decisions_on(effect: str, run: Run[ChatState]) -> int:
    """Return how often it was decided what to do about an effect that was in doubt. Blocks."""
    noted = (each for each in run.read() if isinstance(each, EffectNoted))
    return sum(each.effect == effect and each.what == "decision" for each in noted)
