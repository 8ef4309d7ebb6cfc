"""What the repository shows to its users holds: definitions load, the README's examples are real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayddl.methods.trajectories.settings import Curriculum
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import graph
from rayddl.pipeline.definition import load as definition
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.match.settings import MatchConfig

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_definition_loads_and_is_named_like_its_file(path: Path) -> None:
    """Every definition is valid as it stands and goes by its file's name."""
    assert definition.load(str(path)).name == path.stem


# MTT's settings as its authors gave them: source, space, syn_steps N, expert_epochs M, max_start_epoch T+,
# batch_syn, lr_image, lr_lr, lr_student, depth of the ConvNet, and the accuracy published with them.
MTT = {
    "cifar10-mtt-ipc1": ("cifar10", "zca", 50, 2, 2, None, 100, 1e-7, 0.01, 3, "46.3 ± 0.8 %"),
    "cifar10-mtt-ipc10": ("cifar10", "zca", 30, 2, 20, None, 100, 1e-5, 0.001, 3, "65.3 ± 0.7 %"),
    "cifar10-mtt-ipc50": ("cifar10", "published", 30, 2, 40, None, 1000, 1e-5, 0.001, 3, "71.6 ± 0.2 %"),
    "cifar100-mtt-ipc1": ("cifar100", "zca", 20, 3, 20, None, 1000, 1e-5, 0.01, 3, "24.3 ± 0.3 %"),
    "cifar100-mtt-ipc10": ("cifar100", "published", 20, 2, 20, None, 1000, 1e-5, 0.01, 3, "40.1 ± 0.4 %"),
    "cifar100-mtt-ipc50": ("cifar100", "zca", 80, 2, 40, 125, 1000, 1e-5, 0.01, 3, "47.7 ± 0.2 %"),
    "tinyimagenet-mtt-ipc1": (
        "tinyimagenet",
        "published",
        10,
        2,
        10,
        None,
        1e4,
        1e-4,
        0.01,
        4,
        "8.8 ± 0.3 %",
    ),
    "tinyimagenet-mtt-ipc10": (
        "tinyimagenet",
        "published",
        20,
        2,
        40,
        200,
        1e4,
        1e-4,
        0.01,
        4,
        "23.2 ± 0.2 %",
    ),
    "tinyimagenet-mtt-ipc50": (
        "tinyimagenet",
        "published",
        20,
        2,
        40,
        300,
        1e4,
        1e-4,
        0.01,
        4,
        "28.0 ± 0.3 %",
    ),
    "imagenette-mtt-ipc1": ("imagenet", "published", 20, 2, 10, None, 1e5, 1e-6, 0.01, 5, "47.7 ± 0.9 %"),
    "imagenette-mtt-ipc10": ("imagenet", "published", 20, 2, 10, 20, 1e5, 1e-6, 0.01, 5, "63.0 ± 1.3 %"),
}
MATCHED = [p for p in PIPELINES if re.fullmatch(r"[a-z0-9]+-m[tc]t-ipc\d+", p.stem)]


