"""A plugin of pytest: tests that ask a model once, and are replayed for ever after.

    @pytest.mark.atlas_run("cases/greeting.run")
    async def test_it_greets(atlas_app):
        assert "hello" in (await atlas_app.chat("Say hello.")).text.lower()

The first run asks the model and writes the file, to be committed with the test. From then on the test
needs no model, no key and no network, takes milliseconds, and fails where the program asks for
something else than was recorded. ``--atlas-record`` says what may be recorded. Of a test with
parameters each set has a file of its own, ``greeting-<id>.run``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

import pytest

if TYPE_CHECKING:
    from atlas.app import Atlas

__all__ = ["atlas_app"]

_MARK: Final = "atlas_run"
_FILES: Final = pytest.StashKey[dict[Path, str]]()

Recording: TypeAlias = Literal["none", "new", "all"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--atlas-record``."""
    parser.getgroup("atlas").addoption(
        "--atlas-record",
        choices=["none", "new", "all"],
        default="new",
        help="What tests marked atlas_run may record: nothing (as in CI), what has no file yet "
        "(default), or everything anew.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line(
        "markers",
        "atlas_run(file, provider=None, model=None): record the test's effects in this file, beside "
        "the test, and replay them from then on",
    )


@pytest.fixture
def atlas_app(request: pytest.FixtureRequest) -> None:
    """The application of a test marked ``atlas_run``, started, inside the run."""
    if request.node.get_closest_marker(_MARK) is None:
        pytest.fail(
            f'{request.node.name} uses atlas_app: mark it @pytest.mark.atlas_run("cases/name.run").',
            pytrace=False,
        )
    # What the test gets is made in its own event loop, see `_in_run`.


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put the run around each marked test."""
    mark = item.get_closest_marker(_MARK)
    if mark is None or not isinstance(item, pytest.Function):
        return
    recording = cast("Recording", item.config.getoption("--atlas-record"))
    item.obj = _in_run(item, mark, recording)


# Any: whatever tests take
def _in_run(
    item: pytest.Function, mark: pytest.Mark, recording: Recording
) -> Callable[..., Awaitable[None]]:
    test: Callable[..., Awaitable[None]] = item.obj

    @functools.wraps(test)
    async def run(*arguments: Any, **fixtures: Any) -> None:
        path = _path(item, mark, test)

        async def call(app: Atlas) -> None:
            given = {**fixtures, "atlas_app": app} if "atlas_app" in fixtures else fixtures
            await test(*arguments, **given)

        if recording == "all" or (recording == "new" and not path.exists()):
            await _record(call, item.nodeid, path, mark.kwargs)
        elif path.exists():
            await _replay(call, path)
        else:
            pytest.fail(
                f"{path} does not exist, and --atlas-record=none records nothing. Run the test once "
                f"with --atlas-record=new, and commit the file.",
                pytrace=False,
            )

    return run


def _path(item: pytest.Function, mark: pytest.Mark, test: object) -> Path:
    if len(mark.args) != 1 or not isinstance(mark.args[0], str | Path):
        pytest.fail('Write @pytest.mark.atlas_run("cases/name.run").', pytrace=False)
    if not inspect.iscoroutinefunction(test):
        pytest.fail(f"{item.name} is marked atlas_run: make it an `async def`.", pytrace=False)
    if unknown := set(mark.kwargs) - {"provider", "model"}:
        pytest.fail(f"atlas_run knows provider and model, not {unknown}.", pytrace=False)
    path = item.path.parent / mark.args[0]
    if (called := getattr(item, "callspec", None)) is not None:
        # each set of parameters is a run of its own
        path = path.with_stem(f"{path.stem}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', called.id)}")
    other = item.config.stash.setdefault(_FILES, {}).setdefault(path, item.nodeid)
    if other != item.nodeid:
        pytest.fail(f"{path} is the file of {other}. Give {item.name} another one.", pytrace=False)
    return path


# Any: what Atlas takes
async def _record(
    call: Callable[[Atlas], Awaitable[None]], name: str, path: Path, options: Mapping[str, Any]
) -> None:
    async with _application(**options) as app:
        async with app.recording(name, strict=True) as run:
            await call(app)
        # Only of a test that passed.
        path.parent.mkdir(parents=True, exist_ok=True)
        app.runs[run.id].export(path)


async def _replay(call: Callable[[Atlas], Awaitable[None]], path: Path) -> None:
    async with _application(provider="scripted") as app:
        run = app.runs.import_(path)
        async with app.replaying(run.id):
            await call(app)


# Any: what Atlas takes
def _application(**options: Any) -> Atlas:
    # pytest loads this module in every project that has Atlas installed, whether it is used or not.
    from atlas.app import Atlas  # noqa: PLC0415

    return Atlas(**options)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a marked test on a loop of its own where no other plugin runs coroutines."""
    test = pyfuncitem.obj
    if pyfuncitem.get_closest_marker(_MARK) is None or not inspect.iscoroutinefunction(test):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(test(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
