"""Aggregates and applications of the ``eventsourcing`` library, stored in a log of Atlas.

Set ``PERSISTENCE_MODULE=atlas.core.log.recorders`` and ``ATLAS_LOG`` to the address of a log
(``runs.db``, ``postgresql://…``; ``:memory:`` when not set), and any `Application` of the library
stores its events there: hash-chained, committed in groups, verifiable, and, on SQLite too, followed
live with `subscribe`, also by another process.

How an application maps to a log:

- An aggregate is the stream ``eventsourcing/<application>/events/<aggregate id>``. A record's
  version is the event's plus one, since the library counts from 0 if asked to and a log from 1; its
  name is the event's topic, its payload the event's state.
- The id of a notification is the position in the log. Several applications, and the runs of Atlas
  itself, may share a log; each sees its own events only. Ids then have gaps, but never fill one up
  later and are never given out twice.
- Snapshots are the engine's: a cache, dropped when the aggregate's events are erased.
- An event whose payload was erased is skipped by notifications and subscriptions; reading an
  aggregate that lacks one raises the library's ``DataError`` instead of telling half of a story.

Versions of an aggregate have to grow: an event below the newest one is refused as a conflict, where
the library's own recorders accept one that fills a gap.

This is the only module that imports the library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

from eventsourcing import persistence
from eventsourcing.persistence import Notification, StoredEvent, Tracking
from eventsourcing.utils import Environment, EnvType, resolve_topic

from atlas.core.log.controller import LOGS
from atlas.core.log.engine import Engine
from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.errors import (
    ConfigurationError,
    LogClosedError,
    LogCorruptedError,
    LogError,
    LogUnavailableError,
    VersionConflictError,
)

__all__ = [
    "AggregateRecorder",
    "ApplicationRecorder",
    "Factory",
    "Namespace",
    "ProcessRecorder",
    "SnapshotRecorder",
    "Subscription",
    "TrackingRecorder",
]

_PAGE = 500
_STOP_LATENCY_S = 0.2

_RecorderT = TypeVar("_RecorderT")


@contextmanager
def _library_errors() -> Iterator[None]:
    """Turn errors of the log into those that users of the library catch."""
    try:
        yield
    except VersionConflictError as error:
        raise persistence.IntegrityError(str(error)) from error
    except LogUnavailableError as error:
        raise persistence.OperationalError(str(error)) from error
    except LogCorruptedError as error:
        raise persistence.DataError(str(error)) from error
    except LogClosedError as error:
        raise persistence.InterfaceError(str(error)) from error
    except LogError as error:
        raise persistence.DatabaseError(str(error)) from error


class Namespace:
    """The part of a log that belongs to one application.

    Args:
        application: Its name; "" is a name too.
        text_ids: Whether ids of aggregates are texts. By default they are UUIDs, and a text that is
            none stays a text.
    """

    def __init__(self, application: str = "", *, text_ids: bool = False) -> None:
        self._prefix = f"eventsourcing/{quote(application, safe='')}/"
        self._text_ids = text_ids

    def prefix(self, purpose: str) -> str:
        """Return how the streams of a purpose, such as ``events``, begin."""
        return f"{self._prefix}{quote(purpose, safe='')}/"

    def stream(self, purpose: str, originator_id: UUID | str) -> str:
        """Return the stream of an aggregate."""
        return self.prefix(purpose) + str(self._typed(str(originator_id)))

    def originator_id(self, purpose: str, stream: str) -> UUID | str:
        """Return the aggregate of a stream."""
        return self._typed(stream.removeprefix(self.prefix(purpose)))

    def reader(self, application: str) -> str:
        """Return the name under which this application tracks another one."""
        return self._prefix + quote(application, safe="")

    def _typed(self, text: str) -> UUID | str:
        if self._text_ids:
            return text

        try:
            return UUID(text)
        except ValueError:
            return text


class _Recorder:
    """What all recorders have: an engine, which whoever made it closes, and a namespace in it."""

    def __init__(self, engine: Engine, namespace: Namespace | None = None) -> None:
        self.engine = engine
        self.namespace: Namespace = namespace or Namespace()


class AggregateRecorder(_Recorder, persistence.AggregateRecorder):
    """Stores events of aggregates and reads them, by aggregate.

    Safe to use from many threads at once; what they insert at the same time shares a commit.
    """

    def __init__(
        self, engine: Engine, namespace: Namespace | None = None, *, purpose: str = "events"
    ) -> None:
        super().__init__(engine, namespace)
        self.purpose = purpose

    # The library's signature: further keywords are its users' own.
    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Store events, all or none; return when they are as durable as the log promises.

        Raises:
            IntegrityError: An event is not above the newest one of its aggregate.
            OperationalError: The log cannot be written at the moment.
        """
        self._insert(stored_events)
        return None

    def _insert(
        self, stored_events: Sequence[StoredEvent], tracking: tuple[str, int] | None = None
    ) -> list[int]:
        records = [
            NewRecord(
                stream=self.namespace.stream(self.purpose, event.originator_id),
                name=event.topic,
                payload=event.state,
                version=event.originator_version + 1,
            )
            for event in stored_events
        ]
        with _library_errors():
            stored = self.engine.append(records, tracking=tracking).wait()
        return [record.position for record in stored]

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Return events of an aggregate: ``gt`` < version <= ``lte``.

        Raises:
            DataError: An event was erased, or is not what was stored.
        """
        stream = self.namespace.stream(self.purpose, originator_id)
        with _library_errors():
            records = self.engine.read(
                stream,
                after=None if gt is None else gt + 1,
                until=None if lte is None else lte + 1,
                limit=limit,
                newest_first=desc,
            )
        return [self._event(record) for record in records]

    def _event(self, record: Record) -> StoredEvent:
        if record.payload is None:
            raise persistence.DataError(
                f"The event at version {record.version - 1} of {record.stream!r} was erased. Read from "
                f"a version after it, or treat the aggregate as deleted."
            )
        return StoredEvent(
            originator_id=self.namespace.originator_id(self.purpose, record.stream),
            originator_version=record.version - 1,
            topic=record.name,
            state=record.payload,
        )


class SnapshotRecorder(_Recorder, persistence.AggregateRecorder):
    """Keeps snapshots of aggregates beside the log, in the engine's cache of snapshots.

    Inserting is not atomic: after a crash some of several are kept. Nothing is lost by that, for the
    events are what an aggregate is built from.
    """

    def __init__(
        self, engine: Engine, namespace: Namespace | None = None, *, purpose: str = "snapshots"
    ) -> None:
        super().__init__(engine, namespace)
        self.purpose = purpose

    # The library's signature: further keywords are its users' own.
    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Keep snapshots.

        Raises:
            IntegrityError: There is one of that aggregate and version already; none is kept then.
        """
        snapshots = [self._snapshot(event) for event in stored_events]
        new = {(snapshot.stream, snapshot.version) for snapshot in snapshots}
        with _library_errors():
            if len(new) < len(snapshots) or any(map(self._exists, snapshots)):
                raise persistence.IntegrityError(
                    f"A snapshot is there already, or is given twice: {sorted(new)!r}."
                )
            for snapshot in snapshots:
                self.engine.save_snapshot(snapshot)
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Return snapshots of an aggregate: ``gt`` < version <= ``lte``."""
        stream = self.namespace.stream("events", originator_id)
        newest_first = desc and limit is not None
        with _library_errors():
            found = self._newest_first(
                stream,
                None if gt is None else gt + 1,
                None if lte is None else lte + 1,
                limit if newest_first else None,
            )
        ordered = found if desc else found[::-1]
        return [self._event(snapshot) for snapshot in ordered[:limit]]

    def _newest_first(
        self, stream: str, after: int | None, until: int | None, limit: int | None
    ) -> list[Snapshot]:
        found: list[Snapshot] = []
        while limit is None or len(found) < limit:
            snapshot = self.engine.snapshot(stream, self.purpose, until)
            if snapshot is None or (after is not None and snapshot.version <= after):
                break
            found.append(snapshot)
            until = snapshot.version - 1
        return found

    def _exists(self, snapshot: Snapshot) -> bool:
        found = self.engine.snapshot(snapshot.stream, snapshot.label, snapshot.version)
        return found is not None and found.version == snapshot.version

    def _snapshot(self, event: StoredEvent) -> Snapshot:
        topic = event.topic.encode()
        return Snapshot(
            # That of the events, so that erasing them also drops what was computed from them.
            stream=self.namespace.stream("events", event.originator_id),
            version=event.originator_version + 1,
            label=self.purpose,
            payload=len(topic).to_bytes(4, "big") + topic + event.state,
        )

    def _event(self, snapshot: Snapshot) -> StoredEvent:
        size = int.from_bytes(snapshot.payload[:4], "big")
        return StoredEvent(
            originator_id=self.namespace.originator_id("events", snapshot.stream),
            originator_version=snapshot.version - 1,
            topic=snapshot.payload[4 : 4 + size].decode(),
            state=snapshot.payload[4 + size :],
        )


class ApplicationRecorder(AggregateRecorder, persistence.ApplicationRecorder):
    """Also reads and follows the events of all aggregates of an application, in their one order."""

    # The library's signature: further keywords are its users' own.
    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Store events, all or none; return the ids of their notifications.

        Raises:
            IntegrityError: An event is not above the newest one of its aggregate.
            OperationalError: The log cannot be written at the moment.
        """
        return self._insert(stored_events)

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """Return up to ``limit`` notifications from ``start`` to ``stop``, of these topics only."""
        after = 0 if start is None else max(start - inclusive_of_start, 0)
        found: list[Notification] = []
        with _library_errors():
            while len(found) < limit:
                records = self.engine.read_all(
                    after=after,
                    until=stop,
                    limit=limit - len(found),
                    names=topics,
                    prefix=self.namespace.prefix(self.purpose),
                )
                if not records:
                    break
                # Erased ones are left out, so a page may have to be filled up from the next.
                found += [self._notification(r) for r in records if r.payload is not None]
                after = records[-1].position
        return found

    def _notification(self, record: Record) -> Notification:
        event = self._event(record)
        return Notification(
            id=record.position,
            originator_id=event.originator_id,
            originator_version=event.originator_version,
            topic=event.topic,
            state=event.state,
        )

    def max_notification_id(self) -> int | None:
        """Return the id of the application's newest notification; None when there is none."""
        with _library_errors():
            return self.engine.last_position(self.namespace.prefix(self.purpose))

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription:
        """Return an iterator of the notifications after ``gt``: those there are, then new ones."""
        return Subscription(self, gt, topics)


