"""The memory that a piece of work needs."""

from __future__ import annotations

import threading


class Resident:
    """The most anonymous memory of this process that is seen, in bytes above that at the start."""

    def __init__(self) -> None:
        self.most = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Resident:
        self._start = _anonymous()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            self.most = max(self.most, _anonymous() - self._start)


def _anonymous() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
