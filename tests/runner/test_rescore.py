"""`titer score`: stored images and raw scores give new numbers; nothing is drawn, trained or loaded for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmark import session
from benchmark.cli import app
from benchmark.config import config
from benchmark.model import bases
from benchmark.plan import Plan
from benchmark.runner import rescore, stages
from benchmark.store import Store
from benchmark.store.artifacts import load_images
from benchmark.store.files import describe
from benchmark.store.marker import digest
from benchmark.store.store import MARKER
from metrics.presence import Presence
from tests.runs import tiny_config

JUDGE = {"use": "presence", "model": "mini:judge"}


def titer(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


class Run:
    """A copy of the finished run, in which nothing can be drawn or trained any more."""

    def __init__(self, folder: Path) -> None:
        self.source, self.out, self.store = folder / "tiny.yaml", folder / "out", Store(folder / "store")

    @property
    def plan(self) -> Plan:
        return session.prepare(
            config.load(str(self.source)), source="", out=None, store=self.store.root, claim=False
        ).plan

    def again(self, *words: object, command: str = "score") -> Result:
        return titer(command, self.source, "--out", self.out, "--store", self.store.root, *words)

    def scores(self, plugin: str) -> dict[str, pd.DataFrame]:
        """The tables of a metric in the store, by key."""
        folders = sorted((self.store.root / "score").glob(f"{plugin}-*"))
        return {f.name: pq.read_table(f / "scores.parquet").to_pandas() for f in folders}

    def drop(self, plugin: str) -> None:
        for folder in (self.store.root / "score").glob(f"{plugin}-*"):
            shutil.rmtree(folder)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.setattr("benchmark.results.report.page.write", lambda *_: None)  # a page takes longer than its tables

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("drawn, trained or loaded")

    for name in ("draw", "attack", "defend"):
        monkeypatch.setattr(stages, name, never)
    monkeypatch.setattr(bases, "load", never)
    return Run(tmp_path / "run")


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the judge looks at, call by call."""
    seen, real = list[int](), Presence.score

    def counted(self: Presence, images: Any, prompts: Any, concept: Any) -> Any:
        seen.append(len(images))
        return real(self, images, prompts, concept)

    monkeypatch.setattr(Presence, "score", counted)
    return seen


