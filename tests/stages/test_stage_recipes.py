"""The shipped definition of the soft-label recipes, from teacher to page."""

from __future__ import annotations

from pathlib import Path

import pytest

import rayddl
from rayddl.data.distilled import DistilledSet
from rayddl.storage import Folder

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("kept_ray")]

SHIPPED = Path(__file__).resolve().parents[2] / "pipelines" / "quickstart-recipes.yaml"
RECIPES = ("rded", "edc", "rd3", "bps")
SHORT = {
    "teacher.epochs": 2, "teacher.allow_weak": True, "distill.mipc": 10, "distill.num_crops": 1,
    **{f"evaluate-{name}.{key}": value for name in RECIPES
       for key, value in {"epochs": 2, "seeds": 1, "own_labels": False, "random": False}.items()},
}  # fmt: skip


def test_every_recipe_of_the_shipped_definition_trains_by_its_own_choices(tmp_path: Path) -> None:
    """Each is recorded with the choices in which it differs from RDED's."""
    done = rayddl.run(str(SHIPPED), overrides=SHORT, out=str(tmp_path / "runs"), progress=False)
    protocols = {
        name: DistilledSet.load(Folder(done.folders[f"evaluate-{name}"]).child("set")).info["protocol"]
        for name in RECIPES
    }

    choices = ("recipe", "loss", "batch", "schedule", "crop_min", "ema")
    assert {name: tuple(protocol.get(key) for key in choices) for name, protocol in protocols.items()} == {
        "rded": (None, None, 10, None, None, None),
        "edc": ("edc", "mse_gt", 10, None, 0.08, 0.99),
        "rd3": ("rd3", None, 50, "cosine", None, None),
        "bps": ("bps", None, 16, None, 0.1, None),
    }
    assert list(done.tables) == [f"evaluate-{name}" for name in RECIPES]
    assert all(
        0 <= row["mean"] <= 1 for name in RECIPES for row in done.summaries[f"evaluate-{name}"]["rows"]
    )
