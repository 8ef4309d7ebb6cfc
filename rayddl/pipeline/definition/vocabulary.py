"""The field's other words for kinds and keys: the names in the published codes and in common libraries.

A hint by spelling alone misleads where a word means something else: ``teacher`` in ``evaluate`` is the ``observer``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rayddl.plugins import few, suggestion

_MATCH = {
    "mtt": "match with trajectory: snapshots",
    "trajectory_matching": "match with trajectory: snapshots (MTT) or convex (MCT)",
    "mct": "match with trajectory: convex",
    "tesla": "match with gradient: truncated and labels: expert",
    "datm": "match with labels: learned and first_start_epoch",
}
_OTHER_METHODS = (
    *(
        "dc",
        "dcc",
        "dd",
        "dm",
        "dsa",
        "cafe",
        "kip",
        "frepo",
        "rcig",
        "rfad",
        "ftd",
        "idc",
        "idm",
        "haba",
        "datadam",
    ),
    *("mhn", "glad", "sre2l", "cda", "g_vbsm", "edc", "d4m", "minimax", "ncfm", "lpld"),
)
_KINDS = {
    **{name: f"kind: {text}" for name, text in _MATCH.items()},
    **dict.fromkeys(
        _OTHER_METHODS,
        "this method is not part of rayddl, which has match (MTT, MCT, TESLA, DATM), rded, refine (CIM) and coreset",
    ),
    **dict.fromkeys(
        ("distill", "distil", "distillation", "condense", "condensation"),
        "kind: match (MTT, MCT) or kind: rded",
    ),
    **dict.fromkeys(("buffer", "buffers", "expert", "trajectories", "trajectory"), "kind: experts"),
    **dict.fromkeys(("observer", "squeeze", "pretrain", "pretrained", "train", "model"), "kind: teacher"),
    **dict.fromkeys(("random", "herding", "kcenter"), "kind: coreset with that word as its method"),
    **dict.fromkeys(
        ("k_center", "selection", "subset"), "kind: coreset with a method: random, herding or kcenter"
    ),
    **dict.fromkeys(("cim", "refinement"), "kind: refine"),
    **dict.fromkeys(
        ("eval", "evaluation", "test", "validate", "validation", "judge", "score"), "kind: evaluate"
    ),
    **dict.fromkeys(("search", "sweep", "hpo", "optuna", "asha", "ray_tune", "grid"), "kind: tune"),
    **dict.fromkeys(("import", "load", "pt"), "kind: imported"),
    **dict.fromkeys(("page", "html", "plot"), "kind: report"),
}

_KEYS: dict[str, Sequence[str]] = {
    # Everywhere. Candidates with a dot or a colon are elsewhere in the definition.
    "images_per_class": ("ipc",),
    "num_per_class": ("ipc",),
    "n_per_class": ("ipc",),
    "per_class": ("ipc",),
    "learning_rate": ("lr", "lr_image and lr_student"),
    "lr_net": ("lr", "lr_student"),
    "wd": ("weight_decay",),
    "l2": ("weight_decay",),
    "mom": ("momentum",),
    "batch_size": ("batch", "batch_syn"),
    "bs": ("batch", "batch_syn"),
    "batch_train": ("batch", "evaluate.batch"),
    "batch_real": ("batch", "experts.batch"),
    "re_batch_size": ("batch", "evaluate.batch"),
    "epoch": ("epochs", "iterations"),
    "num_epochs": ("epochs", "iterations"),
    "n_epochs": ("epochs", "iterations"),
    "train_epochs": ("epochs", "experts.epochs"),
    "re_epochs": ("epochs", "evaluate.epochs"),
    "epoch_eval_train": ("evaluate_epochs", "epochs", "evaluate.epochs"),
    "iteration": ("iterations", "epochs"),
    "iters": ("iterations", "epochs"),
    "steps": ("iterations", "syn_steps", "epochs"),
    "max_iter": ("iterations", "max_iterations"),
    "model": ("net", "nets"),
    "network": ("net", "nets"),
    "arch": ("net", "nets"),
    "arch_name": ("net", "teacher.net"),
    "architecture": ("net", "nets"),
    "backbone": ("net", "nets"),
    "stud_name": ("nets", "evaluate.nets"),
    "student": ("nets", "evaluate.nets"),
    "eval_mode": ("nets", "evaluate.nets"),
    "channels": ("width", "net.width"),
    "seed": ("seeds", "seed at the top level"),
    "num_seeds": ("seeds",),
    "runs": ("seeds",),
    "repeats": ("seeds",),
    "num_eval": ("seeds", "evaluate_seeds", "evaluate.seeds"),
    "eval_it": ("evaluate_every",),
    "eval_interval": ("evaluate_every",),
    "dsa": ("augment",),
    "dsa_strategy": ("augment",),
    "augmentation": ("augment",),
    "augmentations": ("augment",),
    "transform": ("augment",),
    "transforms": ("augment",),
    "method": ("kind", "trajectory"),
    "type": ("kind", "name"),
    "gpus": ("num_gpus", "resources.num_gpus"),
    "num_gpus": ("resources.num_gpus",),
    "cpus": ("num_cpus", "resources.num_cpus"),
    "num_cpus": ("resources.num_cpus",),
    "device": ("resources.num_gpus",),
    "fp16": ("precision",),
    "amp": ("precision",),
    "dtype": ("precision",),
    # Experts and matching.
    "num_experts": ("count", "experts.count"),
    "n_experts": ("count", "experts.count"),
    "buffer_path": ("replay", "experts"),
    "buffers": ("replay", "experts"),
    "teacher": ("observer", "experts"),
    "expert": ("experts",),
    "lr_img": ("lr_image",),
    "lr_images": ("lr_image",),
    "lr_syn": ("lr_image",),
    "ema_decay": ("image_ema", "ema"),
    "lr_teacher": ("lr_student", "lr"),
    "lr_init": ("lr_student",),
    "syn_lr": ("lr_student",),
    "lr_y": ("lr_label",),
    "momentum_y": ("momentum_label",),
    "num_syn_steps": ("syn_steps",),
    "inner_steps": ("syn_steps",),
    "syn_batch": ("batch_syn",),
    "teacher_epochs": ("expert_epochs",),
    "start_epoch": ("max_start_epoch",),
    "current_max_start_epoch": ("first_start_epoch",),
    "expansion_end_epoch": ("grow_iterations",),
    "pix_init": ("start_from",),
    "init": ("start_from", "start_set"),
    "teacher_label": ("labels: expert",),
    "soft_label": ("labels", "protocol: soft"),
    "soft_labels": ("labels", "protocol: soft"),
    # RDED.
    "num_crop": ("num_crops",),
    "crops": ("num_crops",),
    "observers": ("teacher", "observer"),
    "observer": ("teacher",),
    # The source.
    "dataset": ("name", "source.name"),
    "data": ("root", "source", "source.root"),
    "data_path": ("root", "source.root"),
    "data_dir": ("root", "source.root"),
    "path": ("root", "source.root"),
    "dir": ("root", "source.root"),
    "folder": ("root", "source.root"),
    "train_dir": ("train", "source.train"),
    "val": ("test", "source.test"),
    "val_dir": ("test", "source.test"),
    "valid": ("test", "source.test"),
    "validation": ("test", "source.test"),
    "val_split": ("holdout", "source.holdout"),
    "validation_split": ("holdout", "source.holdout"),
    "test_split": ("holdout", "source.holdout"),
    "test_size": ("holdout", "source.holdout"),
    "split": ("holdout", "source.holdout"),
    "res": ("size", "source.size"),
    "resolution": ("size", "source.size"),
    "image_size": ("size", "source.size"),
    "img_size": ("size", "source.size"),
    "im_size": ("size", "source.size"),
    "input_size": ("size", "source.size"),
    "zca": ("space: zca", "source.space: zca"),
    "whitening": ("space: zca", "source.space: zca"),
    "normalize": ("space", "source.space"),
    "pipeline": ("stages",),
    "datasets": ("source",),
}


def kind_hint(name: object, known: Iterable[str], noun: str) -> str:
    """The end of a message about an unknown kind: the kind that the field calls so, else the nearest name."""
    meant, see = _KINDS.get(_plain(name)), "rayddl explain lists all"
    return f"{meant}; {noun}: {few(known, name, see)}" if meant else suggestion(name, known, noun, see)


def key_hint(name: object, known: Iterable[str], noun: str, topic: str) -> str:
    """The end of a message about an unknown key: the key of this place that the field calls so, then one of another
    place, else the nearest name. ``rayddl explain`` lists all keys for ``topic``.
    """
    known, see = list(known), f"rayddl explain {topic} lists all"
    for candidate in _KEYS.get(_plain(name), ()):
        if candidate in known:
            return f"did you mean {candidate!r}? {noun}: {few(known, candidate, see)}"
        key = candidate.split(":")[0]
        if key in known or not key.isidentifier():
            return f"did you mean {candidate}? {noun}: {few(known, candidate, see)}"
    return suggestion(name, known, noun, see)


def _plain(name: object) -> str:
    return str(name).strip().casefold().replace("-", "_").replace(" ", "_")
