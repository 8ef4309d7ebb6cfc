"""The job client against a server that answers as Ray's does."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rayddl.cli.app import app
from rayddl.errors import UserError
from rayddl.jobs import client, views
from rayddl.jobs.client import Job, Jobs
from rayddl.jobs.shipping import JobFiles
from tests.raising import raises

KNOWN = {
    "type": "SUBMISSION",
    "submission_id": "digits-1",
    "status": "RUNNING",
    "entrypoint": "python",
    "message": "Job is currently running.",
    "metadata": {"rayddl_run": "digits", "rayddl_out": "/nowhere/runs"},
    "start_time": 1_700_000_000_000,
}


@dataclass
class Server:
    """Answers by path, as (status, body), and the received requests."""

    address: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    token: str | None = None
    seen: list[tuple[str, str]] = field(default_factory=list)
    silent: int = 0
    """Number of requests to submit a job that are taken, and then closed without an answer."""

    def answer(self, method: str, path: str, sent: str | None) -> tuple[int, Any]:
        self.seen.append((method, path))
        if self.token is not None and sent != f"Bearer {self.token}":
            missing = (401, "Unauthorized: Missing authentication token")
            return (403, "Forbidden: Invalid authentication token") if sent else missing
        if path.startswith("/api/packages/"):
            return 200, ""  # the files of a job are there already
        found = {"/api/version": (200, {"ray_version": "2.60.0"}), **self.answers}.get(path)
        return found or (404, f"Job {path.rsplit('/', maxsplit=1)[-1]} does not exist")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server on loopback that knows one job; nothing of this machine's Ray settings counts."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where a token may lie
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    ):
        monkeypatch.delenv(name, raising=False)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            status, body = state.answer(self.command, self.path, self.headers.get("authorization"))
            if state.silent and (self.command, self.path) == ("POST", "/api/jobs/"):
                state.silent -= 1
                return
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _respond

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{httpd.server_port}"
    state.answers |= {"/api/jobs/": (200, [KNOWN]), "/api/jobs/digits-1": (200, KNOWN)}
    yield state
    httpd.shutdown()
    httpd.server_close()


def test_a_job_is_told(server: Server) -> None:
    """State, run and place come from the cluster; times are moments in UTC."""
    job = Jobs(server.address).job("digits-1")
    assert (job.id, job.state, job.run, job.out) == ("digits-1", "RUNNING", "digits", "/nowhere/runs")
    assert job.started is not None
    assert job.started.isoformat() == "2023-11-14T22:13:20+00:00"
    assert Jobs(server.address).all() == [job]


def test_the_address_typed_counts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of Ray does not override --address, and is used without the option."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert Jobs(server.address).all()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
    assert Jobs().all()


def test_nobody_at_the_address() -> None:
    """No cluster: the message has the address and the ways to get one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError) as caught:
            Jobs(address)
    assert str(caught.value).startswith(f"no Ray cluster answers at {address} (")
    assert "`ray start --head`" in str(caught.value)
    assert "ray dashboard cluster.yaml" in str(caught.value)


def test_a_missing_token_is_told(server: Server) -> None:
    """A cluster that asks for a token, asked without one."""
    jobs, server.token = Jobs(server.address), "right"
    jobs._client._headers.pop(
        "authorization", None
    )  # Ray keeps, for the process, what a test before this one read
    with pytest.raises(UserError) as caught:
        jobs.all()
    assert str(caught.value) == (
        f"the cluster at {server.address} asks for a token, and none was sent: export RAY_AUTH_MODE=token, with the "
        "cluster's token in ~/.ray/auth_token (the head's file of that name) or in RAY_AUTH_TOKEN"
    )


def test_a_wrong_token_is_told(server: Server) -> None:
    """A token of another cluster; it is not repeated."""
    jobs, server.token = Jobs(server.address), "right"
    jobs._client._headers["authorization"] = "Bearer wrong"
    with raises("token-refused") as caught:
        jobs.all()
    assert "Bearer" not in str(caught.value)


@pytest.mark.parametrize("verb", ["logs", "stop", "status"])
def test_an_unknown_job_is_told_with_the_known_ones(server: Server, verb: str) -> None:
    """Each verb says which jobs there are, and exits with 2."""
    ended = CliRunner().invoke(app, [verb, "digits-2", "--address", server.address])
    assert ended.exit_code == 2
    assert f"no job 'digits-2' at {server.address}; the latest there: digits-1" in ended.stderr


def test_what_answers_may_be_no_ray(server: Server) -> None:
    """A server that is not Ray's is reported as such."""
    server.answers["/api/version"] = (404, "not here")
    with raises("cluster-refuses"):
        Jobs(server.address)


