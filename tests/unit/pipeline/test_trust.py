"""Commands that only look at something contact no host that a file names."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rayddl
from rayddl.cli.app import app
from rayddl.data.config import SourceConfig
from rayddl.stages.evaluate import stage as evaluating
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


def test_a_set_cannot_name_a_host(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate SET` refuses before Ray is started; `--root` or --allow-remote is the user's word."""
    import torch

    from rayddl import hosts
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.pixels.space import fit

    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    info = {"source": {"name": "parquet", "root": host.uri(), "size": 8}, "protocol": {"name": "hard"}}
    space = fit("normalise", images)
    made = DistilledSet(space.encode(images), torch.tensor([0, 0, 1, 1]), 0.1, ("a", "b"), space, info)
    folder = Folder(str(tmp_path / "set"))
    made.save(folder)
    # Saving removes the credentials and with them the name of the host.
    document = json.loads((tmp_path / "set" / "set.json").read_text())
    document["info"] = info
    (tmp_path / "set" / "set.json").write_text(json.dumps(document))
    monkeypatch.setattr(evaluating.cluster, "start", lambda: pytest.fail("Ray was started"))

    with hosts.only(str(folder)), raises("host-not-named"):
        evaluating.evaluate_set(folder)
    assert host.visits == 0


def test_a_set_cannot_ask_for_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its description of the source is read without the permission to fetch it."""
    from rayddl import hosts
    from rayddl.pipeline.comparing import _stored

    described = SourceConfig(name="cifar10", root=os.fspath(tmp_path), download=True).model_dump()
    with hosts.only("set"):
        assert "download" not in _stored(described)
    assert _stored(described)["download"] is True
