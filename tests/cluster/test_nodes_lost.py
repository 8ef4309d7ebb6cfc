"""A run on several nodes that are taken away, and whose workers are killed."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_nodes_come_and_go_and_workers_are_killed(nodes, undisturbed, run_on, killer) -> None:
    """Nodes are lost, and others come, in the middle of the experts and of RDED's stream, and between them workers
    are killed with SIGKILL: the result is that of one node bit for bit.

    What is repeated is counted. A lost node and a killed worker cost the unit that was at work there, and a lost
    node those blocks of the stream that lay only on it.
    """
    nodes.say("add")
    run = run_on()
    process = run.start()
    # Two are at work, and two are done or nearly so.
    run.until(lambda: run.units("expert") >= 3, process)
    nodes.say("remove")
    nodes.say("add")
    run.until(lambda: run.units("student") >= 1, process)
    before = run.repeated
    death = killer(run, process, seed=1)
    death.kill(1)
    run.until(lambda: run.units("chunk") >= 3, process)
    killed = run.repeated - before
    nodes.say("remove")
    nodes.say("add")
    run.finish(process)

    assert run.outcome() == undisturbed.outcome()
    assert set(run.begun) == set(undisturbed.begun)
    assert undisturbed.repeated == 0
    assert before <= 1
    assert death.killed == 1
    assert killed <= 1
