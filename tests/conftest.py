"""What every test shares: Hypothesis without deadlines, since no test asserts on speed."""

from hypothesis import HealthCheck, settings

settings.register_profile("mesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mesh")
