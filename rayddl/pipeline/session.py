"""Ray, started when the first stage needs it and stopped at the end of the command."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

from rayddl import interrupts
from rayddl.pipeline.display.base import Display


class Cluster(Protocol):
    """What :mod:`rayddl.stages.runtime.cluster` offers."""

    def configure(
        self,
        *,
        address: str | None,
        num_cpus: int | None,
        grows: Sequence[str],
        note: Callable[[str], None],
    ) -> None:
        """Say what the next :meth:`start` attaches to or takes."""

    def require(self, asks: Mapping[str, Any]) -> None:
        """Refuse, or wait for, what stages ask for and the cluster does not have."""

    def reach(self, places: Mapping[str, str]) -> None:
        """Refuse a node that does not see one of these folders."""

    def start(self) -> None:
        """Start or attach to Ray, unless that has been done."""

    def observe(self, run: str, stage: str, progress: Mapping[str, Any]) -> None:
        """Show how far a stage is."""

    def stop(self) -> None:
        """Give up what :meth:`start` took."""


LoadCluster: TypeAlias = Callable[[], Cluster]


def load_cluster() -> Cluster:
    """The module that starts Ray; importing it imports Ray."""
    return cast(Cluster, importlib.import_module("rayddl.stages.runtime.cluster"))


@dataclass
class RaySession:
    """Ray for one command. Nothing is imported before :meth:`need`."""

    display: Display
    address: str | None = None
    num_cpus: int | None = None
    grows: Sequence[str] = ()
    """Groups of nodes that an autoscaler may bring."""
    load: LoadCluster = load_cluster
    _cluster: Cluster | None = field(default=None, init=False)

    def need(self) -> None:
        """Start Ray if that has not been done."""
        if self._cluster is not None:
            return
        text = "starting Ray" if not self.address else f"attaching to Ray at {self.address}"
        with ExitStack() as stack:
            # A thread that draws must not take a signal that the start keeps waiting.
            with interrupts.unheard():
                stack.enter_context(self.display.status(text))
            self._cluster = self.load()
            self._cluster.configure(
                address=self.address, num_cpus=self.num_cpus, grows=self.grows, note=self.display.note
            )
            self._cluster.start()

    def require(self, asks: Mapping[str, Any]) -> None:
        """Start Ray, and refuse, or wait for, what ``asks`` names by stage and the cluster does not have."""
        self.need()
        if self._cluster is not None:
            self._cluster.require(asks)

    def reach(self, places: Mapping[str, str]) -> None:
        """Refuse a node that does not see one of ``places``, folders by the options that name them. To be called
        again when a stage begins: nodes may have come, and asking costs nothing where none has.
        """
        self.need()
        if self._cluster is not None and self.address:
            self._cluster.reach(places)

    def observe(self, run: str, stage: str, progress: Mapping[str, Any]) -> None:
        """Have Ray's metrics show how far a stage is, if Ray runs."""
        if self._cluster is not None:
            self._cluster.observe(run, stage, progress)

    def stop(self) -> None:
        """Stop Ray if it was started here."""
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
    """A :class:`RaySession` that is stopped however the block ends.

    An interrupted command writes its record and message before Ray is stopped: that takes seconds, and the process may
    be killed meanwhile.
    """
    session = RaySession(display, address, num_cpus, grows, load)
    try:
        yield session
    finally:
        if interrupts.caught():
            interrupts.afterwards(session.stop)
        else:
            session.stop()
