"""``rayddl schema``"""

from __future__ import annotations

import typer

from rayddl.cli.errors import reporting_errors
from rayddl.cli.options import Plugins


def schema(plugin: Plugins = None) -> None:
    """Print the JSON Schema of definitions, for editors.

    They complete and check keys with it.
    Editors with the YAML language server read it from the line `# yaml-language-server: $schema=FILE`.

    \b
    rayddl schema > rayddl.schema.json
    """
    from rayddl.pipeline.definition.jsonschema import text
    from rayddl.pipeline.plugging import use
    from rayddl.stages.kinds import known

    with reporting_errors():
        use(tuple(plugin or ()))
        typer.echo(text(known()))
