"""Which events are kept, and for how long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Any: timelines of whatever states.
from typing import Any

from atlas.core.temporal.events import is_erased
from atlas.core.temporal.timeline import Timeline
from atlas.errors import ConfigurationError

__all__ = ["Erasure", "Retention", "planned"]

_DAY_NS = 24 * 3600 * 10**9
_LONGEST_NS = 2**63


@dataclass(frozen=True, slots=True)
class Erasure:
    """What is to be erased of one timeline.

    Attributes:
        timeline: The timeline.
        after: The version before the first that is to go.
        until: The last version that is to go.
    """

    timeline: Timeline[Any]
    after: int
    until: int


@dataclass(frozen=True, slots=True)
class Retention:
    """A plan made by `TemporalStore.keep`; nothing is erased until `apply` is called.

    Attributes:
        erasures: What is to be erased.
        base: Whether base states are kept first.
    """

    erasures: tuple[Erasure, ...]
    base: bool

    @property
    def events(self) -> int:
        """How many events are to go."""
        return sum(erasure.until - erasure.after for erasure in self.erasures)

    def apply(self) -> int:
        """Erase it all; return how many records that were. Blocks; errors as of `Timeline.erase`."""
        return sum(
            erasure.timeline.erase(erasure.until, base=self.base) for erasure in self.erasures
        )


def planned(
    timelines: Iterable[Timeline[Any]],
    *,
    days: float | None,
    last: int | None,
    label: str | None,
    base: bool,
    now_ns: int,
) -> Retention:
    """Return what is to be erased so that what any of the rules keeps is kept."""
    if days is None and last is None and label is None:
        raise ConfigurationError(
            "No rule says what to keep; give `days=`, `last=` or `label=`, or several of them."
        )
    _check_rules(days, last, label)
    erasures = []
    for timeline in timelines:
        versions = []
        if days is not None:
            versions.append(
                timeline._history.version_at(now_ns - int(min(days * _DAY_NS, _LONGEST_NS)))
            )
        if last is not None:
            versions.append(timeline.version - last)
        if label is not None:
            versions.append(timeline.labels.get(label, 1) - 1)
        until = timeline.last_erasable(min(versions))
        after = _first_kept(timeline, until)
        if until > after:
            erasures.append(Erasure(timeline, after, until))
    return Retention(tuple(erasures), base)


def _check_rules(days: object, last: object, label: object) -> None:
    if days is not None and not (isinstance(days, (int, float)) and days >= 0):
        raise ConfigurationError(f"days is {days!r}; give a number of days from 0.")
    if last is not None and not (type(last) is int and last >= 0):
        raise ConfigurationError(f"last is {last!r}; give a number of events, an int from 0.")
    if label is not None and not (isinstance(label, str) and label):
        raise ConfigurationError(f"{label!r} is no label; give the text of one.")


def _first_kept(timeline: Timeline[Any], until: int) -> int:
    """Return the version before the first whose event is still there."""
    version = timeline._history.start
    for record, _ in timeline._history.records(version, until):
        if not is_erased(record):
            break
        version = record.version
    return version
