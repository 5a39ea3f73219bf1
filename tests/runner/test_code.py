"""Results of other code than is there now are told and flagged, and trusted only when somebody says so."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import sources
from benchmark.plan.task import Task
from benchmark.results import published
from benchmark.runner import code
from tests.runs import write_config

runner = CliRunner()

FORMULA = '''"""What it is."""


def strength(x: float) -> float:
    """Half."""
    return 0.5 * x  # of all
'''


def hash_of(folder: Path, text: str) -> str:
    file = folder / "method.py"
    file.write_text(text)
    sources.code_hash.cache_clear()
    return sources.code_hash(file)


def test_layout_comments_and_documentation_change_nothing(tmp_path: Path) -> None:
    same = [
        '"""Other words."""\ndef strength(x: float) -> float:\n  return (0.5\n    * x)\n',
        FORMULA.replace("  # of all", ""),
    ]
    assert {hash_of(tmp_path, text) for text in same} == {hash_of(tmp_path, FORMULA)}


@pytest.mark.parametrize(
    ("old", "new"), [("0.5", "0.6"), ("* x", "* -x"), ("(x: float)", "(x: float = 1.0)"), ("return", "x = 2;return")]
)
def test_whatever_may_change_a_number_changes_the_hash(tmp_path: Path, old: str, new: str) -> None:
    assert hash_of(tmp_path, FORMULA) != hash_of(tmp_path, FORMULA.replace(old, new))


def test_what_is_no_python_is_hashed_as_it_is(tmp_path: Path) -> None:
    assert hash_of(tmp_path, "def (") != hash_of(tmp_path, "def ((")


def test_a_process_keeps_the_hash_of_what_it_imported(tmp_path: Path) -> None:
    before = hash_of(tmp_path, FORMULA)
    (tmp_path / "method.py").write_text(FORMULA.replace("0.5", "0.9"))

    assert sources.code_hash(tmp_path / "method.py") == before


def test_files_that_fields_name_are_hashed_by_their_content(tmp_path: Path) -> None:
    weights, listed = tmp_path / "a.pt", tmp_path / "b.pt"
    weights.write_bytes(b"one")
    listed.write_bytes(b"two")
    fields = {"file": str(weights), "deep": {"more": [str(listed)]}, "word": "esd", "none": "/no/such/file.pt"}
    task = Task(kind="defend", plugin="esd", version=1, base="b", fields=fields)
    before = code.code_of(task)
    weights.write_bytes(b"three")
    after = code.code_of(task)

    assert set(before) == {"defense esd", f"file {weights}", f"file {listed}"}
    assert {what for what in before if before[what] != after[what]} == {f"file {weights}"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_run: Path) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("code")
    shutil.copytree(tiny_run / "store", folder / "store")
    config = write_config(folder, tiny_folder)
    words = ["run", str(config), "--out", str(folder / "out"), "--store", str(folder / "store"), "--device", "cpu"]
    assert runner.invoke(app, words).exit_code == 0
    return folder, words


def flags_of(folder: Path) -> dict[str, str]:
    board = pd.read_csv(folder / "out" / "leaderboard.csv", keep_default_na=False)
    return dict(zip(board["defense"], board["flags"], strict=True))


def test_an_edited_method_is_told_flagged_and_trusted_only_on_demand(
    done: tuple[Path, list[str]], monkeypatch: Any
) -> None:
    folder, words = done
    again = runner.invoke(app, words)
    assert "changed since" not in again.output + "".join(flags_of(folder).values())

    edited = folder / "esd.py"
    shutil.copy(code.source_of("defense", "esd") or "", edited)
    edited.write_text(edited.read_text() + "\nEDITED = True\n")
    real = code.source_of
    monkeypatch.setattr(code, "source_of", lambda kind, name: edited if name == "esd" else real(kind, name))
    monkeypatch.setattr(published, "again", lambda *_: None)  # titer's own code has not changed here
    stale = runner.invoke(app, words)
    told = [line for line in stale.stderr.splitlines() if "changed since" in line]

    assert stale.exit_code == 0 and "ran 0" in stale.stdout
    assert len(told) == 1 and "defense esd changed since 1 result" in told[0]
    assert "raise `version`" in told[0] and "--trust-version" in told[0]
    assert "code changed since: defense esd" in flags_of(folder)["esd"]
    assert "changed since" not in flags_of(folder)["none"]
    assert "code changed since: defense esd" in stale.stdout  # under the table

    trusted = runner.invoke(app, [*words, "--trust-version"])
    assert trusted.exit_code == 0 and "changed since" not in trusted.output
    assert "changed since" not in flags_of(folder)["esd"]
    assert "changed since" not in runner.invoke(app, words).output
