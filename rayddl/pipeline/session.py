"""Starts Ray when the first stage needs it and stops it at the end of the command."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

from rayddl import interrupts
from rayddl.pipeline.display.base import Display
from rayddl.pipeline.schedule import Room


class Cluster(Protocol):
    """The functions of :mod:`rayddl.stages.runtime.cluster`."""

    def configure(
        self,
        *,
        address: str | None,
        num_cpus: int | None,
        grows: Sequence[str],
        note: Callable[[str], None],
    ) -> None:
        """Set what the next :meth:`start` starts or attaches to."""

    def require(self, asks: Mapping[str, Any]) -> None:
        """Wait for resources that the cluster lacks and may get; raise if it cannot get them."""

    def reach(self, places: Mapping[str, str]) -> None:
        """Raise if a node cannot access one of these folders."""

    def room(self) -> Room:
        """The cluster's resources, to be divided among the stages that run at the same time."""

    def start(self) -> None:
        """Start or attach to Ray, unless this has been done."""

    def observe(self, run: str, stage: str, progress: Mapping[str, Any]) -> None:
        """Publish the progress of a stage in Ray's metrics."""

    def stop(self) -> None:
        """Stop or detach from what :meth:`start` started or attached to."""


LoadCluster: TypeAlias = Callable[[], Cluster]


def load_cluster() -> Cluster:
    """Import and return the module that starts Ray; this imports Ray."""
    return cast(Cluster, importlib.import_module("rayddl.stages.runtime.cluster"))


@dataclass
class RaySession:
    """Ray for one command. Ray is not imported before :meth:`need`."""

    display: Display
    address: str | None = None
    num_cpus: int | None = None
    grows: Sequence[str] = ()
    """Groups of nodes that an autoscaler can add, each as ``4xCPU:8,GPU:1``."""
    load: LoadCluster = load_cluster
    _cluster: Cluster | None = field(default=None, init=False)
    _reaching: threading.Lock = field(default_factory=threading.Lock, init=False)

    def need(self) -> None:
        """Start Ray, unless this has been done."""
        if self._cluster is not None:
            return
        text = "starting Ray" if not self.address else f"attaching to Ray at {self.address}"
        with ExitStack() as stack:
            # The thread that draws must not receive a signal that is blocked during the start.
            with interrupts.unheard():
                stack.enter_context(self.display.status(text))
            self._cluster = self.load()
            self._cluster.configure(
                address=self.address, num_cpus=self.num_cpus, grows=self.grows, note=self.display.note
            )
            self._cluster.start()

    def require(self, asks: Mapping[str, Any]) -> None:
        """Start Ray and check the resources ``asks`` of each stage as :meth:`Cluster.require` does."""
        self.need()
        if self._cluster is not None:
            self._cluster.require(asks)

    def reach(self, places: Mapping[str, str]) -> None:
        """Raise if a node cannot access one of ``places``, folders by the option that sets each. Called again
        before each stage, for nodes that were added; without new nodes this costs nothing.
        """
        self.need()
        if self._cluster is not None and self.address:
            with self._reaching:
                self._cluster.reach(places)

    def room(self) -> Room | None:
        """The cluster's resources, to be divided among stages; ``None`` if Ray was not started."""
        return None if self._cluster is None else self._cluster.room()

    def observe(self, run: str, stage: str, progress: Mapping[str, Any]) -> None:
        """Publish the progress of a stage in Ray's metrics, if Ray runs."""
        if self._cluster is not None:
            self._cluster.observe(run, stage, progress)

    def stop(self) -> None:
        """Stop Ray if this session started it."""
        if self._cluster is not None:
            with interrupts.held():
                self._cluster.stop()
        self._cluster = None


@contextmanager
def ray_session(
    display: Display,
    address: str | None = None,
    num_cpus: int | None = None,
    grows: Sequence[str] = (),
    load: LoadCluster = load_cluster,
) -> Iterator[RaySession]:
    """Yield a :class:`RaySession` and stop it when the block ends, also after an error.

    After an interrupt, Ray is stopped only once record and message are written: stopping takes seconds, in which the
    process may be killed.
    """
    session = RaySession(display, address, num_cpus, grows, load)
    try:
        yield session
    finally:
        if interrupts.caught():
            interrupts.afterwards(session.stop)
        else:
            session.stop()
