"""Stage kinds that stand in for the real ones: they write a file, count their runs, and can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from PIL import Image
from pydantic import Field

from rayddl.config import Config
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.display.base import Display
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.results import RunResult
from rayddl.pipeline.runner import execute
from rayddl.pipeline.session import RaySession
from rayddl.stages.context import Context, Result
from rayddl.stages.kinds import Kind
from rayddl.stages.settings import Reads, StageConfig


class ShapeConfig(Config):
    """A nested group of settings."""

    side: int = Field(default=4, ge=1, le=9)
    colour: Literal["red", "green"] = "red"


class MakeConfig(StageConfig):
    """A stage that reads nothing."""

    produces: ClassVar[str] = "thing"

    kind: Literal["make"]
    count: int = Field(default=3, ge=1)
    rate: float = Field(default=0.5, gt=0, lt=1)
    label: str = "plain"
    shape: ShapeConfig = ShapeConfig()
    shapes: tuple[ShapeConfig, ...] = ()
    loud: bool = False


class UseConfig(StageConfig):
    """A stage that reads another."""

    produces: ClassVar[str] = "use"

    kind: Literal["use"]
    make: Annotated[str, Reads(("thing",))]
    other: Annotated[str | None, Reads(("thing", "use"))] = None
    needs: int = 0

    def check(self, reads: Mapping[str, StageConfig]) -> list[str]:
        """The stage read must make enough."""
        made = reads["make"]
        assert isinstance(made, MakeConfig)
        if made.count >= self.needs:
            return []
        return [f"needs {self.needs} things, {self.make!r} makes {made.count}"]


class PageConfig(StageConfig):
    """A stage that reads every other."""

    produces: ClassVar[str] = "page"

    kind: Literal["page"]
    of: Annotated[tuple[str, ...], Reads(("thing", "use"))] = ("*",)


Work = Callable[[Any, Context], Result]


@dataclass(frozen=True)
class FakeKind(Kind):
    """A kind whose work is a function."""

    work: Work = field(default=lambda config, context: Result({}))

    @property
    def run(self) -> Work:
        return self.work


@dataclass
class Lab:
    """The fake kinds, what they did, and shortcuts to the pipeline floor."""

    out: Path
    calls: list[str] = field(default_factory=list)
    contexts: dict[str, Context] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)
    """By stage name: what to do instead of writing a file."""
    source: str = "a-source"

    def work(self, config: StageConfig, context: Context) -> Result:
        self.calls.append(context.stage)
        self.contexts[context.stage] = context
        if context.stage in self.works:
            return self.works[context.stage](config, context)
        context.out.write("thing.txt", context.stage.encode())
        context.out.write("deep/er.bin", b"12345")
        rows = ({"what": context.stage, "accuracy": "61.2 ± 0.4"},) if config.kind == "use" else ()
        return Result({"stage": context.stage, "read": sorted(context.inputs)}, rows)

    def kinds(self, **versions: int) -> dict[str, Kind]:
        configs = {"make": MakeConfig, "use": UseConfig, "page": PageConfig}
        return {
            name: FakeKind(name, config, versions.get(name, 1), False, self.work)
            for name, config in configs.items()
        }

    def load(self, value: Any, overrides: Any = (), **versions: int) -> definitions.Definition:
        return definitions.load(value, overrides, self.kinds(**versions))

    def plan(self, value: Any, overrides: Any = (), out: str | None = None, **versions: int) -> Plan:
        loaded = self.load(value, overrides, **versions)
        return plans.make(loaded, out or str(self.out), lambda _: self.source)

    def run(
        self,
        value: Any,
        overrides: Any = (),
        *,
        display: Display | None = None,
        out: str | None = None,
        ray: RaySession | None = None,
    ) -> RunResult:
        return execute(self.plan(value, overrides, out).narrowed(()), display, ray)

    def fingerprints(self, value: Any, overrides: Any = (), **versions: int) -> dict[str, str]:
        return {s.name: s.fingerprint for s in self.plan(value, overrides, **versions).stages}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Fake kinds ``make``, ``use`` and ``page``, running under a fresh folder."""
    return Lab(tmp_path / "runs")


@pytest.fixture
def three() -> dict[str, Any]:
    """A definition of three stages in a row."""
    return {
        "name": "three",
        "source": {"name": "digits"},
        "stages": {
            "first": {"kind": "make"},
            "second": {"kind": "use", "make": "first"},
            "page": {"kind": "page"},
        },
    }


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a definition file into a fresh folder."""

    def write(text: str, name: str = "d.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 30 photos."""
    for k in range(60):
        path = tmp_path / "photos" / f"class{k % 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(path)
    return tmp_path / "photos"
