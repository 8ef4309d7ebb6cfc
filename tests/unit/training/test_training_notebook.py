"""The notebook in ``docs/`` runs from its first cell to its last, on an exported set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.space import fit
from rayddl.data.sources import registry as sources
from rayddl.pipeline.exporting import export_to
from rayddl.storage import Folder

NOTEBOOK = Path(__file__).parents[3] / "docs" / "train.ipynb"


def test_the_notebook_trains_on_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every cell runs, and the network has learned digits from ten of them. Run by exec: a kernel is not needed."""
    digits = sources.load(SourceConfig(name="digits"))
    picked = torch.stack([(digits.train.labels == c).nonzero()[3, 0] for c in range(10)])
    space = fit("normalise", digits.train.images)
    made = DistilledSet(
        space.encode(digits.train.images[picked]), digits.train.labels[picked], 0.05, digits.train.classes, space,
        {"source": {"name": "digits"}, "net": {"name": "convnet", "depth": 2, "width": 16}},
    )  # fmt: skip
    made.save(Folder(str(tmp_path / "set")))
    export_to(str(tmp_path / "set"), str(tmp_path / "shared"), "hf")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))

    scope: dict[str, Any] = {}
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not stored"
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), scope)

    assert scope["accuracy"] > 0.45
    assert capsys.readouterr().out.endswith("held-out images, learned from 10\n")
