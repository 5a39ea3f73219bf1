"""Kill it anywhere, start it again, get the same numbers to the byte; nothing is computed twice, nothing is lost."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.model.bases import fingerprint
from benchmark.plan import Plan, build
from benchmark.plan.task import Task
from benchmark.results import records
from benchmark.runner import stages
from benchmark.runner.executors import local
from benchmark.runner.loop import Outcome, run
from benchmark.runner.stages import Bench
from benchmark.store import Store
from benchmark.store.artifacts import load_delta, load_images
from tests.runs import tiny_config


class Silent:
    """Events that nobody watches."""

    def started(self, task: Task) -> None: ...

    def step(self, *, step: int, total: int, loss: float) -> None: ...

    def finished(self, task: Task, outcome: str) -> None: ...


def make_plan(folder: Path, model: Path, **changes: Any) -> Plan:
    raw = config.parse(tiny_config(folder, model, **changes))
    return build(raw, fingerprint(model), [load_concept(name) for name in raw.raw.concepts])


def compute(plan: Plan, root: Path, model: Path, batch: int = 64) -> Outcome:
    return run(plan, Bench(model, Store(root).open(), batch=batch), Silent(), local.execute)


def files(root: Path) -> dict[str, bytes]:
    """Every payload below a store; markers hold the time a task took."""
    ignored = ("done.json",)
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name not in ignored
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_run: Path) -> tuple[Plan, Path]:
    """What the command computed. The same plan, made from another folder, has all of it."""
    plan = make_plan(tmp_path_factory.mktemp("finished"), tiny_folder)
    assert all(Store(tiny_run / "store").has(key) for key in plan.tasks)
    return plan, tiny_run / "store"


def test_second_run_computes_nothing(finished: tuple[Plan, Path], tiny_folder: Path, monkeypatch: Any) -> None:
    plan, root = finished
    monkeypatch.setattr(stages, "run", None)

    outcome = compute(plan, root, tiny_folder)

    assert (outcome.ran, len(outcome.found)) == ([], len(plan.tasks))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The store of a small run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    compute(make_plan(folder, tiny_folder, defenses=["none"], budgets=[1]), folder / "store", tiny_folder)
    return folder / "store"


@pytest.mark.parametrize("die_at", [0, 3, 7])
def test_a_killed_run_resumes_to_the_same_bytes(
    whole: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: Any, die_at: int
) -> None:
    """Killed while writing a result: the half-written folder is not taken for a result."""
    plan, put, calls = make_plan(tmp_path, tiny_folder, defenses=["none"], budgets=[1]), Store.put, []

    def dying(self: Store, key: str, write: Any, meta: Any) -> None:
        calls.append(key)
        if len(calls) == die_at + 1:
            self.path(key).mkdir(parents=True)
            write(self.path(key))
            raise KeyboardInterrupt
        put(self, key, write, meta)

    monkeypatch.setattr(Store, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        compute(plan, tmp_path / "store", tiny_folder)
    monkeypatch.setattr(Store, "put", put)

    outcome = compute(plan, tmp_path / "store", tiny_folder)

    assert len(outcome.found) == die_at
    assert "attack" in {plan.tasks[key].kind for key in (*outcome.found, *outcome.ran)}
    assert files(tmp_path / "store") == files(whole)


def test_batch_size_changes_no_number_beyond_rounding(
    finished: tuple[Plan, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    _, root = finished
    plan = make_plan(tmp_path, tiny_folder, attacks=["none"])
    compute(plan, tmp_path / "store", tiny_folder, batch=1)
    drawn = [key for key, task in plan.tasks.items() if task.kind == "generate"]
    assert len(drawn) == 6
    for key in drawn:
        a, b = load_images(root / key), load_images(tmp_path / "store" / key)
        assert a.seeds == b.seeds
        assert (a.images.int() - b.images.int()).abs().max() <= 2


def test_a_failing_method_fails_its_cells_and_nothing_else(tiny_folder: Path, tmp_path: Path) -> None:
    """The diverged defense is a failed record with its traceback; its children say why; the rest is there."""
    bad = {"use": "esd", "as": "diverges", "steps": 3, "ddim_steps": 2, "lr": 1e30}
    plan = make_plan(tmp_path, tiny_folder, defenses=["none", bad], attacks=["none"])

    outcome = compute(plan, tmp_path / "store", tiny_folder)

    assert [plan.tasks[key].label for key in outcome.failed] == ["diverges on cat"]
    assert "expected a finite loss" in next(iter(outcome.failed.values()))
    assert all("did not finish" in reason for reason in outcome.skipped.values())
    table = records.cells(plan, Store(tmp_path / "store"), outcome.failed, outcome.skipped)
    assert set(table[table.defense == "diverges"].status) == {"failed"}
    assert set(table[table.defense == "none"].status) == {"ok"}


def test_a_failed_task_is_tried_again(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    plan = make_plan(tmp_path, tiny_folder, defenses=["none"], attacks=["none"])
    real = stages.run
    monkeypatch.setattr(stages, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    assert not compute(plan, tmp_path / "store", tiny_folder).ran
    monkeypatch.setattr(stages, "run", real)

    outcome = compute(plan, tmp_path / "store", tiny_folder)

    assert len(outcome.ran) == len(plan.tasks)


def test_a_metric_that_raises_lowers_the_coverage(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """An image that cannot be judged is missing; it never counts as safe."""
    from metrics.presence import Presence

    plan, real = make_plan(tmp_path, tiny_folder, defenses=["none"], attacks=["none"]), Presence.score

    def picky(self: Presence, images: Any, prompts: Any, concept: Any) -> Any:
        if any(prompt.text == "a cat one" for prompt in prompts):
            raise RuntimeError("no face")
        return real(self, images, prompts, concept)

    monkeypatch.setattr(Presence, "score", picky)
    compute(plan, tmp_path / "store", tiny_folder)

    table = records.scores(plan, Store(tmp_path / "store"))
    judged = table[(table.metric == "presence") & (table.split == "concept")]
    assert judged.groupby("prompt_id").value.agg(lambda v: v.isna().all()).tolist().count(True) == 1
    assert judged.value.notna().any()


def test_spent_passes_are_recorded(finished: tuple[Plan, Path]) -> None:
    """Drawing spends exactly what the plan said."""
    plan, root = finished
    for row in records.rows(plan, Store(root), {}, {}):
        assert row["status"] == "ok"
        if row["kind"] == "generate":
            assert row["unet_forward"] == row["planned_passes"]


def test_attacked_weights_grow_from_the_defended_ones(finished: tuple[Plan, Path], tiny_folder: Path) -> None:
    """The model that a cell draws with is base + defense + attack, in this order."""
    plan, root = finished
    bench = Bench(tiny_folder, Store(root))
    cell = next(c for c in plan.cells if c.defense == "esd" and c.budget == 2)
    task = plan.tasks[cell.images["concept"]]
    defense = load_delta(root / task.parents["defense"])
    attack = load_delta(root / task.parents["attack"] / stages.snapshot_name(2))

    ours, byhand = bench.model_for(task), bench.base.with_delta(defense).with_delta(attack)

    assert all((a == b).all() for a, b in zip(ours.unet.parameters(), byhand.unet.parameters(), strict=True))


def test_images_are_read_by_the_datasets_library(finished: tuple[Plan, Path], tmp_path: Path) -> None:
    from datasets import load_dataset

    plan, root = finished
    key = next(k for k, task in plan.tasks.items() if task.kind == "generate")

    table = load_dataset("parquet", data_files=str(root / key / "images.parquet"), cache_dir=str(tmp_path))["train"]

    assert table[0]["image"].size == (8, 8)
    assert len(table) == len(load_images(root / key).seeds)


def test_scores_carry_the_cell_and_the_identity(finished: tuple[Plan, Path]) -> None:
    plan, root = finished
    table = records.scores(plan, Store(root))

    assert isinstance(table, pd.DataFrame)
    assert set(table.metric) == {"presence", "clip_score"}
    assert table.identity.str.contains("mini:judge").all()
    assert not table.duplicated(
        ["concept", "defense", "attack", "budget", "seed", "split", "metric", "prompt_id", "image"]
    ).any()
