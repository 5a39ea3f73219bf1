"""Reported numbers are read whole, brought to our units, and never pass for comparable by themselves."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmark.config.registry import names
from leaderboards import reported

FILES = sorted(reported.REPORTED.glob("*.csv"))


def cells(**changes: object) -> pd.DataFrame:
    """Tidy cells: ESD on a church, before and after an attack at two budgets and two seeds."""
    row = {"defense": "esd", "concept": "church", "model": "sd14", "status": "ok", "seed": 0, "budget": 0}
    rows = [row | {"attack": "none", "number": "presence_before", "value": 0.2}]
    rows += [row | {"attack": "unlearndiffatk", "number": "presence_before", "value": 0.2}]
    rows += [
        row | {"attack": "unlearndiffatk", "number": "presence_after", "budget": budget, "seed": seed, "value": value}
        for budget, seed, value in [(50, 0, 0.9), (100, 0, 0.5), (100, 1, 0.7)]
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_every_number_names_its_source() -> None:
    found = reported.read()

    assert len(found) > 150
    assert (found[["source", "table", "defense", "metric"]] != "").all(axis=None)
    assert found["value"].notna().all()
    assert not found.duplicated(["source", "table", "defense", "attack", "setting", "concept", "model", "metric"]).any()


def test_names_of_ours_are_spelled_as_ours() -> None:
    """A row that could stand beside a number of ours does: attacks have our names, and numbers those of our tables."""
    found = reported.read()

    assert set(found["attack"]) <= {*names("attack"), "fixed prompts", ""}
    assert set(found["number"]) == {"presence_before", "presence_after", "clip_score", "fid", ""}
    assert {"none", "esd", "aegis"} <= set(found["defense"])


def test_some_numbers_are_what_was_read() -> None:
    found = reported.read()

    def value(defense: str, attack: str, concept: str, metric: str) -> float:
        rows = found[(found["defense"] == defense) & (found["attack"] == attack)]
        (only,) = rows[(rows["concept"] == concept) & (rows["metric"] == metric)]["value"]
        return float(only)

    assert value("esd", "unlearndiffatk", "church", "post-ASR") == 60
    assert value("esd", "unlearndiffatk", "garbage_truck", "post-ASR") == 24
    assert value("aegis", "unlearndiffatk", "van_gogh", "ASR2") == 12
    assert value("aegis", "ring_a_bell", "nudity", "ASR3") == 3.52
    assert value("resalign", "none", "nudity", "IP") == 0.0014


def test_nothing_reported_is_called_comparable_yet() -> None:
    assert set(reported.read()["comparable"]) == {"no"}


def test_the_columns_are_told() -> None:
    text = (reported.REPORTED / "README.md").read_text()

    assert all(f"`{name}`" in text for name in reported.COLUMNS)


def test_measured_stands_beside_reported_at_the_largest_budget() -> None:
    found = reported.beside(cells(), reported.read())

    ours = found[(found["attack"] == "unlearndiffatk") & (found["reported_concept"] == "church")]
    (row,) = ours[ours["source"].str.startswith("UnlearnDiffAtk")].to_dict("records")
    assert (row["budget"], row["measured"], row["reported"]) == (100, pytest.approx(0.6), pytest.approx(0.6))
    assert (row["differs"], row["comparable"]) == ("settings", "no")
    assert set(found["attack"]) == {"none", "unlearndiffatk"}


def test_what_differs_is_said_and_comes_last() -> None:
    found = reported.beside(cells(model="mini"), reported.read())

    assert found["differs"].tolist() == sorted(found["differs"], key=lambda text: text.count(","))
    assert set(found[found["reported_concept"] == "nudity"]["differs"]) == {"concept, model, settings"}


def test_units_are_ours() -> None:
    theirs = reported.read()
    clip = cells(number="clip_score", value=30.0).iloc[:1]

    (row,) = reported.beside(clip, theirs[theirs["source"].str.startswith("UnlearnDiffAtk")]).to_dict("records")

    assert row["reported"] == pytest.approx(30.2)


def test_only_a_stated_setting_is_comparable() -> None:
    one = reported.read()[lambda t: (t["concept"] == "church") & (t["metric"] == "post-ASR")].assign(comparable="yes")

    assert reported.beside(cells(), one)["comparable"].tolist() == ["yes"]
    assert reported.beside(cells(model="sd15"), one)["comparable"].tolist() == ["no"]


@pytest.mark.parametrize("status", ["failed", "collapsed", "partial", "skipped"])
def test_cells_that_say_nothing_stand_beside_nothing(status: str) -> None:
    assert reported.beside(cells(status=status), reported.read()).empty


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [("value,unit", "value", "expected the columns"), (",read,", ",sure,", "expected certainty to be one of")],
)
def test_a_file_with_a_fault_is_refused(tmp_path: Path, before: str, after: str, said: str) -> None:
    (tmp_path / "one.csv").write_text(FILES[-1].read_text().replace(before, after, 1))

    with pytest.raises(ValueError, match=said):
        reported.read(tmp_path)


def test_the_command_writes_and_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmark.cli.board import show_reported

    show_reported(SimpleNamespace(cells=cells()), tmp_path)

    written = pd.read_csv(tmp_path / "reported.csv")
    assert list(written) == reported.BESIDE
    assert written["comparable"].unique().tolist() == ["no"]
    assert "reported.csv" in (shown := capsys.readouterr().out)
    assert "not comparable" in shown
    assert "settings" in shown


def test_where_nobody_reports_anything_the_table_is_empty(tmp_path: Path) -> None:
    from benchmark.cli.board import show_reported

    show_reported(SimpleNamespace(cells=cells(defense="mine")), tmp_path)

    assert (tmp_path / "reported.csv").read_text().splitlines() == [",".join(reported.BESIDE)]
