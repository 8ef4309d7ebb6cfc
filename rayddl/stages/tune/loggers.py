"""Ray's logger callbacks by the names that a definition gives them.

Imports neither Ray nor the libraries that the callbacks write with, until one is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rayddl.errors import UserError
from rayddl.plugins import suggestion

SECRETS: Mapping[str, str] = {
    "api_key": "WANDB_API_KEY, or name a file with api_key_file",
    "tracking_token": "MLFLOW_TRACKING_TOKEN",
}
"""Options that a definition must not hold, since it is stored with the results, and what replaces each."""


@dataclass(frozen=True)
class Logger:
    """Where a logger callback is, and which library it writes with."""

    place: str
    """``module:class``."""
    library: str | None = None
    """The library's module, which is also its name for pip; ``None`` for those that need no library."""


LOGGERS: Mapping[str, Logger] = {
    "csv": Logger("ray.tune.logger:CSVLoggerCallback"),
    "json": Logger("ray.tune.logger:JsonLoggerCallback"),
    "tensorboard": Logger("ray.tune.logger:TBXLoggerCallback", "tensorboardX"),
    "mlflow": Logger("ray.air.integrations.mlflow:MLflowLoggerCallback", "mlflow"),
    "wandb": Logger("ray.air.integrations.wandb:WandbLoggerCallback", "wandb"),
}
Options = Mapping[str, Mapping[str, Any]]
"""Names of logger callbacks, each with the arguments of its class."""


def by_name(value: Any) -> Any:
    """A list of names, or a mapping of names to options or nothing, as a mapping of names to options.

    Raises ``ValueError`` for an unknown name and for secrets among the options.
    """
    if isinstance(value, list | tuple):
        value = {name: {} for name in value if isinstance(name, str)} if _texts(value) else value
    if not isinstance(value, Mapping):
        return value
    for name, options in value.items():
        if name not in LOGGERS:
            raise ValueError(f"{name!r} is no logger callback; {suggestion(name, LOGGERS, 'known ones')}")
        for secret in SECRETS:
            if isinstance(options, Mapping) and secret in options:
                raise ValueError(
                    f"{name}.{secret} is a secret, and definitions are stored with the results; "
                    f"set {SECRETS[secret]}"
                )
    return {name: {} if options is None else options for name, options in value.items()}


def or_names(schema: dict[str, Any]) -> None:
    """Describe the forms that :func:`by_name` accepts in the JSON Schema."""
    names = {"enum": list(LOGGERS)}
    del schema["type"], schema["additionalProperties"]
    schema["anyOf"] = [
        {"type": "array", "items": names},
        {"type": "object", "propertyNames": names, "additionalProperties": {"type": ["object", "null"]}},
    ]


def _texts(value: list[Any] | tuple[Any, ...]) -> bool:
    return all(isinstance(name, str) for name in value)


def unready(options: Options) -> Iterator[str]:
    """Yield why callbacks cannot be made in this environment, and what to do."""
    for name in options:
        library = LOGGERS[name].library
        if library is not None and find_spec(library) is None:
            yield f"callbacks: {name} needs {library}, which is not installed; uv pip install {library}"
            continue
        try:
            _made(name, options)
        except Exception as error:  # their constructors check options by themselves
            yield f"callbacks: {name} refuses its options {dict(options[name])}: {error}"


def made(options: Options) -> dict[str, Any]:
    """The callbacks by name. Raises :class:`UserError` for those that cannot be made here."""
    problems = list(unready(options))
    if problems:
        raise UserError("; ".join(problems), code="callback-not-ready")
    return {name: _made(name, options) for name in options}


def _made(name: str, options: Options) -> Any:
    module, _, cls = LOGGERS[name].place.partition(":")
    return getattr(importlib.import_module(module), cls)(**options[name])