def head(path: Path) -> str:
    """The comment above a definition, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    above = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in above)


def configs(path: Path) -> tuple[definition.Definition, ExpertsConfig, MatchConfig]:
    """The definition, and the settings of its experts and of its matching."""
    loaded = definition.load(str(path))
    (experts,) = [s.config for s in loaded.stages if isinstance(s.config, ExpertsConfig)]
    (match,) = [s.config for s in loaded.stages if isinstance(s.config, MatchConfig)]
    return loaded, experts, match


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_the_graph_of_every_definition_resolves(path: Path, tmp_path: Path) -> None:
    """Every stage has its place in the order, after what it reads, and nothing is there yet."""
    planned = plans.make(definition.load(str(path)), str(tmp_path), lambda _: "images")

    done: set[str] = set()
    for stage in planned.stages:
        assert set(stage.stage.reads) <= done
        assert stage.state == "new"
        done.add(stage.name)
    # A search runs its template itself.
    stages = definition.load(str(path)).stages
    assert len(done) == len(stages) - len(graph.idle({stage.name: stage.config for stage in stages}))


@pytest.mark.parametrize("path", [p for p in PIPELINES if "-ipc" in p.stem], ids=lambda p: p.stem)
def test_published_settings_name_their_figure(path: Path) -> None:
    """A definition with published settings states an accuracy published with them, and how to run it."""
    assert re.search(r"\d\d?\.\d ± \d\.\d %", head(path))
    assert f"rayddl run pipelines/{path.name}" in head(path)


def test_every_published_setting_is_shipped() -> None:
    """Three data sets at three sizes by both methods, and the subset of ImageNet by MTT."""
    pairs = {
        (d, m, n)
        for d in ("cifar10", "cifar100", "tinyimagenet")
        for m in ("mtt", "mct")
        for n in (1, 10, 50)
    }
    pairs |= {("imagenette", "mtt", 1), ("imagenette", "mtt", 10)}

    assert {f"{d}-{m}-ipc{n}" for d, m, n in pairs} == {p.stem for p in MATCHED}


@pytest.mark.parametrize("path", MATCHED, ids=lambda p: p.stem)
def test_a_name_says_what_is_in_it(path: Path) -> None:
    """Data set, method and images per class of the name are those of the settings."""
    data, method, ipc = path.stem.split("-")
    loaded, experts, match = configs(path)

    assert ipc == f"ipc{match.ipc}"
    assert (match.trajectory, experts.keep) == {"mct": ("convex", "convex"), "mtt": ("snapshots", "all")}[
        method
    ]
    assert loaded.source.name == {"imagenette": "imagenet"}.get(data, data)
    assert (experts.count, experts.lr, experts.batch, experts.momentum) == (100, 0.01, 256, 0.0)


@pytest.mark.parametrize("path", [p for p in MATCHED if "-mtt-" in p.stem], ids=lambda p: p.stem)
def test_mtt_runs_with_its_authors_settings(path: Path) -> None:
    """Every number is the published one, and so is the accuracy in the comment."""
    loaded, experts, match = configs(path)
    windows = (match.syn_steps, match.expert_epochs, match.max_start_epoch, match.batch_syn)
    rates = (match.lr_image, match.lr_lr, match.lr_student)
    *settings, figure = MTT[path.stem]

    assert [loaded.source.name, loaded.source.space, *windows, *rates, experts.net.depth] == settings
    assert figure in head(path)
    assert loaded.source.size == (128 if loaded.source.name == "imagenet" else None)


# Settings of the methods that build on MTT as their authors gave them: iterations, syn_steps, the range of start
# epochs (the first upper end and the last one), lr_image, lr_lr, lr_student; and further settings of matching, experts.
LATER: dict[str, tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]] = {
    "cifar10-tesla-ipc1": ((10_000, 50, None, 5, 500, 1e-7, 0.01), {"gradient": "truncated"}, {}),
    "cifar10-ftd-ipc10": (
        (5000, 30, None, 20, 100, 1e-5, 0.001),
        {"image_ema": 0.9995, "labels": "hard"},
        {"flat_rho": 0.01, "flat_alpha": 0.3},
    ),
    "cifar10-datm-ipc10": (
        (10_000, 80, 10, 20, 100, 1e-5, 0.01),
        {
            "grow_iterations": 1000,
            "threshold": 1,
            "start_from": "correct",
            "lr_label": 2,
            "momentum_label": 0.9,
            "image_ema": None,
        },
        {"flat_rho": 0.01, "flat_alpha": 0.3, "curriculum": None},
    ),
    "cifar10-pad-ipc10": (
        (10_000, 80, 10, 20, 100, 1e-5, 0.01),
        {"start_from": "correct", "lr_label": 2, "momentum_label": 0.9, "depth_ratio": 0.5, "threshold": 1},
        {"flat_rho": 0.01, "flat_alpha": 0.3, "curriculum": Curriculum()},
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_later_methods_run_with_their_authors_settings(name: str) -> None:
    """And their sets are called what the definition's name says."""
    loaded, experts, match = configs(ROOT / "pipelines" / f"{name}.yaml")
    run, matching, training = LATER[name]
    starts = (match.first_start_epoch, match.max_start_epoch)

    assert (loaded.source.space, match.trajectory, match.expert_epochs) == ("zca", "snapshots", 2)
    assert (
        match.iterations, match.syn_steps, *starts, match.lr_image, match.lr_lr, match.lr_student,
    ) == run  # fmt: skip
    assert {key: getattr(match, key) for key in matching} == matching
    assert {key: getattr(experts, key) for key in training} == training
    assert match.method_name(flat=bool(experts.flat_rho)).lower() == name.split("-")[1]


