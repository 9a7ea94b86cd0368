"""eventsourcing over a log of Atlas: the library's own cases, on every engine, and what is ours."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from eventsourcing import persistence
from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.tests import application as application_cases
from eventsourcing.tests import persistence as cases
from eventsourcing.tests import projection as projection_cases
from eventsourcing.utils import Environment, get_topic

from atlas.core.log.controller import LOGS
from atlas.core.log.engine import Engine
from atlas.core.log.recorders import (
    AggregateRecorder,
    ApplicationRecorder,
    Factory,
    Namespace,
    ProcessRecorder,
    SnapshotRecorder,
    TrackingRecorder,
)
from atlas.core.log.records import NewRecord
from atlas.errors import ConfigurationError

KINDS = ("memory", "sqlite", "postgresql")


def new_address(kind: str, request: pytest.FixtureRequest) -> str:
    """Return the address of an empty log."""
    if kind == "memory":
        return ":memory:"
    if kind == "sqlite":
        return str(request.getfixturevalue("tmp_path") / "log.db")
    return str(request.getfixturevalue("postgres_server").new_log())


# -- the library's own cases --


class OverALog:
    """Gives a case of the library an empty log; `on_every_engine` says of which kind."""

    __test__ = False
    kind: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _log(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        address = new_address(self.kind, request)
        monkeypatch.setenv("PERSISTENCE_MODULE", "atlas.core.log.recorders")
        monkeypatch.setenv("ATLAS_LOG", address)
        self.engine = LOGS.open_log(address)
        yield
        # Some cases leave their applications open, in cycles. They are closed when these are collected:
        # here, and not in whichever test comes then, without the log or its server.
        gc.collect()
        LOGS.close_log(self.engine)


def on_every_engine(case: type[Any]) -> type[Any]:
    """Make three tests of a case."""
    for kind in KINDS:
        name = f"Test{case.__name__}On{kind.title()}"
        globals()[name] = type(
            name, (case,), {"kind": kind, "__test__": True, "__module__": __name__}
        )
    return case


@on_every_engine
class Aggregates(OverALog, cases.AggregateRecorderTestCase):
    def create_recorder(self) -> AggregateRecorder:
        return AggregateRecorder(self.engine)


@on_every_engine
class Snapshots(OverALog, cases.AggregateRecorderTestCase):
    def create_recorder(self) -> SnapshotRecorder:
        return SnapshotRecorder(self.engine)


@on_every_engine
class Applications(OverALog, cases.ApplicationRecorderTestCase[ApplicationRecorder]):
    def create_recorder(self) -> ApplicationRecorder:
        return ApplicationRecorder(self.engine)

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestApplicationsWithTextIds(Applications):
    __test__ = True
    kind = "memory"
    INITIAL_VERSION = 0

    def create_recorder(self) -> ApplicationRecorder:
        return ApplicationRecorder(self.engine, Namespace("app", text_ids=True))

    def new_originator_id(self) -> str:
        return str(uuid4())


@on_every_engine
class NonInterleaving(OverALog, cases.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> ApplicationRecorder:
        return ApplicationRecorder(self.engine)


@on_every_engine
class Trackings(OverALog, cases.TrackingRecorderTestCase):
    def create_recorder(self) -> TrackingRecorder:
        return TrackingRecorder(self.engine)


@on_every_engine
class Processes(OverALog, cases.ProcessRecorderTestCase):
    def create_recorder(self) -> ProcessRecorder:
        return ProcessRecorder(self.engine)


@on_every_engine
class TrackingsOfProcesses(OverALog, cases.TrackingRecorderTestCase):
    def create_recorder(self) -> ProcessRecorder:
        return ProcessRecorder(self.engine)


class OwnTracking(TrackingRecorder):
    """A recorder that a user derived."""


@on_every_engine
class Factories(OverALog, cases.InfrastructureFactoryTestCase[Factory]):
    def setUp(self) -> None:
        self.env = Environment("App", dict(os.environ))
        super().setUp()

    def expected_factory_class(self) -> type[Factory]:
        return Factory

    def expected_aggregate_recorder_class(self) -> type[AggregateRecorder]:
        return AggregateRecorder

    def expected_application_recorder_class(self) -> type[ApplicationRecorder]:
        return ApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[TrackingRecorder]:
        return TrackingRecorder

    def tracking_recorder_subclass(self) -> type[TrackingRecorder]:
        return OwnTracking

    def expected_process_recorder_class(self) -> type[ProcessRecorder]:
        return ProcessRecorder


@on_every_engine
class ExampleApplications(OverALog, application_cases.ExampleApplicationTestCase):
    expected_factory_topic = "atlas.core.log.recorders:Factory"


@on_every_engine
# One of them looks at a warning that it records, which must not be an error here.
@pytest.mark.filterwarnings("always:'log' is deprecated")
class AnyApplications(OverALog, application_cases.ApplicationTestCase):
    pass


class Counters(TrackingRecorder, projection_cases.EventCountersView):
    """A view that keeps its own facts, in the same transaction as the tracking."""

    def _stream(self, name: str) -> str:
        return self.namespace.prefix("counters") + name

    def _count(self, name: str) -> int:
        return self.engine.head(self._stream(name)) or 0

    def _increment(self, name: str, tracking: Tracking) -> None:
        self.append([NewRecord(self._stream(name), "counted", b"")], tracking)

    def get_created_event_counter(self) -> int:
        return self._count("created")

    def get_subsequent_event_counter(self) -> int:
        return self._count("subsequent")

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        self._increment("created", tracking)

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        self._increment("subsequent", tracking)


@on_every_engine
class Views(OverALog, projection_cases.EventCountersViewTestCase):
    def construct_event_counters_view(self) -> Counters:
        return Counters(self.engine)


@on_every_engine
class Projections(OverALog, projection_cases.AggregateEventCountersProjectionTestCase):
    view_class = Counters


@on_every_engine
class EventSourcedProjections(OverALog, projection_cases.EventSourcedProjectionTestCase):
    pass


# -- what is ours --


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An empty log of each kind."""
    log = LOGS.open_log(new_address(request.param, request))
    yield log
    LOGS.close_log(log)


