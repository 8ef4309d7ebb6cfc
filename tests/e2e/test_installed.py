"""The wheel, installed where there is no clone: commands, shipped definitions and types are complete."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, and this environment's libraries without rayddl."""
    folder = tmp_path_factory.mktemp("installed")
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    venv.create(folder / "env", with_pip=False)
    site = next((folder / "env").glob("lib/python*/site-packages"))
    # A wheel of pure Python is installed by unpacking it; installers would look for an index.
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    # A path in a .pth file brings the libraries, and not the editable clone that their folder's own .pth names.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin" / "python"


def _run(python: Path, where: Path, *words: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    ended = subprocess.run(
        (python, "-m", "rayddl", *words),
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_package_is_the_installed_one(python: Path, tmp_path: Path) -> None:
    """Not the clone; with types and definitions."""
    code = "import rayddl, pathlib; print(pathlib.Path(rayddl.__file__).parent)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    ended = subprocess.run(
        (python, "-c", code), cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    package = Path(ended.stdout.strip())
    assert package.is_relative_to(python.parents[1])
    assert (package / "py.typed").is_file()
    shipped = {path.name for path in (ROOT / "pipelines").iterdir()}
    assert {path.name for path in (package / "pipelines").iterdir()} == shipped


def test_shipped_definitions_are_found_in_an_empty_folder(python: Path, tmp_path: Path) -> None:
    """By name; nothing is written by a plan."""
    assert "experts" in _run(python, tmp_path, "plan", "quickstart")
    assert list(tmp_path.iterdir()) == []


def test_keys_are_explained(python: Path, tmp_path: Path) -> None:
    """From the settings, without docs/."""
    assert "Images per class." in _run(python, tmp_path, "explain", "match.ipc")


def test_photos_become_a_definition(python: Path, tmp_path: Path) -> None:
    """``init``, then ``plan`` of what it wrote."""
    for k in range(40):
        path = tmp_path / "photos" / f"class{k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40 + k, 50, 3), k, np.uint8)).save(path)
    assert "rayddl run photos.yaml" in _run(python, tmp_path, "init", "photos")
    assert "distill" in _run(python, tmp_path, "plan", "photos.yaml")
