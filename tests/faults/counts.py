"""How much of everything: little with all tests, thousands with ``ATLAS_FAULTS=full``."""

from __future__ import annotations

import os

FULL = os.environ.get("ATLAS_FAULTS") == "full"
SEED = int(os.environ.get("ATLAS_FAULTS_SEED", "20261123"))


def count(few: int, many: int) -> int:
    return many if FULL else few
