"""Options shared by several commands."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer


def _definitions(typed: str) -> list[str]:
    from rayddl.pipeline.definition.reading import names

    return [name for name in names() if name.startswith(typed)]


File: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A definition file, or the name of a shipped one.", autocompletion=_definitions
    ),
]
Plugins: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE|FILE",
        help="Load networks, sources and methods of your own from here. Repeatable.",
    ),
]
Set: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SET", help="A set's or stage's folder, a run record, a run's name, or hf://owner/name."
    ),
]
SetStage: TypeAlias = Annotated[
    str | None,
    typer.Option("--stage", metavar="NAME", help="Of several sets, the one that this stage made."),
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. experts.count=20. Repeatable."),
]
Stages: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--stage", metavar="NAME", help="Run only this stage and what it needs. Repeatable."),
]
Out: TypeAlias = Annotated[
    str,
    typer.Option(
        "--out", metavar="PATH", help="Where runs are stored: a folder or URI (s3://, gs://, file://)."
    ),
]
Address: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="ADDRESS", help="Attach to this Ray cluster; 'auto' for the running one."
    ),
]
Grows: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--grows",
        metavar="GROUP",
        help="Nodes that the cluster's autoscaler may bring, e.g. 4xCPU:8,GPU:1. Repeatable.",
    ),
]
AllowRemote: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-remote", help="Contact the hosts that a definition or set names, not only those given here."
    ),
]
JobsAddress: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, else http://127.0.0.1:8265.",
    ),
]
JobId: TypeAlias = Annotated[str, typer.Argument(metavar="JOB", help="The id that rayddl submit printed.")]
NumCpus: TypeAlias = Annotated[
    int | None,
    typer.Option("--num-cpus", metavar="N", min=1, help="CPUs that local Ray takes; default: all."),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, nothing else.")]
Strict: TypeAlias = Annotated[
    bool, typer.Option("--strict", help="Warnings about results that will disappoint are errors.")
]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but the result.")]

Nets = Annotated[
    list[str] | None, typer.Option("--net", metavar="NET", help="A network to train. Repeatable.")
]
Seeds = Annotated[int | None, typer.Option("--seeds", metavar="N", min=1, help="Students per net.")]
Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", min=1, help="Epochs of each.")]
Root = Annotated[
    str | None, typer.Option("--root", metavar="PATH", help="The folder of the real images, if it has moved.")
]
