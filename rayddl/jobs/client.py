"""Client of a cluster's job server: submits, lists, follows and stops runs.

The server is the dashboard of the head node; access is controlled by Ray's token. Ray is imported with the first
request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rayddl.credentials import scrub
from rayddl.errors import UserError
from rayddl.jobs.shipping import DEFINITION, JobFiles
from rayddl.stages.runtime import attach

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""The default address of Ray's dashboard."""
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Environment variables from which Ray's own commands read an address."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
AGENT_SECONDS = 60.0
"""Seconds that a new head node may take until it accepts jobs."""
PAUSE_SECONDS = 1.0
RECONNECTS = 5
"""Number of times that a broken connection is opened again to submit a job, or to read its log."""

_HOW_TO_ASK = (
    "export RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token (the head's file of that name) or in "
    "RAY_AUTH_TOKEN"
)


@dataclass(frozen=True)
class Job:
    """A job, as reported by the cluster."""

    id: str
    state: str
    """``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``."""
    message: str
    run: str
    """The run's name; empty for jobs that rayddl did not submit."""
    out: str
    started: datetime | None
    ended: datetime | None

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values."""
        moments = {
            name: moment.isoformat() if moment else None
            for name, moment in (("started", self.started), ("ended", self.ended))
        }
        return {**self.__dict__, **moments}


class Jobs:
    """The jobs of the cluster at ``address``: its dashboard's ``http://HOST:PORT``, or ``auto``.

    Default: ``RAY_API_SERVER_ADDRESS`` or ``RAY_ADDRESS``, else the dashboard on this machine. Raises
    :class:`UserError` if no server answers, if the server is not Ray's, and for a missing or wrong token.
    """

    def __init__(self, address: str | None = None) -> None:
        self._given = address
        self.address = address or next(
            (os.environ[v] for v in VARIABLES if os.environ.get(v)), DEFAULT_ADDRESS
        )
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        self._check_reachable()
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
        with self._explained_errors(), _without(VARIABLES):
            # Ray would let a variable override the given address.
            self._client: Any = JobSubmissionClient(self.address)

    def submit(self, parcel: JobFiles, name: str, out: str, options: Sequence[str] = ()) -> str:
        """Start a run of the parcel's definition with results under ``out``, and return the job's id."""
        words = ["python", "-m", "rayddl", "run", DEFINITION, "--address", "auto", "--out", out, *options]
        command = shlex.join(words + [word for each in parcel.plugins for word in ("--plugin", each)])
        job = f"{name}-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory() as folder, self._explained_errors():
            parcel.write(Path(folder))
            self._submit(
                entrypoint=command,
                submission_id=job,
                runtime_env={"working_dir": folder, "env_vars": {"PYTHONUNBUFFERED": "1"}},
                metadata={"rayddl_run": name, "rayddl_out": out},
            )
        return job

    def _submit(self, **job: Any) -> None:
        """Submit the job, again where the head node is not ready or closes the connection without an answer."""
        from requests import exceptions

        deadline, lost, taken = time.monotonic() + AGENT_SECONDS, 0, False
        while not taken:
            try:
                taken = self._taken(job, lost > 0, last=time.monotonic() > deadline)
            except exceptions.ConnectionError:
                lost += 1
                if lost > RECONNECTS:
                    raise
            if not taken:
                time.sleep(PAUSE_SECONDS)

    def _taken(self, job: dict[str, Any], again: bool, *, last: bool) -> bool:
        """Submit the job once; ``again`` if an earlier answer was lost. False if the head node is not ready."""
        try:
            self._client.submit_job(**job)
        except RuntimeError as error:
            # A request whose answer was lost may have been accepted; its id is of this submission alone.
            if again and "already exists" in str(error):
                return True
            # The dashboard of a new head node answers before it accepts jobs.
            if last or "No available agent" not in str(error):
                raise
            return False
        return True

    def job(self, job: str) -> Job:
        """Return a job. Raises :class:`UserError` with the known ids for an unknown one."""
        with self._explained_errors(job):
            return _job(self._client.get_job_info(job))

    def all(self) -> list[Job]:
        """Return all jobs of the cluster that have a submission id, the newest first."""
        with self._explained_errors():
            found = [_job(entry) for entry in self._client.list_jobs() if entry.submission_id]
        beginning = datetime.fromtimestamp(0, timezone.utc)
        return sorted(found, key=lambda job: job.started or beginning, reverse=True)

    def stop(self, job: str) -> bool:
        """Stop a job and return True if it was running. Its results so far are kept."""
        with self._explained_errors(job):
            return bool(self._client.stop_job(job))

    def log(self, job: str) -> str:
        """Return the output of a job so far."""
        with self._explained_errors(job):
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, say: Callable[[str], None]) -> Job:
        """Pass the output of a job to ``say`` until it ends, then return the job. Reopens connections that end before
        the job does. Raises :class:`UserError` if they break several times in a row.
        """
        printed = broken = 0
        while True:
            received, before = 0, printed
            try:
                for text in self._tail(job):
                    # Each connection repeats the output from its beginning; pass on only the new part.
                    new = text[max(0, printed - received) :]
                    received += len(text)
                    printed = max(printed, received)
                    if new:
                        say(new)
                broken = 0
            except (OSError, RuntimeError, UserError) as error:
                broken = broken + 1 if printed == before else 1
                if broken > RECONNECTS:
                    raise UserError(
                        f"the connection to the log of job {job} broke {broken} times in a row ({error}); the job "
                        f"itself goes on: {command('logs', job, self._given)} --follow",
                        code="log-broken",
                    ) from error
            found = self.job(job)
            if found.state in ENDED:
                return found
            # A proxy closes connections on which nothing was sent for a while.
            if printed == before:
                time.sleep(PAUSE_SECONDS)

    def _tail(self, job: str) -> Iterator[str]:
        with self._explained_errors(job):
            self._client.get_job_info(job)
        loop, stream = asyncio.new_event_loop(), self._client.tail_job_logs(job)
        waiting: asyncio.Task[str | None] | None = None
        try:
            while True:
                waiting = loop.create_task(_next(stream))
                text = loop.run_until_complete(waiting)
                if text is None:
                    return
                yield text
        finally:
            # Ctrl-C interrupts the loop while the task is running.
            if waiting is not None and not waiting.done():
                waiting.cancel()
                loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
            loop.run_until_complete(stream.aclose())
            loop.close()

    def _check_reachable(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https"):
            return
        try:
            attach.knock(f"{parts.hostname}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}")
        except (OSError, ValueError) as error:
            raise UserError(self._no_answer(str(error)), code="no-cluster-answers") from error

    def _no_answer(self, why: str) -> str:
        return (
            f"no Ray cluster answers at {self.address} ({why}). On this machine: `ray start --head`; for a cluster "
            "made from cluster.yaml: `ray dashboard cluster.yaml` in another terminal; else give the dashboard's "
            "address with --address http://HOST:8265"
        )

    @contextmanager
    def _explained_errors(self, job: str = "") -> Iterator[None]:
        """Turn Ray's errors inside the block into :class:`UserError` with a message for the user."""
        from ray.exceptions import RayError
        from requests import exceptions

        try:
            yield
        except exceptions.ConnectionError as error:
            raise UserError(
                f"the cluster at {self.address} closed the connection without an answer "
                f"({' '.join(str(error).split())[:1000]}). It may be starting, busy or ending: run the same command "
                "again.",
                code="connection-closed",
            ) from error
        except (OSError, RuntimeError, ValueError, RayError) as error:
            text = " ".join(str(error).split())
            if re.search(r"Authentication required|couldn't find an authentication token", text):
                raise UserError(
                    f"the cluster at {self.address} asks for a token, and none was sent: {_HOW_TO_ASK}",
                    code="token-missing",
                ) from error
            if "Authentication failed" in text:
                raise UserError(
                    f"the cluster at {self.address} refuses the token: it is another cluster's. {_HOW_TO_ASK}",
                    code="token-refused",
                ) from error
            if job and re.search(r"status code 404|does not exist", text):
                raise UserError(
                    f"no job {job!r} at {self.address}; {self._known()}", code="no-such-job"
                ) from error
            if isinstance(error, ConnectionError):
                raise UserError(self._no_answer(text), code="no-cluster-answers") from error
            raise UserError(
                f"the cluster at {self.address} refused the request: {text[:1000]}", code="cluster-refuses"
            ) from error

    def _known(self) -> str:
        known = [job.id for job in self.all()][:5]
        return f"the latest there: {', '.join(known)}" if known else "there are none"


def command(verb: str, job: str, address: str | None) -> str:
    """Return the command line of ``verb`` for a job; ``address`` as it was given."""
    return shlex.join(["rayddl", verb, job, *(["--address", scrub(address)] if address else [])])


async def _next(stream: AsyncIterator[str]) -> str | None:
    return await anext(stream, None)


def _job(info: Any) -> Job:
    metadata = info.metadata or {}
    return Job(
        str(info.submission_id or info.job_id),
        str(getattr(info.status, "value", info.status)),
        " ".join(str(info.message or "").split()),
        str(metadata.get("rayddl_run", "")),
        str(metadata.get("rayddl_out", "")),
        _moment(info.start_time),
        _moment(info.end_time),
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc) if milliseconds else None


@contextmanager
def _without(variables: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
