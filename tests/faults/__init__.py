"""Faults on purpose: kills, power cuts, full disks, racing writers, wrong clocks, damaged files.

A small number of each runs with all tests; ``make faults`` (``ATLAS_FAULTS=full``) runs thousands.
docs/design/faults.md says what is done to the log, what it has to stand, and how that is judged.
"""
