"""How long a run takes: operations, the machine's speed, stages side by side, and money."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rayddl.cli.app import app
from rayddl.data.sources.summary import SourceSummary
from rayddl.nets import work
from rayddl.nets.config import NetConfig
from rayddl.pipeline import cautions, estimating
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.estimating import duration
from rayddl.pipeline.tables import as_text
from rayddl.stages.estimates import Estimate, Machine
from rayddl.stages.runtime import product_speed
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.speed import Speed

GIB = 2**30
PIPELINES = Path(__file__).resolve().parents[3] / "pipelines"
XEON = "processor : 0\ncpu MHz\t\t: 2600.000\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
"""The processor on which the figures of :data:`SEEN` were measured."""
SEEN = {"quickstart": 62.8, "quickstart-rded": 22.3, "quickstart-refine": 21.1}
"""Seconds of the shipped definitions on two cores of that processor, with Ray's start and end."""


def machine(**changed: Any) -> Machine:
    """Two cores of the Xeon, or another machine."""
    return Machine(**{"cpus": 2, "memory": 20 * GIB, "gpus": (), "speed": Speed.of(XEON, ()), **changed})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the machine that estimates are made for."""

    def install(found: Machine) -> None:
        monkeypatch.setattr(Machine, "here", classmethod(lambda cls, **_: found))

    install(machine())
    return install


def planned(name: str, tmp_path: Path) -> plans.Plan:
    """The plan of a shipped definition of which nothing has run."""
    return plans.make(definitions.load(str(PIPELINES / f"{name}.yaml")), str(tmp_path))


class TestOperations:
    @pytest.mark.parametrize(
        ("net", "shape"),
        [
            ({"name": "convnet"}, (3, 32, 32)),
            ({"name": "convnet", "depth": 2, "width": 5, "norm": "batch"}, (1, 28, 28)),
            ({"name": "convnet", "depth": 4, "width": 7}, (3, 21, 33)),
            ({"name": "mlp", "depth": 4, "width": 9}, (1, 8, 8)),
        ],
    )
    def test_equal_those_of_the_built_network(self, net: dict[str, Any], shape: tuple[int, int, int]) -> None:
        """The arithmetic counts what torch would compute."""
        from rayddl.nets.cost import forward_flops

        config = NetConfig.model_validate(net)

        assert work.operations(config, shape, 7) == forward_flops(config, shape, 7)

    @pytest.mark.parametrize(
        ("net", "side"), [("lenet", 32), ("alexnet", 32), ("vgg11", 32), ("resnet18", 32), ("resnet18", 96)]
    )
    def test_of_fixed_networks_are_close(self, net: str, side: int) -> None:
        """Networks of fixed width are counted by the pixel."""
        from rayddl.nets.cost import forward_flops

        config, shape = NetConfig.model_validate(net), (3, side, side)

        assert work.operations(config, shape, 10) == pytest.approx(forward_flops(config, shape, 10), rel=0.5)


class TestSpeed:
    def test_of_a_processor(self) -> None:
        """Clock and instruction set make the rate; without a description it is a guess."""
        older = XEON.replace("avx512f avx512_bf16", "")

        assert Speed.of(XEON, ()).core == 2.6e9 * 30
        assert Speed.of(XEON, ()).half > 1.0 == Speed.of(older, ()).half
        assert Speed.of(older, ()).core == 2.6e9 * 20
        assert not Speed.of(older, ()).guess
        assert Speed.of("", ()).guess == "this processor"

    def test_of_measured_products(self) -> None:
        """The clock of a virtual machine may be wrong: a measured speed counts in its place."""
        assert Speed.of(XEON, (), 2e11).core == pytest.approx(0.72 * 2e11)
        assert Speed.of(XEON, (), 2e11).half == Speed.of(XEON, ()).half

    def test_products_are_measured_in_another_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On one core, with the vectors that the processor has; processors other than x86 are not measured."""
        monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
        asked: list[dict[str, str]] = []
        run = subprocess.run

        def watched(*args: Any, **options: Any) -> Any:
            asked.append(options["env"])
            return run(*args, **options)

        monkeypatch.setattr(product_speed.subprocess, "run", watched)
        found = product_speed.measured.__wrapped__("flags\t\t: fpu avx2\n")

        assert found is not None
        assert 1e8 < found < 1e13
        assert [(env.get("OPENBLAS_CORETYPE"), env["OPENBLAS_NUM_THREADS"]) for env in asked] == [(None, "1")]
        assert product_speed.measured.__wrapped__("Features\t: fp asimd\n") is None
        assert product_speed.measured.__wrapped__("") is None
        assert len(asked) == 1

    def test_a_run_does_not_wait_for_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """What may go wrong is said without; a plan's times need it."""
        asked: list[str] = []
        monkeypatch.setattr(product_speed, "measured", asked.append)
        plan = planned("quickstart", tmp_path)

        cautions.before(plan)
        assert not asked
        estimating.estimate(plan)
        assert len(asked) == 1

    @pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false", "/bin/echo"])
    def test_products_that_cannot_be_measured(self, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
        """The processor's description counts."""
        monkeypatch.setattr(product_speed.sys, "executable", program)

        assert product_speed.measured.__wrapped__(XEON) is None

    def test_of_gpus(self) -> None:
        """The slowest of several counts; one that is not in the table is a guess that is named."""
        fast, slow = (
            Speed.of(XEON, ("NVIDIA H100 80GB HBM3",)),
            Speed.of(XEON, ("NVIDIA H100 80GB HBM3", "Tesla T4")),
        )

        assert fast.gpu is not None
        assert slow.gpu == pytest.approx(fast.gpu * 320 / 3350)
        assert not slow.guess
        assert Speed.of(XEON, ("Accelerator 9",)).guess == "Accelerator 9"

    def test_of_steps(self) -> None:
        """Narrow networks, tiny images and single threads are slower; compiled steps and bfloat16 faster."""
        speed, source_summary = Speed.of(XEON, ()), SourceSummary((3, 32, 32), 10, 500, 100)
        one, wide, narrow = Share(1.0, 0.0, None, 2), NetConfig(), NetConfig(width=32)

        def step(net: NetConfig = wide, share: Share = one, **more: Any) -> float:
            found = speed.step(net, source_summary, 100, share, **more)
            assert found is not None
            return found

        assert step() == pytest.approx(3 * 101.2e6 * 100 / 78e9, rel=0.1)
        assert step(share=replace(one, num_cpus=2.0)) < 0.7 * step()
        assert step(precision="bf16") < 0.7 * step()
        ratio = (work.operations(narrow, source_summary.shape, 10) or 0) / (
            work.operations(wide, source_summary.shape, 10) or 1
        )
        assert step(narrow) > 2 * ratio * step()
        assert step(narrow, compiled=True) < 0.5 * step(narrow)


class TestRuns:
    @pytest.mark.parametrize("name", list(SEEN))
    def test_shipped_definitions_take_about_as_long_as_measured(
        self, name: str, here: Any, tmp_path: Path
    ) -> None:
        """Within a factor of 2."""
        found = estimating.estimate(planned(name, tmp_path))

        assert found.seconds is not None
        assert SEEN[name] / 2 < found.seconds < SEEN[name] * 2

    def test_every_shipped_stage_has_a_time(self, here: Any, tmp_path: Path) -> None:
        """No network of the comparison is unknown."""
        found = estimating.estimate(planned("quickstart-compare", tmp_path))

        assert all(one and one.seconds for one in found.stages.values())

    def test_the_table_fits_eighty_columns(self, here: Any, tmp_path: Path) -> None:
        """Work is wrapped where needed; names, times and sizes are whole."""
        text = as_text(estimating.estimate(planned("quickstart-tune", tmp_path)).__rich__(), 80)
        (search,) = [line for line in text.splitlines() if line.startswith("search ")]

        assert max(map(len, text.splitlines())) <= 80
        assert search.split()[1:3] == ["~80", "s"]
        assert re.search(r"~\d+ MiB +\?$", search)
        assert "written" in text

    def test_stages_side_by_side_share_the_machine(self, tmp_path: Path) -> None:
        """A run takes its longest chain, or the work of all stages where this is more."""
        plan = planned("quickstart-refine", tmp_path)

        def seconds(busy: float) -> float:
            stages = {one.name: Estimate("", 1, seconds=100.0, busy=busy) for one in plan.stages}
            return estimating.whole_seconds(plan, stages) or 0.0

        assert 500 < seconds(0.1) < 520
        assert 700 < seconds(1.0) < 720

    def test_an_unknown_stage_leaves_the_whole_unknown(self, here: Any, tmp_path: Path) -> None:
        """It is named."""
        plan = planned("quickstart", tmp_path)
        found = estimating.estimate(plan)
        stages = {**found.stages, "distill": Estimate("", 1)}
        partly = replace(found, stages=stages, seconds=estimating.whole_seconds(plan, stages), price=2.0)

        assert partly.seconds is None
        assert partly.cost is None
        assert "unknown: distill cannot be estimated" in as_text(partly.__rich__())

    def test_money(self, here: Any, tmp_path: Path) -> None:
        """The price is that of an hour of each GPU, or of a machine that has none."""
        one = estimating.estimate(planned("quickstart", tmp_path), price=3600)
        assert one.cost == one.seconds
        assert "at 3600 an hour of this machine" in as_text(one.__rich__())
        here(machine(gpus=(8 * GIB, 8 * GIB), speed=Speed.of(XEON, ("Accelerator 9",) * 2)))
        two = estimating.estimate(planned("quickstart", tmp_path), price=3600)
        text = as_text(two.__rich__())

        assert two.cost == 2 * (two.seconds or 0)
        assert "an hour of a GPU" in text
        assert "a guess, since the speed of Accelerator 9 is not known" in text

    def test_the_command_has_a_price(
        self, here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """In the table and in JSON."""
        monkeypatch.chdir(tmp_path)
        shown = CliRunner().invoke(app, ["plan", "quickstart", "--price", "1.5"])
        quiet = CliRunner().invoke(app, ["plan", "quickstart", "--json"])

        assert "price 0.02, at 1.5 an hour of this machine" in shown.output
        assert '"seconds": 5' in quiet.output
        assert '"cost"' not in quiet.output


def test_durations_are_rounded() -> None:
    """To what is known of them."""
    seconds = (1, 47, 100, 3000, 7000, 40_000, 400_000)

    assert [duration(s) for s in seconds] == [
        "~5 s",
        "~45 s",
        "~2 min",
        "~50 min",
        "~1.9 h",
        "~11 h",
        "~5 days",
    ]


def test_a_set_of_crops_is_made_with_the_observers_network(tmp_path: Path) -> None:
    """Students of the set have that network, too."""
    plan = planned("quickstart-rded", tmp_path)
    stages = {stage.name: stage.config for stage in plan.definition.stages}

    assert stages["distill"].network(stages) == stages["teacher"].network(stages)