def middle(run: Run) -> float:
    """A threshold between the raw scores, so that some images change sides."""
    raw = np.concatenate([table["p"].to_numpy() for table in run.scores("presence").values()])
    low, high = np.unique(raw)[len(np.unique(raw)) // 2 - 1 :][:2]
    return float(low + high) / 2


def asked(threshold: float, **more: Any) -> str:
    return json.dumps({**JUDGE, "threshold": threshold, **more})


def test_a_threshold_is_applied_to_the_raw_scores_and_no_judge_runs(run: Run, judged: list[int]) -> None:
    old, threshold = run.scores("presence"), middle(run)

    done = run.again("--metric", asked(threshold))

    assert done.exit_code == 0, done.output
    assert f"scored 0, derived {len(old)} from raw scores, failed 0, without images 0" in done.stdout
    assert not judged
    fresh = {name: table for name, table in run.scores("presence").items() if name not in old}
    assert len(fresh) == len(old)
    values = np.concatenate([table["value"].to_numpy() for table in fresh.values()])
    expected = np.concatenate([table["p"].to_numpy() >= threshold for table in fresh.values()])
    np.testing.assert_array_equal(values, expected.astype(float))
    assert set(values) == {0.0, 1.0}


def test_derived_scores_are_those_that_the_judge_would_give(run: Run, judged: list[int]) -> None:
    threshold = middle(run)
    old = set(run.scores("presence"))
    assert run.again("--metric", asked(threshold)).exit_code == 0
    derived = {name: table for name, table in run.scores("presence").items() if name not in old}
    run.drop("presence")

    assert run.again("--metric", asked(threshold)).exit_code == 0

    assert judged
    scored = run.scores("presence")
    assert scored.keys() == derived.keys()
    for name in scored:
        pd.testing.assert_frame_equal(scored[name], derived[name])


def test_the_tables_have_the_new_numbers_and_other_metrics_stay_to_the_byte(run: Run) -> None:
    before = pd.read_csv(run.out / "cells.csv", dtype=str, keep_default_na=False)
    payload = {file: file.read_bytes() for file in run.store.root.glob("score/clip_score*/scores.parquet")}
    threshold = middle(run)

    assert run.again("--metric", asked(threshold)).exit_code == 0

    after = pd.read_csv(run.out / "cells.csv", dtype=str, keep_default_na=False)
    others = [frame[frame["number"] == "clip_score"].drop(columns=["status", "reason"]) for frame in (before, after)]
    assert others[0].to_csv() == others[1].to_csv()
    assert all(file.read_bytes() == content for file, content in payload.items())
    own = after[(after["number"] == "presence_after") & (after["attack"] == "none") & (after["defense"] == "none")]
    raw = next(run.store.path(cell.scores["presence", "concept"]) for cell in run.plan.cells if cell.defense == "none")
    table = pq.read_table(raw / "scores.parquet").to_pandas()
    wanted = (table["p"] >= threshold).groupby(table["prompt_id"]).mean().mean()
    assert own["value"].astype(float).tolist() == [pytest.approx(wanted)]
    assert own["identity"].str.contains(f">={threshold}").all()
    assert json.loads((run.out / "run.json").read_text())["config"]["metrics"][0]["threshold"] == threshold


def test_a_run_with_a_new_threshold_needs_no_judge_either(run: Run, judged: list[int]) -> None:
    text = run.source.read_text().replace(
        "model: mini:judge\n  use: presence", "model: mini:judge\n  threshold: 0.2\n  use: presence"
    )
    assert text.count("threshold") == 1
    run.source.write_text(text)

    done = run.again("--device", "cpu", command="run")

    assert done.exit_code == 0, done.output
    assert "ran 0, found" in done.stdout
    assert not judged


def test_other_weights_of_a_judge_are_asked_again(run: Run, judged: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their raw scores under one name would be another judge's."""
    real = Presence.identity
    monkeypatch.setattr(Presence, "identity", lambda self: f"{real(self)}-retrained")

    done = run.again("--metric", asked(0.4))

    assert done.exit_code == 0, done.output
    assert "derived 0 from raw scores" in done.stdout
    assert judged


def test_a_new_metric_is_computed_from_the_stored_images(run: Run) -> None:
    done = run.again("--metric", "{use: black, threshold: 0.4}")

    assert done.exit_code == 0, done.output
    cells = {cell.name: cell for cell in run.plan.cells}
    images = load_images(run.store.path(cells["cat/esd/lora@2#0"].images["concept"])).images
    dark = images.numpy().astype(np.float64).mean((1, 2, 3)) / 255 <= 0.4
    table = pd.read_csv(run.out / "cells.csv")
    row = table[(table["number"] == "black_concept") & (table["defense"] == "esd") & (table["budget"] == 2)]
    assert row["value"].tolist() == [pytest.approx(dark.mean())]
    assert set(table["number"]) >= {"presence_after", "clip_score", "black", "black_concept"}


def lost(run: Run) -> list[str]:
    """Remove the images of ESD after LoRA; the names of the cells."""
    cells = [cell for cell in run.plan.cells if cell.defense == "esd" and cell.budget]
    for cell in cells:
        for key in cell.images.values():
            shutil.rmtree(run.store.path(key))
    return [cell.name for cell in cells]


def test_cells_without_images_are_named_and_stay_partial(run: Run) -> None:
    missing = lost(run)

    done = run.again("--metric", "black")

    assert done.exit_code == 1
    assert "without images 4" in done.stdout  # two budgets, concept and safe
    assert f"{len(missing)} cells lack images" in done.stderr and all(name in done.stderr for name in missing)
    table = pd.read_csv(run.out / "cells.csv").drop_duplicates(["defense", "attack", "budget"])
    partial = table[table["status"] == "partial"]
    assert {(row.defense, row.attack, row.budget) for row in partial.itertuples()} == {
        ("esd", "lora", 1),
        ("esd", "lora", 2),
    }
    assert (partial["reason"] == "not run yet").all()


def test_a_threshold_needs_no_images(run: Run, judged: list[int]) -> None:
    lost(run)

    done = run.again("--metric", asked(0.3))

    assert done.exit_code == 0, done.output
    assert not judged


def test_two_labels_stand_beside_each_other(run: Run) -> None:
    done = run.again("--metric", asked(0.9, **{"as": "presence_strict"}), "--metric", "black")

    assert done.exit_code == 0, done.output
    numbers = set(pd.read_csv(run.out / "cells.csv")["number"])
    assert numbers >= {"presence_after", "presence_strict", "black", "clip_score"}


def test_scoring_twice_scores_nothing_twice(run: Run, judged: list[int]) -> None:
    run.drop("presence")
    assert run.again().exit_code == 0
    first = len(judged)

    done = run.again()

    assert first and len(judged) == first
    assert "scored 0, derived 0 from raw scores" in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("presense", "'presence'"),
        ("{use: presence, treshold: 1}", "'threshold'"),
        ("[1, 2]", "{use: NAME"),
        ("{", "YAML"),
    ],
)
def test_what_is_no_metric_stops_with_2(run: Run, text: str, said: str) -> None:
    before = (run.out / "run.json").read_bytes()

    done = run.again("--metric", text)

    assert done.exit_code == 2
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert (run.out / "run.json").read_bytes() == before


