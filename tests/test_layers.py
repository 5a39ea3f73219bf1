"""Imports follow the data: config, plan, tasks, stages, store, records, leaderboards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.registry import FOLDERS, SHARED, PluginKind

PACKAGES = ("benchmark", "defenses", "attacks", "metrics", "leaderboards")
FOR_METHODS = {
    f"benchmark.{name}" for name in ("adapters", "types", "diffusion", "mini", "mini.subjects", "perceptual")
}
ORDER = (
    "types",
    "errors",
    "files",
    "garbage",
    "seeds",
    "data",
    "entries",
    "config",
    "task",
    "track",
    "plan",
    "store",
    "upkeep",
    "seen",
    "withhold",
    "stages",
    "runner",
    "rescore",
    "records",
    "published",
    "session",
    "cli",
)


def imports(file: Path) -> set[str]:
    """Every module of ours that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if node.module in PACKAGES}
    return {name for name in found if name.split(".")[0] in PACKAGES and name not in PACKAGES}


def files(name: str) -> list[Path]:
    """The files of a module, or of a package of modules."""
    found = [Path(f"benchmark/{name}.py")] if Path(f"benchmark/{name}.py").is_file() else []
    found += sorted(Path(f"benchmark/{name}").glob("*.py"))
    assert found, name
    return found


@pytest.mark.parametrize("folder", ["defenses", "attacks", "metrics"])
def test_methods_know_only_types_and_diffusion(folder: str) -> None:
    for file in Path(folder).glob("*.py"):
        ours = {name for name in imports(file) if not name.startswith(f"{folder}.")}

        assert ours <= FOR_METHODS, file


@pytest.mark.parametrize("kind", ["defense", "attack"])
def test_no_method_imports_another(kind: PluginKind) -> None:
    folder = FOLDERS[kind]
    shared = {f"{folder}.{name}" for name in {"base"} | SHARED[kind]}
    for file in Path(folder).glob("*.py"):
        assert {name for name in imports(file) if name.startswith(f"{folder}.")} <= shared, file


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_methods_share_is_there(kind: PluginKind) -> None:
    assert {name for name in SHARED[kind] if not Path(FOLDERS[kind], f"{name}.py").is_file()} == set()


def test_leaderboards_know_only_themselves() -> None:
    for file in Path("leaderboards").glob("*.py"):
        assert {name.split(".")[0] for name in imports(file)} <= {"leaderboards"}, file


def test_imports_follow_the_data() -> None:
    for at, name in enumerate(ORDER):
        later = {f"benchmark.{other}" for other in ORDER[at + 1 :]}

        assert not set().union(*map(imports, files(name))) & later, name


def test_only_the_command_prints() -> None:
    for package in PACKAGES:
        for file in Path(package).rglob("*.py"):
            calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
            assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), file


def test_listing_names_needs_no_torch() -> None:
    code = (
        "import sys; import benchmark.cli; from benchmark import catalog; "
        "[catalog.listing(kind) for kind in ('defenses', 'attacks', 'metrics', 'concepts', 'models', 'presets')]; "
        "assert 'torch' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
