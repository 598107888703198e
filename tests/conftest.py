"""What every test shares: Hypothesis without deadlines, since no test asserts on speed; and Ctrl-C.

Whatever a shell starts in the background ignores SIGINT, and so would all that is started here.
"""

import signal

from hypothesis import HealthCheck, settings

signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("mesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mesh")
