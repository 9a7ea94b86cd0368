"""The example of delegation dies in the middle, and its run is resumed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", exc_type=ImportError)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "08_agent_delegation.py"


@pytest.mark.timeout(120)
def test_the_example_dies_in_the_middle_and_resumes(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not re.search("API_KEY|TOKEN|OLLAMA|ATLAS", k)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), "--crash", "--provider", "local"],
        cwd=tmp_path,
        env=kept | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    first, _, second = done.stdout.partition("It ended with -9.")

    assert (done.returncode, done.stderr) == (0, "")
    assert first.count("done: ") == 2
    assert "3 kettles at 17 EUR each" in second
    assert "\n  51\n" in second
