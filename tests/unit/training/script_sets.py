"""Sets of digits with all that their exported script needs, and the script as a module and as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rayddl.data.dataset import ImageDataset
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.space import fit
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import Observer, frozen
from rayddl.methods.training.soft import (
    EpochData,
    Execution,
    ObserverLogits,
    SoftProtocol,
    labelled,
)
from rayddl.methods.training.softlabels import Index, finish, pack
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.pipeline.exporting import export_to
from rayddl.storage import Folder
from tests import warm

CPU = torch.device("cpu")
NET = {"name": "convnet", "depth": 2, "width": 16}
TEACHER = {**NET, "norm": "batch"}
ON_CPU = Execution(CPU)
NETS: tuple[tuple[dict[str, Any], tuple[int, int, int]], ...] = (
    *(({**NET, "norm": norm}, (1, 8, 8)) for norm in ("instance", "batch", "group", "none")),
    ({"name": "convnet", "width": 8}, (3, 28, 28)),
    ({"name": "convnet", "width": 8}, (3, 18, 18)),
    ({"name": "alexnet"}, (3, 16, 16)),
    ({"name": "alexnet", "norm": "batch"}, (1, 28, 28)),
    ({"name": "vgg11"}, (3, 32, 32)),
    ({"name": "lenet"}, (1, 28, 28)),
    ({"name": "mlp", "depth": 3, "width": 16}, (1, 8, 8)),
    ({"name": "resnet18"}, (3, 32, 32)),
    ({"name": "resnet18", "norm": "batch"}, (3, 32, 32)),
    ({"name": "resnet18", "norm": "batch"}, (1, 72, 72)),
    ({"name": "tv_mobilenet_v2"}, (3, 32, 32)),
)


def first_of_each(data: ImageDataset, ipc: int) -> tuple[Tensor, Tensor]:
    """The first ``ipc`` images of each class, and their labels."""
    picked = torch.cat([(data.labels == c).nonzero()[:ipc, 0] for c in range(10)])
    return data.images[picked], data.labels[picked]


def hard_set(
    digits: Any, folder: Folder, augmented: str = "none", space: str = "normalise", **more: Any
) -> DistilledSet:
    """A set of floats, as matching makes them, with the protocol that an evaluate stage stores."""
    images, labels = first_of_each(digits.train, 1)
    fitted = fit(space, digits.train.images)
    info = {
        "method": "MCT",
        "net": NET,
        "source": {"name": "digits", "space": space},
        "protocol": {"name": "hard", "nets": [NET], "lr": 0.05, "epochs": 60, "batch": 256, "seeds": 3,
                     "augment": augmented},
        "metrics": {"accuracy": []},
        **more,
    }  # fmt: skip
    made = DistilledSet(fitted.encode(images) * 1.1, labels, 0.05, digits.train.classes, fitted, info)
    made.save(folder)
    return made


def observer(digits: Any, shape: tuple[int, int, int] = (1, 8, 8)) -> Observer:
    """A network that has seen the digits for some steps."""
    net = NetConfig.model_validate(TEACHER)
    module = build(net, shape, 10, seed=3)
    input_spec = InputSpec(shape, (0.3,) * shape[0], (0.37,) * shape[0])
    x, adam = (
        input_spec.normalised(input_spec.fitted(digits.train.images)),
        torch.optim.Adam(module.parameters(), 0.01),
    )
    module.train()
    for picked in torch.arange(len(x)).split(128):
        adam.zero_grad()
        nn.functional.cross_entropy(module(x[picked]), digits.train.labels[picked]).backward()
        adam.step()
    return Observer(frozen(module), net, digits.train.classes, shape, input_spec.mean, input_spec.std, 0.9)


def soft_set(
    digits: Any,
    folder: Folder,
    *,
    stored: bool,
    epochs: int = 4,
    factor: int = 1,
    shape: tuple[int, int, int] = (1, 8, 8),
    top: int | None = None,
    where: Any = {"folder": "observer"},  # noqa: B006  # read only
    **settings: Any,
) -> tuple[DistilledSet, Observer, SoftProtocol]:
    """A set of bytes, as RDED makes them, with its observer, and labels if ``stored``."""
    images, labels = first_of_each(digits.train, 2)
    space = fit("normalise", digits.train.images)
    info = {
        "method": "RDED",
        "net": NET,
        "factor": factor,
        "source": {"name": "digits"},
        "protocol": {"name": "soft", "nets": [NET], "epochs": epochs, "batch": 6, "seeds": 2,
                     "observer": where, **settings},
        "metrics": {"accuracy": []},
    }  # fmt: skip
    made = DistilledSet(images, labels, 0.01, digits.train.classes, space, info)
    made.save(folder)
    seen, protocol = observer(digits, shape), SoftProtocol(epochs=epochs, batch=6, factor=factor, **settings)
    seen.save(folder.child("observer"))
    if stored:
        pixels = seen.input_spec.fitted(images).contiguous()
        index, found = Index.of(pixels, made.classes, seen.input_spec, protocol), []
        for epoch in range(epochs):
            draws = protocol.draw(epoch, len(pixels), shape[1:], seen.input_spec, 5)
            answers = ObserverLogits(seen.module, ON_CPU)
            found.append(EpochData(draws, labelled(answers, pixels, draws, protocol, seen.input_spec, CPU)))
        labels_at = folder.child("labels")
        index = Index(index.classes, index.input_spec, protocol, index.images, index.count, 3, top)
        for name, part in index.parts():
            labels_at.write(name, pack(found[part.start : part.stop], top))
        finish(labels_at, index)
    return made, seen, protocol


def exported(folder: Folder, to: Path, **more: Any) -> Path:
    assert not export_to(str(folder), str(to), "hf", **more).notes
    return to


def opened(to: Path) -> ModuleType:
    """The exported script as a module, without its ``main``."""
    module = ModuleType("train")
    module.__file__ = str(to / "train.py")
    sys.modules.pop("parts", None)
    sys.path.insert(0, str(to))
    try:
        for name in ("parts.py", "train.py"):
            exec(compile((to / name).read_text(), name, "exec"), module.__dict__)
    finally:
        sys.path.remove(str(to))
        sys.modules.pop("parts", None)
    return module


def run(to: Path, *options: str) -> str:
    """What the exported script prints, in a process without rayddl."""
    code = (
        "import runpy, sys, warnings; assert not any(name.startswith('rayddl') for name in sys.modules); "
        "sys.modules['rayddl'] = None; warnings.simplefilter('ignore'); runpy.run_path('train.py', run_name='__main__')"
    )
    # As a worker to which the package is sent, the process has not imported it.
    env = {**os.environ, "PYTHONPATH": f"{to}/{warm.client.SENT}"}
    done = warm.run(
        [sys.executable, "-c", code, *options],
        cwd=to, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
