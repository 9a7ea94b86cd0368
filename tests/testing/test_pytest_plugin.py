"""The pytest plugin: recorded once, replayed for ever, found out when it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TEST = """
import pytest
from atlas import effect

calls = []

@effect(pure=True)
async def ask(question: str) -> str:
    calls.append(question)
    return question.upper()

@pytest.mark.atlas_run("cases/asked.run", provider="scripted")
async def test_asks(atlas_app, tmp_path):
    assert await ask("why?") == "WHY?"
    reply = await atlas_app.chat("Hello")
    assert reply.text
    print("PERFORMED", len(calls), reply.text)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_it=TEST)
    pytester.makeini("[pytest]\naddopts = -p no:asyncio -p no:cacheprovider\n")
    return pytester


def performed(result: pytest.RunResult) -> list[str]:
    return [line[line.index("PERFORMED") :] for line in result.outlines if "PERFORMED" in line]


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-s", "-W", "error", *options)


def test_a_test_is_recorded_once_and_replayed_from_then_on(project: pytest.Pytester) -> None:
    first = run(project)
    first.assert_outcomes(passed=1)
    recording = project.path / "cases" / "asked.run"
    written = recording.read_bytes()
    again = run(project, "--atlas-record=none")

    again.assert_outcomes(passed=1)
    assert performed(first)[0].startswith("PERFORMED 1 ")
    assert performed(again)[0] == performed(first)[0].replace("PERFORMED 1", "PERFORMED 0")
    assert recording.read_bytes() == written


def test_a_test_that_asks_something_else_fails_and_names_it(project: pytest.Pytester) -> None:
    run(project)
    project.makepyfile(test_it=TEST.replace("why?", "how?").replace("WHY?", "HOW?"))

    changed = run(project)
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines(["*ReplayDiverged*Effect*ask*"])
    run(project, "--atlas-record=all").assert_outcomes(passed=1)
    run(project).assert_outcomes(passed=1)


def test_nothing_is_recorded_in_ci_or_by_a_failing_test(project: pytest.Pytester) -> None:
    missing = run(project, "--atlas-record=none")
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(["*--atlas-record=new*"])

    project.makepyfile(test_it=TEST.replace('== "WHY?"', '== "what"'))
    run(project).assert_outcomes(failed=1)
    assert not (project.path / "cases").exists() or not list((project.path / "cases").iterdir())


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        (TEST.replace('"cases/asked.run", ', ""), "*cases/name.run*"),
        (TEST.replace('provider="scripted"', 'speed="fast"'), "*provider and model*"),
        (TEST.replace("async def test_asks", "def test_asks").replace("await ", ""), "*async def*"),
    ],
    ids=["no file", "unknown option", "plain function"],
)
def test_wrong_use_is_told_in_a_sentence(project: pytest.Pytester, spoilt: str, told: str) -> None:
    project.makepyfile(test_it=spoilt)
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([told])


def test_an_asyncio_plugin_may_run_the_test_too(project: pytest.Pytester) -> None:
    project.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    run(project).assert_outcomes(passed=1)
    run(project, "--atlas-record=none").assert_outcomes(passed=1)


def test_the_file_is_found_beside_the_test(project: pytest.Pytester) -> None:
    inner = project.mkdir("inner")
    Path(inner, "test_inner.py").write_text(TEST)
    run(project, "inner").assert_outcomes(passed=1)

    assert (inner / "cases" / "asked.run").exists()


def test_each_set_of_parameters_has_a_file_of_its_own(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=TEST.replace(
            "async def test_asks(atlas_app, tmp_path):",
            '@pytest.mark.parametrize("word", ["why/?", "how"])\n'
            "async def test_asks(atlas_app, word):",
        ).replace('ask("why?") == "WHY?"', "ask(word) == word.upper()")
    )
    run(project).assert_outcomes(passed=2)
    run(project, "--atlas-record=none").assert_outcomes(passed=2)
    assert {each.name for each in (project.path / "cases").iterdir()} == {
        "asked-how.run",
        "asked-why_.run",
    }


def test_a_file_is_that_of_one_test(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=TEST + "\n\n@pytest.mark.atlas_run('cases/asked.run', provider='scripted')\n"
        "async def test_too(atlas_app): pass\n"
    )
    result = run(project)
    result.assert_outcomes(passed=1, failed=1)
    assert "is the file of test_it.py::test_asks" in "\n".join(result.outlines)


def test_the_application_is_that_of_a_marked_test_only(project: pytest.Pytester) -> None:
    project.makepyfile(test_it="def test_it(atlas_app): pass")
    result = run(project)
    result.assert_outcomes(errors=1)
    assert "mark it @pytest.mark.atlas_run" in "\n".join(result.outlines)
