"""The pages of the methods, written while the site is built: from docstrings, class data and fields of every plug-in.

What people read is what the code says: nothing about a method is written a second time.
"""

import ast
import dataclasses
import html
import importlib
import inspect
import io
import json
import re
import tokenize
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from benchmark.cli import catalog
from benchmark.config import registry

HEADINGS = (
    *("Paper", "Code", "Differs", "Symbols", "Protects", "Access", "Budget"),
    *("Direction", "Range", "Per", "Backbone", "Reference"),
)
HEADING = re.compile(rf"({'|'.join(HEADINGS)})\s\s+(.*)")
ADDRESS = re.compile(r"https?://[^\s,;)]+[^\s,;).]")
INTRODUCTIONS = {
    "defense": "A defense trains a change of the model's weights that is meant to keep a concept from being drawn. "
    "The badge says how close the file is to its paper (`official-matched`: computed beside the official code, and "
    "equal to rounding); *matched* says what was compared.",
    "attack": "An attack tries to bring the concept back: by fine-tuning, by searching words, or by starting the "
    "sampling elsewhere. The controls are `none` and `random_prefix`.",
    "metric": "A metric scores images, pairs of images, or sets of images. "
    "[Read the leaderboard](../board.md) says under which columns the scores appear.",
}
FACTS = {
    "defense": {"fidelity": "Fidelity", "matched": "Matched", "needs": "Images it needs", "version": "Version"},
    "attack": {
        "changes": "Changes",
        "access": "Attacker's access",
        "needs": "Images it needs",
        "uses_base": "Reads the undefended model",
        "version": "Version",
    },
    "metric": {
        "per": "Scores",
        "splits": "Splits",
        "higher_is": "Higher is better for",
        "bounds": "Bounds",
        "reads_concept": "Reads the concept card",
        "after_attack": "Taken after attacks",
        "version": "Version",
    },
}
APPENDICES = {"metric": {"Judges": "metrics.judges", "Embedders": "metrics.embedders"}}
OVERVIEW = {"defense": "fidelity", "attack": "changes", "metric": "per"}
PER = {
    "image": "each image",
    "pair": "each image beside the base's",
    "set": "a set of images beside the base's",
    "reference": "each image beside those that the attack is taught with",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each kind of plug-in."""
    for plural, kind in catalog.KINDS.items():
        files.append(File.generated(config, f"methods/{plural}.md", content="\n".join(page(kind))))
    return files


def page(kind: registry.PluginKind) -> Iterator[str]:
    """The lines of a page: what all of a kind have in common, a table, and a section for each."""
    names = registry.builtin(kind)
    yield f"# {registry.FOLDERS[kind].capitalize()}\n\n{INTRODUCTIONS[kind]}"
    yield (
        f"\nGenerated from the source, `{registry.FOLDERS[kind]}/*.py`; `titer show NAME` prints the same for what is "
        "installed, plug-ins of others included.\n"
    )
    yield f"| name | what | {FACTS[kind][OVERVIEW[kind]].lower()} |\n| --- | --- | --- |"
    for name in names:
        cls = registry.find(kind, name)
        first = catalog.documentation(cls).split("\n")[0]
        yield f"| [{name}](#{name}) | {prose(first)} | {prose(str(getattr(cls, OVERVIEW[kind])))} |"
    for name in names:
        yield from section(kind, name)
    for title, module in APPENDICES.get(kind, {}).items():
        yield f"\n## {title} {{ #{title.lower()} }}\n"
        for what, text in blocks(inspect.cleandoc(importlib.import_module(module).__doc__ or "")):
            yield columns(text) if what == "columns" else f"<p>{prose(text)}</p>\n"


def section(kind: registry.PluginKind, name: str) -> Iterator[str]:
    """Everything about one plug-in."""
    cls = registry.find(kind, name)
    yield f"\n## {name} {{ #{name} }}\n"
    found: dict[str, str] = {}
    for what, text in blocks(catalog.documentation(cls)):
        if what == "prose":
            yield f"<p>{prose(text)}</p>\n"
        elif what in ("equations", "columns"):
            yield {"equations": equations, "columns": columns}[what](text)
        else:
            found[what] = text
    yield f"<p>{prose(inspect.cleandoc(cls.__doc__ or ''))}</p>\n"
    yield definitions({**facts(kind, cls), **{what: prose(text) for what, text in found.items()}})
    yield fields(cls)
    yield presets(cls)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The parts of a docstring in order: prose, equations (what is indented), columns, and what its headings head."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        heading = HEADING.match(lines[at])
        start, at = at, at + 1
        if heading:
            at = run_of(lines, at, lambda line: line.startswith("      "))
            yield heading[1], " ".join([heading[2], *(line.strip() for line in lines[start + 1 : at])])
        elif lines[start].startswith("    "):
            at = run_of(lines, at, lambda line: line.startswith("    ") or not line)
            yield "equations", inspect.cleandoc("\n".join(lines[start:at]).rstrip())
        elif lines[start]:
            at = run_of(lines, at, lambda line: bool(line) and line[0] != " " and not HEADING.match(line))
            part = lines[start:at]
            has_columns = len(part) > 1 and all(re.search(r"\S {2,}\S", line) for line in part)
            yield ("columns", "\n".join(part)) if has_columns else ("prose", " ".join(part))


def run_of(lines: list[str], at: int, belongs: typing.Callable[[str], bool]) -> int:
    """Where the lines from `at` that belong together end."""
    while at < len(lines) and belongs(lines[at]):
        at += 1
    return at


def equations(text: str) -> str:
    """Equations as they stand; the name of one comes nearer to it, so that lines are short."""
    lines = [re.sub(r" {4,}(\([^()]*\))$", r"    \1", line) for line in text.split("\n")]
    return f'<pre class="equations"><code>{html.escape(chr(10).join(lines))}</code></pre>\n'


def columns(text: str) -> str:
    """Lines of a name and what it is, as a table."""
    rows = [re.split(r" {2,}", line, maxsplit=1) for line in text.split("\n")]
    return table(("name", "what it is"), [(f"<code>{plain(name)}</code>", prose(what)) for name, what in rows])


def prose(text: str) -> str:
    """Text as HTML: what is between backticks is code, addresses are links, and nothing else is Markdown."""
    parts = text.split("`")
    return "".join(f"<code>{plain(part)}</code>" if i % 2 else linked(part) for i, part in enumerate(parts))


def linked(text: str) -> str:
    """Escaped text, with its addresses as links."""
    found, last = [], 0
    for match in ADDRESS.finditer(text):
        address = html.escape(match[0])
        found += [plain(text[last : match.start()]), f'<a href="{address}">{plain(match[0])}</a>']
        last = match.end()
    return "".join([*found, plain(text[last:])])


def plain(text: str) -> str:
    """Text that neither HTML nor Markdown reads as its own."""
    return re.sub(r"[&<>\"'*_|\[\]\\~^#!{}]", lambda match: f"&#{ord(match[0])};", text)


def facts(kind: registry.PluginKind, cls: type[Any]) -> dict[str, str]:
    """The class data of a plug-in as HTML."""
    return {label: fact(name, getattr(cls, name)) for name, label in FACTS[kind].items()}


def fact(name: str, value: Any) -> str:
    """One class attribute in words."""
    if name == "fidelity":
        return f'<span class="badge {html.escape(value)}">{plain(value)}</span>'
    if name == "per":
        return PER.get(value, value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "none"
    if name == "bounds":
        return " to ".join(f"{end:g}" for end in value)
    return prose(str(value))


def definitions(pairs: dict[str, str]) -> str:
    """Terms and their HTML, as a list."""
    rows = (f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in pairs.items())
    return f'<dl class="facts">{"".join(rows)}</dl>\n'


def fields(cls: type[Any]) -> str:
    """The fields with types, defaults and where the values come from."""
    own = dataclasses.fields(cls)
    if not own:
        return "<p>It has no fields.</p>\n"
    hints, sources = typing.get_type_hints(cls), comments(cls)
    rows = []
    for field in own:
        default = catalog.default(field)
        shown = default if default == "required" else f"<code>{plain(json.dumps(default))}</code>"
        kind = plain(typed(hints[field.name]))
        rows.append((f"<code>{plain(field.name)}</code>", kind, shown, prose(sources.get(field.name, ""))))
    return table(("field", "type", "default", "where it comes from"), rows)


def typed(hint: Any) -> str:
    """A type as people write it; the words of a Literal."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(typed(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = [part for part in typing.get_args(hint) if part is not ...]
        return f"list of {' and '.join(dict.fromkeys(map(typed, inner)))}"
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def comments(cls: type[Any]) -> dict[str, str]:
    """What stands behind each field in the source."""
    found: dict[str, str] = {}
    for owner in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        source = inspect.cleandoc("\n" + inspect.getsource(owner))
        words = tokenize.generate_tokens(io.StringIO(source).readline)
        by_line = {word.start[0]: word.string.lstrip("# ") for word in words if word.type == tokenize.COMMENT}
        body = next(node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found[node.target.id] = " ".join(by_line[line] for line in lines if line in by_line)
    return found


def presets(cls: type[Any]) -> str:
    """The named field values, if there are any."""
    rows = [
        (
            f"<code>{plain(name)}</code>",
            f"<code>{plain(json.dumps(dict(values), default=list))}</code>" if values else "the defaults",
        )
        for name, values in getattr(cls, "presets", {}).items()
    ]
    return table(("preset", "values"), rows) if rows else ""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """An HTML table of HTML fields."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>\n"
