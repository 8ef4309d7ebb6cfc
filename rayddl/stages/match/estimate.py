"""The resource estimate of ``kind: match``: by formula, or measured on one step in a child process."""

from __future__ import annotations

from dataclasses import replace

from rayddl.methods.matching.settings import GPU_PART, KEPT
from rayddl.methods.training.settings import HARD_BATCH
from rayddl.nets.config import NetConfig
from rayddl.stages.estimates import (
    FLOAT,
    PROCESS,
    Estimate,
    Outline,
    Outlook,
    Stages,
    made,
    net_of,
    outline,
    shown,
    too_much,
    trainings,
)
from rayddl.stages.match import measure as trial
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.runtime.sizes import STUDENT, Share
from rayddl.stages.speed import COMPILING, MATCHED, MATCHED_COMPILED, MATCHED_LAYER, compiles

COMPILED, EAGER = 6, 31
"""Numbers held in one exact step for each number that a forward pass keeps, by whether the step is compiled."""
COMPILER = 320 * 2**20
"""Bytes that the process holds after compilation."""
UNROLLED = 10
"""The same for each further step in autograd's graph."""
VECTORS = 8
"""Parameter vectors that a worker holds besides the student's trajectory."""
SETS = 5
"""Copies of the set: images, gradient, momentum, the last good state, and the result of an update."""
PART_COPIES = 8
"""On a GPU, copies of the batches and parameter vectors of the steps that are computed together (3 to 7 measured)."""
HEADROOM = 0.9
"""Share of free memory available to a batch."""
FEWEST = 32
"""Least batch size of a measurement: below it, noise exceeds the memory of the images."""


