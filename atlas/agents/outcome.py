"""What came of a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from atlas.agents.messages import Spent, Task, TaskStatus
from atlas.agents.settings import check
from atlas.errors import IllegalTransitionError, TaskFailedError
from atlas.typing import JSON

__all__ = ["Outcome", "checked_transition"]

End: TypeAlias = Literal["done", "failed", "expired"]

_NEXT: Final[dict[TaskStatus, frozenset[TaskStatus]]] = {
    "queued": frozenset({"accepted", "waiting", "failed", "cancelled", "expired"}),
    "accepted": frozenset({"running", "waiting", "done", "failed", "cancelled", "expired"}),
    "running": frozenset({"accepted", "waiting", "done", "failed", "cancelled", "expired"}),
    "waiting": frozenset({"accepted", "running", "done", "failed", "cancelled", "expired"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "expired": frozenset(),
}


def checked_transition(before: TaskStatus, after: TaskStatus) -> TaskStatus:
    """Return the status after a step, if a task may take it.

    Raises:
        IllegalTransitionError: It may not: an ended task stays as it is.
    """
    check("before", before, before in _NEXT, f"one of {', '.join(_NEXT)}")
    check("after", after, after in _NEXT, f"one of {', '.join(_NEXT)}")
    if after not in _NEXT[before]:
        raise IllegalTransitionError(
            f"A task that is {before} cannot become {after}; it may become "
            f"{', '.join(sorted(_NEXT[before])) or 'nothing else'}.",
            before=before,
            after=after,
        )
    return after


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        task: The task, with its id.
        status: ``"done"``, ``"failed"`` or ``"expired"``. One that is cancelled raises in its caller.
        agent: Who did it, or tried last; "" for nobody.
        answer: The answer: text, or the fields of the agent's `output`. None if it was not done.
        error: What went wrong.
        spent: What it used, with all that it delegated.
        make: Makes the agent's `output` of the answer.
    """

    task: Task
    status: End
    agent: str
    answer: JSON = None
    error: Exception | None = None
    spent: Spent = field(default_factory=Spent)
    # Any: whatever the agent's output is
    make: Callable[[JSON], Any] | None = None

    @property
    def is_done(self) -> bool:
        """Whether it was done."""
        return self.status == "done"

    @property
    def text(self) -> str:
        """The answer as text.

        Raises:
            TaskFailedError: There is none.
        """
        answer = self._checked()
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)

    @property
    # Any: whatever the agent's output is
    def output(self) -> Any:
        """The answer as the agent's `output`; text, if it has none.

        Raises:
            TaskFailedError: There is none.
        """
        answer = self._checked()
        return answer if self.make is None else self.make(answer)

    def _checked(self) -> JSON:
        if self.status != "done":
            kind = type(self.error).__name__ if self.error is not None else ""
            raise TaskFailedError(
                f"Task {self.task.id} ({self.task.text!r:.80}) is {self.status}, so it has no answer: "
                f"{self.error}",
                task=self.task.id,
                kind=kind,
            ) from self.error
        return self.answer
