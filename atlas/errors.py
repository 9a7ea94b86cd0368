"""Every error that Atlas raises on purpose.

Each derives from `AtlasError` and from the builtin it refines, so that both ``except AtlasError``
and, say, ``except TimeoutError`` do what they say. Facts are attributes, not only text::

    AtlasError
    ├── ValidationError (ValueError)             a field has a value its type or rule refuses
    ├── SchemaError (TypeError)                  a class cannot be described by a schema
    │   ├── UnknownMessageError (LookupError)    no message type has this name or version
    │   └── MigrationError                       no chain of upcasters leads to today's version
    ├── BusError
    │   ├── BusClosedError (RuntimeError)        the bus no longer accepts messages
    │   ├── NotAMessageError (TypeError)         what was published is no message
    │   ├── SubscriptionError (TypeError)        this handler cannot be subscribed like this
    │   ├── RecursionLimitError (RecursionError) handlers publish into each other without end
    │   ├── HandlersFailedError                  one or more handlers of a message raised
    │   ├── WaitTimeoutError (TimeoutError)      no matching message, or no reply, in time
    │   └── NoResponderError (LookupError)       nobody answers this request
    ├── StreamBufferError
    │   ├── BufferClosedError (RuntimeError)     the buffer takes no more items
    │   ├── BufferOverflowError (OverflowError)  the buffer is full and its policy is "error"
    │   └── BufferTimeoutError (TimeoutError)    the buffer had no room in time
    ├── StateError
    │   ├── VersionConflictError (ValueError)    the state has moved on since it was read
    │   ├── UnknownVersionError (LookupError)    that version was never made, or is kept no longer
    │   ├── TransitionError                      a transition raised; the state is as it was
    │   └── PatchError (ValueError)              a patch does not fit, or a value has no JSON form
    ├── LogError                                 the log refused or failed
    │   ├── LogClosedError (RuntimeError)        the log is closed
    │   ├── LogUnavailableError (OSError)        the log cannot be written or reached now
    │   ├── LogCorruptedError                    a record is not what was appended
    │   ├── LogFormatError (ValueError)          a file is no log, or of a newer version
    │   ├── ErasedError (LookupError)            the payload was erased
    │   └── UnknownRunError (LookupError)        the log has no such run
    ├── EffectError
    │   ├── ReplayDiverged                       the program does not do what was recorded
    │   ├── UndeclaredEffectError                a side effect that is no declared effect
    │   ├── InDoubtError                         an effect was started, and nobody knows if it ended
    │   ├── EffectFailedError                    an effect failed with an error not known here
    │   ├── EffectDeniedError (PermissionError)  a layer or a person refused the effect
    │   └── BudgetExceededError                  a budget of calls, tokens or money is used up
    ├── KnowledgeError                           a knowledge base refused or failed
    │   ├── DocumentError (ValueError)           a document cannot be read; others can
    │   ├── EmbeddingError                       texts could not be turned into vectors
    │   └── StoreError (OSError)                 the store of vectors cannot be used now
    ├── AgentError                               an agent, or a team of them, refused or failed
    │   ├── NoAgentError (LookupError)           nobody can do the task
    │   ├── TaskFailedError                      the task was not done
    │   ├── TaskExpiredError (TimeoutError)      the task's deadline passed
    │   ├── LimitReachedError                    a limit of the task tree is reached
    │   ├── AnswerInvalidError (ValueError)      the answer does not fit, repairs included
    │   ├── IllegalTransitionError (ValueError)  a task cannot go from this status to that
    │   ├── UnknownApprovalError (LookupError)   nothing waits for a decision of this id
    │   └── UndeliverableError (LookupError)     a letter between agents cannot be delivered
    ├── MergeConflictError (ValueError)          two sides changed the same thing differently
    ├── ConfigurationError (ValueError)          a setting is missing or makes no sense
    │   ├── UnknownNameError (LookupError)       nothing is registered, or declared, by this name
    │   │   └── UnknownProviderError             no provider is registered under this name
    │   ├── RegistrationError                    an entry is claimed twice, or cannot be built
    │   ├── ProfileError                         a profile file cannot be used; see ``problems``
    │   ├── MissingCredentialsError              the provider needs a key and none is configured
    │   └── MissingDependencyError (ImportError) an optional package is not installed
    ├── CloseFailedError                         closing one or more things failed
    ├── AppNotRunningError (RuntimeError)        the application is not started, or is closed
    ├── BlockingCallError (RuntimeError)         a blocking call on the loop that has to do its work
    ├── ConversationBusyError (RuntimeError)     the answer before is still being made
    └── ProviderError                            a model call failed; see its ``kind``
        ├── AuthenticationError (PermissionError)
        ├── PermissionDeniedError (PermissionError)
        ├── QuotaExceededError
        ├── RateLimitedError
        ├── OverloadedError
        ├── ServerError
        ├── BadRequestError (ValueError)
        ├── ModelNotFoundError (LookupError)
        ├── ContextLengthError (ValueError)
        ├── ContentFilteredError
        ├── ConnectionFailedError (ConnectionError)
        ├── DeadlineExceededError (TimeoutError)
        ├── IncompleteStreamError (EOFError)
        └── InvalidResponseError (ValueError)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

__all__ = [
    "AgentError",
    "AnswerInvalidError",
    "AppNotRunningError",
    "AtlasError",
    "AuthenticationError",
    "BadRequestError",
    "BlockingCallError",
    "BudgetExceededError",
    "BufferClosedError",
    "BufferOverflowError",
    "BufferTimeoutError",
    "BusClosedError",
    "BusError",
    "CloseFailedError",
    "ConfigurationError",
    "ConnectionFailedError",
    "ContentFilteredError",
    "ContextLengthError",
    "ConversationBusyError",
    "DeadlineExceededError",
    "DocumentError",
    "EffectDeniedError",
    "EffectError",
    "EffectFailedError",
    "EmbeddingError",
    "ErasedError",
    "HandlersFailedError",
    "IllegalTransitionError",
    "InDoubtError",
    "IncompleteStreamError",
    "InvalidResponseError",
    "KnowledgeError",
    "LimitReachedError",
    "LogClosedError",
    "LogCorruptedError",
    "LogError",
    "LogFormatError",
    "LogUnavailableError",
    "MergeConflictError",
    "MigrationError",
    "MissingCredentialsError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "NoAgentError",
    "NoResponderError",
    "NotAMessageError",
    "OverloadedError",
    "PatchError",
    "PermissionDeniedError",
    "ProfileError",
    "ProviderError",
    "QuotaExceededError",
    "RateLimitedError",
    "RecursionLimitError",
    "RegistrationError",
    "ReplayDiverged",
    "SchemaError",
    "ServerError",
    "StateError",
    "StoreError",
    "StreamBufferError",
    "SubscriptionError",
    "TaskExpiredError",
    "TaskFailedError",
    "TransitionError",
    "UndeclaredEffectError",
    "UndeclaredEffectWarning",
    "UndeliverableError",
    "UnknownApprovalError",
    "UnknownMessageError",
    "UnknownNameError",
    "UnknownProviderError",
    "UnknownRunError",
    "UnknownVersionError",
    "ValidationError",
    "VersionConflictError",
    "WaitTimeoutError",
    "nearest_name",
]


class AtlasError(Exception):
    """The root of all errors raised by Atlas on purpose."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return ``"; the nearest is 'x'"`` for a mistyped name, or "" when nothing known is like it.

    It ends the first clause of an "unknown name" sentence, so that all of them read alike.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; the nearest is {close[0]!r}" if close else ""


