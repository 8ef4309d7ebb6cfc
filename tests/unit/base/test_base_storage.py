"""Folders by path and by URI: where things in them lie, and what travels."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayddl import localfiles
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


def test_an_empty_path_is_refused() -> None:
    """It would be the working folder for some methods, and the root of the disk for others."""
    with raises("path-empty"):
        Folder("")


@pytest.mark.parametrize(
    "given",
    [
        ["list", "--out", ""],
        ["status", "--out", ""],
        ["init", ""],
        ["plan", "quickstart", "--out", ""],
        ["evaluate", ""],
    ],
)
def test_commands_refuse_an_empty_path(given: list[str]) -> None:
    """The message says so, and nothing is read or written in another folder."""
    ended = CliRunner().invoke(app, given)
    assert ended.exit_code == 2
    assert ended.stderr.startswith("error: the path of a folder is empty, ")


def test_an_empty_root_is_refused() -> None:
    """The images of a definition are not looked for in the working folder."""
    given = ["plan", "quickstart", "--set", "source={name: imagefolder, root: ''}"]
    ended = CliRunner().invoke(app, given)
    assert ended.exit_code == 2
    assert "source.root= cannot be opened: the path of a folder is empty, " in ended.stderr


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


def test_only_unfinished_files_are_hidden(tmp_path: Path) -> None:
    """A file of the user's own with a similar name is listed."""
    for name in ("a.tmp-1.png", "b.tmp-0123456789", "c.png.tmp-0a1b2c3d", "d.tmp-report"):
        (tmp_path / name).write_bytes(b"x")
    folder = Folder(str(tmp_path))

    assert folder.names() == ["a.tmp-1.png", "b.tmp-0123456789", "d.tmp-report"]
    assert list(folder.files()) == folder.names()


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    """Files and folders of unfinished writes, at any depth, and nothing behind a link."""
    elsewhere, top = tmp_path / "elsewhere", tmp_path / "top"
    for file in ("a", "a.tmp-0a1b2c3d", "deep/b.tmp-0a1b2c3d/file", "deep/c", "deep/d.tmp-1"):
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_bytes(b"1")
    elsewhere.mkdir()
    (elsewhere / "e.tmp-0a1b2c3d").write_bytes(b"1")
    (top / "link").symlink_to(elsewhere)
    Folder(str(top)).sweep()

    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert left == ["elsewhere/e.tmp-0a1b2c3d", "top/a", "top/deep/c", "top/deep/d.tmp-1"]
    Folder(str(tmp_path / "none")).sweep()
    Folder("mock://x").sweep()


def test_names_that_are_not_utf8_find_their_files(tmp_path: Path) -> None:
    """They are listed with their bytes shown, and everything works by the shown name."""
    raw = os.fsencode(tmp_path)
    os.mkdir(raw + b"/d\xff")
    for name in (b"/d\xff/\xe9.bin", b"/d\xff/plain"):
        with open(raw + name, "wb") as file:
            file.write(b"12345")
    folder = Folder(str(tmp_path))

    assert folder.folders() == ["d\\xff"]
    assert folder.files() == {"d\\xff/\\xe9.bin": 5, "d\\xff/plain": 5}
    inside = folder.child("d\\xff")
    assert inside.exists()
    assert inside.names() == ["\\xe9.bin", "plain"]
    assert inside.has("\\xe9.bin")
    assert (inside.size("\\xe9.bin"), inside.read("\\xe9.bin")) == (5, b"12345")
    assert inside.modified("\\xe9.bin") is not None
    with inside.open("\\xe9.bin") as stream:
        stream.seek(3)
        assert stream.read() == b"45"
    assert not inside.has("\\xea.bin")


def test_two_names_that_are_shown_alike_are_refused(tmp_path: Path) -> None:
    """Neither is passed over."""
    for name in (b"/\xe9", b"/\\xe9"):
        with open(os.fsencode(tmp_path) + name, "wb"):
            pass

    with raises("names-alike"):
        Folder(str(tmp_path)).files()


def test_files_that_vanish_while_they_are_listed_are_passed_over(tmp_path: Path) -> None:
    """Other processes finish and remove files at any time."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            (tmp_path / folder / str(number)).write_bytes(b"x")

    listed = localfiles.walk(str(tmp_path), None)
    first, _ = next(listed)
    for folder in ("a", "b"):
        shutil.rmtree(tmp_path / folder)

    assert first.count("/") == 1
    assert list(listed) == []


@pytest.mark.parametrize("odd", ["device", "pipe"])
def test_devices_and_pipes_are_no_files(tmp_path: Path, odd: str) -> None:
    """A link to a device has no end, and a pipe no beginning: reading either would go on for ever."""
    if odd == "device":
        (tmp_path / "x").symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "x")
    folder = Folder(str(tmp_path))
    for read in (lambda: folder.read("x", 9), lambda: folder.read("x", 9, 3), lambda: folder.open("x")):
        with pytest.raises(FileNotFoundError, match="device or pipe"):
            read()


def test_a_zero_byte_is_in_no_path(tmp_path: Path) -> None:
    """Neither in a folder's nor in a file's, on any filesystem."""
    for where in (f"{tmp_path}/a\0b", "file:///a\0b"):
        with raises("path-with-zero-byte"):
            Folder(where).exists()
    with raises("path-leaves-folder"):
        Folder(str(tmp_path)).has("a\0b")


@pytest.mark.parametrize(("name", "written"), [("a\udce9", "a\\xe9"), ("\ud800", "\\ud800")])
def test_a_path_that_is_not_utf_8_is_refused_in_words(tmp_path: Path, name: str, written: str) -> None:
    """Arrow's own error is a traceback; the way to write a folder that is there is in the sentence."""
    with raises("path-not-utf-8") as caught:
        Folder(f"{tmp_path}/{name}").exists()
    assert f"{written}" in str(caught.value)
    if name == "a\udce9":
        os.mkdir(os.fsencode(f"{tmp_path}/{name}"))
        assert Folder(f"{tmp_path}/{written}").exists()


def test_a_file_that_is_written_in_parts_appears_as_a_whole(tmp_path: Path) -> None:
    """Until the end, and after an error in the middle, there is what was there before."""
    folder = Folder(str(tmp_path))
    folder.write("a/data", b"before")
    plain = tmp_path / "plain"
    plain.touch()

    with folder.writing("a/data") as path:
        path.write_bytes(b"half")
        assert folder.read("a/data") == b"before"
        assert (folder.child("a").names(), folder.child("a").folders()) == (["data"], [])
        assert [*folder.files()] == ["a/data", "plain"]
        path.chmod(0o600)  # as libraries do that write through a file of their own
        with open(path, "ab") as file:
            file.write(b" and half")
    assert folder.read("a/data") == b"half and half"
    assert (tmp_path / "a" / "data").stat().st_mode == plain.stat().st_mode

    def broken_off() -> None:
        with folder.writing("a/data") as path:
            path.write_bytes(b"other")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert os.listdir(tmp_path / "a") == ["data"]
    assert folder.read("a/data") == b"half and half"
