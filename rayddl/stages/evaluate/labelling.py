"""Makes soft labels to be stored: an observer's logits for the crops of some epochs."""

from __future__ import annotations

from rayddl import seeds
from rayddl.methods.training.observers import Labeller
from rayddl.methods.training.soft import EpochData, Execution, ObserverLogits, labelled
from rayddl.methods.training.softlabels import Index, pack
from rayddl.stages.evaluate.student_data import Shared, TrainingData, whole
from rayddl.stages.runtime import devices
from rayddl.stages.runtime.listings import Draw
from rayddl.stages.runtime.sources import on_device


def label(shared: Shared, data: TrainingData, index: Index, part: tuple[str, range]) -> None:
    """Compute the observer's logits for the epochs of ``part``, and write them into the folder ``stored``."""
    import ray

    assert data.stored is not None
    assert data.images is not None
    assert not isinstance(data.images, Draw)
    name, epochs = part
    if data.stored.has(name):
        return
    device = devices.enter(shared.threads, shared.precision, f"labels {name}")
    seen: Labeller = ray.get(shared.observer)
    answers = ObserverLogits(seen.on(device, shared.precision).module, Execution(device, shared.compile))
    images = on_device(whole(data.images), device)
    sides, seed = (int(images.shape[2]), int(images.shape[3])), seeds.derive(shared.seed, "labels")
    found = []
    for epoch in epochs:
        draws = index.protocol.draw(epoch, len(images), sides, index.input_spec, seed)
        logits = labelled(answers, images, draws, index.protocol, index.input_spec, device)
        found.append(EpochData(draws, logits))
    data.stored.write(name, pack(found, index.top))