# -- messages and schemas -------------------------------------------------------------------------


class ValidationError(AtlasError, ValueError):
    """A field was given a value that its type or rule refuses.

    Attributes:
        message_name: The registered name (or the class name) of what was being built.
        field: Path of the field, dotted for nested ones (``"items.2.price"``); empty when the
            whole input was not what it should be.
        value: The value refused.
        rule: What was expected, in words (``"an int"``).
    """

    def __init__(self, message_name: str, field: str, value: object, rule: str) -> None:
        self.message_name = message_name
        self.field = field
        self.value = value
        self.rule = rule
        try:
            shown = repr(value)
        except Exception:  # noqa: BLE001  # a repr may do anything; ints of 4301 digits raise
            shown = f"a {type(value).__name__} that cannot be shown"
        if len(shown) > 200:
            shown = f"{shown[:197]}..."
        where = f"{message_name}.{field}" if field else message_name
        super().__init__(f"{where}: {shown} was given where {rule} is expected.")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message_name, self.field, self.value, self.rule)


class SchemaError(AtlasError, TypeError):
    """A class cannot be described by a schema, or two classes claim one name."""


class UnknownMessageError(SchemaError, LookupError):
    """No message type is registered under this name or version."""

    def __init__(self, text: str, *, name: str, version: int | None = None) -> None:
        super().__init__(text)
        self.name = name
        self.version = version


class MigrationError(SchemaError):
    """No chain of upcasters leads from a stored version to the one in the code."""

    def __init__(self, text: str, *, name: str, from_version: int, to_version: int) -> None:
        super().__init__(text)
        self.name = name
        self.from_version = from_version
        self.to_version = to_version


