"""What Ray's errors mean, and what the user is told."""

from __future__ import annotations

import pytest
import torch

ray = pytest.importorskip("ray")

from rayddl.errors import SourceError, StageError  # noqa: E402
from rayddl.stages.runtime import failures  # noqa: E402
from tests.raising import raises  # noqa: E402

# As Ray 2.60 writes it, without the lines on the object store.
OOM = """\
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: b1bd3a) was \
2.89GB used / 23.54GB limit (0.122630)
OOM kill reason: Memory usage 3097944064B exceeded threshold of 3070353408B (12.1% of 25276502016B limit)
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
(Task: job ID=01000000, task name=other, required resources={CPU: 1}, pid=6171, actual memory used=2.10GB, worker ID=ab)
Selected to kill: (Task: job ID=01000000, task name=eat, required resources={CPU: 1}, pid=6170, actual memory \
used=1.72GB, worker ID=c6)
]
Top 10 memory users: PID	MEM(GB)	COMMAND
6170	1.72	ray::eat
"""
# As Ray 2.55 writes it.
OLDER = """\
Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.7, ID: e8) where the task (task ID: 32, name=eat, pid=11597, memory used=13.22GB) was \
running was 27.75GB / 28.82GB (0.962898), which exceeds the memory usage threshold of 0.95. Ray killed this worker.
"""


def told(error: BaseException) -> str:
    """The message of the StageError that an error becomes."""
    with pytest.raises(StageError) as explained:
        failures.explain(error, "unit 3")
    return str(explained.value)


class TestOutOfMemory:
    def test_figures(self) -> None:
        """The worker's memory, and what the node has for it, come from Ray's text; workers that were only considered
        do not count.
        """
        found = failures.shortage(OOM)

        assert found is not None
        assert (found.node, found.held, found.used, found.whole) == ("10.0.0.7", 1.72, 2.89, 23.54)
        assert found.most == pytest.approx(2.8595, abs=1e-4)
        assert found.others == pytest.approx(1.17)
        assert found.left == pytest.approx(1.69, abs=0.01)

    def test_figures_of_an_older_ray(self) -> None:
        """The oldest Ray that is supported writes another sentence."""
        found = failures.shortage(OLDER)

        assert found is not None
        assert (found.node, found.held, found.used, found.whole) == ("10.0.0.7", 13.22, 27.75, 28.82)
        assert found.most == pytest.approx(0.95 * 28.82)

    def test_message(self) -> None:
        """What is needed, what there is, and what to change."""
        message = told(ray.exceptions.OutOfMemoryError(OOM))

        assert "unit 3 was stopped for lack of memory: it needs more than 1.7 GiB" in message
        assert "node 10.0.0.7 has 1.7 GiB for it: of 23.5 GiB at most 2.9 may be used" in message
        assert "resources.at_once" in message

    def test_a_text_without_figures(self) -> None:
        """A text of another form is passed on rather than guessed at."""
        assert failures.shortage("out of memory, somehow") is None
        assert "(out of memory, somehow)" in told(ray.exceptions.OutOfMemoryError("out of memory, somehow"))


class TestKinds:
    def test_out_of_memory(self) -> None:
        """Lack of memory is a case of its own: the same unit on the same node fails again."""
        error = ray.exceptions.OutOfMemoryError(OOM)

        assert failures.out_of_memory(error)
        assert not failures.lost(error)

    @pytest.mark.parametrize(
        "error",
        [
            ray.exceptions.WorkerCrashedError(),
            ray.exceptions.NodeDiedError("the node is gone"),
            ray.exceptions.ActorDiedError(),
            ray.exceptions.ActorUnavailableError("the actor was restarted", None),
            ray.exceptions.ObjectLostError("ab", "the node that held it is gone", ""),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_lost(self, error: Exception) -> None:
        """What was lost with a process or a node is worth another try; after the last one the user is told."""
        assert failures.lost(error)
        assert not failures.out_of_memory(error)
        assert "lost its worker too often" in told(error)

    def test_passed_on_by_another_task(self) -> None:
        """A task that asked for a lost result passes the error on, wrapped."""
        inner = ray.exceptions.OutOfMemoryError(OOM)
        wrapped = ray.exceptions.RayTaskError("reader", "Traceback", inner)

        assert failures.out_of_memory(wrapped)
        assert "needs more than 1.7 GiB" in told(wrapped)

    def test_an_actor_that_never_started(self) -> None:
        """An actor whose constructor raises fails again: it is not worth another try, and the reason is said."""
        raised = ray.exceptions.RayTaskError(
            "A.__init__", "Traceback\nValueError: no such net", ValueError("no")
        )
        error = ray.exceptions.ActorDiedError.from_task_error(raised)

        assert not failures.lost(error)
        assert "could not start its worker" in told(error)
        assert "ValueError: no such net" in told(error)

    def test_errors_of_the_work(self) -> None:
        """An error that rayddl raised comes out as it went in; any other one is left alone."""
        refused = SourceError("no images in /data", code="for-a-test")
        with raises("for-a-test"):
            failures.explain(ray.exceptions.RayTaskError("f", "Traceback", refused), "unit 3")
        mistake = ray.exceptions.RayTaskError("f", "Traceback", KeyError("loss"))
        assert not failures.lost(mistake)
        with pytest.raises(ray.exceptions.RayTaskError):
            failures.explain(mistake, "unit 3")


def test_a_full_gpu_is_told_from_a_full_node() -> None:
    """The work raised it, so it is no loss of a worker."""
    error = ray.exceptions.RayTaskError(
        "f", "Traceback", torch.OutOfMemoryError("CUDA out of memory.")
    ).as_instanceof_cause()

    assert failures.gpu_out_of_memory(error)
    assert not failures.out_of_memory(error)
    assert not failures.lost(error)
    assert "needs more memory than its GPU had left: CUDA out of memory." in told(error)
    assert not failures.gpu_out_of_memory(ray.exceptions.OutOfMemoryError(OOM))
    assert not failures.gpu_out_of_memory(RuntimeError("CUDA error"))
