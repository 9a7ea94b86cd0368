"""What a tree of tasks may use, and has used: reserved before each call, settled after it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from atlas.agents.messages import Limits, Spent
from atlas.agents.settings import check, is_number
from atlas.errors import LimitReachedError
from atlas.providers.messages import Completion

__all__ = ["Account", "Loops", "Price", "Reservation", "estimated_tokens"]

_ANSWER = 1_024
"""Tokens of an answer to reserve when the agent does not limit it."""

LONGEST_CIRCLE: Final = 8
"""How many things that come one after the other, again and again, are noticed as a circle."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, per million tokens, in any one currency."""

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            given = getattr(self, name)
            check(f"The price of {name}", given, is_number(given, 0), "a number, 0 or more")

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """Return what so many tokens cost."""
        return (input_tokens * self.input + output_tokens * self.output) / 1_000_000


FREE = Price()


def estimated_tokens(characters: int) -> int:
    """Return about how many tokens a text of so many characters has; rather too many."""
    return characters // 3 + 1


class Reservation:
    """What one model call may use; `Account.settle` replaces it by what it did use."""

    __slots__ = ("answer", "cost", "price", "prompt")

    def __init__(self, prompt: int, answer: int, price: Price) -> None:
        self.prompt: int = prompt
        self.answer: int = answer
        self.price: Price = price
        self.cost: float = price.of(prompt, answer)


class Account:
    """What a task and all below it used: each task has one, below that of the task it belongs to.

    An agent with limits of its own has one too, below that of the task; it bears the agent's name.
    Not thread-safe: the tasks of a tree run on one loop.
    """

    __slots__ = (
        "_parent",
        "_reserved_cost",
        "_reserved_tokens",
        "agent",
        "cost",
        "input_tokens",
        "limits",
        "output_tokens",
        "tool_calls",
        "turns",
    )

    def __init__(self, limits: Limits, parent: Account | None = None, agent: str = "") -> None:
        self.limits: Limits = limits
        self.agent: str = agent
        self.turns: int = 0
        self.tool_calls: int = 0
        self.input_tokens: int = 0
        self.output_tokens: int = 0
        self.cost: float = 0.0
        self._reserved_tokens = 0
        self._reserved_cost = 0.0
        self._parent = parent

    @property
    def spent(self) -> Spent:
        """What was used so far."""
        return Spent(self.turns, self.tool_calls, self.input_tokens, self.output_tokens, self.cost)

    def reserve(self, prompt: int, answer: int | None, price: Price) -> Reservation:
        """Set aside what a model call may use.

        Raises:
            LimitReachedError: It is not there any more.
        """
        wanted = Reservation(prompt, _ANSWER if answer is None else answer, price)
        account: Account | None = self
        while account is not None:
            account._check(wanted)
            account = account._parent
        account = self
        while account is not None:
            account.turns += 1
            account._reserved_tokens += wanted.prompt + wanted.answer
            account._reserved_cost += wanted.cost
            account = account._parent
        return wanted

    def _check(self, wanted: Reservation) -> None:
        limits = self.limits
        if limits.turns is not None and self.turns >= limits.turns:
            raise self._reached("turns", self.turns, limits.turns)
        tokens = self.input_tokens + self.output_tokens + self._reserved_tokens
        if limits.tokens is not None and tokens + wanted.prompt + wanted.answer > limits.tokens:
            raise self._reached("tokens", tokens, limits.tokens, wanted.prompt + wanted.answer)
        cost = self.cost + self._reserved_cost
        if limits.cost is not None and wanted.cost and cost + wanted.cost > limits.cost:
            raise self._reached("cost", cost, limits.cost, wanted.cost)

    def settle(self, reserved: Reservation, answer: Completion | None) -> None:
        """Count what a call used instead of what was reserved; None: it gave nothing."""
        read = written = 0
        if answer is not None:
            usage = answer.usage
            read = reserved.prompt if usage.input_tokens is None else usage.input_tokens
            written = (
                estimated_tokens(len(answer.text))
                if usage.output_tokens is None
                else usage.output_tokens
            )
        cost = reserved.price.of(read, written)
        account: Account | None = self
        while account is not None:
            account._reserved_tokens -= reserved.prompt + reserved.answer
            account._reserved_cost -= reserved.cost
            account.input_tokens += read
            account.output_tokens += written
            account.cost += cost
            account = account._parent

    def count_tool(self) -> None:
        """Count a tool call."""
        account: Account | None = self
        while account is not None:
            account.tool_calls += 1
            account = account._parent

    def check_depth(self, depth: int) -> None:
        """Refuse to delegate deeper than this account, or one above it, allows.

        Raises:
            LimitReachedError: It is too deep.
        """
        account: Account | None = self
        while account is not None:
            limit = account.limits.depth
            if limit is not None and depth > limit:
                raise account._reached("depth", depth - 1, limit)
            account = account._parent

    def _reached(
        self, name: str, used: float, limit: float, wanted: float | None = None
    ) -> LimitReachedError:
        more = "" if wanted is None else f", and the next call may need {wanted:,.6g}"
        whom = f"agent {self.agent!r}" if self.agent else "the task"
        return LimitReachedError(
            f"The limit of {name} is reached: {used:,.6g} of {limit:,.6g} are used{more}. Give {whom} "
            f"Limits({name}=...) if it needs more.",
            limit=name,
            agent=self.agent,
        )


class Loops:
    """Notices that the same thing comes again and again, or that a few go round in a circle."""

    __slots__ = ("_agent", "_latest", "_limits", "_matches")

    def __init__(self, limits: Limits, agent: str = "") -> None:
        self._limits = limits
        self._agent = agent
        self._latest: deque[tuple[str, ...]] = deque(maxlen=LONGEST_CIRCLE)
        # By the length of a circle: how many things in a row were what came so long before.
        self._matches: list[int] = []

    def note(self, kind: str, *what: str) -> None:
        """Take note of the next thing.

        Args:
            kind: What such things are called, in the plural; for the error.
            what: Its name, then what else tells it apart.

        Raises:
            LimitReachedError: It came too often, or is part of a circle that did.
        """
        latest = self._latest
        if what in latest:  # looked for in C: who makes progress pays for no more than this
            self._count(kind, what)
        elif self._matches:
            self._matches = []
        latest.appendleft(what)

    def _count(self, kind: str, what: tuple[str, ...]) -> None:
        latest = self._latest
        before = self._matches or [0] * LONGEST_CIRCLE
        self._matches = [
            count + 1 if what == other else 0 for count, other in zip(before, latest, strict=False)
        ] + before[len(latest) :]
        same = self._matches[0]
        repeats, rounds = self._limits.repeats, self._limits.alternations
        if repeats is not None and same >= repeats:
            raise LimitReachedError(
                f"{kind} repeat: {what[0]} came {same + 1} times in a row, so no progress is made. Change "
                f"the instructions, or give the task Limits(repeats=...).",
                limit="repeats",
                agent=self._agent,
            )
        if rounds is None:
            return
        for length, count in enumerate(self._matches[1:], 2):
            # Where all of a circle is one thing, that is for the limit of repeats.
            if count > length * (rounds - 1) and same < length - 1:
                circle = [latest[place][0] for place in reversed(range(length))]
                raise LimitReachedError(
                    f"{kind} go in a circle: {' → '.join([*circle, what[0]])}, {rounds} times, so no "
                    f"progress is made. Change the instructions, or give the task "
                    f"Limits(alternations=...).",
                    limit="alternations",
                    agent=self._agent,
                )