def test_no_store_is_one_line_and_2_and_makes_no_folder(run: Run, tmp_path: Path) -> None:
    done = titer("score", run.source, "--out", tmp_path / "o", "--store", tmp_path / "none")

    assert done.exit_code == 2
    assert "expected a titer store" in done.stderr
    assert not (tmp_path / "o").exists() and not (tmp_path / "none").exists()


def test_an_image_that_could_not_be_scored_stays_missing(run: Run) -> None:
    """Even by a metric whose rule would count a missing number as no hit."""
    assert run.again("--metric", "black").exit_code == 0
    folder = next((run.store.root / "score").glob("black-*"))
    table = pq.read_table(folder / "scores.parquet").to_pandas()
    table.loc[0, ["value", "brightness"]] = np.nan
    table.to_parquet(folder / "scores.parquet", index=False)
    marker = json.loads((folder / MARKER).read_text())
    marker["files"]["scores.parquet"] = describe(folder)["scores.parquet"]
    (folder / MARKER).write_text(json.dumps(marker | {"sha256": digest(marker)}, sort_keys=True))

    assert run.again("--metric", "{use: black, threshold: 0.9}").exit_code == 0

    key = json.loads((folder / MARKER).read_text())["identity_of"]["parents"]["images"]
    fresh = [f for f in (run.store.root / "score").glob("black-*") if key in (f / MARKER).read_text() and f != folder]
    values = pq.read_table(fresh[0] / "scores.parquet").to_pandas()["value"]
    assert values.isna().tolist() == [True] + [False] * (len(values) - 1)


def test_an_attack_that_chose_its_settings_by_a_judge_keeps_them(tmp_path: Path) -> None:
    """Another threshold on the board is no reason to train it again: its images keep their keys."""
    search = {"use": "search:lora", "develop": "bomb", "grid": {"rank": [1, 2]}}
    plain = config.parse(tiny_config(tmp_path, Path("model"), attacks=["none", search]))
    strict = rescore.with_metrics(plain, [asked(0.9)])

    made = [session.planned(given, "base") for given in (plain, strict)]

    drawn, scored = (
        [{k for k, t in plan.tasks.items() if (t.kind == "score") == s} for plan in made] for s in (False, True)
    )
    assert drawn[0] == drawn[1]
    assert scored[0] != scored[1]
