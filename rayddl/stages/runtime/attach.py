"""Attaching to a Ray cluster that runs already."""

from __future__ import annotations

import logging
import socket

from rayddl.errors import UserError

CONNECT_SECONDS = 10.0
"""How long a cluster that is asked for may take to answer."""


def start(address: str, env: dict[str, str]) -> None:
    """Attach this process to the cluster at ``address``; its workers have the variables ``env``.

    Raises :class:`UserError` where none answers.
    """
    import ray

    try:
        knock(address)
        ray.init(
            address=address,
            runtime_env={"env_vars": env},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address!r} ({error}). Start one with `ray start --head`, "
            "or leave --address out to run on this machine alone."
        ) from error


def knock(address: str) -> None:
    """Raise ``OSError`` where no machine answers at ``HOST:PORT``; anything else, such as ``auto``, passes."""
    # Left alone, Ray waits minutes for a machine that does not answer.
    place, _, port = address.removeprefix("ray://").rpartition(":")
    if place and port.isdigit():
        with socket.create_connection((place.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            pass
