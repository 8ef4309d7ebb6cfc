"""Seconds for the students of one network, side by side and one after the other, in one run.

    uv run python -m tests.bench.evaluate [--seeds 5] [--epochs 20] [--rounds 3]

Every row runs in a process of its own with one thread, as a worker of an evaluation has it; the two ways
alternate, and the figure is the median over rounds. The last column is what rayddl chooses.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

from tests.bench import machine

ROWS: tuple[tuple[str, dict[str, Any], tuple[int, int, int], int], ...] = (
    ("ConvNet-2, 32 channels, 8 x 8, 10 images", {"depth": 2, "width": 32}, (1, 8, 8), 10),
    ("ConvNet-2, 32 channels, 8 x 8, 30 images", {"depth": 2, "width": 32}, (1, 8, 8), 30),
    ("ConvNet-2, 32 channels, 8 x 8, 100 images", {"depth": 2, "width": 32}, (1, 8, 8), 100),
    ("MLP-3, 8 x 8, 10 images", {"name": "mlp", "width": 64}, (1, 8, 8), 10),
    ("MLP-3, 8 x 8, 100 images", {"name": "mlp", "width": 64}, (1, 8, 8), 100),
    ("LeNet, 3 x 32 x 32, 10 images", {"name": "lenet"}, (3, 32, 32), 10),
    ("ConvNet-3, 128 channels, 3 x 32 x 32, 10 images", {}, (3, 32, 32), 10),
)


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Seconds for all seeds, each way and round, and the largest difference that it made."""
    import torch

    from rayddl.methods.training.hard import Protocol, train_student, train_together
    from rayddl.methods.training.steps import make_steps
    from rayddl.nets.build import flat, initial
    from rayddl.nets.config import NetConfig
    from rayddl.nets.cost import faster_together

    torch.set_num_threads(1)
    net, shape, count = NetConfig.model_validate(row["net"]), tuple(row["shape"]), row["images"]
    steps, protocol = (
        make_steps(flat(net, shape, 10), compile_=False),
        Protocol(epochs=row["epochs"], lr=0.01, augment="none"),
    )
    x, y = torch.randn(count, *shape), torch.arange(count) % 10
    seeds = list(range(row["seeds"]))
    starts = torch.stack([initial(net, shape, 10, seed=s) for s in seeds])

    def alone() -> torch.Tensor:
        trained = [train_student(steps, protocol, starts[s], x, y, 10, s) for s in seeds]
        return torch.stack(trained)

    def together() -> torch.Tensor:
        many = len(seeds)
        return train_together(steps, protocol, starts, [x] * many, [y] * many, 10, seeds)

    found: dict[str, Any] = {"alone": [], "together": []}
    for _ in range(row["rounds"]):
        for way, train in (("alone", alone), ("together", together)):
            began = time.perf_counter()
            train()
            found[way].append(time.perf_counter() - began)
    found["differs"] = float((alone() - together()).abs().max())
    found["chosen"] = faster_together(net, shape, 10, batch=min(protocol.batch, count), compile_=False)
    return found


def main() -> None:
    parser = machine.parser(__doc__, rounds=3, row=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(json.loads(given.row))))
        return
    print(machine.figures(), flush=True)
    table = []
    for name, net, shape, images in ROWS:
        asked = {"net": net, "shape": shape, "images": images}
        more = {"seeds": given.seeds, "epochs": given.epochs, "rounds": given.rounds}
        found = machine.child("tests.bench.evaluate", {**asked, **more}, allocator=True)
        if found is None:
            continue
        alone, together = (statistics.median(found[way]) for way in ("alone", "together"))
        table.append(
            {
                f"{given.seeds} students": name,
                "one after the other": f"{alone:.2f} s",
                "side by side": f"{together:.2f} s",
                "ratio": f"{alone / together:.2f}",
                "largest difference": f"{found['differs']:.1e}",
                "rayddl takes": "side by side" if found["chosen"] else "one after the other",
            }
        )
    print(machine.table(table))


if __name__ == "__main__":
    main()
