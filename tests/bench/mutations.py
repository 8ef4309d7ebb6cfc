"""Whether the unit tests of the core modules notice a slip: each mutation in turn, against the tests of its module.

    uv run python -m tests.bench.mutations [--modules methods/matching/loop …] [--sample 200] [--seed 0] [--jobs 2]

A mutation (:mod:`tests.bench.mutants`) is made in a copy of the tree in a temporary folder. The tests run in a process
that is forked from one that has everything imported but rayddl, so that a mutation costs the tests' own time. It is
caught if a test fails or takes far more of the processor than without it. Those that change no result are listed,
each with its reason, in ``mutations_equivalent.yaml``. Exit status 1 below ``--at-least`` per cent of the others.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import math
import multiprocessing
import os
import py_compile
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from tests.bench.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("mutations_equivalent.yaml")
TESTS: dict[str, tuple[str, ...]] = {
    "methods/matching/gradient": ("matching/test_matching_gradient.py",),
    "methods/matching/loop": ("matching/test_matching_loop.py",),
    "methods/matching/state": ("matching/test_matching_state.py", "matching/test_matching_loop.py"),
    "methods/matching/windows": ("matching/test_matching_windows.py",),
    "methods/matching/settings": (
        "matching/test_matching_windows.py",
        "pipeline/test_golden_fingerprints.py",
    ),
    "methods/trajectories/convex": ("trajectories/test_trajectories_convex.py",),
    "methods/trajectories/expert": (
        "training/test_training_hard.py",
        "training/test_training_batchnorm.py",
        "trajectories/test_trajectories_together.py",
    ),
    "methods/trajectories/files": ("trajectories/test_trajectories_files.py",),
    "methods/patches/boxes": ("patches/test_boxes.py",),
    "methods/patches/score": ("patches/test_score_stitch.py",),
    "methods/patches/select": ("patches/test_select.py",),
    "methods/patches/stitch": ("patches/test_score_stitch.py",),
    "methods/selection/select": (
        "coreset/test_coreset_select.py",
        "coreset/test_coreset_scored.py",
        "coreset/test_coreset_bounded.py",
    ),
    "methods/training/mixes": ("training/test_training_mixes.py", "training/test_training_open.py"),
    "methods/training/soft": (
        "training/test_training_soft.py",
        "training/test_training_open.py",
        "training/test_training_team.py::test_a_student_of_a_team_is_that_of_one",
        "training/test_training_team.py::test_stored_logits_are_those_of_the_process_s_images",
    ),
    "methods/training/softlabels": ("training/test_training_soft.py", "training/test_training_top.py"),
    "methods/training/scores": ("training/test_training_metrics.py",),
    "methods/training/input_spec": (
        "training/test_training_observer.py",
        "training/test_training_teacher.py",
        "training/test_training_published.py::test_test_images_are_zoomed_as_published",
    ),
    "methods/training/teacher": (
        "training/test_training_teacher.py",
        "training/test_training_team.py::test_a_teacher_of_a_team_is_that_of_one",
        "training/test_training_published.py::test_networks_are_tested_on_zoomed_images_where_asked",
        "training/test_training_published.py::test_students_are_tested_as_their_protocol_says",
    ),
    "data/pixels/augment": ("data/test_data_augment.py",),
    "data/pixels/space": ("data/test_data_space.py",),
    "data/pixels/whitening": ("data/test_data_space.py",),
    "seeds": ("training/test_training_hard.py",),
    "stages/runtime/sizes": ("base/test_base_sizes.py", "base/test_base_teams.py"),
    "stages/runtime/capacity": ("base/test_base_capacity.py",),
    "pipeline/plan": (
        "pipeline/test_pipeline_fingerprints.py",
        "pipeline/test_pipeline_templates.py",
        "pipeline/test_possible.py::test_an_output_in_the_way_of_a_file",
        "pipeline/test_pipeline_plan.py",
        "pipeline/test_plugins.py::test_a_plugin_is_part_of_the_stages_that_use_it_alone",
    ),
    "pipeline/artifacts": ("pipeline/test_pipeline_artifacts.py",),
    "pipeline/definition/graph": (
        "pipeline/test_pipeline_graph.py",
        "pipeline/test_pipeline_definition.py",
        "pipeline/test_pipeline_templates.py",
    ),
}
"""The core modules and their tests under ``tests/unit``: files, or single tests of a file with slow ones."""
SHRINKING = "mutations"
"""The name of a hypothesis profile that stops at the first failing example."""
SLOWER, LEAST_SECONDS = 5.0, 10.0
"""A mutation may take so many times the processor time that none takes, and this many seconds at least."""
WAITING = 1800.0
"""Seconds after which tests that take no processor time, or are let have none, are ended."""
HEAP = 8 << 30
"""Bytes that the tests may take: a mutation may ask for any number."""

Outcome = Literal["caught", "survived", "equivalent"]


@dataclass(frozen=True)
class Tried:
    """A mutation and what the tests said."""

    module: str
    mutant: Mutant
    outcome: Outcome


def main() -> int:
    """Try the mutations that were asked for, print what came of them."""
    asked = _arguments()
    chosen = [
        (name, m) for name in asked.modules for m in mutants(_path(ROOT, name).read_text(encoding="utf-8"))
    ]
    if asked.sample and asked.sample < len(chosen):
        places = sorted(random.Random(asked.seed).sample(range(len(chosen)), asked.sample))
        chosen = [chosen[place] for place in places]
    by_module: dict[str, list[Mutant]] = defaultdict(list)
    for name, mutant in chosen:
        by_module[name].append(mutant)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        with context.Pool(asked.jobs, _prepare, (folder,)) as pool:
            tried = [t for some in pool.imap_unordered(_try_module, by_module.items()) for t in some]
    status = _report(tried, time.perf_counter() - began, asked.at_least)
    broken = set(by_module) - {t.module for t in tried}
    if broken:
        print(f"not judged, for their tests fail without any mutation: {', '.join(sorted(broken))}")
    return 1 if broken else status


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS), metavar="MODULE")
    parser.add_argument(
        "--sample", type=int, default=0, help="so many mutations, drawn at random; default: all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="modules at once")
    parser.add_argument("--at-least", type=float, default=95.0, help="per cent to be caught")
    return parser.parse_args()


def _path(root: Path, module: str) -> Path:
    return root / "rayddl" / f"{module}.py"


def _prepare(folder: str) -> None:
    """Make this process a server of tests: in a copy of the tree of its own, on one thread, with nothing of the tree
    imported.
    """
    copy = Path(folder) / str(os.getpid())
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, capture_output=True, check=True).stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    # By their hash: two mutations of one second and one size have the same time and size.
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(copy / "rayddl", quiet=2, invalidation_mode=mode)
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "rayddl")]:
        del sys.modules[name]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    importlib.import_module("torch").set_num_threads(1)
    importlib.import_module("pytest")


def _try_module(item: tuple[str, list[Mutant]]) -> list[Tried]:
    module, chosen = item
    path, tests = _path(Path.cwd(), module), [f"tests/unit/{name}" for name in TESTS[module]]
    known = {(e["before"], e["after"]) for e in _listed().get(module, [])}
    original = path.read_text(encoding="utf-8")
    log, found = Path("tests.log"), Path("imported.txt")
    status, _ = _run(tests, WAITING, log, found)
    if status:
        raise RuntimeError(
            f"the tests of {module} fail without any mutation:\n{log.read_text(errors='replace')}"
        )
    for name in found.read_text(encoding="utf-8").split():
        with contextlib.suppress(Exception):  # a part of a library that cannot be imported by itself
            importlib.import_module(name)
    _, seconds = _run(tests, WAITING, log)
    print(f"{module}: {len(chosen)} mutations; the tests take {seconds:.1f} s", flush=True)
    tried: list[Tried] = []
    for mutant in chosen:
        outcome: Outcome = "equivalent"
        if (mutant.before, mutant.after) not in known:
            path.write_text(mutant.text, encoding="utf-8")
            status, _ = _run(tests, max(LEAST_SECONDS, SLOWER * seconds), log)
            outcome = "caught" if status else "survived"
        tried.append(Tried(module, mutant, outcome))
        if outcome == "survived":
            print(_shown(tried[-1]), flush=True)
    path.write_text(original, encoding="utf-8")
    counts = Counter(t.outcome for t in tried)
    print(f"{module}: {', '.join(f'{n} {outcome}' for outcome, n in counts.items())}", flush=True)
    return tried


def _listed() -> dict[str, list[dict[str, str]]]:
    listed: dict[str, list[dict[str, str]]] = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8"))
    return listed


def _run(tests: list[str], limit: float, log: Path, imported: Path | None = None) -> tuple[int, float]:
    """The exit status of the tests in a forked process, 0 only if all passed, and the processor's seconds they took,
    ``limit`` at most.
    """
    child = os.fork()
    if not child:
        _child(tests, math.ceil(limit), log, imported)
    ends = time.monotonic() + WAITING
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if time.monotonic() > ends:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)


def _child(tests: list[str], seconds: int, log: Path, imported: Path | None) -> None:
    code = 3
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (HEAP, HEAP))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import hypothesis
        import pytest

        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            SHRINKING, deadline=None, phases=phases, database=None, derandomize=True
        )
        options = ["-x", "-n0", "-p", "no:cacheprovider", "--tb=short", "--hypothesis-profile", SHRINKING]
        code = int(pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]))
        if imported is not None:
            names = [
                n for n in sys.modules if n.split(".")[0] not in ("tests", "rayddl", "conftest", "__main__")
            ]
            # Those start processes of their own.
            imported.write_text("\n".join(n for n in names if not n.startswith(("torch._inductor", "ray."))))
    finally:
        os._exit(code)


def _shown(tried: Tried) -> str:
    place = f"rayddl/{tried.module}.py:{tried.mutant.line}"
    return f"{tried.outcome} {place}\n  - {tried.mutant.before}\n  + {tried.mutant.after}"


def _report(tried: list[Tried], seconds: float, at_least: float) -> int:
    print(f"\n{'module':34} {'caught':>8} {'survived':>8} {'equivalent':>10}")
    counts = {name: Counter(t.outcome for t in tried if t.module == name) for name in TESTS}
    for name, count in counts.items():
        if count:
            print(f"{name:34} {count['caught']:8} {count['survived']:8} {count['equivalent']:10}")
    whole = sum(counts.values(), Counter())
    print(f"{'all':34} {whole['caught']:8} {whole['survived']:8} {whole['equivalent']:10}\n")
    for one in tried:
        if one.outcome == "survived":
            print(_shown(one))
    judged = whole["caught"] + whole["survived"]
    share = 100 * whole["caught"] / judged if judged else 100.0
    print(f"\n{share:.1f} % of {judged} caught in {seconds:.0f} s; {at_least:g} % are wanted")
    return 0 if share >= at_least else 1


if __name__ == "__main__":
    sys.exit(main())
