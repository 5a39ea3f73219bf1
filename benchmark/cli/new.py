"""The command that starts a plug-in."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.common import app, out, refusing


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="defense, attack or metric")],
    name: Annotated[str, typer.Argument(help="A lower-case Python name.")],
    to: Annotated[Path | None, typer.Option("--to", help="A new folder; by default NAME.")] = None,
) -> None:
    """Write an installable plug-in: a method that works, its test by the conformance suite and its entry point."""
    from benchmark.kit import scaffold

    with refusing():
        files = scaffold.write(kind, name, to or Path(name))
    for file in files:
        out.print(str(file))
    out.print(f"next: pip install -e {files[0].parent} && python -m pytest {files[0].parent}", markup=False)
