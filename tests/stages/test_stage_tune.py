"""The tune stage on Ray Tune: trials of matching, of experts with matching, of RDED."""

from __future__ import annotations

import math
import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from ray import cloudpickle

from rayddl import seeds
from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.methods.training.observer import Observer
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.pipeline import artifacts
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition.load import load
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.stages.tune import result_grid
from rayddl.stages.tune import stage as tune
from rayddl.stages.tune.settings import TuneConfig
from rayddl.storage import Folder
from tests.finishing import finished
from tests.raising import raises

pytestmark = pytest.mark.ray

# Workers cannot import a test's module: its classes travel with the trials.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_resources_that_no_node_has_are_refused_before_any_trial(stages, tmp_path):
    """What one trial asks for is compared with the nodes at once."""
    config = {"kind": "tune", "of": "distill", "space": {"lr_image": {"uniform": [1, 2]}}}
    context = _context(stages, tmp_path, stages.match_config(), {})
    with raises("no-node-fits"):
        tune.run(TuneConfig.model_validate({**config, "resources": {"num_cpus": 64}}), context)
    assert not (tmp_path / "trials").exists()


TEMPLATE = {"iterations": 12, "evaluate_every": 4, "evaluate_epochs": 10, "lr_image": 5.0}
SEARCH = {
    "kind": "tune", "of": "distill", "samples": 4, "searcher": "random", "scheduler": "asha", "held_out": 2,
    "tensorboard": True, "space": {"lr_image": {"loguniform": [5, 500]}, "lr_student": {"choice": [0.05, 0.2]}},
}  # fmt: skip


def _context(stages: Any, out: Any, template: Any, inputs: Any, **more: Any) -> Context:
    """The context of a search over ``template``, with the definition that has both."""
    experts = stages.experts_config().model_dump(mode="json", exclude_unset=True)
    definition = {
        "name": "test", "seed": stages.seed, "source": {"name": "digits"},
        "stages": {
            "experts": experts,
            "distill": template.model_dump(mode="json", exclude_unset=True),
            "search": {**SEARCH, **more},
            "evaluate": {"kind": "evaluate", "set": "search", "epochs": 10, "seeds": 1, "augment": "none"},
        },
    }  # fmt: skip
    made = stages._context("search", out, inputs, None)
    templates = {"distill": template, "experts": stages.experts_config()}
    return replace(
        made, definition=definition, templates={n: templates[n] for n in ("distill", *more.get("also", []))}
    )


@pytest.fixture(scope="module")
def searched(stages, convex, tmp_path_factory):
    """A finished search over a small matching stage: its folder, its result, its context."""
    out = tmp_path_factory.mktemp("search")
    context = _context(stages, out, stages.match_config(**TEMPLATE), {"experts": convex.as_input()})
    result = tune.run(TuneConfig.model_validate(SEARCH), context)
    shutil.copytree(out, f"{out}-cut")
    artifacts.tidy(context.out, result.leftovers)
    return Folder(str(out)), result, context


def test_the_folder_holds_the_outcome_and_nothing_else(searched):
    """Tables, the best definition, the best set, a file per trial, and Ray's; no work in progress."""
    out, result, _ = searched

    assert out.names() == ["best.yaml", "progress.parquet", "trials.parquet"]
    assert out.folders() == ["ray_tune", "set", "trials"]
    assert out.child("trials").names() == [f"{n:04d}.json" for n in range(4)]
    logged = {n: out.child(f"ray_tune/trial-{n:04d}").names() for n in range(4)}
    assert all(any(name.startswith("events.") for name in names) for names in logged.values())
    assert all({"params.json", "result.json"} <= set(names) for names in logged.values())
    assert result.summary["trials"] == 4


def test_a_finished_search_is_rays_result_grid(searched):
    """The trials that Ray Tune ran, with their reports, as Ray's own object; its best is the best last report."""
    out, result, _ = searched
    grid = result_grid.opened(out, result.summary)
    rows = tables.read(out, "progress.parquet")

    assert [r.config["lr_image"] for r in grid] == list(
        tables.read(out, "trials.parquet")["setting.lr_image"]
    )
    for number, found in enumerate(grid):
        mine = [m for t, m in zip(rows["trial"], rows["metric"], strict=True) if t == number]
        assert list(found.metrics_dataframe["accuracy"]) == mine
    last = [r.metrics["accuracy"] for r in grid]
    assert grid.get_best_result().metrics["accuracy"] == max(last)


def test_the_best_definition_repeats_the_winner(searched, stages, convex, tmp_path):
    """The template with the winner's settings, run as an ordinary stage, makes the same set bit for bit, and
    its short evaluation at the end gives the winner's figure.
    """
    out, result, _ = searched
    (tmp_path / "best.yaml").write_bytes(out.read("best.yaml"))
    loaded = load(str(tmp_path / "best.yaml"))
    best = {stage.name: stage.config for stage in loaded.stages}
    settings = best["distill"].model_dump(mode="json", exclude_unset=True)
    made = stages.match(convex, tmp_path / "distill", **settings)

    assert list(best) == ["experts", "distill", "evaluate"]
    assert best["evaluate"].set == "distill"
    assert made.set_bytes == out.child("set").read("set.safetensors")
    assert made.table("accuracy.parquet")["accuracy"][-1] == result.summary["best"]["value"]
    assert plans.make(loaded, str(tmp_path / "runs"), lambda _: "images").stages


