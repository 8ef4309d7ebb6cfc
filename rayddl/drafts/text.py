"""Writes a suited definition as a commented YAML file, with an estimate of its duration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rayddl.drafts.look import Look
from rayddl.drafts.suit import Suited

EXPERTS, ITERATIONS, SYN_STEPS, STUDENT_EPOCHS, STUDENTS = 8, 300, 20, 300, 5
SOFT_STUDENTS = 3
SCORED_CROPS = 5
GPU_GAIN = 30
"""Speed of a GPU relative to a CPU's, in an estimate."""
FIXED_SECONDS = 60
"""Starting Ray, importing and reading images."""
MATCHED_PASSES = 12
"""Cost of a matched student step in forward passes."""
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Duration:
    """Estimated seconds of each stage on this machine."""

    seconds: Mapping[str, float]

    def words(self) -> str:
        """``about 12 min: experts 2 min, distill 8 min, evaluate 2 min``."""
        parts = ", ".join(f"{stage} {_time(found)}" for stage, found in self.seconds.items())
        return f"about {_time(sum(self.seconds.values()) + FIXED_SECONDS)}: {parts}"


def duration(look: Look, suited: Suited, *, gpu: bool) -> Duration:
    """Estimated from operations of the network and a usual machine's speed; within a factor of about three."""
    from rayddl.nets.config import NetConfig
    from rayddl.nets.cost import eager_seconds

    net, classes = NetConfig.model_validate(suited.net), len(look.classes)
    shape = (1 if look.grey else 3, suited.size, suited.size)

    def seconds(images: float, batch: int, passes: int) -> float:
        steps = max(1, round(images / batch))
        found = eager_seconds(net, shape, classes, steps=steps, batch=batch, passes=passes)
        return found / (GPU_GAIN if gpu else 1)

    made = suited.ipc * classes
    batch = min(256, made)
    students = seconds(STUDENT_EPOCHS * made * 2, batch, 3)
    if suited.method == "match":
        return Duration(
            {
                "experts": EXPERTS * seconds(suited.epochs * look.images, suited.batch, 3),
                "distill": seconds(ITERATIONS * SYN_STEPS * made, made, MATCHED_PASSES),
                "evaluate": STUDENTS * students,
            }
        )
    return Duration(
        {
            "teacher": seconds(suited.epochs * look.images, suited.batch, 3),
            "distill": seconds(SCORED_CROPS * min(look.images, 300 * classes), 64, 1),
            "evaluate": SOFT_STUDENTS * students * 4 / 3,
        }
    )


def written(look: Look, suited: Suited, name: str, took: Duration, command: str) -> str:
    """The definition's text; ``command`` runs it."""
    head = [
        f"{name}: {look.lines()[0]}.",
        *look.lines()[1:],
        "",
        f"Written by `rayddl init`; on this machine {took.words()}.",
        "",
        f"  {command}",
    ]
    lines = [f"# {line}".rstrip() for line in head]
    lines += [f"name: {name}", *_source(look, suited), "stages:"]
    lines += _match(suited) if suited.method == "match" else _rded(look, suited)
    lines += ["  report: {kind: report}          # one HTML page with all figures"]
    return "\n".join(lines) + "\n"


def _source(look: Look, suited: Suited) -> list[str]:
    lines = ["source:"]
    lines += [_key(key, value) for key, value in look.source.items() if key != "holdout"]
    if suited.resize:
        why = "stored larger" if look.one_size else "stored in several sizes"
        lines += [_key("size", suited.size, f"side in pixels that all are brought to; {why}")]
    if "holdout" in look.source:
        lines += [
            _key(
                "holdout", look.source["holdout"], "share of each class held out: there is no held-out split"
            )
        ]
    return lines


def _match(suited: Suited) -> list[str]:
    return [
        "  experts:                        # networks trained on the real images",
        "    kind: experts",
        _key("net", suited.net, f"{suited.size} pixels allow this depth", 4),
        _key("count", EXPERTS, "more of them, up to 100, make better sets", 4),
        _key("epochs", suited.epochs, f"{suited.epochs * suited.steps:,} steps", 4),
        _key("batch", suited.batch, f"{suited.steps} steps an epoch", 4),
        _key("lr", 0.02, "", 4),
        _key("augment", suited.augment, "", 4),
        "  distill:                        # the set whose students follow the experts",
        f"    kind: match                   # {suited.why_method}",
        "    experts: experts",
        "    trajectory: convex            # MCT; `snapshots` is MTT and needs experts with keep: all",
        _key("ipc", suited.ipc, f"images per class; {suited.why_ipc}", 4),
        _key("iterations", ITERATIONS, "more of them make better sets", 4),
        _key("syn_steps", SYN_STEPS, "", 4),
        _key("expert_epochs", suited.window, f"{suited.window * suited.steps} steps of an expert", 4),
        _key("max_start_epoch", suited.starts, "", 4),
        _key("lr_image", LR_IMAGE, "lower it if the loss rises, raise it if it does not fall", 4),
        _key("lr_lr", LR_LR, "", 4),
        _key("lr_student", 0.01, "", 4),
        _key("augment", suited.augment, "", 4),
        _key("evaluate_every", ITERATIONS // 3, "", 4),
        _key("evaluate_epochs", STUDENT_EPOCHS, "", 4),
        "  evaluate:                       # students of the set, and of as many random real images",
        "    kind: evaluate",
        "    set: distill",
        _key("seeds", STUDENTS, "", 4),
        _key("epochs", STUDENT_EPOCHS, "", 4),
        _key("augment", suited.augment, "", 4),
    ]


LR_IMAGE, LR_LR = 300, 1e-5


def _rded(look: Look, suited: Suited) -> list[str]:
    needed = suited.factor**2 * suited.ipc
    return [
        "  teacher:                        # the observer: it scores the crops and gives the soft labels",
        "    kind: teacher",
        _key("net", suited.net, "", 4),
        _key("epochs", suited.epochs, f"{suited.epochs * suited.steps:,} steps", 4),
        _key("batch", suited.batch, f"{suited.steps} steps an epoch", 4),
        _key("augment", suited.augment, "", 4),
        "  distill:",
        f"    kind: rded                    # {suited.why_method}",
        "    teacher: teacher",
        _key("ipc", suited.ipc, f"images per class; {suited.why_ipc}", 4),
        _key("factor", suited.factor, "patches along one side of an image", 4),
        _key("mipc", max(needed, min(300, max(look.train))), "real images per class that are looked at", 4),
        "  evaluate:                       # students of the set, and of as many random real images",
        "    kind: evaluate",
        "    set: distill",
        "    observer: teacher",
        _key("seeds", SOFT_STUDENTS, "", 4),
        _key("epochs", STUDENT_EPOCHS, "", 4),
    ]


def _key(key: str, value: Any, comment: str = "", indent: int = 2) -> str:
    line = f"{' ' * indent}{key}: {_yaml(value)}"
    return f"{line:<33} # {comment}" if comment else line.rstrip()


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return json.dumps(value, ensure_ascii=False)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.0f} h" if seconds >= 36_000 else f"{seconds / 3600:.1f} h"