# -- the bus --------------------------------------------------------------------------------------


class BusError(AtlasError):
    """The event bus refused something."""


class BusClosedError(BusError, RuntimeError):
    """The bus is closed and accepts no more messages or subscriptions."""


class NotAMessageError(BusError, TypeError):
    """What was published is no instance of a class made with ``@message``."""


class SubscriptionError(BusError, TypeError):
    """A handler, selector or option with which no subscription can be made."""


class RecursionLimitError(BusError, RecursionError):
    """Handlers publish into each other without end; ``chain`` names the messages, oldest first."""

    def __init__(self, text: str, *, chain: Sequence[str]) -> None:
        super().__init__(text)
        self.chain: tuple[str, ...] = tuple(chain)


class HandlersFailedError(BusError):
    """One or more handlers of a message raised; ``errors`` holds what they raised, in order."""

    def __init__(self, text: str, *, errors: Sequence[BaseException]) -> None:
        super().__init__(text)
        self.errors: tuple[BaseException, ...] = tuple(errors)


class WaitTimeoutError(BusError, TimeoutError):
    """No matching message, or no reply to a request, came within ``timeout`` seconds."""

    def __init__(self, text: str, *, timeout: float) -> None:
        super().__init__(text)
        self.timeout = timeout


class NoResponderError(BusError, LookupError):
    """A request was published and nobody is subscribed who could answer it."""


# -- buffers and state ----------------------------------------------------------------------------


class StreamBufferError(AtlasError):
    """A stream buffer refused something."""


class BufferClosedError(StreamBufferError, RuntimeError):
    """The buffer is closed or cancelled and takes no more items."""


class BufferOverflowError(StreamBufferError, OverflowError):
    """The buffer is full and its overflow policy is ``"error"``; ``capacity`` says how full."""

    def __init__(self, text: str, *, capacity: int) -> None:
        super().__init__(text)
        self.capacity = capacity


class BufferTimeoutError(StreamBufferError, TimeoutError):
    """The buffer had no room within ``timeout`` seconds; the item was not put."""

    def __init__(self, text: str, *, timeout: float) -> None:
        super().__init__(text)
        self.timeout = timeout


class StateError(AtlasError):
    """A state container refused something."""


class VersionConflictError(StateError, ValueError):
    """The state was expected at version ``expected`` and is at version ``actual``."""

    def __init__(self, text: str, *, expected: int, actual: int) -> None:
        super().__init__(text)
        self.expected = expected
        self.actual = actual


class UnknownVersionError(StateError, LookupError):
    """Version ``version`` was never made, or its history is kept no longer."""

    def __init__(self, text: str, *, version: int) -> None:
        super().__init__(text)
        self.version = version


# -- the log and effects --------------------------------------------------------------------------


class LogError(AtlasError):
    """The log refused something, or failed."""


class LogClosedError(LogError, RuntimeError):
    """The log is closed."""


class LogUnavailableError(LogError, OSError):
    """The log cannot be written or reached at the moment: a full disk, a lock, a lost connection."""


class LogCorruptedError(LogError):
    """The record at ``position`` is not what was appended there."""

    def __init__(self, text: str, *, position: int) -> None:
        super().__init__(text)
        self.position = position


class LogFormatError(LogError, ValueError):
    """A file is no log, or one that only a newer Atlas can read."""


class ErasedError(LogError, LookupError):
    """The payload of the record at ``position`` was erased."""

    def __init__(self, text: str, *, position: int) -> None:
        super().__init__(text)
        self.position = position


class UnknownRunError(LogError, LookupError):
    """The log has no run of this id."""


class EffectError(AtlasError):
    """An effect was not performed."""


# Named without Error as in the documentation of every tool that replays.
class ReplayDiverged(EffectError):  # noqa: N818
    """The program does not do what was recorded.

    Attributes:
        effect: Id of the effect (task path and counter) at which it was noticed; "" if elsewhere.
        recorded: What the recording has there; "" for nothing.
        actual: What the program did; "" for nothing.
    """

    def __init__(
        self, text: str, *, effect: str = "", recorded: str = "", actual: str = ""
    ) -> None:
        super().__init__(text)
        self.effect = effect
        self.recorded = recorded
        self.actual = actual


class UndeclaredEffectError(EffectError, RuntimeError):
    """Code touched the world (network, file, process) outside every declared effect."""


class InDoubtError(EffectError):
    """Effect ``effect`` was started before a crash; whether it happened is not known."""

    def __init__(self, text: str, *, effect: str) -> None:
        super().__init__(text)
        self.effect = effect