class Subscription(persistence.Subscription[ApplicationRecorder]):
    """Iterates over an application's notifications and waits for new ones, from any process.

    It needs no thread of its own: it reads in the thread that iterates. Iterate in one thread at a
    time; `stop` may be called in any, and ends a wait within a fifth of a second.
    """

    def __init__(
        self, recorder: ApplicationRecorder, gt: int | None = None, topics: Sequence[str] = ()
    ) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._after = gt or 0
        self._page: Iterator[Notification] = iter(())

    def __next__(self) -> Notification:
        """Return the next notification, as soon as there is one.

        Raises:
            StopIteration: The subscription was stopped.
            OperationalError: The log cannot be reached at the moment; iterating may go on later.
        """
        while not self._has_been_stopped:
            notification = next(self._page, None)
            if notification is not None:
                return notification
            self._read_on()
        raise StopIteration

    def _read_on(self) -> None:
        engine = self._recorder.engine
        with _library_errors():
            # Asked first: what is appended between the two calls is found by the next round.
            end = max(engine.last_position() or 0, self._after)
        page = self._recorder.select_notifications(
            start=self._after, limit=_PAGE, topics=self._topics, inclusive_of_start=False
        )
        self._page = iter(page)
        # Below a full page there is nothing of ours up to that end: others' records are not read
        # again and again.
        last = page[-1].id if page else 0
        self._after = last if len(page) == _PAGE else max(last, end)
        if not page:
            with _library_errors():
                engine.wait_beyond(self._after, _STOP_LATENCY_S)


