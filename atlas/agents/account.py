"""What a tree of tasks may use, and has used: reserved before each call, settled after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from atlas.agents.messages import Limits, Spent
from atlas.errors import ConfigurationError, LimitReachedError
from atlas.providers.messages import Completion

__all__ = ["Account", "Loops", "Price", "Reservation", "estimated_tokens"]

_ANSWER = 1_024
"""Tokens of an answer to reserve when the agent does not limit it."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, per million tokens, in any one currency."""

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            given = getattr(self, name)
            if not isinstance(given, int | float) or not 0 <= given < math.inf:
                raise ConfigurationError(f"The price of {name} is {given!r}. Give 0 or more.")

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
    """Notices that the same thing comes again and again, or two things take turns."""

    __slots__ = ("_again", "_agent", "_before", "_last", "_limits", "_turns")

    def __init__(self, limits: Limits, agent: str = "") -> None:
        self._limits = limits
        self._agent = agent
        self._last: object = None
        self._before: object = None
        self._again = 0
        self._turns = 0

    def note(self, what: object, kind: str, name: str) -> None:
        """Take note of the next thing; its kind and name are for the error.

        Raises:
            LimitReachedError: It came too often.
        """
        if what == self._last:
            self._again += 1
            self._turns = 0
        else:
            self._turns = self._turns + 1 if what == self._before else 0
            self._again = 1
        self._before, self._last = self._last, what
        repeats, alternations = self._limits.repeats, self._limits.alternations
        if repeats is not None and self._again > repeats:
            raise LimitReachedError(
                f"{kind} {name!r} came {self._again} times in a row with the same result: no progress is "
                f"made. Change the instructions, or give the task Limits(repeats=...).",
                limit="repeats",
                agent=self._agent,
            )
        if alternations is not None and self._turns > 2 * alternations - 2:
            raise LimitReachedError(
                f"{kind} {name!r} and the one before it take turns for the {alternations}th time: no "
                f"progress is made. Change the instructions, or give Limits(alternations=...).",
                limit="alternations",
                agent=self._agent,
            )
