"""Stages that are templates of others: which run, which stages are read for them, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayddl.errors import DefinitionError
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition.load import Definition, load
from rayddl.stages.kinds import KINDS

SPACE = "{lr_image: {loguniform: [1, 100]}}"
MATCH = "trajectory: snapshots, ipc: 1, syn_steps: 5, expert_epochs: 2, max_start_epoch: 3"


def written(
    folder: Path, search: str = f"space: {SPACE}", experts: str = "count: 2, keep: all", more: str = ""
) -> Path:
    path = folder / "d.yaml"
    path.write_text(
        "name: d\nsource: {name: digits}\nstages:\n"
        f"  experts: {{kind: experts, {experts}}}\n"
        f"  distill: {{kind: match, experts: experts, {MATCH}}}\n"
        f"  search: {{kind: tune, of: distill, {search}}}\n" + more,
        encoding="utf-8",
    )
    return path


def order(definition: Definition, out: Path) -> dict[str, tuple[str, ...]]:
    planned = plans.make(definition, str(out), lambda _: "images")
    return {stage.name: stage.stage.reads for stage in planned.stages}


def fingerprint(path: Path, stage: str, *overrides: str) -> str:
    planned = plans.make(load(str(path), overrides), str(path.parent / "out"), lambda _: "images")
    return next(s.fingerprint for s in planned.stages if s.name == stage)


def problem(path: Path, *overrides: str) -> str:
    with pytest.raises(DefinitionError) as error:
        load(str(path), overrides)
    (line,) = str(error.value).splitlines()[1:]
    return line.split("stages.search", 1)[1].lstrip(": ")


def test_a_template_that_nobody_reads_does_not_run(tmp_path):
    """Only the search runs, on what the template reads; a report on all stages does not run the template."""
    found = order(load(str(written(tmp_path, more="  report: {kind: report}\n"))), tmp_path)

    assert found == {"experts": (), "search": ("experts",), "report": ("experts", "search")}


def test_a_template_that_is_read_runs_too(tmp_path):
    """An evaluate stage that names the template has it run with its own settings."""
    more = "  evaluate: {kind: evaluate, set: distill}\n"
    found = order(load(str(written(tmp_path, more=more))), tmp_path)

    assert list(found) == ["experts", "distill", "search", "evaluate"]


def test_a_stage_that_is_varied_too_does_not_run(tmp_path):
    """With ``also: [experts]`` trials make the experts: nothing is read from a stage that varies."""
    space = "{experts.lr: {uniform: [0.01, 0.1]}}"
    found = order(load(str(written(tmp_path, f"also: [experts], space: {space}"))), tmp_path)

    assert found == {"search": ()}


def test_what_a_template_reads_is_long_enough_for_the_whole_space(tmp_path):
    """Experts' epochs that follow from windows follow from the widest window that a trial may have."""
    space = "{max_start_epoch: {randint: [2, 9]}, expert_epochs: {choice: [1, 4]}}"
    stages = {s.name: s.config for s in load(str(written(tmp_path, f"space: {space}"))).stages}

    assert stages["experts"].epochs == 13


def test_the_templates_settings_are_part_of_the_search(tmp_path):
    """A changed template is another search; its resources, and those of the search, change nothing."""
    path = written(tmp_path)
    same = fingerprint(path, "search")

    assert fingerprint(path, "search", "distill.resources.num_cpus=2", "search.resources.num_cpus=1") == same
    assert fingerprint(path, "search", "distill.syn_steps=6") != same
    assert fingerprint(path, "search", "experts.count=3") != same
    assert fingerprint(path, "search", "search.seed=1") != same


