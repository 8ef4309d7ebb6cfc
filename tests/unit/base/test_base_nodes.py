"""Which nodes are asked whether they see a folder, and what becomes of their answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rayddl.errors import UserError
from rayddl.stages.runtime import nodes
from rayddl.stages.runtime.nodes import Answer, Node


class Fake:
    """A cluster whose nodes answer in this process."""

    def __init__(self, *there: str) -> None:
        self.there, self.asked = list(there), []
        self.silent: set[str] = set()
        self.blind: set[str] = set()

    def works(self) -> list[Node]:
        return [Node(name, f"10.0.0.{name}", "", {"CPU": 1.0}) for name in self.there]

    def ask(self, function: Any, asked: Iterable[Node], *args: Any, seconds: float) -> dict[Node, Answer]:
        del seconds
        answers = {}
        for node in asked:
            self.asked.append(node.id)
            if node.id in self.silent:
                answers[node] = Answer(error="no answer within 60 s")
            elif node.id in self.blind:
                answers[node] = Answer(function([(*args[0][0][:2], "/nowhere", True)], 0.0))
            else:
                answers[node] = Answer(function(args[0], 0.0))
        return answers


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A cluster of two nodes."""
    made = Fake("1", "2")
    monkeypatch.setattr(nodes, "alive", made.works)
    monkeypatch.setattr(nodes, "_others", made.works)
    monkeypatch.setattr(nodes, "ask", made.ask)
    monkeypatch.setattr(nodes, "_reached", set())
    return made


def reach(out: object, notes: list[str] | None = None, **more: str) -> None:
    """What a run does when a stage begins."""
    told = [] if notes is None else notes
    nodes.refuse_unseen({"--out": str(out), **more}, told.append)


def test_every_node_is_asked_once(fake: Fake, tmp_path: Path) -> None:
    """A node that came later is asked when the next stage begins, and the others are not asked again."""
    reach(tmp_path)
    reach(tmp_path)
    fake.there.append("3")
    reach(tmp_path)

    assert fake.asked == ["1", "2", "3"]
    assert list(tmp_path.iterdir()) == []


def test_another_folder_is_another_question(fake: Fake, tmp_path: Path) -> None:
    """What a node sees of one folder says nothing of the next."""
    reach(tmp_path / "a")
    reach(tmp_path / "b")

    assert fake.asked == ["1", "2", "1", "2"]


def test_a_uri_is_no_question(fake: Fake) -> None:
    """Object storage is reached from everywhere."""
    reach("s3://bucket/runs?region=eu-west-1")

    assert fake.asked == []


def test_a_node_that_does_not_see_it(fake: Fake, tmp_path: Path) -> None:
    """The node is named with what to do, however many see the folder."""
    fake.blind.add("2")
    with pytest.raises(UserError) as refused:
        reach(tmp_path / "runs")

    assert "node 10.0.0.2 has another folder at that path" in str(refused.value)
    assert "10.0.0.1" not in str(refused.value)
    assert "s3://bucket/runs" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_does_not_answer(fake: Fake, tmp_path: Path) -> None:
    """It does not stop the run: that is said, and the node is asked again by the next stage."""
    fake.silent.add("2")
    notes: list[str] = []
    reach(tmp_path, notes)
    fake.silent.clear()
    reach(tmp_path, notes)

    assert notes == ["node 10.0.0.2 does not say whether it sees --out: no answer within 60 s"]
    assert fake.asked == ["1", "2", "2"]


def test_a_source_that_is_not_mounted(fake: Fake, tmp_path: Path) -> None:
    """A source is recognised by what is in it: the mount point alone is there on every machine."""
    source = tmp_path / "images"
    (source / "train").mkdir(parents=True)
    with nodes._marked({"source.root": str(source)}) as (place,):
        assert place.mark == str(source / "train")
        assert not place.written
    reach(tmp_path / "runs", **{"source.root": str(source)})
    assert fake.asked == ["1", "2"]


def test_who_works() -> None:
    """A head without CPUs runs no unit, so it need not see what they write."""
    assert not Node("1", "10.0.0.1", "head", {"memory": 1e9, "object_store_memory": 1e8}).works
    assert Node("2", "10.0.0.2", "", {"CPU": 0.5}).works
    assert Node("3", "10.0.0.3", "", {"GPU": 1.0}).works
