"""Synthetic results of every stage kind, as the report reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rayddl.report.run import Chapter, Run
from rayddl.report.values import Columns, Pictures, Stage
from rayddl.stages.evaluate import report as evaluate
from rayddl.stages.evaluate.report import Evaluate
from rayddl.stages.experts import report as experts
from rayddl.stages.experts.report import Experts
from rayddl.stages.match import report as match
from rayddl.stages.match.finished import Match

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def experts_metrics(count: int, epochs: int) -> Columns:
    """Curves that rise and level off, each expert with its own luck."""
    rng = np.random.default_rng(1)
    epoch = np.tile(np.arange(epochs + 1), count)
    expert = np.repeat(np.arange(count), epochs + 1)
    luck = np.repeat(rng.normal(0, 0.012, count), epochs + 1)
    noise = rng.normal(0, 0.006, len(epoch))
    accuracy = 0.97 - 0.87 * np.exp(-epoch / (0.18 * epochs)) + luck * (epoch > 0) + noise
    loss = 0.05 + 2.2 * np.exp(-epoch / (0.2 * epochs)) * np.exp(rng.normal(0, 0.05, len(epoch)))
    step = (3.0 / np.sqrt(epoch + 1) + 0.2) * np.exp(rng.normal(0, 0.04, len(epoch)))
    return {
        "expert": expert.astype(np.int64),
        "epoch": epoch.astype(np.int64),
        "train_loss": np.where(epoch == 0, np.nan, loss),
        "test_accuracy": np.clip(accuracy, 0, 1),
        "step_norm": np.where(epoch == 0, 0.0, step),
        "seconds": np.full(len(epoch), 0.8),
    }


def match_metrics(iterations: int) -> Columns:
    """A noisy loss that falls, windows that are harder early on, a learned rate that settles."""
    rng = np.random.default_rng(2)
    iteration = np.arange(1, iterations + 1)
    start = rng.uniform(0, 4, iterations)
    fall = 0.35 + 0.5 * np.exp(-iteration / (0.25 * iterations))
    loss = fall * (1 + 0.25 * np.exp(-start)) * np.exp(rng.normal(0, 0.09, iterations))
    lr = 0.01 + 0.014 * (1 - np.exp(-iteration / (0.3 * iterations))) + rng.normal(0, 1e-4, iterations)
    return {
        "iteration": iteration.astype(np.int64),
        "loss": loss,
        "lr_student": lr,
        "start": start,
        "expert": rng.integers(0, 20, iterations),
        "seconds": 0.21 + rng.gamma(2, 0.01, iterations),
    }


def match_accuracy(iterations: int, every: int, seeds: int, level: float) -> Columns:
    """Short evaluations: a climb from random images' accuracy to ``level``."""
    rng = np.random.default_rng(3)
    at = np.repeat(np.arange(0, iterations + 1, every), seeds)
    mean = level - 0.25 * np.exp(-at / (0.2 * iterations))
    return {
        "iteration": at.astype(np.int64),
        "seed": np.tile(np.arange(seeds), len(at) // seeds).astype(np.int64),
        "accuracy": np.clip(mean + rng.normal(0, 0.012, len(at)), 0, 1),
    }


def pictures(classes: tuple[str, ...], ipc: int, side: int, channels: int) -> Pictures:
    """Soft blobs, one shape per class, with noise on top."""
    rng = np.random.default_rng(4)
    grid = np.linspace(-1, 1, side)
    images = []
    for label in range(len(classes)):
        turn = 2 * np.pi * label / len(classes)
        blob = np.exp(
            -((grid[None] - 0.5 * np.cos(turn)) ** 2 + (grid[:, None] - 0.5 * np.sin(turn)) ** 2) * 4
        )
        noise = rng.normal(0, 0.12, (ipc, channels, side, side))
        images.append(np.clip(blob + noise, 0, 1) * 255)
    stacked = np.concatenate(images).astype(np.uint8)
    return Pictures(stacked, np.repeat(np.arange(len(classes)), ipc).astype(np.int64), classes)


def row(data: str, net: str, images: int, accuracies: list[float]) -> dict[str, Any]:
    """One row of an evaluate stage's summary."""
    return {
        "data": data,
        "net": net,
        "images": images,
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies)),
        "accuracies": accuracies,
    }