def test_the_fingerprint_of_a_search_is_known(tmp_path):
    """The fingerprint of a fixed search is fixed: a change would make all finished searches useless."""
    assert (
        fingerprint(written(tmp_path), "search")
        == "3d519b6843981b0f7b2f6588999d8884434e072a00ec22375acc48b250395662"
    )


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (
            "space: {lr_imag: {uniform: [1, 2]}}",
            "space.lr_imag: unknown key of 'distill' (match); did you mean 'lr_image'?",
        ),
        (
            "space: {lr_image: {uniform: [-1, 2]}}",
            "space.lr_image: -1.0 is refused: Input should be greater than 0",
        ),
        (
            "space: {labels: {choice: [hard, lerned]}}",
            "space.labels: 'lerned' is refused: Input should be 'hard', 'expert' or 'learned'",
        ),
        (
            "space: {lr_label: {uniform: [1, 2], when: {lables: learned}}}",
            "space.lr_label.when: unknown key of 'distill' (match); did you mean 'labels'?",
        ),
        (
            "space: {iterations: {randint: [1, 2]}}",
            "space.iterations: iterations of 'distill' cannot be searched: it is the length of a trial; "
            "set max_iterations",
        ),
        (
            "space: {experts.lr: {uniform: [0.1, 0.2]}}",
            "space.experts.lr: 'experts' is another stage; add also: [experts] to vary it too",
        ),
        (
            f"space: {SPACE}, metric: acuracy",
            "metric: match does not report 'acuracy'; did you mean 'accuracy'? it reports: accuracy, loss",
        ),
        (
            f"space: {SPACE}, searcher: grid",
            "searcher: a grid needs choice or grid entries, and lr_image is a range",
        ),
    ],
)
def test_searches_that_cannot_be_are_refused(tmp_path, search, expected):
    """A wrong key, value or metric is refused with the nearest name before anything starts."""
    assert problem(written(tmp_path, search)).startswith(expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.searcher=optun", "searcher: 'optun' is not known; did you mean 'optuna'?"),
        ("search.samples=0", "samples: 0 is out of range; expected an integer >= 1"),
        ("search.scheduler=ash", "scheduler: 'ash' is not known; did you mean 'asha'?"),
        ("search.scheduler=pbt", "scheduler: 'pbt' is not known; expected one of: none, asha"),
        (
            "search.of=experts",
            "of: 'experts' is of kind experts; expected a stage that can be tuned (kind match",
        ),
        (
            "search.of=distil",
            "of: there is no stage 'distil'; expected a stage that can be tuned (kind match or teacher or rded)",
        ),
    ],
)
def test_settings_of_the_search_itself_are_refused(tmp_path, override, expected):
    """An unknown searcher or scheduler, no samples, a template that is none."""
    assert problem(written(tmp_path), override).lstrip(".").startswith(expected)


def test_a_space_that_the_experts_do_not_reach_is_refused(tmp_path):
    """Where the epochs are fixed, a window that a trial might ask for must fit into them."""
    path = written(tmp_path, "space: {max_start_epoch: {randint: [2, 9]}}", "count: 2, keep: all, epochs: 6")
    found = problem(path)

    assert found.startswith(
        "space allows max_start_epoch: 9, with which 'distill' cannot run: windows reach epoch 11"
    )
    assert "--set experts.epochs=11" in found


def test_kinds_that_report_once_take_no_scheduler(tmp_path):
    """``rded`` reports at its end: nothing can be stopped early."""
    path = tmp_path / "d.yaml"
    path.write_text(
        "name: d\nsource: {name: digits}\nstages:\n  teacher: {kind: teacher}\n"
        "  select: {kind: rded, teacher: teacher, ipc: 1, mipc: 20}\n"
        "  search: {kind: tune, of: select, scheduler: asha, space: {num_crops: {randint: [1, 9]}}}\n",
        encoding="utf-8",
    )

    assert "scheduler: asha needs reports on the way, and rded reports at its end" in problem(path)
    assert order(load(str(path), ["search.scheduler=none"]), tmp_path) == {
        "teacher": (), "search": ("teacher",),
    }  # fmt: skip


def test_tune_is_a_kind() -> None:
    """The one list of kinds has it, with the settings that a definition takes."""
    assert KINDS["tune"].config.__name__ == "TuneConfig"
