"""TemporalStore against a plain model: whatever is done to it, it shows what lists would."""

import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from atlas.core.log.memory import MemoryEngine
from atlas.core.patches import apply_patch
from atlas.core.temporal_store import SnapshotPolicy, TemporalStore, Timeline
from atlas.errors import ConfigurationError, ErasedError, UnknownVersionError, VersionConflictError


class SteppingClock:
    """A clock on the wall that may be set back."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * 10**9

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return 0.0


@dataclass
class Own:
    """What was appended to one timeline itself.

    Attributes:
        batches: Last versions of its records, in order.
        bases: Versions whose states were kept when events were erased.
    """

    parent: str | None
    start: int
    events: list[int] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    erased: int = 0
    bases: list[int] = field(default_factory=list)


def transition(state: dict[str, int], event: int) -> dict[str, int]:
    # Not commutative, so that a wrong order shows.
    return {"count": state["count"] + 1, "hash": (state["hash"] * 31 + event) % 1_000_003}


NAMES = [f"timeline-{letter}" for letter in "abcdef"]
versions = st.integers(min_value=0, max_value=10**6)
"""Taken modulo what there is, and sometimes one beyond."""


class Laws(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.files = 0
        self.engines: dict[int, MemoryEngine] = {}
        self.clock = SteppingClock()
        self.model: dict[str, Own] = {}
        self.store: TemporalStore | None = None

    @initialize()
    def begin(self) -> None:
        self.model = {NAMES[0]: Own(None, 0)}
        self.reopen()

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)

    def open(self) -> TemporalStore:
        """Open the log again; of each number there is one."""
        if self.files not in self.engines:
            self.engines[self.files] = MemoryEngine(clock=self.clock)
        return TemporalStore(self.engines[self.files], clock=self.clock)

    # -- the model --

    def lineage(self, name: str) -> list[tuple[str, int]]:
        """Return each timeline that events come from, and the last version that does."""
        own = self.model[name]
        end = own.start + len(own.events)
        found = [(name, end)]
        while own.parent is not None:
            found.append((own.parent, own.start))
            own = self.model[own.parent]
        return found[::-1]

    def entries(self, name: str) -> list[tuple[int, datetime]]:
        found: list[tuple[int, datetime]] = []
        for source, end in self.lineage(name):
            own = self.model[source]
            both = list(zip(own.events, own.times, strict=True))
            found += both[: end - own.start]
        return found

    def state(self, name: str, version: int) -> dict[str, int]:
        state = {"count": 0, "hash": 0}
        for event, _ in self.entries(name)[:version]:
            state = transition(state, event)
        return state

    def is_readable(self, name: str, version: int) -> bool:
        """Whether no event after the best base state up to a version was erased."""
        base = 0
        for source, end in self.lineage(name):
            base = max([base, *(b for b in self.model[source].bases if b <= min(version, end))])
        for source, end in self.lineage(name):
            own = self.model[source]
            if own.erased > max(base, own.start) and version > max(base, own.start) and end > base:
                return False
        return True

    def timeline(self, name: str) -> Timeline[dict[str, int]]:
        assert self.store is not None
        return self.store.timeline(
            name,
            transition,
            initial={"count": 0, "hash": 0},
            snapshot=SnapshotPolicy(events=5, share=0),
        )

    # -- what is done --

    @rule(
        name=st.sampled_from(NAMES[:3]), events=st.lists(st.integers(0, 99), min_size=1, max_size=6)
    )
    def append(self, name: str, events: list[int]) -> None:
        own = self.model.setdefault(name, Own(None, 0))
        before = own.start + len(own.events)

        last = self.timeline(name).append(*events).wait()

        assert last == before + len(events)
        self.stored(name, events, [last])

    @rule(name=st.sampled_from(NAMES), events=st.lists(st.integers(0, 99), min_size=1, max_size=6))
    def append_at_the_version_known(self, name: str, events: list[int]) -> None:
        own = self.model.setdefault(name, Own(None, 0))
        before = own.start + len(own.events)

        last = self.timeline(name).append(*events, expected_version=before).wait()

        assert last == before + len(events)
        self.stored(name, events, [last])

    def stored(self, name: str, events: list[int], batches: list[int]) -> None:
        own = self.model[name]
        after = own.start + len(own.events)
        own.events += events
        own.batches += batches
        own.times += [entry.time for entry in self.timeline(name).events(after=after)]
        assert len(own.times) == len(own.events)

    @rule(name=st.sampled_from(NAMES), off=st.integers(1, 9), ahead=st.booleans())
    def append_at_another_version(self, name: str, off: int, *, ahead: bool) -> None:
        own = self.model.setdefault(name, Own(None, 0))
        actual = own.start + len(own.events)
        expected = actual + off if ahead else max(actual - off, 0)
        if expected == actual:
            return
        with pytest.raises(VersionConflictError) as caught:
            self.timeline(name).append(1, 2, expected_version=expected).wait()

        assert (caught.value.expected, caught.value.actual) == (expected, actual)

    @rule(source=versions, name=st.sampled_from(NAMES), version=versions, free=st.booleans())
    def fork(self, source: int, name: str, version: int, *, free: bool) -> None:
        with_events = [each for each in self.model if self.entries(each)]
        unused = [each for each in NAMES if each not in self.model]
        if not with_events:
            return
        self.fork_of(
            with_events[source % len(with_events)], unused[0] if free and unused else name, version
        )

    def fork_of(self, source: str, name: str, version: int) -> None:
        last = len(self.entries(source))
        version %= last + 2
        taken = self.model.get(name)
        if version > last:
            with pytest.raises(UnknownVersionError):
                self.timeline(source).fork(name, at=version)
            return
        if taken is not None and (taken.events or taken.parent):
            with pytest.raises(VersionConflictError):
                self.timeline(source).fork(name, at=version)
            return
        if name == source or version == 0:
            return

        made = self.timeline(source).fork(name, at=version)

        # What the parent itself shares is shared with where it comes from.
        owner = next(n for n, end in self.lineage(source) if version <= end)
        assert made.forked_from == (owner, version)
        labels = taken.labels if taken else {}
        self.model[name] = Own(owner, version, labels=labels)

    @rule(name=st.sampled_from(NAMES), label=st.sampled_from("xyz"), version=versions)
    def label(self, name: str, label: str, version: int) -> None:
        if name not in self.model:
            return
        version %= len(self.entries(name)) + 1
        self.timeline(name).label(label, at=version).wait()
        self.model[name].labels[label] = version

    @rule(name=st.sampled_from(NAMES), version=versions, rounded=st.booleans())
    def erase(self, name: str, version: int, *, rounded: bool) -> None:
        own = self.model.get(name)
        if own is None or not own.events:
            return
        version = 1 + version % (own.start + len(own.events))
        if rounded and version not in own.batches:
            version = min(own.batches, key=lambda last: abs(last - version))
        if version <= own.start or version not in own.batches:
            with pytest.raises(ConfigurationError):
                self.timeline(name).erase(version)
            return
        forks = [o.start for o in self.model.values() if o.parent == name and o.start < version]
        kept = max(own.bases, default=0)
        needed = {at for at in [*forks, version] if at > max(kept, own.start)}
        if not all(self.is_readable(name, at) for at in needed):
            with pytest.raises(ErasedError):
                self.timeline(name).erase(version)
            return
        self.timeline(name).erase(version)
        own.erased = max(own.erased, version)
        own.bases += needed

    @rule(steps=st.integers(-3600, 3600))
    def step_the_clock(self, steps: int) -> None:
        self.clock.now_ns += steps * 10**9

    @rule()
    def reopen(self) -> None:
        if self.store is not None:
            self.store.close()
        self.store = self.open()

    @rule()
    def export_and_import(self) -> None:
        assert self.store is not None
        file, again = self.folder / "one.jsonl", self.folder / "two.jsonl"
        exported = self.store.export(file)
        self.files += 1
        self.reopen()

        imported = self.store.import_(file)

        assert imported == exported
        assert self.store.export(again) == exported
        assert again.read_bytes() == file.read_bytes()

    # -- what must hold --

    @rule(name=st.sampled_from(NAMES), version=versions)
    def the_state_at_a_version(self, name: str, version: int) -> None:
        if name not in self.model:
            return
        version %= len(self.entries(name)) + 2
        if version > len(self.entries(name)):
            # Whether it is missing or also needs what was erased: it cannot be read.
            with pytest.raises((UnknownVersionError, ErasedError)):
                self.timeline(name).at(version)
        elif self.is_readable(name, version):
            assert self.timeline(name).at(version) == self.state(name, version)
        else:
            with pytest.raises(ErasedError):
                self.snapshotless(name).at(version)

    def snapshotless(self, name: str) -> Timeline[dict[str, int]]:
        assert self.store is not None
        return self.store.timeline(name, transition, initial={"count": 0, "hash": 0}, snapshot=None)

    @rule(name=st.sampled_from(NAMES), which=versions, off=st.integers(-2, 2))
    def the_version_as_of_a_time(self, name: str, which: int, off: int) -> None:
        if name not in self.model:
            return
        entries = self.entries(name)
        if not entries:
            return
        time = entries[which % len(entries)][1] + timedelta(microseconds=off)
        expected = sum(1 for _, appended in entries if appended <= time)
        assert self.timeline(name).version_at(time=time) == expected

    @rule(name=st.sampled_from(NAMES), one=versions, other=versions)
    def the_difference(self, name: str, one: int, other: int) -> None:
        if name not in self.model:
            return
        one, other = (each % (len(self.entries(name)) + 1) for each in (one, other))
        if self.is_readable(name, one) and self.is_readable(name, other):
            patch = self.timeline(name).diff(one, other)
            assert apply_patch(self.state(name, one), patch) == self.state(name, other)

    @rule(name=st.sampled_from(NAMES), after=versions, until=versions)
    def the_events(self, name: str, after: int, until: int) -> None:
        if name not in self.model or any(self.model[n].erased for n, _ in self.lineage(name)):
            return
        after, until = (each % (len(self.entries(name)) + 2) for each in (after, until))
        found = self.timeline(name).events(after=after, until=until)
        expected = self.entries(name)[after:until]
        assert [(entry.event, entry.time) for entry in found] == expected
        assert [entry.version for entry in found] == [after + 1 + i for i in range(len(expected))]

    @invariant()
    def heads_and_labels(self) -> None:
        if self.store is None:
            return
        for name in self.model:
            timeline = self.timeline(name)
            last = len(self.entries(name))
            assert timeline.version == last
            labels: dict[str, int] = {}
            for source, end in self.lineage(name):
                at = self.model[source].labels
                labels |= {k: v for k, v in at.items() if source == name or v <= end}
            assert timeline.labels == labels
            if self.is_readable(name, last):
                assert timeline.now() == self.state(name, last)
        assert self.store.timelines() == [
            name for name in self.store.timelines() if name in self.model
        ]

    @rule()
    def the_log_verifies(self) -> None:
        assert self.store is not None
        assert self.store.verify().ok


class FileLaws(Laws):
    """The same in files."""

    def open(self) -> TemporalStore:
        path = self.folder / f"{self.files}.db"
        return TemporalStore(path, durability="lazy", clock=self.clock)


def checked(machine: type[Laws], examples: int) -> type:
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    return case


TestLaws = checked(Laws, 60)
TestFileLaws = checked(FileLaws, 5)
