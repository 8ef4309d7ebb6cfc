"""The files that a job ships, and what is refused before anything is sent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import rayddl
from rayddl.cli.app import app
from rayddl.errors import UserError
from rayddl.jobs import shipping
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from tests.raising import raises

BASE = """
name: base
source: {name: digits}
stages:
  experts: {kind: experts, net: {name: convnet, depth: 1, width: 8}, count: 4, epochs: 5}
"""
OVER = """
extends: base.yaml
name: over
seed: ${SHIPPED_SEED}
stages: {experts: {count: 9}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two definitions, one of which extends the other and reads a variable."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "over.yaml").write_text(OVER)
    monkeypatch.setenv("SHIPPED_SEED", "7")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(**changes: Any) -> definitions.Definition:
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return definitions.load("base.yaml", overrides)


def prints(definition: definitions.Definition) -> list[str]:
    return [stage.fingerprint for stage in plans.make(definition, "runs", lambda _: "images").stages]


def test_the_shipped_definition_makes_the_same_run_elsewhere(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bases, overrides and variables are in the one file, and its stages have the same fingerprints."""
    local = definitions.load("over.yaml", ["experts.epochs=6"])
    parcel = shipping.pack(local)
    other = here / "elsewhere"
    other.mkdir()
    parcel.write(other)
    monkeypatch.delenv("SHIPPED_SEED")
    monkeypatch.chdir(other)
    shipped = definitions.load(shipping.DEFINITION)
    assert (shipped.name, shipped.seed) == ("over", 7)
    assert prints(shipped) == prints(local)


def test_the_shipped_package_runs_by_itself(here: Path) -> None:
    """The package that is laid out, with nothing else of rayddl on the path, plans the shipped definition."""
    (here / "job").mkdir()
    shipping.pack(load()).write(here / "job")
    code = "import rayddl, sys; print(rayddl.__file__); rayddl.plan('definition.yaml')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here / "job",
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.strip()).parent == here / "job" / "rayddl"


def test_caches_are_left_out(here: Path) -> None:
    """Of the package every source file goes and no compiled one; beside it goes what was named, without the
    folders that tools fill.
    """
    for name in ("mine/a.txt", "mine/.git/config", "mine/.ruff_cache/z", "mine/b.pyc"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("x")
    files = shipping.pack(load(), ["mine", "over.yaml"]).files
    home = Path(rayddl.__file__).parent
    sources = {p.relative_to(home.parent).as_posix() for p in home.rglob("*") if "__pycache__" not in p.parts}
    shipped = {name for name in files if name.startswith("rayddl/")}
    assert shipped == {name for name in sources if (home.parent / name).is_file()}
    assert {name for name in files if not name.startswith("rayddl/")} <= {
        "mine/a.txt",
        "over.yaml",
        "pyproject.toml",
    }
    assert {"mine/a.txt", "over.yaml"} <= set(files)


def test_what_is_named_may_be_a_folder_that_is_else_left_out(here: Path) -> None:
    """A folder called data is shipped if it is named."""
    (here / "data").mkdir()
    (here / "data" / "y").write_text("x")
    assert "data/y" in shipping.pack(load(), ["data"]).files


def test_only_of_the_working_folder_names_are_left_out(here: Path) -> None:
    """Shipped as a whole, it goes without its results, images and environments; classes of images may be called so."""
    classes = {f"photos/{name}/x.png" for name in ("runs", "data", "venv", ".venv", "node_modules")}
    for name in (*classes, "runs/x", "data/y", "venv/z", "a.txt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("x")
    assert {n for n in shipping.pack(load(), ["photos"]).files if n.startswith("photos/")} == classes
    shipped = set(shipping.pack(load(), ["."]).files)
    assert shipped >= {"a.txt", "base.yaml", *classes}
    assert not shipped & {"runs/x", "data/y", "venv/z"}


def test_a_link_to_a_folder_is_refused(here: Path) -> None:
    """One inside a shipped folder is named; links to files are shipped as files."""
    (here / "mine").mkdir()
    (here / "mine" / "a").symlink_to(here / "base.yaml")
    assert "mine/a" in shipping.pack(load(), ["mine"]).files
    (here / "mine" / "up").symlink_to(here, target_is_directory=True)
    with raises("shipped-link-to-folder") as caught:
        shipping.pack(load(), ["mine"])
    assert "mine/up" in str(caught.value)


def test_too_much_is_refused_with_the_three_largest_named(here: Path) -> None:
    """Above the limit nothing is sent, and the message says what makes it so large."""
    for name, size in (("a", 5), ("b", 4), ("c", 3), ("d", 2)):
        (here / "mine" / name).mkdir(parents=True)
        (here / "mine" / name / "f").write_bytes(b"x" * size * 1_000_000)
    with pytest.raises(UserError) as caught:
        shipping.pack(load(), ["mine"], limit=1_000_000)
    text = str(caught.value)
    assert text.endswith(
        " MB would be shipped with the job, and at most 1.0 MB are; the largest are mine/a (5.0 MB), mine/b (4.0 MB), "
        "mine/c (3.0 MB). Put data on storage that every machine reads, and name it in the definition"
    )


def test_a_relative_place_is_refused_unless_it_is_shipped(here: Path) -> None:
    """A path that only this machine knows is named with its key; shipped, or as a URI or full path, it passes."""
    (here / "old").mkdir()
    (here / "old" / "replay_buffer_0.pt").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        shipping.pack(load(experts__replay="old"))
    assert str(caught.value) == (
        "experts.replay='old' is a path on this machine that the job does not have; give a URI or a full path that "
        "every machine of the cluster sees, or ship it: --with old"
    )
    assert "old/replay_buffer_0.pt" in shipping.pack(load(experts__replay="old"), ["old"]).files
    assert shipping.pack(load(experts__replay="s3://bucket/old")).files
    assert shipping.pack(load(experts__replay="/mnt/old")).files


@pytest.mark.parametrize("out", ["s3://KEYID:s3cr/et@bucket/runs", "s3://KEYID:secret@bucket"])
def test_credentials_are_not_shipped(here: Path, out: str) -> None:
    """Keys in a URI are refused, in the definition and in --out, and the message does not repeat them."""
    with raises("credentials-in-definition") as caught:
        shipping.check_out(out)
    with raises("credentials-in-definition") as also:
        shipping.pack(load(experts__replay=out))
    for text in (str(caught.value), str(also.value)):
        assert "secret" not in text
        assert "cr/et" not in text
        assert "AWS_ACCESS_KEY_ID" in text


def test_results_in_the_jobs_own_folder_are_refused(here: Path) -> None:
    """A relative --out would be thrown away with the job: the message has the full path to type."""
    with pytest.raises(UserError) as caught:
        shipping.check_out("runs")
    assert f'(on this machine alone: --out "{here / "runs"}")' in str(caught.value)
    shipping.check_out("/mnt/runs")
    shipping.check_out("s3://bucket/runs?region=eu-central-1")


@pytest.mark.parametrize("given", ["nowhere", "definition.yaml"])
def test_what_cannot_be_shipped_is_named(here: Path, given: str) -> None:
    """A missing path is refused, and so is a file that would replace the job's own."""
    (here / "definition.yaml").write_text(BASE)
    codes = {"nowhere": "shipped-file-missing", "definition.yaml": "shipped-file-takes-place"}
    with raises(codes[given]):
        shipping.pack(load(), [given])


def test_what_is_wrong_is_told_before_a_cluster_is_asked(here: Path) -> None:
    """A wrong definition and a malformed group of nodes: exit code 2, without a server at the address."""
    out = ["--out", "/mnt/runs", "--address", "http://127.0.0.1:1"]
    grown = CliRunner().invoke(app, ["submit", "base.yaml", *out, "--grows", "many"])
    wrong = CliRunner().invoke(app, ["submit", "base.yaml", *out, "--set", "experts.counts=3"])
    assert (grown.exit_code, wrong.exit_code) == (2, 2)
    assert grown.stderr.startswith("error: --grows 'many' is not a group of nodes; expected how many")
    assert "counts" in wrong.stderr
    assert "Ray" not in grown.stderr + wrong.stderr


def test_a_dollar_that_is_left_is_refused(here: Path) -> None:
    """Text that another machine would replace as a variable is not shipped."""
    shipped = definitions.load({**yaml.safe_load(BASE), "description": "costs ${NOTHING}"})
    with raises("substitution-left"):
        shipping.pack(shipped)
