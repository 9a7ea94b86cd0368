"""The code in README.md and docs/ runs as it stands.

All ``python`` blocks of a page are one program, run top to bottom in a fresh process with no key
and no network; a page's ``console`` blocks are typed into a shell line by line (``$ command``) and
must succeed. A block that cannot run has another language tag.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> str:
    """Return the page's blocks of one language, each at the line where it stands in the page."""
    text = page.read_text(encoding="utf-8")
    lines: list[str] = []
    for match in BLOCK.finditer(text):
        if match[1] == language:
            line = text.count("\n", 0, match.start(2))
            lines += [""] * (line - len(lines))
            lines += match[2].splitlines()
    return "\n".join(lines) + "\n"


def quiet_environment(home: Path) -> dict[str, str]:
    """Return an environment without keys and with an empty home."""
    kept = {k: v for k, v in os.environ.items() if not re.search("API_KEY|TOKEN|OLLAMA|ATLAS", k)}
    scripts = str(Path(sys.executable).parent)
    return kept | {"HOME": str(home), "PATH": scripts + os.pathsep + os.environ.get("PATH", "")}


def pages_with(language: str) -> list[object]:
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)))
        for page in PAGES
        if page.exists() and blocks(page, language).strip()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose)
    inside = [link for link in links if "://" not in link]

    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_the_generated_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stderr == ""


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_blocks_of_a_page_run_top_to_bottom(page: Path, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text(blocks(page, "python"), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env=quiet_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, f"{page}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", pages_with("console"))
def test_the_commands_of_a_page_succeed(page: Path, tmp_path: Path) -> None:
    commands = [line[2:] for line in blocks(page, "console").splitlines() if line.startswith("$ ")]

    for command in commands:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=quiet_environment(tmp_path),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{page}: $ {command}\n{done.stdout}\n{done.stderr}"