class Dog(Aggregate):
    @event("Registered")
    def __init__(self, name: str) -> None:
        self.name = name
        self.tricks: list[str] = []

    @event("TrickAdded")
    def add_trick(self, trick: str) -> None:
        self.tricks.append(trick)


class Kennel(Application[UUID]):
    is_snapshotting_enabled = True

    def register(self, name: str) -> UUID:
        dog = Dog(name)
        self.save(dog)
        return dog.id

    def teach(self, dog_id: UUID, trick: str) -> None:
        dog: Dog = self.repository.get(dog_id)
        dog.add_trick(trick)
        self.save(dog)


def stored(originator_id: UUID | str, version: int, topic: str = "topic") -> StoredEvent:
    return StoredEvent(originator_id, version, topic, b"state")


@pytest.fixture(params=["sqlite", "postgresql"])
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of an application over a log that other processes can open."""
    return {
        "PERSISTENCE_MODULE": "atlas.core.log.recorders",
        "ATLAS_LOG": new_address(request.param, request),
    }


FOLLOWER = """
import sys
from uuid import UUID
from eventsourcing.application import Application

class Kennel(Application[UUID]):
    pass

kennel = Kennel()
with kennel.recorder.subscribe() as subscription:
    print("ready", flush=True)
    for notification in subscription:
        print(notification.id, notification.topic.rpartition(":")[2], flush=True)
        if notification.id == int(sys.argv[1]):
            break
