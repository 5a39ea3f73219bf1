"""The command that reads somebody's checkpoint."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from benchmark.cli.common import Json, app, err, refusing, tell
from benchmark.given.words import label


class Component(StrEnum):
    """The parts that a checkpoint can be of."""

    unet = "unet"
    transformer = "transformer"
    vae = "vae"
    text_encoder = "text_encoder"
    text_encoder_2 = "text_encoder_2"


class Values(StrEnum):
    """What tensors can hold."""

    weights = "weights"
    difference = "difference"


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A file, a folder, or a hub id: author/name/path@revision.")],
    base: Annotated[str, typer.Option(help="The model that it is a change of: a preset, a folder or a hub id.")],
    concept: Annotated[str, typer.Option(help="What it erases, as configs name it.")],
    method: Annotated[str, typer.Option(help="What it was trained by, such as esd.")],
    component: Annotated[
        Component | None, typer.Option(help="The part it is of, where its names do not say; or the only one to take.")
    ] = None,
    values: Annotated[
        Values | None, typer.Option(help="Whether tensors are weights or differences, where their norms do not say.")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="An empty folder; by default imports/METHOD-CONCEPT.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read somebody's trained checkpoint as a change of a base, which a config names under `use: imported`.

    The format is told by the names in it. A name that the base lacks is an error. Pickles are read in a process of
    their own, as plain tensors or not at all.
    """
    from benchmark.errors import ConfigError
    from benchmark.imports.importing import run

    with refusing():
        for option, text in (("--concept", concept), ("--method", method)):
            try:
                label(text)
            except ValueError as error:
                raise ConfigError(f"{option}: {error}.") from error
        folder = out_folder or Path("imports") / "".join(
            c if c.isalnum() or c in "._" else "-" for c in f"{method}-{concept}"
        )
        note = run(
            source,
            folder,
            base=base,
            concept=concept,
            method=method,
            component=component.value if component else "",
            values=values.value if values else None,
        )
    tell({"folder": str(folder), **note}, lines(note, folder), as_json=as_json)
    for warning in note["warnings"]:
        err.print(f"[yellow]warning[/]: {escape(warning)}")


def lines(note: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """What people want to know of an import."""
    from benchmark.imports.norms import largest

    types = ", ".join(f"{count} {name}" for name, count in note["dtype"].items())
    yield escape(f"{note['source']['address']} -> {folder}")
    yield escape(f"  {note['format']} of {', '.join(note['components'])}: {note['values']}, {types}")
    told = f"  matched {note['matched']}, missing {len(note['missing'])}, left out {len(note['left_out'])}"
    yield told if note["equal"] is None else f"{told}; {note['equal']:.0%} equal to the base's"
    for name, norm, share in largest(note["norms"]):
        yield f"  {name:16} changed by {norm:.3g}, {share:.2%} of its norm"
