"""``rayddl run``"""

from __future__ import annotations

from rayddl.cli.errors import reporting_errors
from rayddl.cli.options import (
    Address,
    File,
    Grows,
    Json,
    NumCpus,
    Out,
    Overrides,
    Plugins,
    Quiet,
    Stages,
    Strict,
)


def run(
    file: File,
    *,
    overrides: Overrides = None,
    stage: Stages = None,
    out: Out = "runs",
    address: Address = None,
    num_cpus: NumCpus = None,
    grows: Grows = None,
    plugin: Plugins = None,
    strict: Strict = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a definition. Finished stages are not run again; an interrupted one continues.

    Stages that do not need each other run at the same time where the machine or cluster has room for them.

    \b
    rayddl run quickstart
    rayddl run pipelines/cifar10-mct-ipc1.yaml --set source.root=data --set experts.count=20
    """
    from rayddl.pipeline.api import choose_display
    from rayddl.pipeline.api import run as run_definition

    again = ["rayddl", "run", file]
    again += [word for text in overrides or () for word in ("--set", text)]
    again += [word for text in stage or () for word in ("--stage", text)]
    again += ["--out", out] if out != "runs" else []
    again += ["--address", address] if address else []
    again += ["--num-cpus", str(num_cpus)] if num_cpus else []
    again += [word for text in grows or () for word in ("--grows", text)]
    again += [word for text in plugin or () for word in ("--plugin", text)]
    again += ["--strict"] * strict + ["--json"] * as_json + ["--quiet"] * quiet
    display = choose_display(as_json=as_json, quiet=quiet)
    with reporting_errors(display, again):
        run_definition(
            file,
            overrides=tuple(overrides or ()),
            out=out,
            progress=display,
            address=address,
            num_cpus=num_cpus,
            grows=tuple(grows or ()),
            plugins=tuple(plugin or ()),
            stages=tuple(stage or ()),
            strict=strict,
        )
