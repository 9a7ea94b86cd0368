"""Run the benchmarks: ``python -m benchmarks [name …]``, all by default.

Each is a script of its own that measures ratios within one process and prints a table; see there
for its options.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(NAMES)}")
    failed = 0
    for name in names:
        print(f"\n===== {name} =====\n", flush=True)
        script = str(HERE / f"{name}.py")
        failed |= subprocess.run([sys.executable, script], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
