"""Imports follow the data: config, data -> plan -> store -> model -> run -> tables, and the commands above all.

The table is the order. A file may import what stands above its own line, and its own room; nothing below.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from benchmark.config.registry import FOLDERS, SHARED, PluginKind

PACKAGES = ("benchmark", "defenses", "attacks", "metrics", "leaderboards")
ROOT = {"types", "errors", "seeds", "tokens", "deltas", "solvers", "diffusion", "guard"}  # the files of the root
FLOORS: tuple[tuple[str, ...], ...] = (  # each floor's rooms do not import each other
    ("types", "errors", "seeds"),
    ("tokens", "deltas", "solvers"),
    ("diffusion",),
    ("guard",),
    ("given",),
    ("config", "data"),
    ("plan",),
    ("store", "mini"),
    ("model",),
    ("imports",),
    ("runner",),
    ("results",),
    ("session",),
    ("kit", "mini.recipe"),
    ("cli",),
    ("__init__",),  # `benchmark.run`
)
FOR_METHODS = {
    *(f"benchmark.{name}" for name in ROOT - {"errors"}),
    *("benchmark.mini", "benchmark.mini.subjects"),
    *("benchmark.model.adapters", "benchmark.model.perceptual", "benchmark.model.towers", "benchmark.model.places"),
}


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    files = [file for package in PACKAGES for file in sorted(Path(package).rglob("*.py"))]
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(file: Path, known: Mapping[str, Path]) -> set[str]:
    """Every module of ours that a file imports, also where it does so late; not what only type checkers read."""
    found = set()
    for node in walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}": node.module for alias in node.names}
            found |= {name if name in known else module for name, module in full.items()}
    return found & set(known)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk(child)


def room(module: str) -> str:
    """The room of a module of `benchmark`."""
    parts = module.split(".")[1:]
    if parts[:2] == ["mini", "recipe"]:
        return "mini.recipe"
    return parts[0] if parts else "__init__"


@cache
def arrows() -> dict[str, set[str]]:
    """What each module of ours imports."""
    known = modules()
    return {name: imports(file, known) - {name} for name, file in known.items()}


def upward(found: Mapping[str, set[str]]) -> list[str]:
    """The imports within `benchmark` that do not point to an earlier floor."""
    at = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    ours = {m: {t for t in to if t.startswith("benchmark.")} for m, to in found.items() if m.startswith("benchmark")}
    return [f"{m} -> {t}" for m, to in ours.items() for t in to if room(m) != room(t) and at[room(t)] >= at[room(m)]]


def circle(found: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; empty without one. A package's own `__init__` counts as the package."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(found[name]):
                if ring := visit(other, [*path, name]):
                    return ring
            done.add(name)
        return []

    return next((ring for name in sorted(found) if (ring := visit(name, []))), [])


def test_imports_follow_the_data() -> None:
    assert upward(arrows()) == []


def test_no_two_modules_import_each_other() -> None:
    assert circle(arrows()) == []


def test_an_upward_import_and_a_circle_are_seen() -> None:
    assert upward({"benchmark.plan.build": {"benchmark.store.store"}}) != []
    assert upward({"benchmark.config.config": {"benchmark.data.cards"}}) != []
    assert upward({"benchmark.store.store": {"benchmark.plan.task"}}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_room_has_its_floor_and_the_root_is_empty_but_for_what_methods_import() -> None:
    rooms = {path.name for path in Path("benchmark").iterdir() if (path / "__init__.py").is_file()}

    assert rooms | ROOT | {"mini.recipe", "__init__"} == {name for floor in FLOORS for name in floor}
    assert {file.stem for file in Path("benchmark").glob("*.py")} == ROOT | {"__init__"}


def test_every_room_says_what_comes_in_and_what_goes_out() -> None:
    for name in {name for floor in FLOORS for name in floor} - ROOT - {"__init__", "mini.recipe"}:
        text = ast.get_docstring(ast.parse(Path("benchmark", name, "__init__.py").read_text())) or ""

        assert "In: " in text and "Out: " in text, name


def test_tests_mirror_the_rooms() -> None:
    rooms = {name for floor in FLOORS for name in floor} | set(PACKAGES[1:])
    helpers = {"bench"}

    assert {path.parent.name for path in Path("tests").glob("*/__init__.py")} - helpers <= rooms
    assert {file.stem for file in Path("tests").glob("test_*.py")} == {
        f"test_{name}" for name in ("layers", "docs", "bench", "diffusion", "guard")
    }


@pytest.mark.parametrize("folder", ["defenses", "attacks", "metrics"])
def test_methods_know_only_types_and_diffusion(folder: str) -> None:
    for name, to in arrows().items():
        if name.startswith(f"{folder}."):
            assert {other for other in to if not other.startswith(folder)} <= FOR_METHODS, name


@pytest.mark.parametrize("kind", ["defense", "attack"])
def test_no_method_imports_another(kind: PluginKind) -> None:
    folder = FOLDERS[kind]
    shared = {f"{folder}.{name}" for name in {"base"} | SHARED[kind]}
    for name, to in arrows().items():
        if name.startswith(f"{folder}."):
            assert {other for other in to if other.startswith(f"{folder}.")} <= shared, name


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_methods_share_is_there(kind: PluginKind) -> None:
    assert {name for name in SHARED[kind] if not Path(FOLDERS[kind], f"{name}.py").is_file()} == set()


def test_leaderboards_know_only_themselves() -> None:
    for name, to in arrows().items():
        if name.startswith("leaderboards"):
            assert {other.split(".")[0] for other in to} <= {"leaderboards"}, name


def test_only_the_command_prints() -> None:
    for file in modules().values():
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), file


def test_listing_names_needs_no_torch() -> None:
    code = (
        "import sys; import benchmark.cli; from benchmark.cli import catalog; "
        "[catalog.listing(kind) for kind in ('defenses', 'attacks', 'metrics', 'concepts', 'models', 'presets')]; "
        "assert 'torch' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
