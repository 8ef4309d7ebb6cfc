"""Sets on the Hugging Face Hub, with a server on this machine in its place."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from rayddl import hosts
from rayddl.cli.app import app
from rayddl.errors import UserError
from rayddl.pipeline import hub as hubs
from rayddl.pipeline import judging
from rayddl.pipeline.browse.show import inspect
from rayddl.pipeline.comparing import resolve
from rayddl.pipeline.exporting import export_to
from rayddl.pipeline.sets import find_set, load_set
from rayddl.stages.context import Result
from rayddl.storage import Folder
from tests.raising import raises

pytest.importorskip("huggingface_hub", reason="Hugging Face's library is not installed")
TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """The part of the Hub's interface that downloads and uploads of small files use."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.sets: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _send(self, value: Any, code: int = 200, **head: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(data)), **head}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[1:3])
        files, sha = self.server.sets.get(name), "1" * 40
        if files is None or (
            self.server.private[name] and TOKEN not in self.headers.get("Authorization", "")
        ):
            self._send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif not api:
            data = files["/".join(parts[5:])]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self._send(data, X_Repo_Commit=sha, ETag=etag, X_Linked_Size=str(len(data)))
        elif "tree" in parts:
            self._send([{"type": "file", "path": p, "size": len(d), "oid": "0"} for p, d in files.items()])
        else:
            self._send({"id": name, "sha": sha, "siblings": [{"rfilename": p} for p in files], "tags": []})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        self.server.asked.append(self.path)
        if TOKEN not in self.headers.get("Authorization", ""):
            self._send({"error": "Unauthorized"}, 401)
        elif parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.server.sets.setdefault(name, {})
            self.server.private[name] = asked.get("private") or asked.get("visibility") == "private"
            self._send({"url": f"{self.server.address}/datasets/{name}"})
        elif "preupload" in parts:
            files = json.loads(body)["files"]
            self._send(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            )
        elif "commit" in parts:
            lines = [json.loads(line) for line in body.splitlines()]
            name = "/".join(parts[2:4])
            for line in lines:
                if line["key"] == "file":
                    self.server.sets[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._send({"success": True, "commitOid": "2" * 40, "commitUrl": f"{self.server.address}/c/2"})
        else:
            self._send({}, 200)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running stand-in, which the environment names, with a cache of its own."""
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("HF_HUB_CACHE", "HF_XET_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def made(tmp_path: Path) -> Folder:
    """A set of digits in a folder."""
    import torch

    from rayddl.data.config import SourceConfig
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.pixels.space import fit
    from rayddl.data.sources import registry

    digits = registry.load(SourceConfig(name="digits"))
    info = {
        "source": {"name": "digits", "root": "/home/me/secret"},
        "net": {"name": "convnet", "depth": 2, "width": 16},
        "definition": {"name": "mine", "source": {"name": "digits", "root": "/home/me/secret"}, "stages": {}},
    }
    picked = torch.arange(10)
    space = fit("normalise", digits.train.images)
    images = space.encode(digits.train.images[picked])
    folder = Folder(str(tmp_path / "set"))
    DistilledSet(images, digits.train.labels[picked], 0.05, digits.train.classes, space, info).save(folder)
    return folder


def test_a_set_goes_up_and_comes_back(hub: Hub, made: Folder, tmp_path: Path) -> None:
    """Card, recipe, script and tensors are uploaded as a private data set; ``hf://`` is a place for a set."""
    import torch

    exported = export_to(str(made), None, "hf", push="me/digits")

    assert str(exported.address).endswith("/datasets/me/digits")
    files = hub.sets["me/digits"]
    assert {"README.md", "set.json", "set.safetensors", "train.py", "parts.py", "definition.yaml"} <= set(
        files
    )
    assert hub.private["me/digits"]
    assert not any(b"secret" in data for data in files.values())
    for where in ("hf://me/digits", "hf://datasets/me/digits@main"):
        assert torch.equal(load_set(where).images, load_set(str(made)).images)
    fetched = Path(str(find_set("hf://me/digits")))
    assert sorted(path.name for path in fetched.iterdir()) == ["set.json", "set.safetensors"]


def test_a_set_in_a_folder_of_a_data_set(hub: Hub, made: Folder) -> None:
    """``hf://owner/name/folder`` is one of several sets."""
    files = {name: made.read(name) for name in ("set.json", "set.safetensors")}
    hub.sets["me/many"] = {f"ipc 1/a/{name}": data for name, data in files.items()}
    hub.private["me/many"] = False

    assert find_set("hf://me/many/ipc 1/a").has("set.safetensors")
    with raises("hub-holds-no-set"):
        find_set("hf://me/many")


def test_a_set_on_the_hub_is_shown_and_compared(
    hub: Hub, made: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in a folder; what is not there is said in a sentence."""
    hub.sets["me/digits"] = {name: made.read(name) for name in ("set.json", "set.safetensors")}
    hub.private["me/digits"] = False
    assert inspect("hf://me/digits", "runs").title == "a distilled set"
    (found,) = resolve("hf://me/digits", "runs")
    assert found.set.has("set.safetensors")
    for look in (inspect, resolve):
        with raises("hub-not-found"):
            look("hf://me/nothing", "runs")


def test_an_upload_also_to_a_folder(hub: Hub, made: Folder, tmp_path: Path) -> None:
    """With ``--to`` the same files are kept here; other files there stay here."""
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / ".private").write_text("mine")
    files = export_to(str(made), str(tmp_path / "to"), "hf", push="me/digits").files

    assert {path.removeprefix(f"{tmp_path}/to/") for path in files} == set(hub.sets["me/digits"])
    for name, data in hub.sets["me/digits"].items():
        assert (tmp_path / "to" / name).read_bytes() == data


def test_what_is_not_there_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that does not exist, a private one without a token, a Hub that does not answer, and other names."""
    hub.sets["me/digits"], hub.private["me/digits"] = {}, True
    with raises("hub-not-found"):
        find_set("hf://me/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with raises("hub-not-found"):
        find_set("hf://me/digits")
    for wrong in ("hf://digits", "hf://me/../digits", "hf://me/digits/../x", "hf://"):
        with pytest.raises(UserError) as error:
            find_set(wrong)
        assert error.value.code == "hub-place-unknown"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        find_set("hf://me/digits")
    assert error.value.code == "hub-failed"


def test_only_a_named_place_is_contacted(hub: Hub, made: Folder) -> None:
    """Inside a command, ``hf://`` is a host like others: it has to stand on the command line."""
    hub.sets["me/digits"] = {name: made.read(name) for name in ("set.json", "set.safetensors")}
    hub.private["me/digits"] = False
    with hosts.only("runs"), raises("host-not-named"):
        find_set("hf://me/digits")
    assert not hub.asked
    with hosts.only("hf://me/digits"):
        find_set("hf://me/digits")
    assert hub.asked


def test_the_commands_take_both(
    hub: Hub, made: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``export --push`` and ``evaluate hf://…`` from the command line; students are not trained here."""
    seen: list[str] = []

    def judged(folder: Folder, *, name: str, **_: Any) -> Result:
        seen.append(str(folder))
        rows = [
            {"data": data, "net": "mlp", "mean": mean} for data, mean in (("distilled", 0.5), ("random", 0.6))
        ]
        return Result({"rows": rows, "tested": 9000}, ({"data": f"distilled ({name})"},))

    monkeypatch.setattr(judging, "ray_session", lambda *_: nullcontext(SimpleNamespace(reach=lambda _: None)))
    monkeypatch.setattr(judging, "_judge", lambda _: judged)
    pushed = CliRunner().invoke(app, ["export", str(made), "--format", "hf", "--push", "me/digits"])
    evaluated = CliRunner().invoke(
        app, ["evaluate", "hf://me/digits", "--json", "--out", str(tmp_path / "out")]
    )

    assert (pushed.exit_code, evaluated.exit_code) == (0, 0), pushed.output + evaluated.output
    assert pushed.output == f"wrote {hub.address}/datasets/me/digits\n"
    assert Folder(seen[0]).has("set.json")
    (event,) = [found for line in evaluated.output.splitlines() if (found := json.loads(line)).get("tables")]
    assert event["tables"] == {"evaluate": [{"data": "distilled (hf://me/digits)"}]}
    assert event["places"]["set"] == "hf://me/digits"
    # The result is kept, as the set may be at another place than this machine.
    kept = json.loads(Path(event["places"]["result"]).read_bytes())
    assert (kept["place"], kept["tested"]) == ("hf://me/digits", 9000)
    # The warnings of the stage in a run are those of the command, too.
    (warning,) = event["warnings"]
    assert warning.startswith(
        "evaluate: mlp reaches 50.0 % with the set and 60.0 % with random real images: the set is"
    )
    assert kept["warnings"] == [warning]


def test_uploads_are_refused_before_they_start(hub: Hub, made: Folder) -> None:
    """A name that is no ``owner/name``, another format, and a place that is missing."""
    with raises("hub-name-unknown"):
        export_to(str(made), None, "hf", push="digits")
    with raises("export-options-of-hf"):
        export_to(str(made), "x", "pt", push="me/digits")
    with raises("export-without-place"):
        export_to(str(made), None, "hf")
    assert not hub.asked


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with raises("hub-not-installed"):
        hubs.fetched("hf://me/digits")