def test_a_head_that_is_not_ready_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new dashboard answers before it accepts jobs and is asked again; other failures are reported at once."""
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)
    told = ["No available agent to submit job, please try again later."] * 3 + ["disk full"]
    asked: list[str] = []

    def submit_job(**job: Any) -> None:
        asked.append(job["submission_id"])
        raise RuntimeError(told.pop(0))

    jobs = Jobs(server.address)
    monkeypatch.setattr(jobs._client, "submit_job", submit_job)
    with raises("cluster-refuses"):
        jobs.submit(JobFiles({}, "name: d"), "digits", "/mnt/runs")
    assert len(asked) == 4
    assert set(asked) == {asked[0]}
    assert asked[0].startswith("digits-")


@pytest.mark.parametrize("taken", [False, True])
def test_a_connection_closed_without_an_answer_is_opened_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """A job whose answer is lost is submitted again under the same id; the cluster may have it by then."""
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(client, "RECONNECTS", 2)
    jobs = Jobs(server.address)
    there = (400, "ValueError: Job with submission_id digits-1 already exists. Please use a different one.")
    server.silent = 2
    server.answers["/api/jobs/"] = there if taken else (200, {"job_id": "1", "submission_id": "digits-1"})
    assert jobs.submit(JobFiles({}, "name: d"), "digits", "/mnt/runs").startswith("digits-")
    assert server.seen.count(("POST", "/api/jobs/")) == 3
    server.silent = 3
    with raises("connection-closed"):
        jobs.submit(JobFiles({}, "name: d"), "digits", "/mnt/runs")
    server.silent, server.answers["/api/jobs/"] = 0, there
    with raises("cluster-refuses"):
        jobs.submit(JobFiles({}, "name: d"), "digits", "/mnt/runs")


def test_stop_says_whether_it_ran(server: Server) -> None:
    """A running job is stopped; for one that has ended, the message says so."""
    for stopped, told in ((True, "is being stopped; what it did is kept"), (False, "had ended already")):
        server.answers["/api/jobs/digits-1/stop"] = (200, {"stopped": stopped})
        ended = CliRunner().invoke(app, ["stop", "digits-1", "--address", server.address])
        assert (ended.exit_code, ended.stdout) == (0, f"digits-1 {told}\n")


def test_status_lists_jobs(server: Server) -> None:
    """Without a name, the table has every job; as JSON it is complete."""
    shown = CliRunner().invoke(app, ["status", "--address", server.address])
    told = CliRunner().invoke(app, ["status", "--address", server.address, "--json"])
    assert "digits-1" in shown.stdout
    assert "running" in shown.stdout
    assert json.loads(told.stdout)["jobs"][0]["run"] == "digits"


def test_a_failed_job_fails_the_command() -> None:
    """The end of a job determines the exit code of following it."""
    job = Job(
        "digits-1", "FAILED", "Job entrypoint command failed with exit code 2.", "digits", "/r", None, None
    )
    with raises("job-failed"):
        views.refuse_failed(job, None)
    with raises("job-failed") as caught:
        views.refuse_failed(job, "http://head:8265")
    assert str(caught.value).endswith("rayddl logs digits-1 --address http://head:8265")
    with raises("job-stopped"):
        views.refuse_failed(Job("digits-1", "STOPPED", "", "", "", None, None), None)
    views.refuse_failed(Job("digits-1", "SUCCEEDED", "", "", "", None, None), None)


def test_a_broken_log_is_taken_up_where_it_broke(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection repeats the log from its beginning; every character is passed on once."""
    whole, broken = "one\ntwo\nthree\n", [3, 9]

    def tail(job: str) -> Iterator[str]:
        del job
        if broken:
            yield whole[: broken.pop(0)]
            raise ConnectionError("gone")
        server.answers["/api/jobs/digits-1"] = (200, {**KNOWN, "status": "SUCCEEDED"})
        yield whole[:5]
        yield whole[5:]

    jobs, said = Jobs(server.address), []
    monkeypatch.setattr(jobs, "_tail", tail)
    assert jobs.follow("digits-1", said.append).state == "SUCCEEDED"
    assert "".join(said) == whole


@pytest.mark.parametrize("clean", [False, True], ids=["broken", "closed"])
def test_a_long_job_is_followed_over_any_number_of_connections(
    server: Server, monkeypatch: pytest.MonkeyPatch, clean: bool
) -> None:
    """Only breaks in a row, without anything new between them, end the command; what a proxy closes is opened again."""
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)
    whole, opened = "".join(f"{n}\n" for n in range(3 * client.RECONNECTS)), 0

    def tail(job: str) -> Iterator[str]:
        nonlocal opened
        del job
        opened += 1
        yield whole if clean else whole[: 2 * opened]
        if opened > len(whole) / 2:
            server.answers["/api/jobs/digits-1"] = (200, {**KNOWN, "status": "SUCCEEDED"})
        elif not clean:
            raise RuntimeError("the websocket was closed")

    jobs, said = Jobs(server.address), []
    monkeypatch.setattr(jobs, "_tail", tail)
    assert jobs.follow("digits-1", said.append).state == "SUCCEEDED"
    assert "".join(said) == whole
    assert opened > 2 * client.RECONNECTS


def test_a_log_that_cannot_be_read_any_more_ends_the_command(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says that the job goes on, and how to follow it."""
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.0)
    opened = 0

    def tail(job: str) -> Iterator[str]:
        nonlocal opened
        del job
        opened += 1
        yield "one\n"
        raise RuntimeError("the websocket was closed")

    jobs, said = Jobs(server.address), []
    monkeypatch.setattr(jobs, "_tail", tail)
    with raises("log-broken") as caught:
        jobs.follow("digits-1", said.append)
    assert str(caught.value).endswith(f"rayddl logs digits-1 --address {server.address} --follow")
    assert said == ["one\n"]
    # The first one brought something new.
    assert opened == client.RECONNECTS + 1
