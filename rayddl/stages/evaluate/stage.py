"""``kind: evaluate``: students of networks x seeds, on the set and on random real images, with hard or soft labels."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rayddl import documents, hosts
from rayddl.data.config import SourceConfig, recorded_source
from rayddl.data.distilled import DistilledSet
from rayddl.data.sources.known import Known
from rayddl.data.sources.refusals import MOVED, advising
from rayddl.errors import ArtifactError
from rayddl.methods.training.optimisers import SGD_LR
from rayddl.methods.training.scores import scores
from rayddl.methods.training.soft import published_lr
from rayddl.methods.training.soft_settings import PLAIN, SoftSettings
from rayddl.methods.training.soft_settings import recipe as soft_recipe
from rayddl.report import numbers
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input, Progress, Result, Silent
from rayddl.stages.estimates import shown as in_bytes
from rayddl.stages.evaluate import soft_labels
from rayddl.stages.evaluate.distribution import judge
from rayddl.stages.evaluate.figures import BELOW, COMPARED, HOW
from rayddl.stages.evaluate.protocol import EvaluateTask, nets_of, settled
from rayddl.stages.evaluate.reuse import reuse
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.evaluate.soft_labels import LabelSource
from rayddl.stages.runtime import cluster
from rayddl.stages.runtime.large import is_large
from rayddl.stages.runtime.sources import (
    SharedSource,
    publish,
    publish_held_out,
    train_in_memory,
)
from rayddl.storage import Folder

_Model = TypeVar("_Model", bound=BaseModel)
TYPES = {
    "data": "string",
    "net": "string",
    "seed": "int64",
    "accuracy": "double",
    "seconds": "double",
    "best": "double",
    "top5": "double",
    "lr": "double",
    "unanswered": "int64",
}
CONFUSION = {
    "data": "string",
    "net": "string",
    "seed": "int64",
    "true": "int32",
    "predicted": "int32",
    "count": "int64",
}


def run(config: EvaluateConfig, context: Context) -> Result:
    """Train the students that have no result file yet, and evaluate the set."""
    began = time.perf_counter()
    context.backend.start()
    context.progress.update(0, 1, "reading images")
    made = DistilledSet.load(context.inputs[config.set].folder.child("set"))
    label_source = soft_labels.of_stage(config, made, context)
    task = replace(
        _task(config, made, context.source, label_source, context.seed_of()), backend=context.backend
    )
    earlier = reuse(task, context.reusable, context.out, context.progress)
    if label_source is not None and (cut := made.clamped()):
        context.progress.note(
            f"{cut:.1%} of the set's pixel values are darker than black or brighter than white; students of soft "
            "labels are trained on 8-bit images, which leave out what lies beyond"
        )
    found = judge(task, context.out, context.progress)
    rows = summarise(found)
    context.progress.update(len(found), len(found), last_words(rows))
    protocol = {**recipe(task), "seed": context.seed_of()}
    figures = {"accuracy": rows, "scores": scores_of(found, soft=label_source is not None)}
    cost: dict[str, Any] = {"bytes": _bytes(made), "spent": _spent(made, context.inputs[config.set])}
    if label_source is not None and label_source.stored is not None:
        cost["label_bytes"] = sum(label_source.stored.size(name) for name in label_source.stored.names())
        context.progress.note(
            f"stored labels take {in_bytes(cost['label_bytes'])}, the images {in_bytes(cost['bytes'])}"
        )
    # The definition of this run makes the set and the figures; that of an imported set makes the set alone.
    which = "evaluated_by" if "imported" in made.info else "definition"
    info = {**made.info, which: dict(context.definition)}
    judged = replace(made, info={**info, "metrics": {**figures, **cost}, "protocol": protocol})
    into = context.out.child("set")
    if label_source is not None:
        soft_labels.carry(label_source, into)
    judged.save(into)
    columns = {name: [result.get(name) for result in found] for name in TYPES}
    tables.write(context.out, "students.parquet", columns, TYPES)
    tables.write(context.out, "confusion.parquet", _confusions(found), CONFUSION)
    summary = {
        "rows": rows,
        "set": config.set,
        "protocol": protocol,
        "scores": figures["scores"],
        "method": made.info.get("method"),
        "ipc": made.ipc,
        "factor": int(made.info.get("factor", 1)),
        "classes": len(made.classes),
        "tested": sum(found[0]["confused"]["count"]),
        "bad": len(task.source.bad),
        **cost,
        "seconds": time.perf_counter() - began + earlier,
    }
    leftovers = tuple(name for name in context.out.names() if name.startswith("student-"))
    return Result(summary, shown(config.set, rows), earlier=earlier, leftovers=leftovers)


def last_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The accuracies that remain beside the stage's name, in place of the last student's: of the set, and of as many
    random images, with the first network.
    """
    found = {row["data"]: row for row in rows if row["net"] == rows[0]["net"]}
    return ", ".join(
        f"{name} {_percent(found[data], len(found[data]['accuracies']))} %"
        for data, name in (("distilled", "the set"), ("random", "random"))
        if data in found
    )