"""


def test_a_second_process_follows_an_application_live(env: dict[str, str]) -> None:
    kennel = Kennel(env)
    dog_id = kennel.register("Fido")
    follower = subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, "3"], env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert follower.stdout is not None
        before = [follower.stdout.readline().strip() for _ in range(2)]
        kennel.teach(dog_id, "roll over")
        kennel.teach(dog_id, "fetch")
        # It ends although it leaves its application open.
        lines, _ = follower.communicate(timeout=30)
    finally:
        follower.kill()
        follower.communicate()
    kennel.close()

    assert before == ["ready", "1 Dog.Registered"]
    assert lines.split("\n") == ["2 Dog.TrickAdded", "3 Dog.TrickAdded", ""]
    assert follower.returncode == 0


def test_an_application_opened_again_has_its_aggregates_and_the_chain_verifies(
    env: dict[str, str],
) -> None:
    kennel = Kennel(env)
    dog_id = kennel.register("Fido")
    kennel.teach(dog_id, "roll over")
    kennel.take_snapshot(dog_id)
    kennel.teach(dog_id, "fetch")
    kennel.close()

    again = Kennel(env)
    dog: Dog = again.repository.get(dog_id)
    engine = again.factory.application_recorder().engine  # type: ignore[attr-defined]

    assert (dog.name, dog.tricks, dog.version) == ("Fido", ["roll over", "fetch"], 3)
    assert engine.streams() == [f"eventsourcing/Kennel/events/{dog_id}"]
    assert engine.verify().ok
    again.close()


def test_applications_that_share_a_log_see_their_own_events_only(engine: Engine) -> None:
    bank = ApplicationRecorder(engine, Namespace("Bank"))
    shop = ApplicationRecorder(engine, Namespace("Bank/Shop"))
    one, two = uuid4(), uuid4()
    bank.insert_events([stored(one, 1)])
    shop.insert_events([stored(one, 1), stored(two, 1)])
    engine.append([NewRecord("runs/1", "page", b"")]).wait()
    bank.insert_events([stored(one, 2)])

    assert [n.id for n in bank.select_notifications(None, 10)] == [1, 5]
    assert [n.id for n in shop.select_notifications(None, 10)] == [2, 3]
    assert (bank.max_notification_id(), shop.max_notification_id()) == (5, 3)
    assert [n.id for n in bank.select_notifications(2, 1)] == [5]


def test_an_application_tracks_others_under_its_own_name(engine: Engine) -> None:
    one = TrackingRecorder(engine, Namespace("One"))
    two = TrackingRecorder(engine, Namespace("Two"))
    one.insert_tracking(Tracking("Upstream", 7))

    assert one.max_tracking_id("Upstream") == 7
    assert two.max_tracking_id("Upstream") is None


def test_a_tracking_that_was_stored_keeps_the_events_out(engine: Engine) -> None:
    recorder = ProcessRecorder(engine)
    recorder.insert_events([stored("a", 1)], tracking=Tracking("Upstream", 7))
    with pytest.raises(persistence.IntegrityError):
        recorder.insert_events([stored("a", 2)], tracking=Tracking("Upstream", 7))

    assert len(recorder.select_events("a")) == 1


def test_a_subscription_is_stopped_while_it_waits(engine: Engine) -> None:
    recorder = ApplicationRecorder(engine)
    recorder.insert_events([stored("a", 1)])
    subscription = recorder.subscribe()
    seen: list[int] = []
    first = threading.Event()

    def follow() -> None:
        for notification in subscription:
            seen.append(notification.id)
            first.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert first.wait(10)
    subscription.stop()
    thread.join(10)

    assert not thread.is_alive()
    assert seen == [1]


def test_a_subscription_passes_over_many_records_of_others(engine: Engine) -> None:
    recorder = ApplicationRecorder(engine, Namespace("App"))
    engine.append([NewRecord("runs/1", "page", b"")] * 1200).wait()
    recorder.insert_events([stored("a", version) for version in range(1, 700)])
    with recorder.subscribe(gt=3) as subscription:
        seen = [next(subscription).originator_version for _ in range(699)]

    assert seen == list(range(1, 700))


def test_an_erased_aggregate_is_told_as_such_and_skipped_by_followers(engine: Engine) -> None:
    recorder, snapshots = ApplicationRecorder(engine), SnapshotRecorder(engine)
    recorder.insert_events([stored("a", 1), stored("b", 1), stored("a", 2)])
    snapshots.insert_events([stored("a", 2)])
    erased = engine.erase(recorder.namespace.stream("events", "a"))

    assert erased == 2
    assert [n.originator_id for n in recorder.select_notifications(None, 1)] == ["b"]
    assert snapshots.select_events("a") == []
    with pytest.raises(persistence.DataError, match="version 1 of .* was erased"):
        recorder.select_events("a")
    assert engine.verify().ok


def test_snapshots_are_found_by_version(engine: Engine) -> None:
    recorder = SnapshotRecorder(engine)
    recorder.insert_events([stored("a", 10, "x"), stored("a", 20, "y"), stored("a", 5, "z")])

    def versions(**limits: Any) -> list[int]:
        return [e.originator_version for e in recorder.select_events("a", **limits)]

    assert versions() == [5, 10, 20]
    assert versions(desc=True, limit=2) == [20, 10]
    assert versions(limit=1) == [5]
    assert versions(gt=5, lte=19) == [10]


def test_ids_are_uuids_unless_they_cannot_be_or_texts_are_wanted(engine: Engine) -> None:
    recorder, texts = (
        ApplicationRecorder(engine),
        ApplicationRecorder(engine, Namespace("t", text_ids=True)),
    )
    one = uuid4()
    for each in (recorder, texts):
        each.insert_events([stored(str(one), 1), stored("dog-1", 1)])

    assert [n.originator_id for n in recorder.select_notifications(None, 9)] == [one, "dog-1"]
    assert [n.originator_id for n in texts.select_notifications(None, 9)] == [str(one), "dog-1"]
    assert recorder.select_events(one) == recorder.select_events(one.hex)


def test_a_log_that_is_closed_raises_the_librarys_errors() -> None:
    engine = LOGS.open_log(":memory:")
    recorder = ApplicationRecorder(engine)
    LOGS.close_log(engine)

    for call in (
        lambda: recorder.insert_events([stored("a", 1)]),
        lambda: recorder.select_events("a"),
        recorder.max_notification_id,
        lambda: next(recorder.subscribe()),
    ):
        with pytest.raises(persistence.InterfaceError, match="closed"):
            call()


def test_a_factory_takes_the_applications_own_variables_first(tmp_path: Any) -> None:
    env = Environment(
        "Bank", {"ATLAS_LOG": str(tmp_path / "all.db"), "BANK_ATLAS_LOG": str(tmp_path / "bank.db")}
    )
    with Factory(env) as factory:
        recorder = factory.application_recorder()
        recorder.insert_events([stored("a", 1)])
    factory.close()
    factory.close()

    assert (tmp_path / "bank.db").exists()
    assert not (tmp_path / "all.db").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ORIGINATOR_ID_TYPE", "number"),
        ("APPLICATION_RECORDER_TOPIC", get_topic(Kennel)),
        ("PROCESS_RECORDER_TOPIC", "atlas.core.log.recorders:TrackingRecorder"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        Factory(Environment("App", {variable: value})).process_recorder()
        Factory(Environment("App", {variable: value})).application_recorder()


def test_an_aggregate_that_is_not_there_is_not_found(env: dict[str, str]) -> None:
    kennel = Kennel(env)

    with pytest.raises(AggregateNotFoundError):
        kennel.repository.get(uuid4())
    kennel.close()
