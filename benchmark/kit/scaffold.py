"""`titer new`: an installable plug-in with a method that works, its test and its entry point. Loads no torch."""

import importlib.util
import re
import sys
from importlib.metadata import version
from keyword import iskeyword
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from benchmark.config import registry
from benchmark.errors import ConfigError, FolderError, unknown

STYLES = ("weight", "prompt", "reword", "sampling")  # of attacks; the first is written where none is asked for


def write(kind: str, name: str, folder: Path, style: str = "") -> list[Path]:
    """Write the package into `folder`, which must not exist; returns its files, the method's first.

    Args:
        style: of an attack: whether it changes weights, searches or rewords prompts, or starts the sampling elsewhere.

    Raises:
        ConfigError: no such kind or style, or a name that is no identifier or is taken.
        FolderError: the folder exists, or cannot be made.
    """
    known = {k: plural for k, plural in registry.FOLDERS.items() if k == kind}
    if not known:
        raise ConfigError(unknown("kind", kind, registry.FOLDERS))
    if style and (kind != "attack" or style not in STYLES):
        wanted = STYLES if kind == "attack" else ("no --kind, which only attacks have",)
        raise ConfigError(f"expected {', '.join(wanted)}, got {style!r}: choose one of these.")
    check_name(next(iter(known)), name)
    if folder.exists():
        raise FolderError(f"expected a new folder, got {str(folder)!r}, which exists: choose another with --to.")
    env = Environment(
        loader=PackageLoader("benchmark.kit"), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    words = {"kind": kind, "folder": known[kind], "name": name, "titer": version("titer")}  # type: ignore[index]
    method = env.get_template(f"{kind}{f'-{style}' if style not in ('', STYLES[0]) else ''}.py.jinja")
    camel = "".join(part.capitalize() for part in name.split("_"))
    used = re.findall(r"\w+", method.render(words | {"cls": ""}))
    words["cls"] = camel + kind.capitalize() if camel in used else camel
    texts = {
        f"{name}.py": method.render(words),
        f"test_{name}.py": env.get_template("test.py.jinja").render(words),
        "pyproject.toml": env.get_template("pyproject.toml.jinja").render(words),
        "README.md": env.get_template("README.md.jinja").render(words),
    }
    try:
        folder.mkdir(parents=True)
        for file, text in texts.items():
            (folder / file).write_text(text)
    except OSError as error:
        raise FolderError(f"expected to write into {str(folder)!r}, got {error}: choose another with --to.") from error
    return [folder / file for file in texts]


def check_name(kind: registry.PluginKind, name: str) -> None:
    """Refuse a name that Python, an installed module or another plug-in of that kind would trip over.

    Raises:
        ConfigError: one line on what is wrong.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name) or iskeyword(name):
        raise ConfigError(f"expected a lower-case Python name such as my_{kind}, got {name!r}: choose another.")
    if name in registry.names(kind):
        raise ConfigError(f"expected a new name, got {name!r}, a name that {kind}s have already: choose another.")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise ConfigError(f"expected a new name, got {name!r}, which is an installed module: choose another.")
