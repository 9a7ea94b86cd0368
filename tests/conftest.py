"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

# The machine may be busy: how long an example takes says nothing about whether it is right.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
