"""A run on several nodes that are taken away, and whose workers are killed."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ray


def test_nodes_come_and_go_and_workers_are_killed(nodes, undisturbed, run_on, killer) -> None:
    """A worker is killed with SIGKILL while it trains an expert; nodes are lost, and others come, in the middle of the
    experts and of RDED's stream: the result is that of one node bit for bit.

    What is repeated is counted. A killed worker and a lost node each cost the one unit that was at work there, and a
    lost node those blocks of the stream that lay only on it.
    """
    nodes.say("add CPU:1")
    run = run_on()
    process = run.start()
    death = killer(run, process, seed=1)
    death.kill(1)
    # Two are at work by then, and one is done or nearly so. Whether the killed one begins again before or after the
    # third is a race, so it is waited for; killed before its unit was written down, it never counts.
    run.until(lambda: run.units("expert") == 5 or (run.units("expert") >= 3 and run.repeated >= 1), process)
    killed = run.repeated
    nodes.say("remove")
    nodes.say("add CPU:1")
    run.until(lambda: run.units("student") >= 1, process)
    lost = run.repeated - killed
    run.until(lambda: run.units("chunk") >= 3, process)
    nodes.say("remove")
    nodes.say("add CPU:1")
    run.finish(process)

    assert run.outcome() == undisturbed.outcome()
    assert set(run.begun) == set(undisturbed.begun)
    assert undisturbed.repeated == 0
    assert death.killed == 1
    assert killed <= 1
    assert lost <= 1
