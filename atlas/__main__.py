"""``python -m atlas`` is the ``atlas`` command."""

from __future__ import annotations

from atlas.cli.__main__ import main

if __name__ == "__main__":
    main()
