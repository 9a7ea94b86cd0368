"""Fakes, watchers and conformance suites: for Atlas's own tests, and for yours."""

from atlas.testing.bus import Recorder, capture, until_idle
from atlas.testing.bus_checks import BUS_CHECKS, check_bus
from atlas.testing.clock import ManualClock

__all__ = ["BUS_CHECKS", "ManualClock", "Recorder", "capture", "check_bus", "until_idle"]