class EffectFailedError(EffectError):
    """An effect failed with an error that cannot be made again from what was recorded.

    Attributes:
        type: The full name of its type.
    """

    def __init__(self, text: str, *, type: str) -> None:  # noqa: A002  (the attribute is called type)
        super().__init__(text)
        self.type = type


class UndeclaredEffectWarning(UserWarning):
    """Something got into a run that is no declared effect, so that a replay cannot repeat it."""


class EffectDeniedError(EffectError, PermissionError):
    """A layer, or a person who was asked, refused the effect."""


class BudgetExceededError(EffectError):
    """A budget is used up."""


class KnowledgeError(AtlasError):
    """A knowledge base could not do what it was asked."""


class DocumentError(KnowledgeError, ValueError):
    """The document from ``source`` cannot be read: broken, too large, or of an unknown format."""

    def __init__(self, text: str, *, source: str) -> None:
        super().__init__(text)
        self.source = source


class EmbeddingError(KnowledgeError):
    """Texts could not be turned into vectors, or what came back are none."""


class StoreError(KnowledgeError, OSError):
    """The store of vectors cannot be opened, read or written; the documents are safe in the log."""


class AgentError(AtlasError):
    """An agent, or a team of them, could not do what it was asked."""


class NoAgentError(AgentError, LookupError):
    """Nobody can do the task: no agent has what it needs, or none of them is available."""


class TaskFailedError(AgentError):
    """Task ``task`` was not done; ``kind`` is the type of what went wrong."""

    def __init__(self, text: str, *, task: str, kind: str = "") -> None:
        super().__init__(text)
        self.task = task
        self.kind = kind


class TaskExpiredError(AgentError, TimeoutError):
    """The deadline of task ``task`` passed before it was done."""

    def __init__(self, text: str, *, task: str) -> None:
        super().__init__(text)
        self.task = task


class LimitReachedError(AgentError):
    """A limit is reached; ``limit`` names it, as `Limits` does.

    ``agent`` names the agent whose own limit it is: another one may still do the task. It is empty
    where the limit is that of the task, or of the tree it belongs to.
    """

    def __init__(self, text: str, *, limit: str, agent: str = "") -> None:
        super().__init__(text)
        self.limit = limit
        self.agent = agent


class AnswerInvalidError(AgentError, ValueError):
    """A model's answer does not fit what was asked for, after all the repairs that were allowed."""


class IllegalTransitionError(AgentError, ValueError):
    """A task cannot go from status ``before`` to ``after``."""

    def __init__(self, text: str, *, before: str, after: str) -> None:
        super().__init__(text)
        self.before = before
        self.after = after


class UnknownApprovalError(AgentError, LookupError):
    """Nothing waits for a decision on ``approval``, so that one would be lost."""

    def __init__(self, text: str, *, approval: str) -> None:
        super().__init__(text)
        self.approval = approval


class UndeliverableError(AgentError, LookupError):
    """A letter between agents cannot be delivered: nobody of that name, role or capability."""


class MergeConflictError(AtlasError, ValueError):
    """Two sides changed the same thing differently, and nothing says which of them is right.

    Attributes:
        paths: Where, as texts like ``"/items/7/price"``.
    """

    def __init__(self, text: str, *, paths: Sequence[str]) -> None:
        super().__init__(text)
        self.paths: tuple[str, ...] = tuple(paths)


class TransitionError(StateError):
    """A transition raised; the state is still at ``version``, ``event`` was not applied."""

    def __init__(self, text: str, *, event: object, version: int) -> None:
        super().__init__(text)
        self.event = event
        self.version = version


class PatchError(StateError, ValueError):
    """A patch does not fit the document (operation ``index``), or a value has no JSON form."""

    def __init__(self, text: str, *, index: int | None = None) -> None:
        super().__init__(text)
        self.index = index


# -- configuration and the application ------------------------------------------------------------


class ConfigurationError(AtlasError, ValueError):
    """A setting is missing or makes no sense; the text names it and the mend."""


class UnknownNameError(ConfigurationError, LookupError):
    """Nothing is registered, or declared, by the name ``name``; the text lists what is."""

    def __init__(self, text: str, *, name: str) -> None:
        super().__init__(text)
        self.name = name


class UnknownProviderError(UnknownNameError):
    """No provider is registered under ``name``."""


class RegistrationError(ConfigurationError):
    """A registry entry is claimed twice, or cannot be built as it is declared.

    Attributes:
        name: The entry's name.
        errors: When an entry and all its fallbacks failed: what each raised, in order.
    """

    def __init__(self, text: str, *, name: str, errors: Sequence[Exception] = ()) -> None:
        super().__init__(text)
        self.name = name
        self.errors = tuple(errors)


