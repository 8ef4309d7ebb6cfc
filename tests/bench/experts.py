"""Images per second in training experts, one and several at once, beside the published code's epoch.

    uv run python -m tests.bench.experts [--reference PATH_OF_MTT_CHECKOUT] [--rounds 3]

ConvNet-3 on CIFAR-10-sized images, batch 256, DSA on. Every row runs in processes of its own, rows
alternate, and the figure is the median over rounds. The whole machine is given to every row: a row of
one expert has all cores, a row of n experts has n processes that share them; where they go in turns, it is one
process, in which each has a CUDA stream of its own on a GPU.
"""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.bench import machine

IMAGES, BATCH = 2560, 256


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """One process's share of a row: images per second over ``row["epochs"]`` short epochs."""
    import torch

    from rayddl.stages.runtime import machine as here

    torch.set_num_threads(max(1, here.cpus() // row["processes"]))
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.randn(IMAGES, 3, 32, 32, device=device)
    y = torch.randint(10, (IMAGES,), device=device)
    train = _reference(row, x, y) if "reference" in row else _ours(row, x, y)
    train()
    began = time.perf_counter()
    for _ in range(row["epochs"]):
        train()
    if device.type == "cuda":
        torch.cuda.synchronize()
    images = row["epochs"] * row.get("turns", 1) * IMAGES
    return {"rate": images / (time.perf_counter() - began), "bytes": machine.peak_bytes()}


def _reference(row: dict[str, Any], x: Any, y: Any) -> Any:
    import types

    import torch

    from tests.bench import reference

    code = reference.load(row["reference"])
    net = code.net().to(x.device)
    data = torch.utils.data.TensorDataset(x.cpu(), y.cpu())
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    args = types.SimpleNamespace(
        device=x.device.type, dataset="CIFAR10", dsa=True,
        dsa_strategy="color_crop_cutout_flip_scale_rotate", dsa_param=code.augmentation,
    )  # fmt: skip
    criterion = torch.nn.CrossEntropyLoss()
    return lambda: code.epoch("train", loader, net, optimizer, criterion, args, aug=True)


def _ours(row: dict[str, Any], x: Any, y: Any) -> Any:
    from rayddl.methods.training.steps import steps_for
    from rayddl.methods.trajectories.expert import Images, Lanes, training_steps
    from rayddl.methods.trajectories.settings import ExpertSettings
    from rayddl.nets.build import initial
    from rayddl.nets.config import NetConfig

    config, shape = NetConfig(), (3, 32, 32)
    steps = steps_for(config, shape, 10, row["precision"], True, row.get("graphs", False))
    settings = ExpertSettings(epochs=1, batch=BATCH)
    start, train, few = initial(config, shape, 10, seed=0), Images(x, y), Images(x[:BATCH], y[:BATCH])

    def epoch() -> None:
        going = [
            training_steps(steps, settings, start, train, few, 10, i) for i in range(row.get("turns", 1))
        ]
        lanes = Lanes(going, x.device)
        while lanes:
            lanes.turn()

    return epoch


def main() -> None:
    import torch

    parser = machine.parser(__doc__, rounds=3, reference="MTT", row=True)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(json.loads(given.row))))
        return
    print(machine.figures(), flush=True)
    rows: dict[str, tuple[dict[str, Any], bool]] = {}
    if given.reference:
        base = {"reference": given.reference, "processes": 1, "epochs": 1}
        rows["original, as its users run it"] = (base, False)
        rows["original, with allocator settings"] = (base, True)
    for precision in ("fp32", "bf16"):
        for processes in (1, 2):
            row = {"precision": precision, "processes": processes, "epochs": 3}
            rows[f"rayddl {precision}, {processes} at once"] = (row, True)
        alone = {"precision": precision, "processes": 1, "epochs": 3}
        for turns in (2, 4, 8) if torch.cuda.is_available() else (2,):
            rows[f"rayddl {precision}, {turns} in turns"] = ({**alone, "turns": turns}, True)
        if torch.cuda.is_available():
            rows[f"rayddl {precision}, CUDA graphs"] = ({**alone, "graphs": True}, True)
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(given.rounds):
        for name, (row, allocator) in rows.items():
            rates[name].append(_rate(row, allocator=allocator))
    reference = next(iter(rates.values()))
    table = [
        {
            "row": name,
            "images/s, all experts": f"{statistics.median(found):.0f} ({min(found):.0f}-{max(found):.0f})",
            "times the first row": f"{statistics.median(found) / statistics.median(reference):.2f}",
        }
        for name, found in rates.items()
    ]
    print(machine.table(table))


def _rate(row: dict[str, Any], *, allocator: bool) -> float:
    with ThreadPoolExecutor(row["processes"]) as side_by_side:
        found = list(
            side_by_side.map(
                lambda _: machine.child("tests.bench.experts", row, allocator=allocator),
                range(row["processes"]),
            )
        )
    return sum(f["rate"] for f in found if f)


if __name__ == "__main__":
    main()
