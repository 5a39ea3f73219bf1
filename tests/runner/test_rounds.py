"""Rounds: the worst arm of each row is drawn anew, the same images whenever the run was killed."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from benchmark import session
from benchmark.config import config
from benchmark.model.generate import seed_of
from benchmark.plan import Plan
from benchmark.plan.rounds import confirm, most
from benchmark.plan.seeds import CONFIRM
from benchmark.results import records
from benchmark.session.rounds import added
from benchmark.types import Prompt
from leaderboards.confirm import UNCONFIRMED
from tests.runs import run, tiny_config

IMAGES = 2
SEES_ALL = [  # a judge that sees the concept in every image: no cell of a model with random weights counts otherwise
    {"use": "presence", "model": "mini:judge", "threshold": 0.0},
    {"use": "clip_score", "model": "mini:judge"},
]


def planned(folder: Path, model: Path, **changes: object) -> Plan:
    return session.planned(config.parse(tiny_config(folder, model, **{"confirm": IMAGES} | changes)), "base")


@pytest.fixture(scope="module")
def plan(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("rounds"), tiny_folder, seeds=[0, 1])


def test_a_round_adds_images_and_scores_of_the_worst_arm_alone(plan: Plan) -> None:
    before, cells = dict(plan.tasks), list(plan.cells)
    found = confirm(plan, {("relearn", "esd"): ("lora", 2)})
    more = [found.tasks[key] for key in found.tasks if key not in before]

    assert plan.tasks == before and plan.cells == cells
    assert sorted(task.kind for task in more) == ["generate"] * 2 + ["score"] * 2  # of two attack seeds
    assert [cell.name for cell in found.cells if cell.rounds] == ["cat/esd/lora@2#0", "cat/esd/lora@2#1"]
    for cell in (cell for cell in found.cells if cell.rounds):
        old, new = (found.tasks[key] for key in (cell.images["concept"], cell.rounds[0].images))
        assert dict(old.parents) == dict(new.parents) and old.prompts == new.prompts
        assert new.fields == {**old.fields, "images": IMAGES, "stream": CONFIRM}
        assert new.passes == old.passes * IMAGES // old.fields["images"]
    assert set(added(plan, found).tasks) > {task.key for task in more}
    assert added(plan, plan).tasks == {}


def test_the_plan_knows_what_it_costs_at_most(plan: Plan, tiny_folder: Path, tmp_path: Path) -> None:
    rows = {(cell.concept.scenario, cell.defense) for cell in plan.cells}
    costs = [confirm(plan, dict.fromkeys(rows, arm)).passes - plan.passes for arm in (("none", 0), ("lora", 2))]

    assert most(plan) == max(costs) > min(costs) > 0
    assert most(planned(tmp_path, tiny_folder, confirm=0)) == 0


def test_without_it_nothing_is_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    off = planned(tmp_path, tiny_folder, confirm=0)

    assert confirm(off, {("relearn", "esd"): ("lora", 2)}).tasks == off.tasks


def test_no_fresh_image_has_a_seed_that_was_drawn() -> None:
    own = Prompt(text="a cat", split="concept", seed=7)
    bare = Prompt(text="a cat", split="concept")
    seeds = [seed_of(prompt, i, stream) for prompt in (own, bare) for i in range(4) for stream in ("", CONFIRM)]

    assert seed_of(own, 0, "") == 7 != seed_of(own, 0, CONFIRM)
    assert not {*seeds[::2]} & {*seeds[1::2]}


@pytest.fixture(scope="module")
def done(tiny_folder: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run whose worst arms were drawn anew, from a store that had all but these."""
    folder = tmp_path_factory.mktemp("confirmed")
    result = run(folder, tiny_folder, store=tiny_run / "store", confirm=IMAGES, metrics=SEES_ALL)
    assert result.exit_code == 0, result.output
    return folder


def again(done: Path, folder: Path) -> session.Session:
    """The run of a folder's config with another's store."""
    folder.mkdir()
    shutil.copytree(done / "store", folder / "store")
    source = done / "tiny.yaml"
    settings = {"source": str(source), "out": folder / "out", "store": folder / "store"}
    return session.prepare(config.parse(yaml.safe_load(source.read_text())), **settings)


def test_a_run_draws_the_worst_arms_anew_and_reports_these_images(done: Path) -> None:
    board = pd.read_csv(done / "out" / "leaderboard.csv").set_index("defense")
    cells = pd.read_csv(done / "out" / "cells.csv")

    for name, row in board.iterrows():
        attack, budget = row["worst_attack"].split("@")
        own = cells[(cells["defense"] == name) & (cells["number"] == "confirmed")]
        assert set(own["attack"]) == {attack} and set(own["budget"]) == {int(budget)}
        assert row["worst_presence"] == pytest.approx(own["value"].mean())
        assert row["confirmed"] == own["n"].sum() == 2 * IMAGES
        assert UNCONFIRMED not in str(row["flags"])


def test_a_killed_run_goes_on_to_the_same_tables(done: Path, tmp_path: Path) -> None:
    job = again(done, tmp_path / "again")
    assert not job.left and job.later < most(job.first)
    for cell in job.plan.cells:
        for later in cell.rounds:
            for key in (*later.scores.values(), later.images):
                if job.store.has(key):
                    job.store.remove(job.store.path(key))
    lost = job.left
    assert {task.kind for task in lost} == {"generate", "score"}

    outcome = job.run(Silent(), device="cpu", batch=64)

    assert sorted(outcome.ran) == sorted(task.key for task in lost)
    for name in ("leaderboard.csv", "cells.csv", "comparisons.csv", "pareto.csv"):
        assert (tmp_path / "again/out" / name).read_bytes() == (done / "out" / name).read_bytes(), name


def test_the_arm_goes_by_the_first_round_alone(done: Path, tmp_path: Path) -> None:
    job = again(done, tmp_path / "by_first")
    frames = records.scores(job.plan, job.store), records.scores(job.first, job.store)

    assert set(frames[0]["split"]) - set(frames[1]["split"]) == {"confirm"}
    drawn = [job.store.path(later.images) / "images.parquet" for cell in job.plan.cells for later in cell.rounds]
    first = [job.store.path(cell.images["concept"]) / "images.parquet" for cell in job.first.cells]
    seeds = [{*pq.read_table(file, columns=["seed"])["seed"].to_pylist()} for file in (*drawn, *first)]
    assert not set().union(*seeds[: len(drawn)]) & set().union(*seeds[len(drawn) :])


class Silent:
    """Events that nobody watches."""

    def started(self, task: object) -> None: ...

    def step(self, *, step: int, total: int, loss: float) -> None: ...

    def finished(self, task: object, outcome: str) -> None: ...
