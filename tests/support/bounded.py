"""How many examples hypothesis draws of odd files and tables: always the same."""

from __future__ import annotations

from hypothesis import HealthCheck

BOUNDED = dict(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
    ],
)
