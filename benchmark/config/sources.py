"""The code of a plug-in as it is on the disk now: a hash that layout, comments and documentation do not change."""

import ast
import hashlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from benchmark.config.registry import OWN, PluginKind, builtin, find, source
from benchmark.errors import TiterError


def source_of(kind: PluginKind, name: str) -> Path | None:
    """The file of a plug-in's class; None for one of a script or a notebook, whose code is in its name, and for one
    that cannot be found.
    """
    if (kind, name) in OWN:
        return None
    if name in builtin(kind):
        return source(kind, name)
    try:
        found = inspect.getsourcefile(find(kind, name))
    except (TiterError, TypeError):
        return None
    return Path(found) if found else None


@cache
def code_hash(file: Path) -> str:
    """Twelve hex digits over what a file of Python does; over its bytes, if it is not Python any more.

    A process reads each file once: what it imported stays as it is, whatever is written to the file meanwhile.
    """
    content = file.read_bytes()
    try:
        told: Any = shape(ast.parse(content))
    except (SyntaxError, ValueError):
        told = content
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]


def shape(node: ast.AST) -> tuple[Any, ...]:
    """A syntax tree as nested tuples, without places and documentation; the same for every version of Python."""
    return (type(node).__name__, *parts(node))


def parts(node: ast.AST) -> Iterator[Any]:
    """The fields of a node that say something, by name."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            kept = value[1:] if name == "body" and documents(node) else value
            found = [shape(item) if isinstance(item, ast.AST) else repr(item) for item in kept]
            if found:
                yield name, found
        elif isinstance(value, ast.AST):
            yield name, shape(value)
        elif value is not None and name not in ("kind", "type_comment"):
            yield name, repr(value)


def documents(node: ast.AST) -> bool:
    """Whether a node's body begins with its documentation."""
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
