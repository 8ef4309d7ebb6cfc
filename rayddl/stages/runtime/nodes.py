"""The nodes of the current cluster: their list, calls on each of them, and their access to folders."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayddl.errors import UserError
from rayddl.stages.runtime.capacity import HEAD
from rayddl.storage import Folder

ANSWER_SECONDS = 60.0
"""Time limit for nodes' answers: a worker has to start, and receive the run's package."""
POLL_SECONDS = 1.0
APPEAR_SECONDS = 10.0
"""Time limit for a new file to appear on a node: network file systems have delays."""
GONE = "it left the cluster"
OUT = "--out"
"""The option that names the folder into which workers write."""
ROOT = "source.root"
"""That of the source."""


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    id: str
    address: str
    host: str
    resources: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def works(self) -> bool:
        """True if units of work may run on the node: each needs a share of a CPU or GPU."""
        return self.resources.get("CPU", 0) > 0 or self.resources.get("GPU", 0) > 0

    def __str__(self) -> str:
        return f"{self.address} ({self.host})" if self.host else self.address


@dataclass(frozen=True)
class Answer:
    """A node's answer, or the reason why there is none."""

    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Place:
    """A folder that all nodes must access, and a file in it that identifies it."""

    option: str
    path: str
    mark: str
    written: bool = False
    """True if workers write into it."""


_reached: set[tuple[str, str, str]] = set()
"""Checks that succeeded: (node id, option, path). Node ids are unique across clusters."""


def alive() -> tuple[Node, ...]:
    """The nodes that are alive, the head first."""
    import ray

    found = [
        Node(
            str(entry["NodeID"]),
            str(entry.get("NodeManagerAddress", "")),
            str(entry.get("NodeManagerHostname", "")),
            {name: float(value) for name, value in entry.get("Resources", {}).items()},
        )
        for entry in ray.nodes()
        if entry["Alive"]
    ]
    return tuple(sorted(found, key=lambda node: (HEAD not in node.resources, node.address, node.id)))


def ask(
    function: Callable[..., Any], asked: Iterable[Node], *args: Any, seconds: float = ANSWER_SECONDS
) -> dict[Node, Answer]:
    """Call ``function(*args)`` on all nodes at once, without reserving a CPU, and return the answers.

    Waits at most ``seconds``; the answer of a failed or silent node is the reason. ``function`` should be a nested
    function: it is pickled by value, and also runs on nodes that cannot import rayddl.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    refs = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            *args
        ): node
        for node in asked
    }
    answers: dict[Node, Answer] = {}
    began = time.monotonic()
    while waiting := [ref for ref, node in refs.items() if node not in answers]:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
        answers |= {refs[ref]: _answer(ref) for ref in done}
        there = {node.id for node in alive()}
        late = time.monotonic() - began > seconds
        for ref in waiting:
            if late or refs[ref].id not in there:
                answers[refs[ref]] = Answer(error=f"no answer within {seconds:.0f} s" if late else GONE)
                with suppress(ray.exceptions.RayError):
                    ray.cancel(ref, force=True)
    return answers


def refuse_unseen(places: Mapping[str, str], note: Callable[[str], None]) -> None:
    """Check that every node with workers can access the local folders among ``places``, by option.

    Each node is checked once for each place. A node that does not answer is reported by ``note``, and is checked
    again at the next call. Raises :class:`UserError` for nodes that cannot access a folder.
    """
    local = {option: path for option, uri in places.items() if (path := local_folder(uri)) is not None}
    fresh = [
        node
        for node in _others()
        if any((node.id, option, path) not in _reached for option, path in local.items())
    ]
    if not local or not fresh:
        return
    answers = check_folders(local, fresh)
    left = {node.id for node in alive()}
    blind: dict[str, list[str]] = {}
    for node, answer in answers.items():
        if answer.error:
            if node.id in left:
                note(f"node {node} does not say whether it sees {', '.join(local)}: {answer.error}")
            continue
        for option, path in local.items():
            if option in answer.value:
                blind.setdefault(option, []).append(f"{node} {answer.value[option]}")
            else:
                _reached.add((node.id, option, path))
    for option, reasons in blind.items():
        raise UserError(unseen(option, local[option], reasons), code="path-not-on-node")


def check_folders(
    places: Mapping[str, str], asked: Sequence[Node], seconds: float = ANSWER_SECONDS
) -> dict[Node, Answer]:
    """Check the local folders ``places`` on each node: problems by option, empty if there are none."""
    with _marked(places) as marked:
        sent = [(place.option, place.path, place.mark, place.written) for place in marked]
        return ask(_folder_check(), asked, sent, APPEAR_SECONDS, seconds=seconds)


def unseen(option: str, path: str, reasons: Sequence[str]) -> str:
    """The error message for nodes that cannot access a folder or file; each reason begins with the node's name."""
    listed = "; ".join(f"node {reason}" for reason in reasons[:3])
    more = f"; and {len(reasons) - 3} more nodes" if len(reasons) > 3 else ""
    use = "write their results there" if option == OUT else "read it there"
    uri = ", or a URI such as s3://bucket/runs" if option in (OUT, ROOT) else ""
    return (
        f"{option} {path!r} cannot be used by every node of the cluster, and workers {use}: {listed}{more}. "
        f"Give a path that every node mounts{uri}."
    )


