"""Estimates of stages, checked against real networks, arithmetic and one real step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayddl.data.config import SourceConfig
from rayddl.data.sources.summary import SourceSummary
from rayddl.nets.config import NetConfig
from rayddl.pipeline import estimating
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definition
from rayddl.pipeline.tables import as_text
from rayddl.stages import estimates
from rayddl.stages.estimates import Machine, Outlook
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.kinds import KINDS
from rayddl.stages.match import estimate as match
from rayddl.stages.match import measure as trial
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.runtime.sizes import WHOLE_BYTES
from rayddl.stages.settings import Resources, StageConfig

GIB = 2**30
CIFAR = SourceSummary((3, 32, 32), 10, 50_000, 10_000)
EXPERTS = ExpertsConfig.model_validate({"kind": "experts", "epochs": 4, "keep": "all", "count": 10})


def outlook(source_summary: SourceSummary = CIFAR, space: str = "normalise", **machine: Any) -> Outlook:
    """An outlook on a machine of 4 CPUs and 8 GiB, or another one."""
    source = SourceConfig.model_validate({"name": "cifar10", "space": space})
    return Outlook(source, source_summary, Machine(**{"cpus": 4, "memory": 8 * GIB, "gpus": (), **machine}))


def matching(**settings: Any) -> MatchConfig:
    """MTT's setting for CIFAR-10 at one image per class, changed."""
    return MatchConfig.model_validate(
        {
            "kind": "match",
            "experts": "experts",
            "trajectory": "snapshots",
            "ipc": 10,
            "syn_steps": 30,
            "expert_epochs": 2,
            "max_start_epoch": 2,
            **settings,
        }
    )


def expected(config: StageConfig, view: Outlook | None = None, **others: StageConfig) -> estimates.Estimate:
    """The estimate of a stage among others."""
    stages = {"experts": EXPERTS, **others, "this": config}
    found = KINDS[config.kind].estimate(config, stages, view or outlook())
    assert found is not None
    return found


class TestOutline:
    @pytest.mark.parametrize(
        "net", [{}, {"depth": 2, "width": 5}, {"norm": "none"}, {"norm": "batch", "depth": 1}]
    )
    @pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 21, 21)])
    def test_parameters_are_those_of_the_network(
        self, net: dict[str, Any], shape: tuple[int, int, int]
    ) -> None:
        """The arithmetic counts what the built network has."""
        from rayddl.nets.build import initial

        config = NetConfig.model_validate(net)
        found = estimates.outline(config, SourceSummary(shape, 7, 1, 1))

        assert found is not None
        assert found.parameters == len(initial(config, shape, 7, seed=0))

    def test_the_published_network(self) -> None:
        """ConvNet-3 on CIFAR-10 has 320,010 parameters, as its expert buffers show."""
        found = estimates.outline(NetConfig(), CIFAR)

        assert found == estimates.Outline(320_010, 128 * (1024 + 256 + 64) + 3072, 2 * 128 * (256 + 64))

    def test_other_networks_are_not_guessed(self) -> None:
        """Networks that would have to be built have no estimate."""
        experts = EXPERTS.model_copy(update={"net": NetConfig.model_validate("resnet18")})

        found = expected(experts)

        assert (found.memory, found.written) == (None, None)
        assert found.work == "10 experts × 4 epochs"


