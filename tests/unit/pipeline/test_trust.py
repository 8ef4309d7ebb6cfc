"""Commands that only look at something contact no host that a file names."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rayddl
from rayddl.cli.app import app
from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry
from rayddl.pipeline import comparing
from rayddl.pipeline.exporting import export_to
from rayddl.stages.evaluate import stage as evaluating
from rayddl.stages.runtime import sources as published
from rayddl.storage import Folder
from tests.raising import raises


class Host:
    """A server on this machine that counts its visitors and serves none."""

    def __init__(self) -> None:
        self.visits = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:
                return
            self.visits += 1
            visitor.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            visitor.close()

    def close(self) -> None:
        self._socket.close()

    def uri(self, path: str = "x") -> str:
        return f"s3://a:b@bucket/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=x"


@pytest.fixture
def host() -> Iterator[Host]:
    opened = Host()
    yield opened
    opened.close()


def definition(folder: Path, root: str) -> str:
    file = folder / "d.yaml"
    source = json.dumps({"name": "parquet", "size": 8, "root": root})
    file.write_text(f"name: x\nsource: {source}\nstages:\n  e: {{kind: experts, count: 1, epochs: 1}}\n")
    return str(file)


def test_plan_asks_first(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent: no request, and so no variable in one; with --allow-remote, or a place named here, it is."""
    monkeypatch.setenv("MY_TOKEN", "TOPSECRET")
    file, out = definition(tmp_path, host.uri("${MY_TOKEN}")), str(tmp_path / "runs")
    refused = CliRunner().invoke(app, ["plan", file, "--out", out])

    assert (refused.exit_code, host.visits) == (2, 0)
    assert "--allow-remote" in refused.stderr
    assert "TOPSECRET" not in refused.output
    with raises("host-not-named"):
        rayddl.plan(file, out=out)
    assert host.visits == 0
    assert CliRunner().invoke(app, ["plan", file, "--out", out, "--allow-remote"]).exit_code == 2
    assert host.visits > 0


def test_what_the_command_line_names_is_contacted(host: Host, tmp_path: Path) -> None:
    """The user's own words need no second question."""
    file = definition(tmp_path, "nowhere")
    CliRunner().invoke(
        app, ["plan", file, "--out", str(tmp_path / "r"), "--set", f"source.root='{host.uri()}'"]
    )
    assert host.visits > 0


@pytest.mark.parametrize("command", ["show", "export", "list"])
def test_looking_at_a_folder_opens_nothing_else(host: Host, tmp_path: Path, command: str) -> None:
    """Whatever its documents name."""
    root = host.uri()
    stage = {"kind": "a", "folder": "e-000000000000", "fingerprint": "f", "state": "done"}
    record = {"format": 1, "name": "x", "stages": {"e": stage}, "definition": {"source": {"root": root}}}
    (tmp_path / "x.run.json").write_text(json.dumps(record))
    arguments = {
        "show": ["show", "x"],
        "export": ["export", "x", "--to", str(tmp_path / "to")],
        "list": ["list"],
    }
    done = CliRunner().invoke(app, [*arguments[command], "--out", str(tmp_path)])

    assert done.exit_code in (0, 2)
    assert "Traceback" not in done.output
    assert host.visits == 0


def foreign_set(place: Path, source: dict[str, object]) -> Folder:
    """A set in ``place`` that says that it was made from ``source``."""
    import torch

    from rayddl.data.distilled import DistilledSet
    from rayddl.data.pixels.space import fit

    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    info = {"source": source, "protocol": {"name": "hard"}}
    space = fit("normalise", images)
    made = DistilledSet(space.encode(images), torch.tensor([0, 0, 1, 1]), 0.1, ("a", "b"), space, info)
    folder = Folder(str(place))
    made.save(folder)
    # Saving removes the credentials and with them the name of the host.
    document = json.loads((place / "set.json").read_text())
    document["info"] = info
    (place / "set.json").write_text(json.dumps(document))
    return folder