def estimate(config: MatchConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """The estimate by formula: a parameter vector per student step, the set's copies, and one step's activations."""
    size, share = outline(net_of(stages, config), outlook.source_summary), config.share(outlook.machine.have)
    memory = None if size is None else _by_formula(config, size, share, outlook, _batch(config, outlook))
    seconds = _seconds(config, net_of(stages, config), share, outlook)
    return made(_work(config), share, outlook, memory, _written(config, outlook), seconds)


def measure(config: MatchConfig, stages: Stages, outlook: Outlook) -> Estimate:
    """The estimate from one step measured at two batch sizes, with the largest ``batch_syn`` that fits."""
    guess = estimate(config, stages, outlook)
    share, images, batch = (
        config.share(outlook.machine.have),
        _images(config, outlook),
        _batch(config, outlook),
    )
    batches = _tried(config, stages, outlook, share)
    job = trial.MeasureTask(
        net=net_of(stages, config).model_dump(mode="json"),
        shape=outlook.source_summary.shape,
        classes=outlook.source_summary.classes,
        images=max(images, *batches),
        batches=batches,
        steps=1,
        precision=config.precision,
        gradient=config.gradient,
        augment=config.augmentations,
        compile=config.compile,
        work=config.iterations * config.syn_steps,
        gpu=bool(share.num_gpus),
        threads=share.threads,
    )
    found = trial.run(job)
    if isinstance(found, str):
        note = f"one step at batch_syn {batches[-1]} could not be measured: {found}"
        return replace(guess, notes=(*guess.notes, note))
    line = _line(config, job, found)
    if isinstance(line, str):
        return replace(guess, notes=(*guess.notes, line))
    fixed, per_image = line
    each = found.kept
    fixed += (
        found.parameters * FLOAT * (config.syn_steps - 1)
        + _around(config, outlook)
        + _together(config, found.parameters, share, outlook)
    )
    room = outlook.machine.room(share)
    memory = int(fixed + per_image * batch + _kept(each * batch, config))
    # Steps of more images than `most` keep nothing.
    most = KEPT // config.syn_steps // each if each else 0
    fits = _largest(fixed, per_image + _kept(each, config), HEADROOM * room, images)
    if fits >= most:
        fits = max(fits, _largest(fixed, per_image, HEADROOM * room, images))
    notes: tuple[str, ...] = (_fitting(fits, images, config, room),)
    if memory > room:
        notes = (too_much(memory, room, share.at_once, guess.device), *notes)
    facts = {"largest_batch_syn": fits, "measured_at": list(batches), "compiled": found.compiled}
    return replace(guess, memory=memory, measured=True, notes=notes, facts=facts)


def _seconds(config: MatchConfig, net: NetConfig, share: Share, outlook: Outlook) -> float | None:
    """Seconds of the loop, or of the short evaluations next to it if these take longer."""
    batch, steps = _batch(config, outlook), config.iterations * config.syn_steps
    compiled = compiles(net, outlook.source_summary, config.compile, steps=steps, batch=batch, passes=MATCHED)
    step = outlook.machine.speed.step(
        net,
        outlook.source_summary,
        batch,
        share,
        passes=MATCHED_COMPILED if compiled and not share.num_gpus else MATCHED,
        dispatch=MATCHED_LAYER,
        compiled=compiled,
        precision=config.precision,
    )
    if step is None or config.evaluate_every is None:
        return None if step is None else steps * step + COMPILING * compiled
    units = (config.iterations // config.evaluate_every + 1) * config.evaluate_seeds
    short = trainings(
        net, _images(config, outlook), HARD_BATCH, config.evaluate_epochs, STUDENT, outlook, units=units
    )
    return max(steps * step + COMPILING * compiled, short or 0.0)


def _largest(fixed: float, per_image: float, room: float, images: int) -> int:
    if fixed > room:
        return 0
    return images if per_image <= 0 else min(images, int((room - fixed) / per_image))


def _fitting(fits: int, images: int, config: MatchConfig, room: int) -> str:
    if fits >= images:
        return f"every batch_syn fits, up to all {images} images"
    if not fits:
        return f"no batch_syn fits into {shown(room)}; make the set or the network smaller"
    advice = "" if (config.batch_syn or images) <= fits else f"; set batch_syn={fits}"
    return f"the largest batch_syn that fits is {fits} of {images} images{advice}"


def _line(config: MatchConfig, job: trial.MeasureTask, found: trial.Measured) -> tuple[float, float] | str:
    """Coefficients (a, b) of bytes = a + b * batch, from two measured points. Autograd through all steps keeps every
    step: there, the memory of a second step is counted for each further step.
    """
    fixed, per_image = _through(job.batches, found.bytes)
    if config.gradient != "unrolled" or config.syn_steps == 1:
        return fixed, per_image
    two = trial.run(replace(job, steps=2))
    if isinstance(two, str):
        return f"two steps at batch_syn {job.batches[-1]} could not be measured: {two}"
    more_fixed, more_per_image = _through(job.batches, two.bytes)
    further = config.syn_steps - 1
    return (
        fixed + further * max(0.0, more_fixed - fixed),
        per_image + further * max(0.0, more_per_image - per_image),
    )


def _through(batches: tuple[int, int], found: tuple[int, int]) -> tuple[float, float]:
    per_image = max(0.0, (found[1] - found[0]) / (batches[1] - batches[0]))
    return found[1] - per_image * batches[1], per_image


def _tried(config: MatchConfig, stages: Stages, outlook: Outlook, share: Share) -> tuple[int, int]:
    """Two batch sizes to measure: the setting's and another one; smaller if they exceed half of the free memory."""
    batch, size = _batch(config, outlook), outline(net_of(stages, config), outlook.source_summary)
    low, high = (batch, max(2 * batch, FEWEST)) if batch < FEWEST else (batch // 2, batch)
    if size is not None:
        # An upper bound: a compiled step needs less.
        steps = 2 if config.gradient == "unrolled" else 1
        once = config.model_copy(update={"syn_steps": steps, "compile": False})
        none, one = (_by_formula(once, size, share, outlook, b) for b in (0, 1))
        most = max(2, int((outlook.machine.room(share) / 2 - none) / (one - none)))
        if high > most:
            low, high = most // 2, most
    return low, high


def _by_formula(
    config: MatchConfig,
    size: Outline,
    share: Share,
    outlook: Outlook,
    batch: int,
) -> int:
    eager = config.compile is False
    factor = EAGER if eager else COMPILED
    vectors = VECTORS + config.syn_steps
    if config.gradient == "unrolled":
        factor += UNROLLED * (config.syn_steps - 1)
        vectors += 2 * config.syn_steps
    process = 0 if share.num_gpus else PROCESS + (0 if eager else COMPILER)
    step = batch * size.activations * FLOAT * factor
    if not (eager or share.num_gpus or config.gradient == "unrolled"):
        numbers = FLOAT // 2 if config.precision == "bf16" else FLOAT
        process += _kept(batch * size.convolutions * numbers, config)
    together = _together(config, size.parameters, share, outlook)
    return process + step + vectors * size.parameters * FLOAT + _around(config, outlook) + together


def _kept(step: int, config: MatchConfig) -> int:
    """Bytes that all steps keep for the way back, of ``step`` bytes each."""
    return step * config.syn_steps if step <= KEPT // config.syn_steps else 0


def _together(config: MatchConfig, parameters: int, share: Share, outlook: Outlook) -> int:
    """Bytes of the steps that a GPU computes together."""
    if not share.num_gpus or config.gradient == "unrolled":
        return 0
    one = FLOAT * (_batch(config, outlook) * outlook.source_summary.numbers + parameters)
    return PART_COPIES * min(config.syn_steps * one, max(one, GPU_PART))


def _around(config: MatchConfig, outlook: Outlook) -> int:
    """Bytes besides the step: the set's copies, and the real images of its initialisation."""
    held = outlook.resident if config.start_from == "real" else 0
    return held + SETS * _images(config, outlook) * outlook.source_summary.numbers * FLOAT


def _written(config: MatchConfig, outlook: Outlook) -> int:
    """Bytes of the set's files: tensors, images in two formats and in the grid, and the pixel space."""
    return _images(config, outlook) * outlook.source_summary.numbers * (FLOAT + 3) + outlook.space


def _images(config: MatchConfig, outlook: Outlook) -> int:
    return config.ipc * outlook.source_summary.classes


def _batch(config: MatchConfig, outlook: Outlook) -> int:
    images = _images(config, outlook)
    return min(config.batch_syn or images, images)


def _work(config: MatchConfig) -> str:
    windows = f" × {config.workers} windows" if config.workers > 1 else ""
    return f"{config.iterations} iterations{windows} × {config.syn_steps} steps"