def test_the_table_compares_the_best_with_the_templates_own_settings(searched):
    """Both are judged with seeds that the search never saw; the margin is the difference of the means."""
    out, result, _ = searched
    summary, (best, own) = result.summary, result.table
    held_out = {who: summary[who]["held_out"] for who in ("best", "own")}

    assert summary["own"]["trial"] == 0
    assert summary["own"]["ended"] == "whole"
    assert all(len(values) == 2 and all(0 < v <= 1 for v in values) for values in held_out.values())
    assert summary["margin"] == pytest.approx(sum(held_out["best"]) / 2 - sum(held_out["own"]) / 2)
    assert best["trials"].startswith("4, ")
    assert own["settings"] == "template's own"
    trials = tables.read(out, "trials.parquet")
    assert trials["setting.lr_image"][0] == 5.0
    whole = [v for v, e in zip(trials["value"], trials["ended"], strict=True) if e == "whole"]
    assert summary["best"]["value"] == max(whole)


def test_trials_of_matching_report_what_the_stage_would(searched, stages, convex, tmp_path):
    """The template's own trial has the accuracies of the stage's short evaluations at the same iterations."""
    out, _, _ = searched
    plain = stages.match(convex, tmp_path, **TEMPLATE).table("accuracy.parquet")
    rows = tables.read(out, "progress.parquet")
    mine = {i: m for t, i, m in zip(rows["trial"], rows["iteration"], rows["metric"], strict=True) if t == 0}
    stage = dict(zip(plain["iteration"], plain["accuracy"], strict=True))

    assert mine == {iteration: stage[iteration] for iteration in mine}
    assert set(mine) <= {4, 8, 12}


def test_a_matching_trial_goes_on_exactly(stages, convex, searched, tmp_path):
    """Saved at a stop and taken up by another process's trial, a run ends with the same bits; with other
    settings from there on, it is the loop with other settings from there on.
    """
    _, _, context = searched
    config = TuneConfig.model_validate(SEARCH)
    context = replace(context, out=Folder(str(tmp_path)))
    trials = tune._trials(config, context)
    import ray

    @ray.remote(num_cpus=1)
    def halves(whole: bool) -> bytes:
        from rayddl.stages.tune.trial import TrialTask

        def task(name: str, settings: Any) -> Any:
            return TrialTask(0, settings, Folder(f"{tmp_path}/{name}{whole}"), 1)

        first = trials(task("a", {"lr_image": 20.0}))
        first.reach(8)
        if whole:
            first.reach(12)
            return first.save()
        second = trials(task("b", {"lr_image": 20.0}))
        second.load(first.save())
        second.reach(12)
        return second.save()

    one, two = ray.get([halves.remote(True), halves.remote(False)])
    from safetensors.torch import load as tensors

    first, second = (tensors(data) for data in (one, two))
    assert set(first) == set(second)
    assert all(torch.equal(first[k][..., :-1], second[k][..., :-1]) for k in first if k == "more.rows")
    assert all(torch.equal(first[k], second[k]) for k in first if k != "more.rows")


def test_a_search_that_is_cut_before_its_manifest_keeps_its_winner(searched):
    """The same command comes to the same set, which it does not make again from nothing."""
    out, result, context = searched
    cut = Folder(f"{out}-cut")
    assert "work" in cut.folders()

    again = tune.run(TuneConfig.model_validate(SEARCH), replace(context, out=cut))

    assert again.summary["best"] == result.summary["best"]
    assert cut.child("set").read("set.safetensors") == out.child("set").read("set.safetensors")
    assert [name for name in again.leftovers if name in cut.folders()] == ["work"]


def test_experts_are_varied_and_shared(stages, tmp_path):
    """With ``also: [experts]`` trials with equal expert settings use the same experts, trained once."""
    space = {"experts.lr": {"grid": [0.05, 0.02]}, "lr_image": {"choice": [5, 50]}}
    more = {"also": ["experts"], "space": space, "searcher": "grid", "scheduler": "none", "held_out": 1,
            "tensorboard": False, "max_iterations": 2, "samples": 5}  # fmt: skip
    context = _context(stages, tmp_path, stages.match_config(**{**TEMPLATE, "iterations": 2}), {}, **more)
    context = replace(
        context, templates={**context.templates, "experts": stages.experts_config(count=1, epochs=4)}
    )
    seen: set[str] = set()
    shelf = tmp_path / "work" / "experts"
    progress = _Look(lambda: seen.update(p.name for p in shelf.glob("*") if p.is_dir()))
    config = TuneConfig.model_validate({**SEARCH, **more})
    result = finished(tune.run, config, replace(context, progress=progress))
    trials = tables.read(Folder(str(tmp_path)), "trials.parquet")
    best = yaml.safe_load((tmp_path / "best.yaml").read_text(encoding="utf-8"))["stages"]

    assert len(seen) == 2
    assert result.summary["trials"] == 5
    # The template's own settings, then every combination.
    assert trials["setting.experts.lr"] == [0.05, 0.05, 0.05, 0.02, 0.02]
    assert best["experts"]["lr"] == trials["setting.experts.lr"][result.summary["best"]["trial"]]


