"""Where in a run code runs, how it is told apart from other code, and who decides about the run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from atlas.core.inner_loop.loop import InnerLoop

__all__ = ["HERE", "Delivered", "Delivery", "Place", "Supervisor", "here", "outside_context"]

Delivered: TypeAlias = Literal["value", "error", "chunk", "end", "timer", "cancel"]
"""What comes into a run from outside."""


class Place:
    """Where in a run code runs: its task's path, and what that task has counted so far.

    Attributes:
        inner: The run's loop.
        path: The task's path, such as ``"0.1"``.
        effects: How many effects it has begun.
        children: How many tasks it has made.
    """

    __slots__ = ("children", "effects", "inner", "path")

    def __init__(self, inner: InnerLoop, path: str) -> None:
        self.inner: InnerLoop = inner
        self.path: str = path
        self.effects: int = 0
        self.children: int = 0

    def next_effect(self) -> str:
        """Return the id of the effect that begins now: the path and a number, ``"0.1:0"``."""
        number = self.effects
        self.effects = number + 1
        return f"{self.path}:{number}"

    def child(self) -> Place:
        """Return the place of a task made here now."""
        number = self.children
        self.children = number + 1
        return Place(self.inner, f"{self.path}.{number}")


HERE: ContextVar[Place | None] = ContextVar("atlas_run", default=None)
"""Where in a run the current code runs; None outside of every run."""

_here = HERE.get


def here() -> Place | None:
    """Return where in a run the caller is, or None if it is in none, or the run is over."""
    place = _here()
    return None if place is None or place.inner.closed else place


def outside_context() -> Context:
    """Return a copy of the current context that is in no run."""
    context = copy_context()
    if _here() is not None:
        context.run(HERE.set, None)
    return context


class Delivery:
    """Something that comes into a run from outside. Subclasses say what happens then.

    Attributes:
        effect: Whose it is: the id of an effect, or the path of a task.
        what: What it is.
        value: Its JSON text; "" for none.
        durable: Whether what is written of it must be safe before it is handed in.
    """

    __slots__ = ("durable", "effect", "value", "what")

    def __init__(
        self, effect: str, what: Delivered, value: str = "", *, durable: bool = False
    ) -> None:
        self.effect: str = effect
        self.what: Delivered = what
        self.value: str = value
        self.durable: bool = durable

    @property
    def is_stale(self) -> bool:
        """Whether nobody waits for it any more."""
        return False

    def hand_in(self) -> None:
        """Let the run have it. Called when the run is quiet; what it schedules runs next."""


class Supervisor(Protocol):
    """Who decides what a run gets to see, and when. All of it in the loop's thread."""

    @property
    def is_live(self) -> bool:
        """Whether the world outside is real; else everything comes from a recording."""
        ...

    def admit(self, delivery: Delivery) -> Awaitable[object] | None:
        """Write down that a delivery is handed in next; what is returned is awaited before."""
        ...

    def dropped(self, delivery: Delivery) -> None:
        """Note that an admitted delivery was wanted no more when its turn came."""
        ...

    def undeclared(self, what: str, place: str, mend: str) -> None:
        """Take note that something got in (or out) that is no delivery. ``place`` is for people."""
        ...

    def interrupted(self, inner: InnerLoop) -> None:
        """Take note that the run's main task was cancelled from outside; what it does comes next."""
        ...

    def failed(self, error: Exception) -> None:
        """Take note that a delivery could not be made safe, and is not handed in."""
        ...

    def quiet(self) -> None:
        """Take note that nothing is left to run, and nothing to hand in."""
        ...

    # Any: whatever comes of it, as it is or as it was recorded
    def wait_outside(
        self,
        place: Place,
        kind: str,
        work: Callable[[], Awaitable[Any]],
        *,
        nothing: object = None,
        is_over: bool = False,
    ) -> Awaitable[Any]:
        """Have something awaited outside of the run, as an effect of it.

        ``nothing`` is what comes of it if that was known at once (``is_over``) and is nothing
        special; then it is not written down.
        """
        ...

    # Any: the value that was read
    def read(self, place: Place, kind: str, produce: Callable[[Any], Any]) -> Any:
        """Look at something outside of the run at once, as an effect of it."""
        ...