@pytest.mark.parametrize("path", [p for p in MATCHED if "-mct-" in p.stem], ids=lambda p: p.stem)
def test_mct_says_where_its_settings_come_from(path: Path) -> None:
    """Where no command was published the comment says so, and the experts are kept by waypoints."""
    _, experts, match = configs(path)
    data = path.stem.split("-")[0]

    assert (experts.epochs, experts.waypoints) == (50, (0, 6, 25, 50))
    assert match.last_epoch <= 50
    assert ("no command was published" in head(path)) == (data != "cifar10")
    # The authors' rates are 1000 and, as MTT's, 10000, in units of half the images' gradient.
    assert match.gradient == "truncated"
    assert match.lr_image == (5000 if data == "tinyimagenet" else 500)


@pytest.mark.parametrize("path", MATCHED, ids=lambda p: p.stem)
def test_a_batch_that_does_not_divide_the_set_keeps_its_remainder(path: Path) -> None:
    """As in the published code; among the shipped definitions, only for 300 of Tiny-ImageNet's 10,000 images."""
    loaded, _, match = configs(path)
    count = match.ipc * {"cifar100": 100, "tinyimagenet": 200}.get(loaded.source.name, 10)

    assert match.keep_remainder == bool(count % (match.batch_syn or count))


def test_readmes_definition_is_valid() -> None:
    """The definition that README and guide explain has the published settings of the matching."""
    (block,) = [
        b
        for b in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
        if "name: my-cifar10-mct" in b and "stages:" in b
    ]
    loaded = definition.load(yaml.safe_load(block))
    shipped = definition.load(ROOT / "pipelines" / "cifar10-mct-ipc1.yaml")

    assert block in GUIDE
    match, published = (
        next(s.config for s in d.stages if s.name == "distill").model_dump(
            exclude={"evaluate_every", "evaluate_epochs", "lr_student"}  # by default that of the experts
        )
        for d in (loaded, shipped)
    )
    assert match == published


def test_readmes_protocol_is_valid() -> None:
    """The evaluate stages that hold one protocol fixed differ in their set alone, and load."""
    (block,) = [b for b in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL) if "judge-mtt" in b]
    stages = yaml.safe_load(block)["stages"]
    sets = {name: {"kind": "coreset", "method": "random", "ipc": 1} for name in ("mtt", "rded")}
    loaded = definition.load({"name": "x", "source": {"name": "digits"}, "stages": {**sets, **stages}})

    first, second = (s.config.model_dump() for s in loaded.stages if s.kind.name == "evaluate")
    assert {key for key in first if first[key] != second[key]} == {"set"}


def test_readmes_training_example_trains(tmp_path: Path) -> None:
    """Two real digits of each class, trained on as the README says, teach far more than guessing."""
    import torch

    from rayddl.data.config import SourceConfig
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.pixels import space
    from rayddl.data.sources import picking
    from rayddl.data.sources import registry as sources
    from rayddl.pipeline.sets import load_set
    from rayddl.storage import Folder

    source = sources.load(SourceConfig(name="digits"))
    train, fitted = source.train, space.fit("normalise", source.train.images)
    places = picking.per_class(train.labels, train.classes, 2, torch.Generator().manual_seed(0))
    DistilledSet(train.images[places], train.labels[places], 0.01, train.classes, fitted).save(
        Folder(str(tmp_path))
    )
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "DataLoader" in b]
    names = {"made": load_set(str(tmp_path))}
    exec(block, names)

    net: torch.nn.Module = names["net"]  # type: ignore[assignment]  # the block makes it
    answers = net(fitted.encode(source.test.images)).argmax(1)
    assert (answers == source.test.labels).float().mean() > 0.6
