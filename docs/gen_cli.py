"""The page of the command, written while the site is built from what `titer --help` reads."""

from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from benchmark import cli

EXAMPLES = """
Every option is also in `titer COMMAND --help`.
`titer --install-completion` makes the shell complete commands and options.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "cli.md", content="\n".join(page())))
    return files


def page() -> Iterator[str]:
    """The lines of the page."""
    from typer.main import get_command

    codes = (cli.__doc__ or "").partition("Exit codes: ")[2]
    yield f"# Command\n\nExit codes: {' '.join(codes.split())}\n{EXAMPLES}"
    for path, command in commands(get_command(cli.app), ("titer",)):
        yield f"\n## {' '.join(path)} {{ #{'-'.join(path)} }}\n\n{text(command.help)}\n"
        words = [argument(param) for param in command.params if param.param_type_name == "argument"]
        yield f"```text\n{' '.join([*path, *words, '[OPTIONS]'])}\n```\n"
        yield "| argument or option | default | what |\n| --- | --- | --- |"
        for param in command.params:
            yield f"| {names(param)} | {default(param)} | {text(getattr(param, 'help', ''))} |"


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*path, name))


def argument(param: Any) -> str:
    """An argument as a usage line shows it."""
    name = (param.name or "").upper()
    return f"{name}..." if param.nargs == -1 else name


def names(param: Any) -> str:
    """How an argument or option is written."""
    if param.param_type_name == "argument":
        return f"`{argument(param)}`"
    return ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])


def default(param: Any) -> str:
    """The default as a word; nothing where there is none."""
    value = getattr(param, "default", None)
    if param.required:
        return "required"
    if value is None or callable(value) or value is False or value == "" or "UNSET" in repr(value).upper():
        return ""
    return f"`{value}`"


def text(words: str | None) -> str:
    """Help in one line that is safe in a table."""
    return " ".join((words or "").split()).replace("|", "\\|").replace("<", "&lt;")