class ProfileError(ConfigurationError):
    """A profile file cannot be used; ``problems`` has a sentence for each thing wrong with it."""

    def __init__(self, text: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.problems: tuple[str, ...] = tuple(problems) or (text,)


class MissingCredentialsError(ConfigurationError):
    """A provider needs a key or token and none is configured."""


class MissingDependencyError(ConfigurationError, ImportError):
    """An optional package is not installed; ``extra`` is what to install: ``atlas[extra]``."""

    def __init__(self, text: str, *, extra: str) -> None:
        super().__init__(text)
        self.extra = extra


class CloseFailedError(AtlasError):
    """Closing one or more things failed; the others were closed. ``errors`` holds what they raised."""

    def __init__(self, text: str, *, errors: Sequence[Exception]) -> None:
        super().__init__(text)
        self.errors = tuple(errors)


class AppNotRunningError(AtlasError, RuntimeError):
    """The application is used before it was started or after it was closed."""


class BlockingCallError(AtlasError, RuntimeError):
    """A blocking call was made on the event loop that has to do its work; it would never end."""


class ConversationBusyError(AtlasError, RuntimeError):
    """A conversation is asked while its answer before is still being made."""


# -- providers ------------------------------------------------------------------------------------

DeadlineName = Literal["connect", "first_token", "gap", "total"]


class ProviderError(AtlasError):
    """A model call failed. The subclass, or ``kind``, says how; the rest are the vendor's facts.

    Attributes:
        kind: A stable word for the subclass, for logs and events (``"rate_limited"``).
        retryable: Whether the same request may succeed when it is sent again.
        provider: Name of the provider asked, empty when not known.
        model: Name of the model asked, empty when not known.
        status: HTTP status of the answer, if there was one.
        code: The vendor's own word for the error (``"context_length_exceeded"``).
        request_id: The vendor's id of the request, for its support desk.
        retry_after: Seconds after which the vendor invites a new try.
        partial: Text that had arrived when the call failed; empty when it failed before the
            first token.
    """

    kind: ClassVar[str] = "provider_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        text: str,
        *,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        partial: str = "",
    ) -> None:
        super().__init__(text)
        self.provider = provider
        self.model = model
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.partial = partial


class AuthenticationError(ProviderError, PermissionError):
    """The vendor does not accept the key."""

    kind = "authentication"


class PermissionDeniedError(ProviderError, PermissionError):
    """The key is good but may not do this."""

    kind = "permission_denied"


class QuotaExceededError(ProviderError):
    """The account has no credit left; waiting does not help."""

    kind = "quota_exceeded"


class RateLimitedError(ProviderError):
    """Too many requests or tokens; ``retry_after`` says when to try again, if the vendor did."""

    kind = "rate_limited"
    retryable = True


class OverloadedError(ProviderError):
    """The vendor has no capacity at the moment."""

    kind = "overloaded"
    retryable = True


class ServerError(ProviderError):
    """The vendor failed on its side."""

    kind = "server_error"
    retryable = True


class BadRequestError(ProviderError, ValueError):
    """The vendor refuses the request as it stands."""

    kind = "bad_request"


class ModelNotFoundError(ProviderError, LookupError):
    """The vendor has no model of this name, or not for this key."""

    kind = "model_not_found"


class ContextLengthError(ProviderError, ValueError):
    """Prompt and answer do not fit the model's context window."""

    kind = "context_length"


class ContentFilteredError(ProviderError):
    """The vendor's filter refused the request."""

    kind = "content_filtered"


class ConnectionFailedError(ProviderError, ConnectionError):
    """The vendor could not be reached, or the connection broke."""

    kind = "connection_failed"
    retryable = True


class DeadlineExceededError(ProviderError, TimeoutError):
    """A deadline passed; ``deadline`` says which and ``seconds`` how long it was."""

    kind = "deadline_exceeded"
    retryable = True

    def __init__(
        self,
        text: str,
        *,
        deadline: DeadlineName,
        seconds: float,
        provider: str = "",
        model: str = "",
        partial: str = "",
    ) -> None:
        super().__init__(text, provider=provider, model=model, partial=partial)
        self.deadline = deadline
        self.seconds = seconds


class IncompleteStreamError(ProviderError, EOFError):
    """The stream ended without its end marker: what arrived may not be the whole answer."""

    kind = "incomplete_stream"
    retryable = True


class InvalidResponseError(ProviderError, ValueError):
    """The answer is not what the protocol promises (HTML, broken JSON, wrong types)."""

    kind = "invalid_response"
