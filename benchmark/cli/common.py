"""What the commands share: the application, the two consoles, options, and how one answers and refuses."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from benchmark.config import config as configs
from benchmark.errors import ConfigError, FolderError, InputError, clipped, shown, visible

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="The command `titer`.")


class PlainConsole(Console):
    """A console on which texts are texts: an escape sequence in a label or a traceback is shown, not obeyed."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed; those that control the terminal are rich's own."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


out = PlainConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)
err = PlainConsole(stderr=True, highlight=False, soft_wrap=True)
LINE = 2000  # letters of a refusal

CURE = "make room, give rights, or name another place"


def say_version(asked: bool) -> None:
    """Print the version and leave."""
    if asked:
        out.print(f"titer {version('titer')}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The command `titer`."""


Source = Annotated[str, typer.Argument(help="A preset (see `titer list presets`) or a YAML file.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run's tables; default runs/<name>.")]
StoreAt = Annotated[Path, typer.Option("--store", help="Folder of all results, shared by runs.")]
Only = Annotated[str, typer.Option(help="Keep some labels: defense=esd,attack=lora,concept=cat.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Workers on Ray; one a core, or two a GPU.")]


@contextmanager
def refusing() -> Iterator[None]:
    """Say in one line what is wrong with the user's input, or with a folder that it names, and leave with 2."""
    try:
        try:
            yield
        except BrokenPipeError:  # who read our output has gone: the framework leaves in silence
            raise
        except OSError as error:
            raise FolderError(f"expected files that can be read and written, got {error}: {CURE}.") from error
    except InputError as error:
        err.print(f"[red]{type(error).__name__}[/]: {escape(clipped(' '.join(str(error).split()), LINE))}")
        raise typer.Exit(2) from error


def tell(facts: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print facts as JSON, or else the lines that say them."""
    if as_json:
        out.print_json(json.dumps(facts))
        return
    for line in lines:
        out.print(line)


def chosen(source: str, only: str) -> configs.Config:
    """The config, restricted to `only`."""
    wanted: dict[str, tuple[str, ...]] = {}
    for part in filter(None, only.split(",")):
        key, _, label = part.partition("=")
        if not label:
            raise ConfigError(f"expected --only key=label,key=label, got {shown(part)}: for example defense=esd.")
        wanted[key] = (*wanted.get(key, ()), label)
    return configs.restrict(configs.load(source), wanted)
