"""What holds for all tests."""

import os
import sys

import pytest
from hypothesis import settings

from tests import raising, warm

# Ray reads it at its first import, which test modules may do before rayddl does: left on, its hook starts
# every worker through `uv run` where the tests were started so.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

# A call of Ray starts none: where the Ray of a test is gone, the test fails instead of running on another.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

# Hundreds of workers are started, and two thirds of their processor time would be the import of torch.
os.environ.setdefault(warm.SWITCH, "1")
os.environ["PYTHONPATH"] = warm.python_path(*os.environ.get("PYTHONPATH", "").split(os.pathsep))

# Where byte code is not kept, each process compiles the sources of torch and Ray that it imports: seconds for each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Two test processes share the cores: threads that spin while they wait would take them from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The clusters that tests start have nobody to report to; for metrics, a node would wait for its agent.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_enable_metrics_collection", "0")

# No test has a clock: a first example that imports torch, or a busy machine, is no failure.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--renew-sentences`` records what errors say in place of comparing it."""
    parser.addoption(
        "--renew-sentences", action="store_true", help="write tests/golden/sentences.json; needs -n0"
    )


def pytest_configure(config: pytest.Config) -> None:
    raising.renewed = {} if config.getoption("--renew-sentences") else None
    # One for all test processes, which imports while they collect.
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        warm.start()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("ray"):
        warm.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if raising.renewed is not None:
        every = session.config.args == ["tests/unit"] and not session.config.getoption("keyword")
        raising.write_renewed(everything=every and not session.testsfailed)
