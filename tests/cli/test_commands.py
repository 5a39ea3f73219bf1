"""The command: bad input is one line and exit code 2 before any model is loaded; a good run ends with its tables."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.cli.run import warn
from benchmark.config.config import load
from benchmark.model import bases
from tests.runs import run, write_config

runner = CliRunner()


def titer(*words: object) -> Result:
    return runner.invoke(app, [str(word) for word in words])


class Done(NamedTuple):
    """A finished run: a folder with all that it wrote, the arguments to run it there, and what it printed."""

    folder: Path
    words: list[object]
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Done:
    """The tiny run, in a folder of our own."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    shutil.copytree(tiny_run, folder)
    words = ["run", folder / "tiny.yaml", "--out", folder / "out", "--store", folder / "store", "--device", "cpu"]
    return Done(folder, words, *((folder / name).read_text() for name in ("stdout", "stderr")))


def test_a_run_ends_with_its_tables(done: Done, tiny_run: Path) -> None:
    folder = done.folder

    assert "leaderboard" in done.stdout
    assert str(tiny_run / "out" / "leaderboard.csv") in done.stdout
    names = {p.name for p in (folder / "out").iterdir()}
    assert names >= {"run.json", "cells.csv", "leaderboard.csv", "matrix.csv", "curves.csv", "records.csv"}


def test_the_leaderboard_has_the_columns_of_the_design(done: Done) -> None:
    folder, *_ = done
    board = pd.read_csv(folder / "out" / "leaderboard.csv")

    wanted = [
        "rank",
        "defense",
        "model",
        "scenario",
        "concepts",
        "titer",
        "worst_presence",
        "worst_presence_low",
        "worst_presence_high",
        "worst_attack",
        "presence_before",
        "clip_score",
        "kid",
        "fid",
        "lpips",
        "retained_accuracy",
        "benign_adaptation",
        "defend_seconds",
        "peak_memory_mib",
        "status",
        "images",
        "attack_seeds",
        "judge",
        "fidelity",
    ]
    assert list(board.columns[: len(wanted)]) == wanted
    assert set(board.defense) == {"none", "esd"}
    assert board.set_index("defense").fidelity.to_dict() == {"none": "control", "esd": "official-matched"}


def test_the_same_command_computes_nothing(done: Done, monkeypatch: Any) -> None:
    """And it loads no model."""
    folder, words, *_ = done
    before = {p.name: p.read_bytes() for p in (folder / "out").glob("*.csv")}
    monkeypatch.setattr(bases, "load", None)

    result = titer(*words)

    assert result.exit_code == 0
    assert "ran 0, found" in result.stdout
    assert {p.name: p.read_bytes() for p in (folder / "out").glob("*.csv")} == before


def test_a_run_as_json_is_one_object_on_the_standard_output(done: Done) -> None:
    folder, words, *_ = done
    board = pd.read_csv(folder / "out" / "leaderboard.csv")

    found = json.loads(titer(*words, "--json").stdout)

    assert (found["ran"], found["failed"], found["failures"]) == (0, 0, {})
    assert found["found"] > 0
    assert found["folder"] == str(folder / "out")
    assert [row["defense"] for row in found["leaderboard"]] == list(board["defense"])
    assert [row["presence_before"] for row in found["leaderboard"]] == pytest.approx(list(board["presence_before"]))


def test_a_quiet_run_says_nothing(done: Done, tiny_folder: Path, tmp_path: Path) -> None:
    _, words, *_ = done
    config = write_config(tmp_path, tiny_folder, defenses=["none"], attacks=["none"])

    again = titer(*words, "--quiet")
    new = titer("run", config, "--out", tmp_path / "o", "--store", tmp_path / "s", "--device", "cpu", "--quiet")

    assert (again.output, new.output) == ("", "")
    assert (again.exit_code, new.exit_code) == (0, 0)
    assert (tmp_path / "o" / "leaderboard.csv").is_file()


def test_a_run_without_a_terminal_says_how_far_it_is(done: Done) -> None:
    lines = [line for line in done.stderr.splitlines() if " ran " in line]

    count = len(lines)
    assert [line.split()[0] for line in lines] == [f"{n + 1}/{count}" for n in range(count)]
    assert all(re.search(r", about \d+:\d\d:\d\d left$", line) for line in lines[:-1])
    assert not lines[-1].endswith("left")