def _spent(made: DistilledSet, read: Input) -> dict[str, float]:
    """Seconds of the stages that made the set; empty for an imported set, whose making was not timed."""
    if "imported" not in made.info:
        return dict(read.spent)
    metrics = made.info.get("metrics") or {}
    documents.checked(metrics, documents.Metrics, "info.metrics of the set", "import it without its figures")
    return dict(metrics.get("spent") or {})


def _bytes(made: DistilledSet) -> int:
    """Bytes of the set's stored images and labels."""
    return made.stored.nbytes + made.labels.nbytes


def _confusions(found: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The students' confusion matrices as columns, one entry per row."""
    columns: dict[str, list[Any]] = {name: [] for name in CONFUSION}
    for result in found:
        entries = result["confused"]
        for name in ("data", "net", "seed"):
            columns[name] += [result[name]] * len(entries["count"])
        for name in ("true", "predicted", "count"):
            columns[name] += entries[name]
    return columns


def scores_of(found: Sequence[dict[str, Any]], *, soft: bool) -> dict[str, dict[str, dict[str, float]]]:
    """For each network the scores that its students' accuracies allow."""
    by_net: dict[str, dict[str, list[float]]] = {}
    for result in found:
        by_net.setdefault(result["net"], {}).setdefault(result["data"], []).append(result["accuracy"])
    return {net: scores(accuracies, soft=soft) for net, accuracies in by_net.items()}


def evaluate_set(
    folder: Folder,
    *,
    name: str | None = None,
    nets: tuple[str, ...] | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    root: str | None = None,
    observer: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    scratch: Folder | None = None,
) -> Result:
    """Evaluate a distilled set by the protocol stored with it; arguments override single settings.

    ``name`` is the set's in the table; default: its folder. ``root`` is the current folder of the source's files, if
    they have moved; ``observer`` is the folder of the teacher that computes soft labels, or several of them, in place
    of the set's own. ``scratch`` is an empty folder that every worker can access; default: a temporary folder on this
    machine. Raises :class:`ArtifactError` for a set without a description of its source, and for a set made for soft
    labels whose observer cannot be found.
    """
    import tempfile

    made = DistilledSet.load(folder)
    if not made.info.get("source"):
        raise ArtifactError(
            f"{folder} does not say which images it was made from, so nothing can be held out.",
            code="set-without-source",
        )
    stored: dict[str, Any] = dict(made.info.get("protocol") or {})
    teachers = (observer,) if isinstance(observer, str) else tuple(observer or ())
    asked = {"nets": nets, "seeds": seeds, "epochs": epochs}
    given = {k: v for k, v in asked.items() if v is not None}
    config = read(EvaluateConfig, {**settings_of(stored, other=bool(teachers)), **given}, folder)
    label_source = soft_labels.of_set(config, made, folder, teachers)
    if label_source is not None and label_source.observer is None:
        (progress or Silent()).note(
            "no observer at hand: random images are left out, they have no soft labels"
        )
        config = config.model_copy(update={"random": False, "whole": False})
    described = read(SourceConfig, recorded_source(made.info["source"]), folder)
    described = described if root is None else described.model_copy(update={"root": root})
    hosts.check(described.root or "")
    cluster.start()
    with Known().used(), tempfile.TemporaryDirectory() as own, advising(MOVED):
        task = _task(config, made, described, label_source, int(stored.get("seed", 0)))
        found = judge(task, scratch or Folder(own), progress or Silent())
    rows = summarise(found)
    if progress is not None:
        progress.update(len(found), len(found), last_words(rows))
    summary = {
        "rows": rows,
        "set": str(folder),
        "protocol": recipe(task),
        "scores": scores_of(found, soft=label_source is not None),
    }
    return Result(summary, shown(name or str(folder), rows))


def read(model: type[_Model], value: Any, folder: Folder) -> _Model:
    """Validate metadata of the set in ``folder``. Raises :class:`ArtifactError` for names that are not registered."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{folder} cannot be judged as it says: {place}: {first['input']!r} {first['msg']}",
            code="set-names-unknown",
        ) from error


def _task(
    config: EvaluateConfig,
    made: DistilledSet,
    described: SourceConfig,
    label_source: LabelSource | None,
    seed: int,
) -> EvaluateTask:
    """The evaluation with all settings resolved. The train split is loaded if students train on all of it, if learning
    rates are compared on a part of it, and for hard labels if it is small; else random images are read from its files.
    """
    whole = config.whole or config.ranking or config.lr_grid is not None
    small = label_source is None and not is_large(described, "train")
    source = publish(described) if whole or small else publish_held_out(described)
    refuse_other_classes(made, source)
    listed = None if whole or train_in_memory(source) else described
    return EvaluateTask(settled(config, made, source, label_source), made, source, label_source, seed, listed)


def settings_of(stored: Mapping[str, Any], *, other: bool) -> dict[str, Any]:
    """The settings of an evaluate stage for a stored protocol. ``other``: not the stored observer labels."""
    own = {"kind": "evaluate", "set": "set", "protocol": stored.get("name", "hard")}
    if other and own["protocol"] == "hard":
        # Another protocol than the stored one: its epochs, batch and rates do not apply.
        return {**own, "protocol": "soft", **{k: stored[k] for k in ("nets", "seeds") if k in stored}}
    known = {k: v for k, v in stored.items() if k in EvaluateConfig.model_fields and k != "observer"}
    # Sets of versions that trained one student at a time get the same results only without batching.
    earlier = {"together": False} if "seeds" in stored else {}
    return {**earlier, **known, **own}


def refuse_other_classes(made: DistilledSet, source: SharedSource) -> None:
    """Raise :class:`ArtifactError` unless set and source have the same classes in the same order."""
    if tuple(made.classes) != tuple(source.classes):
        first = next(
            (pair for pair in zip(made.classes, source.classes, strict=False) if pair[0] != pair[1]),
            (f"{len(made.classes)} classes", f"{len(source.classes)} classes"),
        )
        raise ArtifactError(
            f"the set's classes are not the source's: {first[0]!r} stands where the source has {first[1]!r}. "
            "Evaluate on the source that the set was made from.",
            code="set-of-other-classes",
        )


def recipe(task: EvaluateTask) -> dict[str, Any]:
    """The settings of an evaluate stage that reproduce the results, as JSON values."""
    config, made = task.config, task.made
    nets = [net.model_dump(mode="json") for net in nets_of(config, made)]
    if task.label_source is None:
        kept = config.model_dump(
            mode="json", include={"seeds", "epochs", "batch", "augment", "precision", "compile", "together"}
        )
        return {"name": "hard", "nets": nets, **_rates(config, config.lr or made.lr_student), **kept}
    kept = config.model_dump(
        mode="json", include={"seeds", "epochs", "batch", "precision", "compile", "labels"}
    )
    kept |= {} if config.label_top is None else {"label_top": config.label_top}
    # What is not stored is the recipe's own. A value of it that is not RDED's is stored too, for the pages.
    open_ = config.model_dump(include={*SoftSettings.model_fields, "loss"}, exclude_none=True)
    plain = {**PLAIN, "zoom": task.source.zoomed}
    own = {**plain, **soft_recipe(config.recipe, made.ipc, len(made.classes), len(made))}
    kept |= {k: value for k, value in open_.items() if plain.get(k) != value or own.get(k) != value}
    kept |= config.model_dump(include={"recipe", "report", "own_labels"}, exclude_defaults=True)
    rates = {SGD_LR if config.optimizer == "sgd" else published_lr(net.name) for net in task.nets}
    # Different default rates of several networks are not stored.
    lr = config.lr or (rates.pop() if len(rates) == 1 else None)
    return {"name": "soft", "nets": nets, **_rates(config, lr), **kept, "observer": task.label_source.where}


def _rates(config: EvaluateConfig, lr: float | None) -> dict[str, Any]:
    """The learning rate, or the settings of its search."""
    if config.lr_grid is None:
        return {"lr": lr}
    return config.model_dump(mode="json", include={"lr_grid", "grid_images"})


def summarise(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, for each training data and network, and how many students diverged, if
    any did.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    lost: Counter[tuple[str, str]] = Counter()
    for result in found:
        groups.setdefault((result["data"], result["net"]), []).append(float(result["accuracy"]))
        lost[result["data"], result["net"]] += bool(result.get("unanswered"))
    return [
        {
            "data": data,
            "net": net,
            "images": next(r["images"] for r in found if r["data"] == data),
            "mean": statistics.fmean(values),
            "std": statistics.pstdev(values),
            "accuracies": values,
            **_spread("top5", [r["top5"] for r in found if (r["data"], r["net"]) == (data, net)]),
            **_spread("best", [r.get("best") for r in found if (r["data"], r["net"]) == (data, net)]),
            **({"diverged": lost[data, net]} if lost[data, net] else {}),
        }
        for (data, net), values in groups.items()
    ]


def _spread(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and standard deviation of ``values``, under ``name``, if there are any."""
    known = [value for value in values if value is not None]
    return {name: {"mean": statistics.fmean(known), "std": statistics.pstdev(known)}} if known else {}


def shown(name: str, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, str], ...]:
    """The rows of the table that a run prints; a set that is worse than random images is marked."""
    means = {(row["net"], row["data"]): row["mean"] for row in rows}
    what = {"distilled": f"distilled ({name})", "random": "random real images", "whole": "all real images"}
    best = any("best" in row for row in rows)
    lines = []
    for row in rows:
        plain, _, how = str(row["data"]).partition("-")
        rival = row["data"].replace("distilled", "random") if row["data"] in COMPARED else None
        below = row["mean"] < means.get((row["net"], rival), 0.0)
        students = len(row["accuracies"])
        last = {"accuracy % (last epoch)" if best else "accuracy %": _percent(row, students)}
        late = (
            {"best of late epochs %": _percent(row["best"], students) if "best" in row else ""}
            if best
            else {}
        )
        lines.append({
            "data": what[plain] + HOW[how] + (BELOW if below else ""),
            "images": f"{row['images']:,}",
            "net": row["net"],
            **last,
            **late,
            "seeds": "  ".join(f"{100 * a:.1f}" for a in row["accuracies"]),
        })  # fmt: skip
    return tuple(lines)


def _percent(spread: Mapping[str, Any], students: int) -> str:
    return numbers.in_percent(spread["mean"], spread["std"], students)
