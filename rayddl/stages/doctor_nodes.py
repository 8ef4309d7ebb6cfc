"""Checks a Ray cluster before a run: every node's versions, GPUs, memory and access to ``--out``."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rayddl.errors import UserError
from rayddl.stages.runtime import capacity, machine, nodes
from rayddl.stages.runtime.doctor import SMALL_SHM, Finding, State, driver_gpus, try_torch
from rayddl.stages.runtime.nodes import Answer, Node
from rayddl.version import installed

SECONDS = 240.0
"""Time limit for the answers of all nodes: importing torch from a cold disk takes a minute."""
LIBRARIES = ("ray", "torch", "torchvision", "rayddl")
_GIB = 1 << 30


def examine(address: str, out: str, seconds: float = SECONDS) -> list[Finding]:
    """The findings about the cluster at ``address``: one for the cluster, then one for each node that is alive.

    Attaches this process to the cluster for the call. Waits little longer than ``seconds``.
    """
    from rayddl.stages.runtime import cluster

    name = f"cluster {address}"
    try:
        cluster.configure(address=address)
        cluster.start()
    except UserError as error:
        return [Finding(name, "cannot be used", "fails", str(error))]
    try:
        there = nodes.alive()
        answers = nodes.ask(_inspection(), there, seconds=seconds)
        return [_summary(name, there), *_authentication(answers), *_rows(out, there, answers)]
    finally:
        cluster.stop()


def inspect_machine() -> dict[str, Any]:
    """Versions, resources and GPU checks of this machine, as JSON values. Runs on every node."""
    return {
        **versions(),
        "cpus": machine.cpus(),
        "memory": machine.memory_bytes(),
        "shm": machine.shm_bytes(),
        "authentication": os.environ.get("RAY_AUTH_MODE", ""),
        "driver_gpus": driver_gpus(),
        "probe": try_torch(),
    }


def versions() -> dict[str, str | None]:
    """Python's version and those of installed libraries; ``None`` for what is not installed."""
    return {"python": platform.python_version(), **{name: installed(name) for name in LIBRARIES}}


def row(node: Node, answer: Answer, here: Mapping[str, str | None]) -> Finding:
    """The finding about one node; ``here`` are the versions on this machine."""
    name, found = f"{'head' if capacity.HEAD in node.resources else 'node'} {node}", _offers(node)
    if answer.error:
        return Finding(
            name,
            found,
            "fails",
            f"a task cannot run there: {answer.error}. Give the node the Python and the packages of the others "
            "(its log: /tmp/ray/session_latest/logs), or take it out of the cluster",
        )
    facts: Mapping[str, Any] = answer.value
    apart = [
        f"{lib} {facts[lib] or 'not installed'} (here {here[lib] or 'not installed'})"
        for lib in ("python", *LIBRARIES)
        if facts[lib] != here[lib] and (lib != "rayddl" or facts[lib] is not None)
    ]
    found = f"{found}, {facts['shm'] / _GIB:.1f} GiB free in /dev/shm"
    found += f"; {', '.join(apart)}" if apart else ""
    wrong = [*_wrong(node, facts, here)]
    states = [state for state, _ in wrong]
    worst: State = "fails" if "fails" in states else "worse" if wrong else "fine"
    return Finding(name, found, worst, "; ".join(text for _, text in wrong))


def _wrong(
    node: Node, facts: Mapping[str, Any], here: Mapping[str, str | None]
) -> Iterator[tuple[State, str]]:
    """Yield the problems of a node: state and text."""
    probe = facts["probe"]
    if "torch_error" in probe:
        yield "fails", f"torch cannot be imported: {probe['torch_error']}"
    elif not probe.get("nms"):
        yield (
            "fails",
            f"torch {probe['torch']} and torchvision do not fit each other: "
            f"{probe.get('torchvision_error', 'its operators give wrong results')}",
        )
    else:
        yield from _gpus(node, probe, facts["driver_gpus"])
        if facts["torch"] != here["torch"]:
            yield (
                "worse",
                "another torch may give other last bits: results then depend on which node a unit ran on",
            )
    given = node.resources.get("CPU", 0.0)
    if given > facts["cpus"]:
        yield (
            "worse",
            f"Ray was started with {given:g} CPUs, the node has {facts['cpus']}: workers slow each other down; start "
            f"it with --num-cpus={facts['cpus']}",
        )
    if facts["shm"] < SMALL_SHM:
        yield (
            "worse",
            "Ray keeps shared images in /dev/shm and falls back to slower files: docker run --shm-size=2g",
        )