def test_board_status_and_plan_read_what_is_there(done: Done) -> None:
    folder, words, *_ = done
    config, store = words[1], ["--store", folder / "store"]

    status = json.loads(titer("status", config, *store, "--json").stdout)
    plan = json.loads(titer("plan", config, *store, "--json").stdout)

    assert status["left"] == 0
    assert status["done"] == status["tasks"] == plan["tasks"]
    assert plan["passes"] < plan["requested_passes"]
    assert titer("board", config, *store, "--out", folder / "out").exit_code == 0


def test_looking_makes_no_folder(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c", tiny_folder)

    assert titer("plan", config).exit_code == titer("status", config).exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"c"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defences": []}, "did you mean 'defenses'"),
        ({"concepts": ["catt"]}, "unknown concept 'catt': did you mean 'cat'"),
        ({"model": "no/such/model/here"}, "expected a model preset"),
        ({"defenses": ["nome"]}, "did you mean 'none'"),
    ],
)
def test_a_bad_config_stops_with_2(
    tiny_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(bases, "load", None)
    config = write_config(tmp_path, tiny_folder, **changes)

    result = titer("run", config, "--out", tmp_path / "out", "--store", tmp_path / "store")

    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_model_folder_without_a_part_stops_with_2(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vae")

    result = titer("plan", write_config(tmp_path, tmp_path / "model"))

    assert result.exit_code == 2
    assert "which lacks vae" in result.stderr


def test_an_unknown_preset_or_label_stops_with_2(tiny_folder: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_folder)

    for words in (("run", "demmo"), ("plan", config, "--only", "defense=ese"), ("plan", config, "--only", "esd")):
        result = titer(*words)
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1


def test_folders_of_something_else_are_refused_and_untouched(done: Done, tiny_folder: Path, tmp_path: Path) -> None:
    folder, words, *_ = done
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    other = write_config(tmp_path / "c", tiny_folder, name="other")

    for out, store in (("mine", "s"), ("o", "mine")):
        result = titer("run", other, "--out", tmp_path / out, "--store", tmp_path / store)
        assert result.exit_code == 2
        assert "choose another" in result.stderr
    taken = titer("run", other, "--out", folder / "out", "--store", folder / "store")
    assert (taken.exit_code, "another run's" in taken.stderr) == (2, True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert titer(*words).exit_code == 0


def test_some_failed_cells_end_with_1(tiny_folder: Path, tiny_run: Path, tmp_path: Path) -> None:
    bad = {"use": "esd", "as": "diverges", "steps": 3, "ddim_steps": 2, "lr": 1e30}
    result = run(tmp_path, tiny_folder, store=tiny_run / "store", defenses=["none", bad], attacks=["none"])

    assert result.exit_code == 1
    assert "expected a finite loss" in result.stderr
    assert "diverges on cat" in json.loads((tmp_path / "out" / "failures.json").read_text())
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert set(cells[cells.defense == "diverges"].status) == {"failed"}
    words = ("run", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu")
    as_json = titer(*words, "--json")
    assert as_json.exit_code == 1
    assert "expected a finite loss" in json.loads(as_json.stdout)["failures"]["diverges on cat"]
    assert "expected a finite loss" in titer(*words, "--quiet").stderr


@pytest.mark.parametrize("what", ["defenses", "attacks", "metrics", "concepts", "models", "presets"])
def test_everything_can_be_listed_and_shown(what: str) -> None:
    rows = json.loads(titer("list", what, "--json").stdout)

    assert rows
    if what != "models":
        for row in rows:
            shown = titer("show", row["name"])
            assert shown.exit_code == 0, row


def test_show_prints_the_fidelity_badge() -> None:
    shown = titer("show", "esd").stdout

    assert "official-matched" in shown
    assert "https://arxiv.org/abs/2303.07345" in shown
    assert '"eta": 1.0' in shown


def test_a_card_is_shown_whole_by_its_name_and_from_a_file(tmp_path: Path) -> None:
    shipped = json.loads(titer("show", "cigarette", "--json").stdout)["concept"]
    write_config(tmp_path, tmp_path)
    own = json.loads(titer("show", tmp_path / "cat.yaml", "--json").stdout)["concept"]

    assert {"labels", "wordings", "paraphrases", "phrase", "kind", "prompts"} <= shipped.keys()
    assert own["labels"] == {"cat": "an emoji of a cat", "dog": "an emoji of a dog", "something else": "something else"}
    assert own["paraphrases"] == ["kitten", "small pet"]
    assert own["prompts"]["concept"] == ["a cat one [cat]", "a cat two [cat]"]
    assert own["prompts"]["safe"] == ["dog one", "dog two"]


def test_the_version_is_told() -> None:
    from importlib.metadata import version

    assert titer("--version").stdout.strip() == f"titer {version('titer')}"


def test_what_is_left_out_is_said_once_for_all_defenses(tiny_folder: Path, tmp_path: Path) -> None:
    defenses = ["none", *({"use": "esd", "as": f"d{i}", "steps": i + 1} for i in range(5))]
    config = write_config(tmp_path, tiny_folder, defenses=defenses, attacks=["none", "lora"], budgets=[])
    lines = [line for line in titer("plan", config, "--store", tmp_path / "s").stdout.splitlines() if "skipped" in line]

    assert lines == ["  skipped lora on cat (6 defenses): the config has no budgets"]


def test_a_config_without_a_clip_score_is_told_what_it_gives_up(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = {"use": "presence", "model": "mini:judge"}
    bare = write_config(tmp_path / "bare", tiny_folder, metrics=[judge])
    full = write_config(tmp_path / "full", tiny_folder)
    told = {config: titer("plan", config, "--store", tmp_path / "s").stdout for config in (bare, full)}

    assert "without clip_score nothing tells that images of other things fell apart" in told[bare]
    assert "without clip_score" not in told[full]
    job = SimpleNamespace(plan=SimpleNamespace(config=load(str(bare))), changed=list)
    warn(job)
    assert "without clip_score" in capsys.readouterr().err


def test_a_board_as_json_is_one_object(done: Done) -> None:
    folder, words, *_ = done
    result = titer("board", words[1], "--out", folder / "out", "--store", folder / "store", "--json")

    assert [row["defense"] for row in json.loads(result.stdout)["leaderboard"]] == ["esd", "none"]


def test_an_unknown_name_names_the_nearest() -> None:
    for words, near in ((("show", "patronos"), "'patronus'"), (("list", "defense"), "'defenses'")):
        result = titer(*words)
        assert result.exit_code == 2
        assert near in result.stderr


def test_the_doctor_finds_this_installation_well() -> None:
    checks = json.loads(titer("doctor", "--json").stdout)

    assert all(check["ok"] for check in checks), checks


def test_a_board_over_two_runs_has_the_rows_of_both(done: Done, tiny_folder: Path, tmp_path: Path) -> None:
    folder, words, *_ = done
    store = ["--store", folder / "store"]
    other = {"use": "esd", "as": "other", "steps": 1, "ddim_steps": 3, "lr": 0.01}
    second = write_config(tmp_path, tiny_folder, name="second", defenses=["none", other], attacks=["none"])
    assert titer("run", second, *store, "--out", tmp_path / "second").exit_code == 0

    result = titer("board", words[1], second, *store, "--out", tmp_path / "both")

    assert result.exit_code == 0, result.output
    both, one = (pd.read_csv(path / "leaderboard.csv") for path in (tmp_path / "both", folder / "out"))
    assert set(both.defense) == {"none", "esd", "other"}
    ours = [frame[frame.defense == "esd"].drop(columns="rank").reset_index(drop=True) for frame in (both, one)]
    pd.testing.assert_frame_equal(*ours)


def test_runs_that_drew_differently_are_not_merged(done: Done, tiny_folder: Path, tmp_path: Path) -> None:
    folder, words, *_ = done
    drawn = write_config(tmp_path, tiny_folder, name="drawn", sampling={"steps": 3, "guidance": 2.0})

    result = titer("board", words[1], drawn, "--store", folder / "store", "--out", tmp_path / "both")

    assert result.exit_code == 2
    assert not (tmp_path / "both").exists()


def test_an_export_of_what_was_not_run_says_so(tiny_folder: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_folder)

    result = titer("export", config, "cat/esd", "--to", tmp_path / "model", "--store", tmp_path / "store")

    assert result.exit_code != 0
    assert not (tmp_path / "model").exists()
