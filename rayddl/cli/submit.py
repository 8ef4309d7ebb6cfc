"""``rayddl submit``"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rayddl.cli.errors import INTERRUPTED, reporting_errors
from rayddl.cli.options import File, Grows, JobsAddress, Overrides, Plugins
from rayddl.escapes import coloured


def submit(
    file: File,
    out: Annotated[
        str,
        typer.Option(
            "--out", metavar="PATH", help="A URI or full path that every machine of the cluster sees."
        ),
    ],
    *,
    overrides: Overrides = None,
    address: JobsAddress = None,
    grows: Grows = None,
    extras: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="PATH", help="A small file or folder to ship beside it. Repeatable."),
    ] = None,
    plugin: Plugins = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the log until the job ends.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Have the run log JSON lines.")] = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Print a KubeRay RayJob for kubectl instead; needs no cluster.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="With --manifest: an image with rayddl in it."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=0, help="With --manifest: most GPU workers; 1 if not given.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=0, help="With --manifest: most CPU workers; 2 if not given.")
    ] = None,
    worker_cpus: Annotated[
        int | None,
        typer.Option("--worker-cpus", min=1, help="With --manifest: CPUs of each worker; 4 if not given."),
    ] = None,
    worker_memory: Annotated[
        str | None,
        typer.Option(
            "--worker-memory",
            metavar="SIZE",
            help="With --manifest: memory of each worker; 16Gi if not given.",
        ),
    ] = None,
    head_memory: Annotated[
        str | None,
        typer.Option(
            "--head-memory", metavar="SIZE", help="With --manifest: memory of the head; 8Gi if not given."
        ),
    ] = None,
    tolerations: Annotated[
        list[str] | None,
        typer.Option(
            "--toleration",
            metavar="KEY[=VALUE]:EFFECT",
            help="With --manifest: a taint that GPU workers tolerate, besides nvidia.com/gpu. Repeatable.",
        ),
    ] = None,
) -> None:
    """Run a definition on a cluster, as a job.

    The job continues without this machine.

    Ships the package and the definition with all that it extends. Ctrl-C stops showing the log, not the job.

    \b
    rayddl submit pipelines/quickstart.yaml --out "$PWD/runs"
    rayddl submit cifar10-mct-ipc1 --out s3://bucket/runs --set source.root=/home/me/data  # a folder on the head
    rayddl submit quickstart --out s3://bucket/runs --manifest --image registry/rayddl:1 | kubectl apply -f -
    """
    from rayddl.jobs import client, shape, shipping, views
    from rayddl.jobs.manifest import manifest_of
    from rayddl.pipeline.definition import load as definitions
    from rayddl.pipeline.plugging import use
    from rayddl.stages.runtime.capacity import parse

    with reporting_errors():
        use(tuple(plugin or ()))
        shipping.check_out(out)
        of_manifest = {
            "--image": image,
            "--gpus": gpus,
            "--cpus": cpus,
            "--worker-cpus": worker_cpus,
            "--worker-memory": worker_memory,
            "--head-memory": head_memory,
            "--toleration": tolerations,
        }
        if manifest:
            _refuse_given(
                {"--with": extras, "--address": address, "--grows": grows, "--json": as_json or None},
                "has no effect with --manifest, which prints a job for kubectl; leave one of the two out",
            )
            _refuse_given(
                {"--plugin": plugin},
                "is not in the image of --manifest; install the plugin's package there, where it is found by itself",
            )
            wanted = shape.read(of_manifest)
            typer.echo(manifest_of(definitions.load(file, tuple(overrides or ())), out, wanted), nl=False)
            return
        _refuse_given(of_manifest, "describes a cluster for kubectl; add --manifest, or leave it out")
        loaded = definitions.load(file, tuple(overrides or ()))
        options = [word for text in grows or () for word in ("--grows", str(parse(text)))] + [
            "--json"
        ] * as_json
        parcel = shipping.pack(loaded, extras or ())
        jobs = client.Jobs(address)
        job = jobs.submit(parcel, loaded.name, out, options)
        typer.echo(views.submitted(job, out, address), err=True)
        if not wait:
            typer.echo(job)
            return
        try:
            ended = jobs.follow(job, lambda text: typer.echo(coloured(text), nl=False))
        except KeyboardInterrupt:
            typer.echo(
                f"\nthe job continues; watch it again with:\n  {client.command('logs', job, address)} --follow",
                err=True,
            )
            raise typer.Exit(INTERRUPTED) from None
        views.refuse_failed(ended, address)


def _refuse_given(options: Mapping[str, Any], why: str) -> None:
    from rayddl.errors import UserError

    for option, value in options.items():
        if value is not None and value != []:
            raise UserError(f"{option} {why}", code="option-not-for-this")