def _gpus(node: Node, probe: Mapping[str, Any], driver: list[str]) -> Iterator[tuple[State, str]]:
    given, seen = node.resources.get("GPU", 0.0), len(probe.get("gpus", []))
    if given > seen:
        built = (
            f"; the driver lists {len(driver)}, torch is built for {probe.get('built_for') or 'CPUs only'}"
        )
        yield (
            "fails",
            f"Ray was started with {given:g} GPUs, torch sees {seen}: a worker on a missing one fails. Start the "
            f"node with --num-gpus={seen}, or install a torch that sees its GPUs{built if driver else ''}",
        )
    elif given < seen:
        yield (
            "worse",
            f"Ray was started with {given:g} GPUs, torch sees {seen}: the rest is not used; start the node with "
            f"--num-gpus={seen}",
        )


def _offers(node: Node) -> str:
    has = node.resources
    return (
        f"{has.get('CPU', 0):g} CPU, {has.get('GPU', 0):g} GPU, {has.get('memory', 0) / _GIB:.1f} GiB, object store "
        f"{has.get('object_store_memory', 0) / _GIB:.1f} GiB"
    )


def _summary(name: str, there: tuple[Node, ...]) -> Finding:
    total = {k: sum(node.resources.get(k, 0) for node in there) for k in ("CPU", "GPU")}
    found = f"{len(there)} nodes with {total['CPU']:g} CPU, {total['GPU']:g} GPU"
    if not total["CPU"]:
        return Finding(
            name, found, "fails", "no node has a CPU: `ray start --address=… --num-cpus=N` adds one"
        )
    return Finding(name, found)


def _authentication(answers: Mapping[Node, Answer]) -> Iterator[Finding]:
    asked = [answer.value["authentication"] == "token" for answer in answers.values() if not answer.error]
    if not asked:
        return
    if all(asked):
        yield Finding("authentication", "the cluster asks for a token")
        return
    yield Finding(
        "authentication",
        "none",
        "worse",
        "who reaches the cluster's ports can run code there: export RAY_AUTH_MODE=token and "
        "`ray get-auth-token --generate` before `ray start`, with the same token on every node",
    )


def _rows(out: str, there: tuple[Node, ...], answers: Mapping[Node, Answer]) -> Iterator[Finding]:
    here = versions()
    for node in there:
        yield row(node, answers[node], here)
    answering = [node for node in there if node.works and not answers[node].error]
    try:
        path = nodes.local_folder(out)
        if path is None or len(answering) < 2:
            return
        seen = nodes.check_folders({nodes.OUT: path}, answering)
    except (OSError, ValueError):
        # The finding about --out on this machine reports it.
        return
    name = f"--out {path} on every node"
    wrong = [
        f"{node} {answer.error or answer.value[nodes.OUT]}"
        for node, answer in seen.items()
        if answer.error or nodes.OUT in answer.value
    ]
    if wrong:
        yield Finding(
            name, f"not on {len(wrong)} of {len(seen)}", "fails", nodes.unseen(nodes.OUT, path, wrong)
        )
    else:
        yield Finding(name, f"seen by all {len(seen)} that take work")


def _inspection() -> Callable[[], dict[str, Any]]:
    def inspect() -> dict[str, Any]:
        from rayddl.stages.doctor_nodes import inspect_machine

        return inspect_machine()

    return inspect