@dataclass
class _Look:
    """A progress that looks at something at every update. Like a display's, its file cannot be pickled."""

    look: Any
    file: Any = field(default_factory=lambda: open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115

    def update(self, done: float, total: float, metric: str = "") -> None:
        del done, total, metric
        self.look()

    def note(self, text: str) -> None:
        del text


def test_a_set_of_the_search_can_be_evaluated(searched, stages, tmp_path):
    """An evaluate stage reads the search's set as it would read a matching stage's."""
    out, result, _ = searched
    made = DistilledSet.load(out.child("set"))

    assert made.info["method"] == "MCT"
    assert made.info["iterations"] == result.summary["best"]["iteration"]
    assert math.isfinite(made.lr_student)


NET = {"name": "convnet", "depth": 1, "width": 4}


def test_a_teacher_can_be_tuned(stages, tmp_path):
    """A trial of a teacher is the stage itself in the trial's process: its accuracy is what it measures, and
    fresh seeds train it anew.
    """
    settings = {
        "kind": "teacher",
        "net": NET,
        "epochs": 2,
        "batch": 128,
        "compile": False,
        "allow_weak": True,
    }
    template, more = TeacherConfig.model_validate(settings), {"space": {"lr": {"uniform": [0.01, 0.1]}}}
    made, again, fresh = _judged(stages, template, tmp_path, more, {"lr": 0.05})
    written = Observer.load(Folder(str(tmp_path / "trial/made/observer")))

    assert made == again == written.accuracy
    assert 0 < fresh <= 1
    assert fresh != made


def test_rded_can_be_tuned(stages, tmp_path):
    """A trial of RDED selects in its own process, without Ray Data, and is judged by students of its soft labels."""
    tree, shape = tmp_path / "tree", (3, 8, 8)
    for split, name in product(("train", "val"), ("bear", "cat")):
        (tree / split / name).mkdir(parents=True)
        for k in range(8):
            pixels = torch.randint(0, 256, (10, 10, 3), dtype=torch.uint8, generator=seeds.generator(k, name))
            Image.fromarray(pixels.numpy()).save(tree / split / name / f"{k}.png")
    net = NetConfig.model_validate({**NET, "norm": "batch"})
    module = build(net, shape, 2, seed=1).eval()
    observer = Observer(module, net, ("bear", "cat"), shape, (0.5,) * 3, (0.3,) * 3, 0.9)
    observer.save(Folder(str(tmp_path / "t/observer")))
    teacher = Input("teacher", "teacher", Folder(str(tmp_path / "t")), {}, {})
    settings = {"kind": "rded", "teacher": "teacher", "ipc": 1, "mipc": 4, "precision": "fp32"}
    template = RdedConfig.model_validate(settings)
    source = SourceConfig(name="imagefolder", root=str(tree), size=8)
    more = {"space": {"num_crops": {"randint": [1, 3]}}, "students": {"epochs": 2}}
    made, again, fresh = _judged(
        stages, template, tmp_path, more, {"num_crops": 2}, source, {"teacher": teacher}
    )
    kept = DistilledSet.load(Folder(str(tmp_path / "trial/made/set")))

    assert made == again
    assert 0 <= fresh <= 1
    assert (kept.info["method"], len(kept)) == ("RDED", 2)


def _judged(
    stages: Any, template: Any, out: Any, more: Any, settings: Any, source: Any = None, inputs: Any = None
) -> tuple[float, float, float]:
    """The figure of a trial, that of the same trial again, and that of a held-out seed."""
    import ray

    config = TuneConfig.model_validate({"kind": "tune", "of": "template", **more})
    context = replace(stages._context("search", out, inputs or {}, None), templates={"template": template})
    context = replace(context, source=source or context.source)
    trials = tune._trials(config, context)

    @ray.remote(num_cpus=1)
    def work(name: str) -> tuple[float, float]:
        from rayddl.stages.tune.trial import TrialTask

        task = TrialTask(0, settings, Folder(f"{out}/{name}"), 1)
        trial = trials(task)
        return trial.reach(1)["accuracy"], trials.held_out(task, 0)

    (made, fresh), (again, fresh_again) = ray.get(work.remote("trial")), ray.get(work.remote("again"))
    assert fresh == fresh_again
    return made, again, fresh
