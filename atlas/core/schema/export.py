"""The published contract: a folder with the JSON Schema and the samples of every message.

::

    schemas/index.json                    what there is, and which versions are released
    schemas/order.placed/1.json           the JSON Schema of one version
    schemas/order.placed/1.samples.json   payloads to take, payloads to refuse

`export` writes it, `check` tells where it and the code differ, `release` marks what is in it as
promised, `broken_promises` tells which of that the code does not keep. A released version may change only so that payloads of before are still read; else it needs
a new version, and an upcaster.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from atlas.core.messages import Message, registered_messages
from atlas.core.schema.jsonschema import breaking_changes, json_schema
from atlas.core.schema.migrations import known_versions
from atlas.core.schema.samples import invalid_samples, valid_samples
from atlas.errors import SchemaError

__all__ = ["broken_promises", "check", "discover", "export", "release"]

MEND = "Raise the version of the message, and register an upcaster from the old one."
"""What to do about a change that breaks a released version."""

_INDEX = "index.json"


def discover(package: str = "atlas") -> tuple[type[Message], ...]:
    """Import the modules of a package that declare messages; return those messages, by name.

    A module is imported only if a line of its source begins with ``@message``, so that modules with
    heavy or missing requirements are left alone; so is a package called ``testing``, whose messages
    are no contract.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SchemaError(f"There is no package {package!r} in which to look for messages.")
    for name in sorted(_modules(package, spec.submodule_search_locations)):
        found = importlib.util.find_spec(name)
        origin = None if found is None else found.origin
        if origin and origin.endswith(".py") and _declares(Path(origin)):
            importlib.import_module(name)
    prefix = f"{package}."
    return tuple(
        cls
        for cls in registered_messages()
        if f"{cls.__module__}.".startswith(prefix)
        and not cls.__module__.startswith(f"{package}.testing")
        and "<locals>" not in cls.__qualname__
    )


def _modules(package: str, folders: Iterable[str] | None) -> Iterable[str]:
    yield package
    for info in pkgutil.iter_modules(folders, f"{package}."):
        if info.name == f"{package}.testing":
            continue
        if info.ispkg:
            spec = importlib.util.find_spec(info.name)
            yield from _modules(info.name, spec.submodule_search_locations if spec else None)
        else:
            yield info.name


def _declares(path: Path) -> bool:
    return any(
        line.startswith("@message") for line in path.read_text(encoding="utf-8").splitlines()
    )


def export(path: str | Path, messages: Iterable[type[Message]] | None = None) -> list[str]:
    """Write the contract of the messages (by default all of Atlas) into a folder.

    Returns:
        The names of the files that changed, relative to the folder.

    Raises:
        SchemaError: A released version changed so that old payloads may not be read; nothing is
            written.
    """
    folder = Path(path)
    files = _files(folder, messages)
    broken = _broken_promises(folder, files)
    if broken:
        raise SchemaError(
            "Released versions may not change like this: " + "; ".join(broken) + f". {MEND}"
        )
    changed = []
    for name, text in files.items():
        target = folder / name
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
            changed.append(name)
    for name in _stale(folder, files):
        (folder / name).unlink()
        changed.append(name)
    return changed


def check(path: str | Path, messages: Iterable[type[Message]] | None = None) -> list[str]:
    """Return how the folder differs from the code, in sentences; empty when it does not."""
    folder = Path(path)
    files = _files(folder, messages)
    found = _broken_promises(folder, files)
    for name, text in files.items():
        target = folder / name
        if not target.is_file():
            found.append(f"{name} is missing: run the export.")
        elif target.read_text(encoding="utf-8") != text:
            found.append(f"{name} differs from the code: run the export.")
    found += [f"{name} describes what the code no longer has." for name in _stale(folder, files)]
    return found


def broken_promises(path: str | Path, messages: Iterable[type[Message]] | None = None) -> list[str]:
    """Return what the code no longer reads of the released versions, in sentences without a mend.

    Unlike `check` it says nothing of what is not released yet, or of what merely differs.
    """
    folder = Path(path)
    return _broken_promises(folder, _files(folder, messages))


