"""A server that speaks Ollama's documented API over real HTTP, with models that follow a script.

Written from the API's documentation, in the details that clients stumble over: objects are written
as Go writes them (``<``, ``>``, ``&``, U+2028 and U+2029 escaped, U+0085 raw), a bare model name
means ``:latest``, tool calls come whole and with index 0, ``prompt_eval_count`` is left out for a
prompt that is in the cache, errors are ``{"error": words}``, in mid-stream too::

    with OllamaServer(Model("tiny"), Model("seer", answer=lambda request: ["I ", "see."])) as server:
        client = ollama.AsyncClient(server.url)

It is a `WireServer`: answers queued with `play` come first, for what no real Ollama would send.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from support.wire import Answer, Gate, Request, Step, WireServer, error_answer

__all__ = ["Call", "Failure", "Model", "OllamaServer", "Thought"]

_CREATED_AT = "2026-11-01T08:00:00.123456789Z"


@dataclass(frozen=True)
class Thought:
    """A piece of thinking; left out unless the request asks for it."""

    text: str


@dataclass(frozen=True)
class Call:
    """A tool call, which Ollama sends whole."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True)
class Failure:
    """An error in mid-stream, after which nothing follows."""

    words: str


Piece: TypeAlias = "str | Thought | Call | Failure | Gate"
# Any: the request as the client sent it.
Script: TypeAlias = Callable[[dict[str, Any]], Iterable[Piece]]


# Any: as above.
def echo(request: dict[str, Any]) -> Iterator[str]:
    """Say the last message again, word by word."""
    words = request["messages"][-1].get("content", "").split(" ")
    for n, word in enumerate(words):
        yield word if n == 0 else f" {word}"


@dataclass
class Model:
    """A model on the server: its name, what it can do and what it says."""

    name: str
    answer: Script = echo
    capabilities: tuple[str, ...] = ("completion", "tools", "thinking")
    asked: list[str] = field(default_factory=list)  # prompts seen, for the prompt cache

    @property
    def full_name(self) -> str:
        """The name with its tag."""
        return self.name if ":" in self.name else f"{self.name}:latest"

    def listed(self) -> dict[str, Any]:
        """What ``/api/tags`` says of it."""
        details = {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "135M",
            "quantization_level": "Q4_1",
        }
        return {
            "name": self.full_name,
            "model": self.full_name,
            "modified_at": _CREATED_AT,
            "size": 98_362_432,
            "digest": "0" * 64,
            "details": details,
        }

    def shown(self) -> dict[str, Any]:
        """What ``/api/show`` says of it."""
        return {
            "modelfile": f"FROM {self.full_name}",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": self.listed()["details"],
            "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
            "capabilities": list(self.capabilities),
            "modified_at": _CREATED_AT,
        }


