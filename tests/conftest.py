"""What holds for all tests."""

import os

from hypothesis import settings

# Ray reads it at its first import, which test modules may do before rayddl does: left on, its hook starts
# every worker through `uv run` where the tests were started so.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

# No test has a clock: a first example that imports torch, or a busy machine, is no failure.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")