class TrackingRecorder(_Recorder, persistence.TrackingRecorder):
    """Remembers how far other applications' notifications were processed.

    A view that keeps its own facts derives from it, and stores them with `append`.
    """

    def append(self, records: Sequence[NewRecord], tracking: Tracking) -> None:
        """Store records together with the position of the notification that they result from.

        Args:
            records: Of streams that begin with ``self.namespace.prefix(…)``, so that no other
                application's are meant.
            tracking: The position.

        Raises:
            IntegrityError: This position or a higher one is stored already, or a version is taken;
                nothing is stored then.
        """
        with _library_errors():
            self.engine.append(records, tracking=self._tracked(tracking)).wait()

    def _tracked(self, tracking: Tracking) -> tuple[str, int]:
        reader = self.namespace.reader(tracking.application_name)
        return reader, tracking.notification_id

    def insert_tracking(self, tracking: Tracking) -> None:
        """Remember a position.

        Raises:
            IntegrityError: This position or a higher one is stored already.
        """
        self.append((), tracking)

    def max_tracking_id(self, application_name: str) -> int | None:
        """Return the highest position stored for an application; None when there is none."""
        with _library_errors():
            return self.engine.tracked(self.namespace.reader(application_name))


class ProcessRecorder(TrackingRecorder, ApplicationRecorder, persistence.ProcessRecorder):
    """Stores events together with the position of the notification that they result from."""

    # The library's signature: further keywords are its users' own.
    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Store events and, if given, ``tracking``: all or nothing.

        Raises:
            IntegrityError: An event is not above the newest one of its aggregate, or the position
                tracked, or a higher one, is stored already.
            OperationalError: The log cannot be written at the moment.
        """
        tracking: Tracking | None = kwargs.get("tracking")
        return self._insert(stored_events, self._tracked(tracking) if tracking else None)


class Factory(persistence.InfrastructureFactory[TrackingRecorder]):
    """Makes the recorders of one application, all of them over the log at ``ATLAS_LOG``.

    The environment variables are the library's, with the application's name in front if wanted
    (``BANK_ATLAS_LOG``): ``ATLAS_LOG``, ``ORIGINATOR_ID_TYPE`` (``uuid`` or ``text``), the topics of
    recorder classes, and those for snapshots, ciphers and compressors.
    """

    ATLAS_LOG = "ATLAS_LOG"
    ORIGINATOR_ID_TYPE = "ORIGINATOR_ID_TYPE"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        self._closed = False
        self._namespace = Namespace(self.env.name, text_ids=self._text_ids())
        with _library_errors():
            self._engine = LOGS.open_log(self.env.get(self.ATLAS_LOG) or ":memory:")

    def _text_ids(self) -> bool:
        kind = self.env.get(self.ORIGINATOR_ID_TYPE) or "uuid"
        if kind.lower() not in {"uuid", "text"}:
            raise ConfigurationError(
                f"{self.ORIGINATOR_ID_TYPE} is {kind!r}; set it to 'uuid' or 'text'."
            )
        return kind.lower() == "text"

    def aggregate_recorder(self, purpose: str = "events") -> persistence.AggregateRecorder:
        """Return a recorder of aggregates; ``snapshots`` are kept in the engine's cache."""
        if purpose == "snapshots":
            return SnapshotRecorder(self._engine, self._namespace)
        return AggregateRecorder(self._engine, self._namespace, purpose=purpose)

    def application_recorder(self) -> ApplicationRecorder:
        """Return a recorder for an application."""
        chosen = self._class(self.APPLICATION_RECORDER_TOPIC, ApplicationRecorder)
        return chosen(self._engine, self._namespace)

    def tracking_recorder(
        self, tracking_recorder_class: type[TrackingRecorder] | None = None
    ) -> TrackingRecorder:
        """Return a recorder for a view."""
        chosen = tracking_recorder_class or self._class(
            self.TRACKING_RECORDER_TOPIC, TrackingRecorder
        )
        return chosen(self._engine, self._namespace)

    def process_recorder(self) -> ProcessRecorder:
        """Return a recorder for an application that follows others."""
        chosen = self._class(self.PROCESS_RECORDER_TOPIC, ProcessRecorder)
        return chosen(self._engine, self._namespace)

    def _class(self, variable: str, default: type[_RecorderT]) -> type[_RecorderT]:
        topic = self.env.get(variable)
        if not topic:
            return default

        chosen = resolve_topic(topic)
        if not (isinstance(chosen, type) and issubclass(chosen, default)):
            raise ConfigurationError(
                f"{variable} is {topic!r}, which is no {default.__name__} of {__name__}; "
                f"derive the class from that one."
            )
        return chosen

    def close(self) -> None:
        """Let go of the log. Idempotent."""
        if self._closed:
            return

        self._closed = True
        with _library_errors():
            LOGS.close_log(self._engine)
