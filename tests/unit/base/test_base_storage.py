"""Folders by path and by URI: where things in them lie, and what travels."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayddl.cli.app import app
from rayddl.storage import Folder, split
from tests.raising import raises

OPTIONS = "?endpoint_override=http%3A%2F%2F127.0.0.1%3A9&region=eu-central-1"


def test_a_uris_options_stay_behind_the_path() -> None:
    """Children and files of a URI with options have the same options."""
    folder = Folder(f"s3://bucket/runs{OPTIONS}")
    assert folder.child("experts-1").uri == f"s3://bucket/runs/experts-1{OPTIONS}"
    assert folder.child("a/b").path("c.json") == f"s3://bucket/runs/a/b/c.json{OPTIONS}"
    assert split(folder.path("c.json")) == (folder, "c.json")
    assert folder.child("experts-1").name == "experts-1"


def test_a_question_mark_in_a_local_path_is_one(tmp_path: Path) -> None:
    """Local paths have no options."""
    folder = Folder(str(tmp_path / "what?"))
    folder.child("a").write("b", b"c")
    assert (tmp_path / "what?" / "a" / "b").read_bytes() == b"c"
    assert split(folder.path("b")) == (folder, "b")


@pytest.mark.parametrize(("where", "parts"), [("a.json", (".", "a.json")), ("/a.json", ("/", "a.json"))])
def test_a_file_by_itself_lies_somewhere(where: str, parts: tuple[str, str]) -> None:
    """A bare name lies here, and one at the root lies there."""
    folder, name = split(where)
    assert (folder.uri, name) == parts


def test_a_relative_folder_is_the_same_place_where_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent to a worker, which has another working directory, a relative folder is still this one."""
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Folder("runs"))
    monkeypatch.chdir("/")
    assert pickle.loads(sent).uri == str(tmp_path / "runs")
    uri = f"s3://bucket/runs{OPTIONS}"
    assert pickle.loads(pickle.dumps(Folder(f"file://{tmp_path}"))).uri == f"file://{tmp_path}"
    assert pickle.loads(pickle.dumps(Folder(uri))).uri == uri


def test_documents_hold_no_credentials(tmp_path: Path) -> None:
    """Whatever a stage writes as JSON, keys in URIs stay out of it, however deep."""
    folder = Folder(str(tmp_path))
    folder.write_json("a.json", {"source": [{"root": "s3://KEYID:hush/hush@bucket/set?region=x"}], "n": 1.5})
    assert folder.read_json("a.json") == {"source": [{"root": "s3://bucket/set"}], "n": 1.5}


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..", ""])
def test_a_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    """Whatever a manifest or an archive says, a file's name stays inside the folder."""
    folder = Folder(str(tmp_path))
    for act in (
        folder.child,
        folder.path,
        folder.read,
        folder.has,
        folder.delete,
        lambda n: folder.write(n, b""),
    ):
        with raises("path-leaves-folder"):
            act(name)


def test_a_split_outside_the_source_is_refused(tmp_path: Path) -> None:
    """A definition's split cannot name a folder beside the source's: exit 2, and the name is told."""
    (tmp_path / "d.yaml").write_text(
        "name: d\nsource: {name: imagefolder, root: here, train: ../there, size: 8}\nstages: {report: {kind: report}}"
    )
    (tmp_path / "here" / "val" / "a").mkdir(parents=True)
    (tmp_path / "there" / "a").mkdir(parents=True)
    root = f"source.root={tmp_path / 'here'}"
    ended = CliRunner().invoke(app, ["plan", str(tmp_path / "d.yaml"), "--set", root])
    assert ended.exit_code == 2
    assert ended.stderr == (
        "error: '../there' does not stay inside its folder; expected a name below it, without a leading '/' and '..'\n"
    )
