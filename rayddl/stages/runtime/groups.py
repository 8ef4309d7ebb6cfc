"""Gang scheduling of actors: either all of them have resources, or none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rayddl.stages.runtime import cluster
from rayddl.stages.runtime.sizes import BESIDE, Ask, Share

POLL_SECONDS = 1.0


class Group:
    """Resources for ``share.at_once`` workers, reserved together, so that two runs cannot block each other."""

    def __init__(self, share: Share, what: str) -> None:
        self.share = share
        self._bundles = tuple(Ask("resources", share, together=True).placed)
        self._held = cluster.held(self._bundles, what)

    def wait(self, note: Callable[[str], None]) -> None:
        """Wait until the resources are reserved; ``note`` receives messages meanwhile. Raises :class:`StageError`."""
        # The first one has the share of short evaluations, too.
        waiting = cluster.Waiting(self._bundles[-1], note, len(self._bundles), self._bundles[0])
        while not self._held.wait(POLL_SECONDS):
            waiting.poll()

    def options(self, index: int) -> dict[str, Any]:
        """Arguments of ``.options(...)`` for worker ``index``; workers are assigned to GPUs in turns."""
        bundle = index % self.share.gpus if self.share.gpus else index
        return {**self.share.options, "scheduling_strategy": self._strategy(bundle)}

    def beside(self) -> dict[str, Any] | None:
        """Arguments of ``.options(...)`` for an actor on the reserved share of the first GPU; ``None`` without GPUs."""
        if not self.share.gpus:
            return None
        share = self.share
        left = share.slots[0]["GPU"] - share.per_slot * share.num_gpus
        # Workers of several whole GPUs leave none: Ray knows no 1.75 GPUs.
        num_gpus = BESIDE if left > BESIDE - 1e-6 else 0.0
        return {"num_cpus": share.beside, "num_gpus": num_gpus, "scheduling_strategy": self._strategy(0)}

    def idle(self) -> list[Any]:
        """A scheduling strategy for each CPU of the workers, for tasks that reserve none while the workers wait."""
        each = max(1, int(self.share.num_cpus))
        return [self._strategy(worker) for worker in range(self.share.at_once) for _ in range(each)]

    def close(self) -> None:
        """Release the resources, which ends their actors."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self._held)

    def _strategy(self, bundle: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(self._held, placement_group_bundle_index=bundle)


@contextmanager
def opened(share: Share, what: str, note: Callable[[str], None]) -> Iterator[Group]:
    """A :class:`Group` with all its resources reserved, for the block."""
    group = Group(share, what)
    try:
        group.wait(note)
        yield group
    finally:
        group.close()