class OllamaServer(WireServer):
    """Answers like Ollama with the given models; see the module."""

    def __init__(self, *models: Model) -> None:
        super().__init__()
        self.models = {model.full_name: model for model in models}

    def next_answer(self, request: Request) -> Answer:
        """Return what is queued, else what Ollama would answer."""
        if self._answers:
            return super().next_answer(request)
        self.requests.append(request)
        route = request.method, request.path
        if route == ("GET", "/"):
            return _words(200, "Ollama is running")
        if route == ("GET", "/api/version"):
            return _json({"version": "0.40.12"})
        if route == ("GET", "/api/tags"):
            return _json({"models": [model.listed() for model in self.models.values()]})
        if request.path in {"/api/chat", "/api/show"}:
            if request.method != "POST":
                return error_answer(405, {"error": "method not allowed"})
            return self._about_a_model(request)
        return _words(404, "404 page not found")

    def _about_a_model(self, request: Request) -> Answer:
        if not request.body:
            return error_answer(400, {"error": "missing request body"})
        try:
            body = request.json()
        except ValueError as error:
            return error_answer(400, {"error": str(error)})
        name = body.get("model", "")
        if not name:
            return error_answer(400, {"error": "model is required"})
        model = self.models.get(name if ":" in name else f"{name}:latest")
        if model is None:
            return error_answer(404, {"error": f"model '{name}' not found"})
        if request.path == "/api/show":
            return _json(model.shown())
        return self._chat(model, body)

    def _chat(self, model: Model, body: dict[str, Any]) -> Answer:
        for asked, ability in (("tools", "tools"), ("think", "thinking")):
            if body.get(asked) and ability not in model.capabilities:
                return error_answer(400, {"error": f'"{model.name}" does not support {ability}'})
        if not body.get("messages"):
            return _json(_line(model, "", done=True, done_reason="load"))
        steps = list(self._lines(model, body))
        if body.get("stream", True):
            return Answer(*map(_written, steps), content_type="application/x-ndjson")
        return _joined(steps)

    def _lines(self, model: Model, body: dict[str, Any]) -> Iterator[dict[str, Any] | Gate]:
        limit = body.get("options", {}).get("num_predict", -1)
        count, reason = 0, "stop"
        for piece in model.answer(body):
            if isinstance(piece, Gate):
                yield piece
                continue
            if isinstance(piece, Failure):
                yield {"error": piece.words}
                return
            if isinstance(piece, Thought) and not body.get("think"):
                continue
            if count == limit:
                reason = "length"
                break
            count += 1
            yield _piece(model, piece)
        yield _line(model, "", done=True, done_reason=reason, **_counts(model, body, count))


def _piece(model: Model, piece: str | Thought | Call) -> dict[str, Any]:
    if isinstance(piece, str):
        return _line(model, piece)
    if isinstance(piece, Thought):
        return _line(model, "", message={"thinking": piece.text})
    function = {"index": 0, "name": piece.name, "arguments": piece.arguments}
    call = {"function": function} if piece.id is None else {"id": piece.id, "function": function}
    return _line(model, "", message={"tool_calls": [call]})


# Any: fields of the API's objects.
def _line(
    model: Model,
    content: str,
    *,
    message: dict[str, Any] | None = None,
    done: bool = False,
    **fields: Any,
) -> dict[str, Any]:
    said = {"role": "assistant", "content": content, **(message or {})}
    head = {"model": model.name, "created_at": _CREATED_AT, "message": said, "done": done}
    return {**head, **fields}


def _counts(model: Model, body: dict[str, Any], count: int) -> dict[str, int]:
    prompt = json.dumps(body["messages"])
    counts = {"total_duration": 5_000_000, "load_duration": 1_000_000}
    if prompt not in model.asked:
        counts["prompt_eval_count"] = len(prompt.split())
    model.asked.append(prompt)
    counts |= {"prompt_eval_duration": 1_000_000, "eval_count": count, "eval_duration": 3_000_000}
    return counts


def _written(step: dict[str, Any] | Gate) -> Step:
    if isinstance(step, Gate):
        return step
    text = json.dumps(step, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode() + b"\n"


def _joined(steps: list[dict[str, Any] | Gate]) -> Answer:
    lines = [step for step in steps if isinstance(step, dict)]
    last = lines[-1]
    if "error" in last:
        return error_answer(500, last)
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for line in lines:
        said = line["message"]
        message["content"] += said["content"]
        if "thinking" in said:
            message["thinking"] = message.get("thinking", "") + said["thinking"]
        if "tool_calls" in said:
            message.setdefault("tool_calls", []).extend(said["tool_calls"])
    return _json({**last, "message": message})


# Any: whatever the API answers.
def _json(body: dict[str, Any]) -> Answer:
    written = _written(body)
    assert isinstance(written, bytes)
    return Answer(
        written.rstrip(), content_type="application/json; charset=utf-8", framing="length"
    )


def _words(status: int, words: str) -> Answer:
    return Answer(words.encode(), status=status, content_type="text/plain", framing="length")