def make_experts(name: str = "experts", count: int = 20, epochs: int = 15) -> Experts:
    """An experts stage that kept waypoints."""
    summary = {
        "count": count,
        "epochs": epochs,
        "keep": "convex",
        "net": {"name": "convnet", "depth": 3, "width": 128, "norm": "instance"},
        "parameters": 320_010,
        "bytes_kept": count * 2 * 320_010 * 4 + count * 1900,
        "bytes_snapshots": count * (epochs + 1) * 320_010 * 4,
        "test_accuracy": {"mean": 0.968, "std": 0.011},
        "seconds": 74.2,
        "classes": list(DIGITS),
        "waypoints": [0, epochs],
    }
    stage = Stage(name, "experts", f"{name}-3f9a1c02be77", {"epochs": epochs}, summary)
    return Experts(stage, experts_metrics(count, epochs))


def make_match(
    name: str = "distill",
    classes: tuple[str, ...] = DIGITS,
    *,
    ipc: int = 1,
    side: int = 8,
    channels: int = 1,
    iterations: int = 500,
    level: float = 0.71,
    every: int | None = 50,
) -> Match:
    """A match stage by MCT."""
    summary = {
        "method": "MCT",
        "ipc": ipc,
        "classes": list(classes),
        "images": ipc * len(classes),
        "iterations": iterations,
        "loss_first": 1.012,
        "loss_last": 0.3712,
        "lr_student": 0.0237,
        "seconds": 118.6,
        "skipped": 0,
        "bytes": 14_312,
    }
    stage = Stage(name, "match", f"{name}-a07c55d1e2f4", {"max_start_epoch": 4.0, "ipc": ipc}, summary)
    empty: Columns = {"iteration": np.array([]), "seed": np.array([]), "accuracy": np.array([])}
    accuracy = match_accuracy(iterations, every, 3, level) if every else empty
    return Match(
        stage,
        match_metrics(iterations),
        accuracy,
        pictures=pictures(classes, ipc, side, channels),
        provenance={},
    )


def make_evaluate(
    name: str = "evaluate", judged: str = "distill", rows: list[dict[str, Any]] | None = None
) -> Evaluate:
    """An evaluate stage; by default ConvNet on 10 images over 5 seeds."""
    rows = rows or [
        row("distilled", "convnet", 10, [0.702, 0.7281, 0.6953, 0.7203, 0.7143]),
        row("random", "convnet", 10, [0.4621, 0.4902, 0.4318, 0.5127, 0.5182]),
    ]
    students = [
        (r["data"], r["net"], seed, accuracy, 4.2 + 0.1 * seed)
        for r in rows
        for seed, accuracy in enumerate(r["accuracies"])
    ]
    columns = list(zip(*students, strict=True))
    protocol = {
        "labels": "hard",
        "epochs": 300,
        "augment": "color_crop_cutout_flip_scale_rotate",
        "batch": 256,
    }
    summary = {"rows": rows, "set": judged, "protocol": protocol, "seconds": 44.0}
    names = ("data", "net", "seed", "accuracy", "seconds")
    return Evaluate(
        Stage(name, "evaluate", f"{name}-77e0b1d9aa31", {}, summary),
        {n: np.array(c) for n, c in zip(names, columns, strict=True)},
    )


DRAWN = {"experts": experts.part, "matches": match.part, "evaluations": evaluate.part}


def make_run(**parts: Any) -> Run:
    """A run of the parts given: ``experts``, ``matches``, ``evaluations``, or any field of a run."""
    shown = {group: parts.pop(group) for group in DRAWN if group in parts}
    stages = tuple(one.stage for found in shown.values() for one in found)
    fields: dict[str, Any] = {
        "definition": {
            "name": "quickstart",
            "source": {"name": "digits", "space": "normalise"},
            "stages": {s.name: {"kind": s.kind, **s.config} for s in stages},
        },
        "source": {"name": "digits", "root": None, "space": "normalise"},
        "seed": 0,
        "versions": {"rayddl": "0.1.0", "torch": "2.9.0", "ray": "2.60.0", "python": "3.11.7"},
        "stages": stages,
        "chapters": tuple(Chapter(DRAWN[group], tuple(found)) for group, found in shown.items() if found),
    }
    return Run(**{**fields, **parts})


@dataclass(frozen=True)
class Make:
    """Makers of made-up results."""

    experts: Callable[..., Experts] = make_experts
    match: Callable[..., Match] = make_match
    evaluate: Callable[..., Evaluate] = make_evaluate
    row: Callable[[str, str, int, list[float]], dict[str, Any]] = row
    pictures: Callable[[tuple[str, ...], int, int, int], Pictures] = pictures
    run: Callable[..., Run] = make_run


@pytest.fixture
def make() -> Make:
    """Makers of made-up results."""
    return Make()


@pytest.fixture
def quickstart() -> Run:
    """One stage of each kind, as the quickstart makes them."""
    return make_run(experts=(make_experts(),), matches=(make_match(),), evaluations=(make_evaluate(),))