def local_folder(uri: str) -> str | None:
    """The full path of a local folder; ``None`` for a remote URI, which every machine can access."""
    place = Folder(uri).local
    return None if place is None else str(place)


def _others() -> list[Node]:
    """The nodes with workers; empty if the driver's node is the only one."""
    import ray
    from ray.util import client

    there = [node for node in alive() if node.works]
    # A client of ray:// runs outside the cluster.
    own = "" if client.ray.is_connected() else ray.get_runtime_context().get_node_id()
    return [] if all(node.id == own for node in there) else there


@contextmanager
def _marked(places: Mapping[str, str]) -> Iterator[list[Place]]:
    """The places with an identifying file in each: a new one if workers write into it, else an existing one."""
    marked: list[Place] = []
    made: list[Path] = []
    name = f".rayddl-seen-{uuid.uuid4().hex}"
    try:
        for option, path in places.items():
            if option == OUT:
                # Folders created only for this check are removed.
                made += [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
                Folder(path).write(name, b"")
                marked.append(Place(option, path, os.path.join(path, name), written=True))
            else:
                marked.append(Place(option, path, _first_inside(path)))
        yield marked
    finally:
        with suppress(OSError):
            for place in marked:
                if place.written:
                    Folder(place.path).delete(name)
            for folder in made:
                folder.rmdir()


def _first_inside(path: str) -> str:
    # If a folder is not mounted, its mount point exists, but is empty.
    try:
        return os.path.join(path, min(os.listdir(path)))
    except (OSError, ValueError):
        return path


def _folder_check() -> Callable[..., Any]:
    def check(places: list[tuple[str, str, str, bool]], seconds: float) -> dict[str, str]:
        import os
        import time

        wrong = {}
        deadline = time.monotonic() + seconds
        for option, path, mark, written in places:
            while not os.path.exists(mark) and time.monotonic() < deadline:
                time.sleep(0.2)
            if not os.path.exists(mark):
                there = (
                    "has another folder at that path" if os.path.isdir(path) else "has no such folder or file"
                )
                wrong[option] = there
            elif written and not os.access(path, os.W_OK):
                wrong[option] = "sees it and may not write into it"
        return wrong

    return check


def _answer(ref: Any) -> Answer:
    import ray

    try:
        return Answer(ray.get(ref))
    except Exception as error:  # every failure is the node's answer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Answer(error=(lines[-1] if lines else type(error).__name__)[:300])
