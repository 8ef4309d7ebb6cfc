"""Images per second in training a teacher, next to a plain PyTorch loop, on an idle and on a shared machine.

    uv run python -m tests.bench.teacher [--net convnet] [--precision bf16 fp32] [--rounds 3] [--busy 1 [--settings]]

CIFAR-10-sized noise, batch 128, ConvNet-3 with batch norm or ResNet-18 with a 3 x 3 stem. The plain loop is what a
practitioner writes: torch's own layers, channels last, autocast, ``torch.compile``, SGD, no augmentation; rayddl's
draws flips and shifts. Each row runs in a process of its own, rows alternate, and the figure is the median over rounds.
With ``--busy N`` each row is measured again while N other processes compute without a pause; with ``--settings``
rayddl's rows also without each of its settings: with threads that may run on any core, with threads that spin while
they wait, OpenMP's default, and at the low priority that Ray gives to its workers by default.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rayddl.stages.runtime.cluster import WORKER_ENV
from tests.bench import machine

IMAGES, BATCH, CLASSES, SHAPE = 2560, 128, 10, (3, 32, 32)
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**5))"
"""A program that computes until the process that started it ends, however that ends."""
NICENESS = 15
"""Ray's default for its workers; those of a local Ray that rayddl starts have 0."""


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Images per second over ``row["epochs"]`` short epochs, after one that compiles."""
    import torch

    from rayddl.stages.runtime import cores
    from rayddl.stages.runtime import machine as here

    os.nice(row.get("nice", 0))
    torch.set_num_threads(here.cpus())
    if row.get("watched"):
        cores.watch(here.cpus())
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.randint(256, (IMAGES, *SHAPE), dtype=torch.uint8, device=device)
    y = torch.randint(CLASSES, (IMAGES,), device=device)
    epoch = {"plain": _plain, "teacher": _teacher, "expert": _expert}[row["way"]](row, x, y)
    epoch()
    began, spent = time.perf_counter(), time.process_time()
    for _ in range(row["epochs"]):
        epoch()
    if device.type == "cuda":
        torch.cuda.synchronize()
    images = row["epochs"] * IMAGES
    return {
        "rate": images / (time.perf_counter() - began),
        "cpu": (time.process_time() - spent) / images,
        "bytes": machine.peak_bytes(),
    }


def _plain(row: dict[str, Any], x: Any, y: Any) -> Callable[[], None]:
    import torch
    from torch import nn

    if row["net"] == "convnet":
        layers: list[nn.Module] = []
        for inputs in (3, 128, 128):
            layers += [nn.Conv2d(inputs, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.AvgPool2d(2)]
        net: nn.Module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, CLASSES))
    else:
        import torchvision

        net = torchvision.models.resnet18(num_classes=CLASSES)
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    net = net.to(x.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    step = torch.compile(net, dynamic=False)
    shown = x.float().div(255).sub(0.5).div(0.25).contiguous(memory_format=torch.channels_last)
    mixed = row["precision"] == "bf16"

    def epoch() -> None:
        for picked in torch.randperm(IMAGES).split(BATCH):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
                loss = nn.functional.cross_entropy(step(shown[picked]), y[picked])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return epoch


def _teacher(row: dict[str, Any], x: Any, y: Any) -> Callable[[], None]:
    from rayddl.methods.training.input_spec import InputSpec
    from rayddl.methods.training.settings import TeacherSettings
    from rayddl.methods.training.soft import Execution
    from rayddl.methods.training.teacher import TeacherTraining
    from rayddl.nets.build import build
    from rayddl.nets.config import NetConfig

    settings = TeacherSettings(epochs=10**6, batch=BATCH)
    config = NetConfig(name=row["net"], norm="batch")
    module = build(config, SHAPE, CLASSES, seed=0, precision=row["precision"])
    input_spec = InputSpec(SHAPE, (0.5,) * 3, (0.25,) * 3)
    training = TeacherTraining(module, settings, input_spec, x, y, Execution(x.device, True), 0)
    return lambda: training._one_epoch(lambda: 0.0, lambda _: None)


def _expert(row: dict[str, Any], x: Any, y: Any) -> Callable[[], None]:
    from rayddl.methods.training.steps import steps_for
    from rayddl.methods.trajectories.expert import Images, Lanes, training_steps
    from rayddl.methods.trajectories.settings import ExpertSettings
    from rayddl.nets.build import initial
    from rayddl.nets.config import NetConfig

    config = NetConfig(name=row["net"], norm="instance")
    steps = steps_for(config, SHAPE, CLASSES, row["precision"], True)
    settings = ExpertSettings(epochs=1, batch=BATCH)
    shown = x.float().div(255).sub(0.5).div(0.25)
    start, train = initial(config, SHAPE, CLASSES, seed=0), Images(shown, y)

    def epoch() -> None:
        lanes = Lanes([training_steps(steps, settings, start, train, train, CLASSES, 0)], x.device)
        while lanes:
            lanes.turn()

    return epoch


@contextmanager
def busy(count: int) -> Iterator[None]:
    """``count`` other processes that compute without a pause, each in a session of its own, as from other terminals."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = machine.parser(__doc__, rounds=3, row=True)
    parser.add_argument("--net", default="convnet", choices=("convnet", "resnet18"))
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"], choices=("bf16", "fp32"))
    parser.add_argument("--ways", nargs="+", default=["plain", "teacher"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--settings", action="store_true", help="also without each of rayddl's settings")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(json.loads(given.row))))
        return
    print(machine.figures(), flush=True)
    rows: dict[str, tuple[dict[str, Any], bool, str, int]] = {}
    for precision in given.precision:
        for others in sorted({0, given.busy}):
            for way in given.ways:
                row = {"net": given.net, "way": way, "precision": precision, "epochs": given.epochs}
                shared = f", {others} other process" if others else ""
                if way == "plain":
                    rows[f"plain loop {precision}{shared}"] = (row, False, "active", others)
                    rows[f"plain loop {precision}, allocator settings{shared}"] = (
                        row,
                        True,
                        "active",
                        others,
                    )
                    continue
                kept = {**row, "watched": True}
                rows[f"{way} {precision}, as a worker{shared}"] = (kept, True, "sleeping", others)
                if others and given.settings:
                    low = {**kept, "nice": NICENESS}
                    rows[f"{way} {precision}, threads on any core{shared}"] = (row, True, "sleeping", others)
                    rows[f"{way} {precision}, threads that spin{shared}"] = (kept, True, "active", others)
                    rows[f"{way} {precision}, at Ray's priority{shared}"] = (low, True, "sleeping", others)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
    for _ in range(given.rounds):
        for name, (row, allocator, policy, others) in rows.items():
            os.environ.pop("GOMP_SPINCOUNT", None)
            if policy == "sleeping":
                os.environ["GOMP_SPINCOUNT"] = WORKER_ENV["GOMP_SPINCOUNT"]
            with busy(others):
                one = machine.child("tests.bench.teacher", row, allocator=allocator)
            found[name] += [one] if one else []
            print(name, one, flush=True)
    rates = {name: [one["rate"] for one in ones] for name, ones in found.items() if ones}
    first = statistics.median(next(iter(rates.values())))
    table = [
        {
            "row": name,
            "images/s": f"{statistics.median(some):.0f} ({min(some):.0f}-{max(some):.0f})",
            "times the first row": f"{statistics.median(some) / first:.2f}",
            "ms of processor an image": f"{1000 * statistics.median(o['cpu'] for o in found[name]):.2f}",
        }
        for name, some in rates.items()
    ]
    print(machine.table(table))


if __name__ == "__main__":
    main()