class TestKinds:
    def test_experts_write_a_vector_per_snapshot(self) -> None:
        """Count, epochs, parameters and bytes on disk multiply; waypoints count where experts are convex."""
        convex = {
            "kind": "experts",
            "epochs": 50,
            "waypoints": [0, 6, 25, 50],
            "disk": "bfloat16",
            "count": 10,
        }

        assert expected(EXPERTS).written == 10 * 5 * 320_010 * 4 + 48
        assert expected(ExpertsConfig.model_validate(convex)).written == 10 * 4 * 320_010 * 2 + 48
        assert expected(EXPERTS).at_once == 4

    def test_a_worker_holds_bytes_of_small_splits(self) -> None:
        """Whitened images are float32; of a split above the limit no process holds anything."""
        view = outlook()
        whitened = replace(view, source=view.source.model_copy(update={"space": "zca"}))
        large = replace(view, source_summary=replace(view.source_summary, train=WHOLE_BYTES // 3072 + 1))

        assert view.resident == 60_000 * 3072
        assert whitened.resident == 4 * 60_000 * 3072
        assert large.resident == 10_000 * 3072

    def test_experts_in_turns_add_what_each_keeps(self) -> None:
        """On a CPU an expert more is its snapshots, on a GPU a step's memory; fewer tasks run at once."""
        four = EXPERTS.model_copy(update={"experts_per_task": 4})
        gpu = outlook(gpus=(80 * GIB,))
        alone, turns = (expected(config).memory or 0 for config in (EXPERTS, four))
        on_gpu, in_turns = (expected(config, gpu).memory or 0 for config in (EXPERTS, four))

        assert turns - alone == 3 * 5 * 320_010 * 4
        assert in_turns - gpu.resident == 4 * (on_gpu - gpu.resident)
        assert expected(four).at_once == 3

    def test_whitening_is_part_of_what_is_written(self) -> None:
        """ZCA keeps two triangles as large as the square of an image's numbers."""
        plain, whitened = expected(EXPERTS), expected(EXPERTS, outlook(space="zca"))

        assert plain.written is not None
        assert whitened.written == plain.written - 48 + 4 * 3072 * 3074

    def test_matching_grows_with_batch_and_steps(self) -> None:
        """A step's memory is its batch's; each student step adds one parameter vector."""
        sizes: tuple[dict[str, Any], ...] = ({}, {"batch_syn": 50}, {"syn_steps": 40})
        memory = [expected(matching(**s, gradient="truncated", compile=False)).memory for s in sizes]
        size = estimates.outline(NetConfig(), CIFAR)

        assert size is not None
        assert memory[0] is not None
        assert memory[0] - (memory[1] or 0) == 50 * size.activations * 4 * match.EAGER
        assert (memory[2] or 0) - memory[0] == 10 * 320_010 * 4

    def test_compiled_steps_keep_convolutions_that_fit(self) -> None:
        """Those of 30 steps of 100 images, in two bytes each for bf16; none where 60 steps have more than fits."""
        one = 100 * 2 * 128 * (256 + 64) * 4
        fp32, bf16, more, uncompiled, gpu = (
            expected(matching(**given), *views).memory or 0
            for given, *views in (
                ({},),
                ({"precision": "bf16"},),
                ({"syn_steps": 60},),
                ({"compile": False},),
                ({}, outlook(gpus=(80 * GIB,))),
            )
        )

        assert 30 * one <= match.KEPT < 60 * one
        assert fp32 - bf16 == 30 * one - 15 * one
        assert fp32 - more == 30 * one - 30 * 320_010 * 4
        size = estimates.outline(NetConfig(), CIFAR)
        assert size is not None
        step = 100 * size.activations * 4
        assert fp32 - uncompiled == 30 * one + match.COMPILER - step * (match.EAGER - match.COMPILED)
        assert gpu < fp32

    def test_a_gpu_computes_steps_together_up_to_a_limit(self) -> None:
        """Each step adds its vector, and its batch and vector several times, until a part is full."""
        gpu = outlook(gpus=(80 * GIB,))
        ten, eleven, many, more = (
            expected(matching(syn_steps=n), gpu).memory or 0 for n in (10, 11, 100, 101)
        )
        single, together = 320_010 * 4, (100 * 3072 + 320_010) * 4

        assert 100 * together > match.GPU_PART
        assert eleven - ten == single + match.PART_COPIES * together
        assert more - many == single

    def test_autograd_through_all_steps_needs_far_more(self) -> None:
        """Published MTT keeps every step: the estimate is several times that of the exact gradient."""
        exact, unrolled = expected(matching()), expected(matching(gradient="unrolled"))

        assert exact.memory is not None
        assert unrolled.memory is not None
        assert unrolled.memory > 5 * exact.memory

    def test_what_does_not_fit_is_said(self) -> None:
        """Workers that run at once share what is free."""
        found = expected(EXPERTS, outlook(memory=2 * GIB))

        assert found.memory is not None
        assert found.notes == (
            f"4 workers of {estimates.shown(found.memory)} run at once, and each has 512 MiB of memory; "
            "set resources.at_once",
        )

    def test_a_gpu_is_shared_as_the_stage_shares_it(self) -> None:
        """Four experts to a GPU by default, and what is asked for counts before that."""
        view = outlook(gpus=(80 * GIB, 80 * GIB), cpus=64)
        alone = EXPERTS.model_copy(update={"resources": Resources(num_gpus=1)})

        assert (expected(EXPERTS, view).at_once, expected(alone, view).at_once) == (8, 2)
        assert expected(EXPERTS, view).device == "GPU"
        assert view.machine.room(view.machine.share(alone.resources, 10)) == 80 * GIB
        assert view.machine.room(view.machine.share(EXPERTS.resources, 10)) == 20 * GIB

    def test_a_gpu_that_is_not_there_is_no_error(self) -> None:
        """A definition for a cluster can be planned on a laptop."""
        alone = EXPERTS.model_copy(update={"resources": Resources(num_gpus=1)})

        assert expected(alone, outlook(memory=8 * GIB)).at_once == 1

    def test_students_are_counted(self) -> None:
        """Data sets times nets times seeds, by the protocol of the set."""
        from rayddl.stages.evaluate.settings import EvaluateConfig

        config = EvaluateConfig.model_validate(
            {"kind": "evaluate", "set": "distill", "seeds": 3, "whole": True}
        )

        assert expected(config, distill=matching()).work == "9 students × 1000 epochs"

    def test_students_with_an_observer_train_on_soft_labels(self) -> None:
        """Also those of a set that was made for hard labels."""
        from rayddl.stages.evaluate.settings import EvaluateConfig

        config = EvaluateConfig.model_validate(
            {"kind": "evaluate", "set": "distill", "seeds": 3, "random": False, "observer": "teacher"}
        )

        assert expected(config, distill=matching()).work == "6 students × 300 epochs"

    def test_a_search_takes_what_its_template_takes(self) -> None:
        """As many trials at once as fit, each with the template's memory."""
        from rayddl.stages.tune.settings import TuneConfig

        config = TuneConfig.model_validate(
            {"kind": "tune", "of": "distill", "samples": 6, "space": {"lr_image": {"uniform": [1, 10]}}}
        )
        template = matching(iterations=7)

        found = expected(config, distill=template)

        assert found.work == "6 trials of 7 iterations × 30 steps"
        assert (found.at_once, found.memory) == (4, expected(template).memory)

    def test_a_grid_is_counted(self) -> None:
        """Its combinations, and the template's own settings; not the number of trials of other searches."""
        from rayddl.stages.tune.settings import TuneConfig

        space = {"lr_image": {"grid": [1, 10, 20]}, "syn_steps": {"grid": [5, 6]}}
        config = TuneConfig.model_validate(
            {"kind": "tune", "of": "distill", "searcher": "grid", "space": space}
        )

        assert expected(config, distill=matching()).work.startswith("7 trials of ")
        fewer = config.model_copy(update={"samples": 4})
        assert expected(fewer, distill=matching()).work.startswith("4 trials of ")

    def test_a_search_trains_students(self) -> None:
        """In each trial of a selection, and those of fresh seeds at the end; a teacher is trained again for these."""
        from rayddl.stages.rded.settings import RdedConfig
        from rayddl.stages.teacher.settings import TeacherConfig
        from rayddl.stages.tune.settings import TuneConfig

        rded = RdedConfig.model_validate({"kind": "rded", "teacher": "teacher", "ipc": 10})
        teacher = TeacherConfig.model_validate({"kind": "teacher", "epochs": 3})

        def seconds(of: str, **more: Any) -> float:
            config = TuneConfig.model_validate(
                {"kind": "tune", "of": of, "samples": 8, "space": {"lr": {"uniform": [1, 2]}}, **more}
            )
            found = expected(config, distill=rded, teacher=teacher).seconds
            assert found is not None
            return found - 3.0  # the stage's start

        def students(epochs: int, seeds: int, held_out: int) -> float:
            return seconds(
                "distill", resources={"at_once": 1},
                students={"epochs": epochs, "seeds": seeds}, held_out=held_out,
            )  # fmt: skip

        one = students(200, 1, 1) - students(100, 1, 1)
        assert one > 1.0
        # The trials are eight, and one of the template's own settings; two settings are compared.
        assert students(200, 1, 1) - students(200, 1, 4) == pytest.approx(
            -2 * 3 * (2 * one / (9 + 2)), rel=0.2
        )
        assert students(200, 3, 1) - students(200, 1, 1) == pytest.approx(
            2 * 9 * (2 * one / (9 + 2)), rel=0.2
        )
        alone = {"resources": {"at_once": 1}}
        trained = seconds("teacher", held_out=1, **alone)
        assert seconds("teacher", held_out=12, **alone) == pytest.approx(trained * (9 + 24) / (9 + 2))

    def test_students_of_a_set_that_a_stage_changed_or_searched_have_its_images(self) -> None:
        """A refined set has the images of the one it began as, the best of a search those of its template."""
        from rayddl.stages.evaluate.settings import EvaluateConfig
        from rayddl.stages.rded.settings import RdedConfig
        from rayddl.stages.refine.settings import RefineConfig
        from rayddl.stages.teacher.settings import TeacherConfig
        from rayddl.stages.tune.settings import TuneConfig

        def judged(of: str) -> estimates.Estimate:
            config = {"kind": "evaluate", "set": of, "observer": "teacher", "labels": "stored"}
            return expected(EvaluateConfig.model_validate(config), **others)

        rded = {"kind": "rded", "teacher": "teacher", "ipc": 50, "factor": 2, "whole": True}
        refined = {"kind": "refine", "set": "stitched", "anchors": "stitched", "observer": "teacher"}
        search = {"kind": "tune", "of": "stitched", "space": {"mipc": {"grid": [100, 300]}}}
        others = {
            "teacher": TeacherConfig.model_validate({"kind": "teacher", "epochs": 3}),
            "stitched": RdedConfig.model_validate(rded),
            "refined": RefineConfig.model_validate(refined),
            "found": TuneConfig.model_validate(search),
        }
        assert judged("refined") == judged("found") == judged("stitched")

    def test_crops_are_counted(self) -> None:
        """RDED scores the given number of images of each class, or all of them if there are fewer."""
        from rayddl.stages.rded.settings import RdedConfig

        config = RdedConfig.model_validate({"kind": "rded", "teacher": "t", "ipc": 10, "num_crops": 5})

        assert expected(config).work == "3,000 images × 5 crops"
        assert expected(config.model_copy(update={"mipc": 9000})).work == "50,000 images × 5 crops"

    def test_a_teacher_is_one_network(self) -> None:
        """A teacher is trained or loaded; a loaded one has no estimate of its size."""
        from rayddl.stages.teacher.settings import TeacherConfig

        trained = TeacherConfig.model_validate({"kind": "teacher"})
        ready = TeacherConfig.model_validate({"kind": "teacher", "weights": "x.pt", "classes": "source"})

        assert expected(trained).work == "1 network × 50 epochs"
        assert expected(trained).written == 320_010 * 4
        assert (expected(ready).work, expected(ready).memory) == ("1 network, trained already", None)

    def test_every_kind_that_tells_something_tells_it(self, tmp_path: Path) -> None:
        """The quickstart's stages all have work, workers, memory and bytes."""
        path = Path(__file__).resolve().parents[3] / "pipelines/quickstart.yaml"
        planned = plans.make(definition.load(str(path)), str(tmp_path))

        found = estimating.estimate(planned)

        assert list(found.stages) == ["experts", "distill", "evaluate", "report"]
        assert all(e and e.memory and e.written and e.at_once >= 1 for e in found.stages.values())
        text = as_text(found.__rich__())
        assert text.splitlines()[1].startswith("expected on this machine: ")
        assert "8 experts × 20 epochs" in text
        assert "~ an estimate by formula; with --measure a matching step is tried" in text


class TestMeasuring:
    @pytest.fixture
    def linear(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[trial.MeasureTask]]:
        """Trials whose peak is ``fixed + steps * (kept + per_image * batch)``, and ``each`` for every image may be kept
        for the way back.
        """

        def install(fixed: int, per_image: int, kept: int = 0, each: int = 0) -> list[trial.MeasureTask]:
            jobs: list[trial.MeasureTask] = []

            def run(job: trial.MeasureTask) -> trial.Measured:
                jobs.append(job)
                low, high = (fixed + job.steps * (kept + per_image * b) for b in job.batches)
                return trial.Measured((low, high), 1000, compiled=False, kept=each)

            monkeypatch.setattr(trial, "run", run)
            return jobs

        return install

    def measured(self, config: MatchConfig, view: Outlook | None = None) -> estimates.Estimate:
        """The estimate of a matching stage with its step measured."""
        found = KINDS["match"].estimate(config, {"experts": EXPERTS}, view or outlook(), measure=True)
        assert found is not None
        return found

    def around(self, view: Outlook, images: int) -> int:
        """What is not part of a step: both splits, and five copies of the set."""
        return 60_000 * 3072 + 5 * images * 3072 * 4 if view.source_summary == CIFAR else 0

    def test_two_batches_make_a_line(self, linear: Callable[..., list[trial.MeasureTask]]) -> None:
        """The setting's peak is the measured one, with the student's path and what lies around the step."""
        jobs = linear(1_000_000_000, 10_000_000)

        found = self.measured(matching())

        assert [job.batches for job in jobs] == [(50, 100)]
        assert found.measured
        assert found.memory == 1_000_000_000 + 100 * 10_000_000 + 29 * 1000 * 4 + self.around(outlook(), 100)
        assert found.notes == ("every batch_syn fits, up to all 100 images",)

    def test_the_largest_batch_fills_what_is_free(
        self, linear: Callable[..., list[trial.MeasureTask]]
    ) -> None:
        """One more image would not fit into nine tenths of it."""
        linear(1_000_000_000, 10_000_000)
        view = outlook(memory=3 * GIB)

        found = self.measured(matching(ipc=50), view)
        fits = int((0.9 * 3 * GIB - 1_000_000_000 - 29 * 4000 - self.around(view, 500)) / 10_000_000)

        assert 0 < fits < 500
        assert found.facts["largest_batch_syn"] == fits
        assert (
            found.notes[-1]
            == f"the largest batch_syn that fits is {fits} of 500 images; set batch_syn={fits}"
        )
        assert found.notes[0].startswith("needs ")

    def test_what_steps_keep_is_counted_for_each(
        self, linear: Callable[..., list[trial.MeasureTask]]
    ) -> None:
        """The kept part of an image is added for all 30 steps, or for none where they have more than the limit."""
        each = match.KEPT // 30 // 200
        linear(10**9, 10**7, each=each)
        fixed, image = 10**9 + 29 * 4000, 10**7

        found = self.measured(matching())
        kept = 30 * 100 * each
        assert found.memory == fixed + 100 * image + kept + self.around(outlook(), 100)

        view = outlook(memory=6 * GIB)
        found = self.measured(matching(ipc=50, batch_syn=100), view)
        rest = 0.9 * 6 * GIB - fixed - self.around(view, 500)
        fits = int(rest / image)
        assert 200 < fits < 500
        assert found.facts["largest_batch_syn"] == fits

        view = outlook(memory=3 * GIB)
        found = self.measured(matching(ipc=50, batch_syn=100), view)
        rest = 0.9 * 3 * GIB - fixed - self.around(view, 500)
        with_kept = image + 30 * each
        assert 100 < int(rest / with_kept) < 200
        assert found.facts["largest_batch_syn"] == int(rest / with_kept)

    def test_what_cannot_fit_is_said(self, linear: Callable[..., list[trial.MeasureTask]]) -> None:
        """Where even the fixed part is too large, no batch is proposed."""
        linear(5 * GIB, 1)

        found = self.measured(matching(), outlook(memory=2 * GIB))

        assert found.facts["largest_batch_syn"] == 0
        assert found.notes[-1] == "no batch_syn fits into 2.0 GiB; make the set or the network smaller"

    def test_a_batch_too_large_to_try_is_extrapolated(
        self, linear: Callable[..., list[trial.MeasureTask]]
    ) -> None:
        """A measurement takes no more than half of what is free."""
        (job,) = [linear(10**9, 10**7), self.measured(matching(ipc=500), outlook(memory=4 * GIB))][0]

        assert job.batches[1] < 200
        assert job.batches[0] == job.batches[1] // 2

    def test_a_small_batch_is_measured_beside_a_larger_one(
        self, linear: Callable[..., list[trial.MeasureTask]]
    ) -> None:
        """Ten images differ too little from five."""
        jobs = linear(10**9, 10**7)
        self.measured(matching(ipc=1))

        assert jobs[0].batches == (10, 32)
        assert jobs[0].images == 32

    def test_unrolling_counts_every_further_step(
        self, linear: Callable[..., list[trial.MeasureTask]]
    ) -> None:
        """What the second step adds is added 29 times."""
        jobs = linear(10**9, 10**6, kept=10**7)

        found = self.measured(matching(gradient="unrolled"))

        assert [job.steps for job in jobs] == [1, 2]
        step = 10**7 + 100 * 10**6
        assert found.memory == 10**9 + 30 * step + 29 * 4000 + self.around(outlook(), 100)

    def test_a_failed_trial_leaves_the_formula(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reason of the failure is a note, and the figure stays marked as an estimate."""
        monkeypatch.setattr(trial, "run", lambda job: "its process was killed")

        found = self.measured(matching())

        assert not found.measured
        assert found.memory == expected(matching()).memory
        assert found.notes == ("one step at batch_syn 100 could not be measured: its process was killed",)

    def test_a_trial_that_breaks_says_why(self) -> None:
        """The last line of what the child process complains about."""
        job = trial.MeasureTask(
            net={"name": "convnet", "depth": 7},
            shape=(3, 8, 8),
            classes=4,
            images=64,
            batches=(8, 16),
            steps=1,
            precision="fp32",
            gradient="exact",
            augment=(),
            compile=False,
            work=1,
            gpu=False,
            threads=1,
        )

        assert "depth 7 halves the side 7 times" in str(trial.run(job))


def test_a_real_step_is_measured(tmp_path: Path) -> None:
    """``plan --measure`` runs a step in another process, shows its memory, and writes nothing."""
    path = tmp_path / "d.yaml"
    path.write_text(
        """
name: d
source: {name: digits}
stages:
  experts: {kind: experts, net: {name: convnet, depth: 1, width: 4}, count: 2, epochs: 2}
  distill:
    {kind: match, experts: experts, ipc: 8, syn_steps: 2, expert_epochs: 1, max_start_epoch: 1,
     augment: flip, compile: false}
"""
    )
    ended = subprocess.run(
        [sys.executable, "-m", "rayddl", "plan", str(path), "--measure", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(ended.stdout)
    found = told["stages"][1]["estimate"]

    assert found["measured"]
    assert found["measured_at"] == [40, 80]
    assert found["largest_batch_syn"] == 80
    assert 200 * 2**20 < found["memory"] < 4 * GIB
    assert told["machine"]["cpus"] >= 1
    assert told["stages"][0]["estimate"]["measured"] is False
    assert not (tmp_path / "runs").exists()