def test_a_set_cannot_name_a_host(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate SET` refuses before Ray is started; `--root` or --allow-remote is the user's word."""
    from rayddl import hosts

    folder = foreign_set(tmp_path / "set", {"name": "parquet", "root": host.uri(), "size": 8})
    monkeypatch.setattr(evaluating.cluster, "start", lambda: pytest.fail("Ray was started"))

    with hosts.only(str(folder)), raises("host-not-named"):
        evaluating.evaluate_set(folder)
    assert host.visits == 0


def test_an_export_asks_before_it_reads_held_out_images_elsewhere(host: Host, tmp_path: Path) -> None:
    """With --allow-remote, which the message names, it does."""
    folder = foreign_set(tmp_path / "set", {"name": "parquet", "root": host.uri(), "size": 8})
    command = ["export", str(folder), "--format", "hf", "--with-test", "--to", str(tmp_path / "to")]
    refused = CliRunner().invoke(app, command)

    assert (refused.exit_code, host.visits) == (2, 0)
    assert "--allow-remote" in refused.stderr
    assert CliRunner().invoke(app, [*command, "--allow-remote"]).exit_code == 2
    assert host.visits > 0


def _exports(form: str, *more: str) -> Callable[[Path], None]:
    def export(place: Path) -> None:
        to = str(place.parent / "to")
        done = CliRunner().invoke(app, ["export", str(place), "--format", form, "--to", to, *more])
        assert done.exit_code == (2 if more else 0), done.output

    return export


def _evaluates(place: Path) -> None:
    """Without a list of hosts, as with --allow-remote."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluating.cluster, "start", lambda: None)
        patched.setattr(evaluating, "_task", _used)
        with pytest.raises(InterruptedError):
            evaluating.evaluate_set(Folder(str(place)))


def _used(config: object, made: object, described: SourceConfig, *_: object) -> None:
    with raises("cifar-not-found"):
        registry.load(described)
    raise InterruptedError


def _compares(place: Path) -> None:
    source = comparing.definition(comparing.resolve(str(place), "runs"))["source"]
    assert source == {"name": "cifar10", "root": str(place.parent / "chosen")}


@pytest.mark.parametrize(
    "use",
    [
        _exports("hf", "--with-test"),
        _exports("hf"),
        _exports("webdataset"),
        _exports("imagefolder"),
        _evaluates,
        _compares,
    ],
)
def test_a_set_cannot_ask_for_a_download(
    use: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its description of the source is read without the permission to fetch it, and makes no folder."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("it was asked for"))
    root = tmp_path / "chosen"
    foreign_set(tmp_path / "set", {"name": "cifar10", "root": str(root), "download": True})

    use(tmp_path / "set")
    assert not root.exists()


@pytest.mark.parametrize("command", ["export", "evaluate", "compare"])
def test_missing_files_are_answered_by_what_the_command_has(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's settings are in no definition here: an option of the command, or the folder that the set records."""
    root, folder = tmp_path / "chosen", tmp_path / "set"
    foreign_set(folder, {"name": "cifar10", "root": str(root)})
    monkeypatch.setattr(evaluating.cluster, "start", lambda: None)
    monkeypatch.setattr(published, "_key", lambda *_: "no session")
    option = "--with-test" if command == "export" else "--root"
    with raises("cifar-not-found") as caught:
        if command == "export":
            export_to(str(folder), str(tmp_path / "to"), "hf", with_test=True)
        elif command == "evaluate":
            evaluating.evaluate_set(Folder(str(folder)))
        else:
            comparing.compare([folder, folder], out=str(tmp_path / "runs"))

    assert (
        str(caught.value).partition("test_batch, batches.meta. ")[2].startswith("The set records this folder")
    )
    assert option in str(caught.value)
    assert "source.download" not in str(caught.value)
