"""``kind: coreset``: selection of real images class by class, in tasks of some classes each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from rayddl import seeds
from rayddl.data import unnamed
from rayddl.data.config import DSA
from rayddl.data.distilled import LR_STUDENT, DistilledSet
from rayddl.data.pixels.space import PixelSpace
from rayddl.data.sources import picking
from rayddl.data.sources import registry as sources
from rayddl.data.sources.listing import Listing
from rayddl.data.sources.refusals import shown
from rayddl.errors import ArtifactError, SourceError
from rayddl.methods.patches.boxes import preselected
from rayddl.methods.selection.features import BATCH, Features
from rayddl.methods.selection.rows import HELD
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import Observer
from rayddl.methods.trajectories import files
from rayddl.nets.build import build, has_batch_norm
from rayddl.nets.config import NetConfig
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input, Result
from rayddl.stages.coreset.settings import BATCH_NORM, METHODS, SCORED, CoresetConfig
from rayddl.stages.coreset.worker import CoresetTask, SelectedImages, bytes_per_image, choose, read_chosen
from rayddl.stages.experts.artifact import refuse_other_experts
from rayddl.stages.kinds import produced
from rayddl.stages.runtime.listings import listing_of, of_shared
from rayddl.stages.runtime.sizes import Ask, Share
from rayddl.stages.runtime.sources import fit_space, note, publish, read_space

TYPES = {"class": "string", "rank": "int64", "image": "string"}


@dataclass(frozen=True)
class _Candidates:
    """The images to select from, their pixel space, and the features that compare them."""

    listing: Listing
    space: PixelSpace
    features: Features
    net: NetConfig


def run(config: CoresetConfig, context: Context) -> Result:
    """Select images of the classes without a result file, and write the set."""
    began = time.perf_counter()
    context.backend.start()
    given = _candidates(config, context)
    given = _subsampled(config, context, given)
    job, share = _job(config, context, given)
    labels = list(range(len(given.listing.classes)))
    missing = [label for label in labels if not context.out.has(job.file(label))]
    _choose(job, share, _groups(missing, given, job, share.at_once), len(labels), context)
    chosen: list[SelectedImages] = []
    images = unnamed.stacked(_read(job, labels, chosen), (len(labels) * config.ipc, *job.shape), torch.uint8)
    bad = [line for part in chosen for line in part.bad]
    _refuse_bad(bad, context, len(given.listing))
    made = _made(config, context, given, images, chosen)
    made.save(context.out.child("set"))
    _write_table(context, given.listing, chosen)
    summary = {
        "method": METHODS.get(config.method, config.method),
        "ipc": config.ipc,
        "classes": list(given.listing.classes),
        "images": len(made),
        "looked_at": len(given.listing),
        "features": config.features or "pixels",
        "bad": len(bad),
        "bad_examples": bad[:20],
        "bytes": made.stored.numel(),
        "seconds": time.perf_counter() - began,
    }
    context.progress.update(len(labels), len(labels), f"{len(made):,} of {len(given.listing):,} images")
    return Result(summary, leftovers=tuple(map(job.file, labels)))


def _candidates(config: CoresetConfig, context: Context) -> _Candidates:
    """The images to select from, their pixel space and features.

    A teacher stores its pixel scaling, so files can be read as needed; otherwise the train split is decoded, in
    shards if it is large, because the pixel space is fitted on all of it.
    """
    found = None if config.features is None else context.inputs[config.features]
    observer = None
    if found is not None and produced(found.kind) == "teacher":
        observer = Observer.load(found.folder.child("observer"))
        if config.method in SCORED:
            observer = observer.pruned(listing_of(context.source).classes)
        listing = sources.listing(context.source) if context.source.space == "normalise" else None
        if listing is not None:
            for line in listing.notes:
                context.progress.note(line)
            return _streamed(listing, observer, config)
    source = publish(context.source)
    note(source, context.progress.note)
    listing = of_shared(source)
    if observer is not None:
        features = _features(observer, config)
        return _Candidates(listing, fit_space(source, context.out), features, observer.net)
    if found is not None:
        refuse_other_experts(found, source, context.source.name)
        space = read_space(found.folder, source)
        net = NetConfig.model_validate(found.summary["net"])
        module = _expert(found, net, source.shape, len(source.classes))
        return _Candidates(listing, space, Features(space.encode, module), net)
    space = fit_space(source, context.out)
    return _Candidates(listing, space, Features(space.encode), NetConfig())


def _features(observer: Observer, config: CoresetConfig) -> Features:
    return Features(partial(_framed, observer.input_spec), observer.module, outputs=config.method in SCORED)


def _streamed(listing: Listing, observer: Observer, config: CoresetConfig) -> _Candidates:
    if observer.shape[1] != observer.shape[2]:
        raise ArtifactError(
            f"the observer of {config.features!r} takes {observer.shape[1]} x {observer.shape[2]} pixels; images are "
            "cut square here. Set source.size, and train it on square images.",
            code="observer-not-square",
        )
    return _Candidates(listing, observer.space, _features(observer, config), observer.net)


def _framed(input_spec: InputSpec, images: Tensor) -> Tensor:
    return input_spec.normalised(input_spec.fitted(images))


def _expert(found: Input, net: NetConfig, shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    """The first expert with its parameters at the end of training."""
    trajectory = files.open_trajectory(found.folder, files.file_name(0), "convex")
    if has_batch_norm(net, shape, classes):
        raise ArtifactError(BATCH_NORM.format(found.stage), code="experts-with-batch-norm")
    module = build(net, shape, classes, seed=0).requires_grad_(False).eval()
    vector_to_parameters(trajectory.at(trajectory.last), module.parameters())
    return module


def _subsampled(config: CoresetConfig, context: Context, given: _Candidates) -> _Candidates:
    listing = given.listing
    counts = listing.counts().tolist()
    if config.short_class == "error":
        picking.refuse_short(listing.classes, counts, config.ipc)
    if config.mipc is None:
        return given
    seed = seeds.derive(context.seed_of(), "looked at")
    picked = preselected(seed, listing.each_name(), listing.labels, config.mipc)
    return _Candidates(listing.take(picked), given.space, given.features, given.net)


def _job(config: CoresetConfig, context: Context, given: _Candidates) -> tuple[CoresetTask, Share]:
    import ray

    units = len(given.listing.classes)
    share = context.backend.sized(lambda have: Ask("resources", config.share(have, units)))
    features = ray.put(given.features)
    shape = given.space.shape
    return CoresetTask(
        config, given.listing, shape, features, context.out, context.seed_of(), share.threads
    ), share


def _choose(
    job: CoresetTask, share: Share, groups: Sequence[list[int]], classes: int, context: Context
) -> None:
    sent = context.backend.put(job)
    done = classes - sum(len(group) for group in groups)
    context.progress.update(done, classes, "starting the workers")
    with context.backend.opened(share, "coreset", note=context.progress.note) as free:
        for group, _ in free.each(groups, lambda group: (choose, sent, group), _named):
            done += len(group)
            context.progress.update(done, classes, "classes")


def _named(labels: Sequence[int]) -> str:
    return f"coreset of classes {labels[0]}–{labels[-1]}"


def _groups(missing: Sequence[int], given: _Candidates, job: CoresetTask, at_once: int) -> list[list[int]]:
    """Groups of neighbouring classes, one group per task. Large groups need few passes over files of mixed classes;
    the features of one group, and the images that wait for the network, stay within the limit. A class with more is a
    group by itself, whose features are in a file.
    """
    counts = given.listing.counts()
    method = job.config.method
    per_image = bytes_per_image(method, given.features.width(job.shape) if method != "random" else 0)
    most = -(-len(missing) // (4 * at_once)) if missing else 1
    groups: list[list[int]] = []
    held = 0
    for label in missing:
        size = int(counts[label]) * per_image + min(int(counts[label]), BATCH) * math.prod(job.shape)
        if not groups or len(groups[-1]) == most or held + size > HELD:
            groups.append([])
            held = 0
        groups[-1].append(label)
        held += size
    return groups


def _refuse_bad(bad: Sequence[str], context: Context, examined: int) -> None:
    allowed = context.source.max_bad_fraction
    for line in bad[:3]:
        context.progress.note(f"skipped an unreadable image: {line}")
    if len(bad) > allowed * examined:
        raise SourceError(
            f"{len(bad)} of {examined:,} images cannot be read, more than max_bad_fraction ({allowed:g}) allows: "
            f"{shown(list(bad), 3)}. Repair or remove them, or raise source.max_bad_fraction.",
            code="too-many-bad-images",
        )


def _read(job: CoresetTask, labels: Sequence[int], chosen: list[SelectedImages]) -> Iterator[Tensor]:
    """The selected images of each class; all else that is known of them is appended to ``chosen``."""
    for label in labels:
        part = read_chosen(job, label)
        yield part.images
        chosen.append(replace(part, images=part.images[:0].clone()))


def _made(
    config: CoresetConfig,
    context: Context,
    given: _Candidates,
    images: Tensor,
    chosen: Sequence[SelectedImages],
) -> DistilledSet:
    labels = torch.cat([torch.full((len(part.positions),), label) for label, part in enumerate(chosen)])
    info = {
        "method": METHODS.get(config.method, config.method),
        "net": given.net.model_dump(mode="json"),
        "source": context.source.model_dump(mode="json"),
        "definition": dict(context.definition),
        "seed": context.seed,
        "protocol": {"name": "hard", "augment": DSA},
    }
    return DistilledSet(images, labels, LR_STUDENT, given.listing.classes, given.space, info)


def _write_table(context: Context, listing: Listing, chosen: Sequence[SelectedImages]) -> None:
    positions = np.concatenate([part.positions.numpy() for part in chosen])
    columns = {
        "class": [listing.classes[label] for label, part in enumerate(chosen) for _ in part.positions],
        "rank": [rank for part in chosen for rank in range(len(part.positions))],
        "image": listing.names.take(positions).to_pylist(),
    }
    tables.write(context.out, "chosen.parquet", columns, TYPES)
