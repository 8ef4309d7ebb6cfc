"""What the page of a large set weighs, and how fast a browser opens it.

    uv run python -m tests.bench.report [--classes 1000] [--ipc 10] [--side 64]

Random images, which compress worse than any real ones. The times are Chromium's own, from the start of the
navigation: the first paint, and the end of loading.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.bench import machine

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMES = """JSON.stringify([
  performance.getEntriesByType("paint").find((p) => p.name === "first-contentful-paint")?.startTime,
  performance.getEntriesByType("navigation")[0].loadEventEnd,
])"""


def page(classes: int, ipc: int, side: int) -> str:
    """The page of a set picked from nothing but noise."""
    from rayddl.report.page import render
    from rayddl.report.run import Chapter, Run
    from rayddl.report.values import Pictures, Stage
    from rayddl.stages import picked

    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (classes * ipc, 3, side, side), dtype=np.uint8)
    names = tuple(f"n{i:08d}" for i in range(classes))
    pictures = Pictures(images, np.repeat(np.arange(classes), ipc), names)
    stage = Stage("distill", "rded", "distill-0123456789ab", {}, {"method": "RDED", "factor": 2})
    versions = {"rayddl": "bench"}
    return render(
        Run(
            {"name": "bench"},
            {"name": "imagenet"},
            0,
            versions,
            (stage,),
            chapters=(Chapter(picked.part, (picked.Picked(stage, pictures=pictures),)),),
        )
    )


def opened(text: str, rounds: int) -> list[list[float]]:
    """Milliseconds to the first paint and to the end of loading, each round in a fresh browser."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, NAMES)))
    found = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        file.write_text(text, encoding="utf-8")
        for _ in range(rounds):
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            shown = browser.new_page(viewport={"width": 1280, "height": 900})
            shown.goto(file.as_uri())
            found.append(json.loads(shown.evaluate(TIMES)))
            browser.close()
    return found


def main() -> None:
    parser = machine.parser(__doc__, rounds=3)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--side", type=int, default=64)
    given = parser.parse_args()
    print(machine.figures(), flush=True)
    began = time.perf_counter()
    text = page(given.classes, given.ipc, given.side)
    wrote = time.perf_counter() - began
    paints, loads = zip(*opened(text, given.rounds), strict=True)
    size, paint, load = len(text.encode()) / 1e6, statistics.median(paints), statistics.median(loads)
    print(
        f"{given.classes:,} classes, {given.classes * given.ipc:,} images: {size:.1f} MB, written in {wrote:.1f} s"
    )
    print(f"first paint after {paint:.0f} ms, loaded after {load:.0f} ms")


if __name__ == "__main__":
    main()
