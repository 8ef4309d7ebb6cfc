"""What test workers are forked from."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

WARM = Path(__file__).resolve().parents[2] / "warm" / "sitecustomize.py"
DRAWN = """
import importlib, os, sys, warnings
warnings.simplefilter("ignore")
for module in sys.argv[1:]:
    importlib.import_module(module)
from ray._raylet import ObjectRef
for _ in range(2):
    if os.fork() == 0:
        print(ObjectRef.from_random().hex(), flush=True)
        os._exit(0)
    os.wait()
"""


def test_forked_workers_draw_different_ids() -> None:
    """Some of Ray's modules draw an id when they are imported, which seeds what all forked processes draw from."""
    lists = {"IMPORTED", "IMPORTED_FOR_MANY", "OURS"}
    modules = [
        module
        for node in ast.parse(WARM.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in lists
        for module in ast.literal_eval(node.value)
    ]
    assert len(modules) > 10
    found = subprocess.run(
        [sys.executable, "-c", DRAWN, *modules], capture_output=True, text=True, check=True
    )
    first, second = found.stdout.split()
    assert first != second
