"""Properties: what must hold for every value, tried with values that nobody would think of."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline, because a loaded machine is no finding. A failure prints a line that repeats it (@reproduce_failure).
settings.register_profile(
    "afterimage",
    deadline=None,
    database=None,
    print_blob=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("afterimage")
