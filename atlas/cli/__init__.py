"""The ``atlas`` command: a thin face over `atlas.app`, one module per command."""