def release(path: str | Path, label: str) -> list[str]:
    """Mark every version in the folder that is not released yet as released under a label.

    Returns:
        What was marked, as ``name version``.
    """
    folder = Path(path)
    index = _index(folder)
    marked = []
    for entry in index["messages"]:
        if entry["released"] is None:
            entry["released"] = label
            marked.append(f"{entry['name']} {entry['version']}")
    (folder / _INDEX).write_text(_text(index), encoding="utf-8", newline="\n")
    return marked


# -- what belongs into the folder -----------------------------------------------------------------


def _files(folder: Path, messages: Iterable[type[Message]] | None) -> dict[str, str]:
    """Return the text of every file, by name; released versions of the past are kept."""
    wanted = discover() if messages is None else tuple(messages)
    before = {(entry["name"], entry["version"]): entry for entry in _index(folder)["messages"]}
    files: dict[str, str] = {}
    entries = {}
    for cls in sorted(wanted, key=lambda cls: (cls.message_name, cls.message_version)):
        key = cls.message_name, cls.message_version
        files |= _files_of(cls)
        entries[key] = _entry(cls, before.get(key, {}).get("released"), files)
    for key, entry in before.items():
        if key not in entries and entry["released"] is not None:
            entries[key] = entry
            for name in (entry["schema"], entry["samples"]):
                if (folder / name).is_file():
                    files[name] = (folder / name).read_text(encoding="utf-8")
    ordered = [entries[key] for key in sorted(entries)]
    files[_INDEX] = _text({"format": 1, "messages": ordered})
    return files


def _names(name: str, version: int) -> tuple[str, str]:
    return f"{name}/{version}.json", f"{name}/{version}.samples.json"


def _files_of(cls: type[Message]) -> dict[str, str]:
    schema, samples = _names(cls.message_name, cls.message_version)
    return {
        schema: _text(json_schema(cls, rules=True)),
        samples: _text({"valid": valid_samples(cls), "invalid": invalid_samples(cls)}),
    }


def _entry(cls: type[Message], released: object, files: Mapping[str, str]) -> dict[str, Any]:
    schema, samples = _names(cls.message_name, cls.message_version)
    return {
        "name": cls.message_name,
        "version": cls.message_version,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "summary": inspect.cleandoc(cls.__doc__ or "").partition("\n")[0],
        "schema": schema,
        "samples": samples,
        "sha256": hashlib.sha256(files[schema].encode()).hexdigest(),
        "released": released,
    }


def _text(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False) + "\n"


def _index(folder: Path) -> dict[str, Any]:
    found = folder / _INDEX
    if not found.is_file():
        return {"format": 1, "messages": []}
    index = _read(found)
    if _is_index(index):
        return index
    raise SchemaError(
        f"{str(found)!r} is no index of a contract. Restore it: it says what was released, which cannot "
        f"be told from the code."
    )


def _is_index(index: Mapping[str, Any]) -> bool:
    entries = index.get("messages")
    return isinstance(entries, list) and all(
        isinstance(entry, dict)
        and entry.keys() >= {"name", "version", "schema", "samples", "released"}
        for entry in entries
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SchemaError(f"{str(file)!r} is no JSON ({error}). Restore it.") from error
    if not isinstance(content, dict):
        raise SchemaError(f"{str(file)!r} holds no JSON object. Restore it.")
    return content


def _stale(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Return the files of the folder's own kind that nothing accounts for."""
    present = sorted(found.relative_to(folder).as_posix() for found in folder.glob("*/*.json"))
    return [name for name in present if name not in files]


def _broken_promises(folder: Path, files: Mapping[str, str]) -> list[str]:
    found = []
    for entry in _index(folder)["messages"]:
        if entry["released"] is None:
            continue
        name, version, file = entry["name"], entry["version"], folder / entry["schema"]
        label = f"{name} version {version} (released in {entry['released']})"
        if version not in known_versions(name):
            found.append(f"{label} can no longer be read: no class, no upcaster")
        elif not file.is_file():
            found.append(f"{label}: {entry['schema']} is missing, so nobody can tell; restore it")
        else:
            old = _read(file)
            new = json.loads(files[entry["schema"]])
            found += [f"{label}: {change}" for change in breaking_changes(old, new)]
    return found
