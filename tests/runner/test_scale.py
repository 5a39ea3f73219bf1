"""What keeps large matrices quick: nothing is made, read or written twice. Times are measured by `tests.bench`."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmark import session
from benchmark.cli import app
from benchmark.config import config
from benchmark.errors import StoreError
from benchmark.plan import Plan
from benchmark.plan import task as tasks
from benchmark.plan.task import Task
from benchmark.results import published
from benchmark.results.publish import Ran
from benchmark.session import Session
from benchmark.store import Store
from benchmark.store import store as stores
from benchmark.store.frozen import FrozenStore
from benchmark.store.store import MARKER
from tests import large
from tests.runs import run as titer_run
from tests.runs import tiny_config


def planned(folder: Path, **changes: Any) -> Plan:
    return session.planned(config.parse(tiny_config(folder, Path("model"), **changes)), "base")


def esds(count: int) -> list[Any]:
    return ["none", *({"use": "esd", "as": f"esd{i}", "steps": i + 1} for i in range(count))]


# Planning


def test_a_key_is_the_hash_of_its_identity(tmp_path: Path) -> None:
    """Put together from shared texts, it is still the canonical JSON of everything that the result depends on."""
    plan = planned(tmp_path, precision="bfloat16", seeds=[0, 1])
    for key, task in plan.tasks.items():
        text = json.dumps(task.identity(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert key.endswith(hashlib.sha256(text.encode()).hexdigest()[:32])
        assert list(task.identity()) == sorted(task.identity())
        assert task.identity()["parents"] == dict(task.parents)


@pytest.fixture
def framed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often fields, prompts and cards are turned into JSON, by kind of task."""
    counts, real = Counter[str](), Task._texts

    def counted(self: Task) -> Any:
        counts[self.kind] += 1
        return real(self)

    monkeypatch.setattr(Task, "_texts", counted)
    return counts


def test_prompts_and_fields_are_written_as_json_once_for_all_cells(tmp_path: Path, framed: Counter[str]) -> None:
    """Four times the defenses and three times the seeds: more tasks, no more texts of images and scores."""
    few = planned(tmp_path, defenses=esds(1), seeds=[0])
    before = Counter(framed)
    framed.clear()

    many = planned(tmp_path, defenses=esds(4), seeds=[0, 1, 2])

    assert len(many.tasks) > 4 * len(few.tasks)
    assert {kind: framed[kind] for kind in ("generate", "score")} == {k: before[k] for k in ("generate", "score")}
    assert framed["attack"] == 3  # one for each seed


def test_fields_that_were_changed_are_read_again() -> None:
    """A text that was made for other fields would give another task's key."""
    fields: dict[str, Any] = {"lr": 0.1}
    before = Task(kind="defend", plugin="esd", version=1, base="b", fields=fields).key
    fields["lr"] = 0.2

    after = Task(kind="defend", plugin="esd", version=1, base="b", fields=fields).key

    assert after == Task(kind="defend", plugin="esd", version=1, base="b", fields={"lr": 0.2}).key != before


def test_a_full_memory_starts_anew() -> None:
    once = tasks.Once(most=2)
    things = [object() for _ in range(5)]

    found = [once.of((thing,), (), lambda thing=thing: id(thing)) for thing in things]

    assert found == [id(thing) for thing in things]
    assert len(once.made) <= 2


def test_equal_things_are_told_apart_and_one_thing_is_asked_once() -> None:
    once, calls = tasks.Once(), []
    one, other = [1], [1]
    for thing in (one, other, one):
        once.of((thing,), ("name",), lambda: calls.append(1))

    assert len(calls) == 2


# Looking into a store


def text(content: str) -> Callable[[Path], None]:
    """Writes a result of one file."""

    def write(folder: Path) -> None:
        (folder / "x.txt").write_text(content)

    return write


def identity(seed: int) -> dict[str, Any]:
    """What a key is the hash of."""
    return {"parents": {"images": "x"}, "prompts": ["many, or few"], "seed": seed, "version": 1}


def key_of(seed: int) -> str:
    """The key of an identity."""
    return f"score/x-{hashlib.sha256(tasks.canonical(identity(seed)).encode()).hexdigest()[:32]}"


KEYS = {name: key_of(seed) for seed, name in enumerate("abcd")}


@pytest.fixture
def filled(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    for seed, name in enumerate("abc"):
        meta = {"cost": {"seconds": 1.0}, "identity_of": identity(seed), "label": name}
        store.put(KEYS[name], text("x"), meta)
    return store


def test_what_is_not_in_the_store_is_not_looked_for(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = list[str](), Store.has
    monkeypatch.setattr(Store, "has", lambda self, key: bool(asked.append(key)) or real(self, key))

    found = filled.finished([*(f"score/{i}" for i in range(1000)), "attack/a", KEYS["b"]])

    assert found == {KEYS["b"]}
    assert asked == [KEYS["b"]]


def test_a_marker_as_it_was_written_is_not_parsed_for_its_files(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.json, "loads", None)

    assert filled.has(KEYS["a"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"label": "a"', '"label": "b"'),
        lambda text: text.replace('"size": 1', '"size": 2'),
        lambda text: text[:-1],
        lambda text: text.replace('"sha256": "', '"sha256": "0', 1),
        lambda text: "",
    ],
)
def test_an_altered_marker_is_no_result(filled: Store, damage: Any) -> None:
    marker = filled.path(KEYS["a"]) / MARKER
    assert damage(marker.read_text()) != marker.read_text()
    marker.write_text(damage(marker.read_text()))

    assert not filled.has(KEYS["a"])
    assert filled.finished([KEYS["a"], KEYS["b"]]) == {KEYS["b"]}
    assert not FrozenStore(filled, [KEYS["a"]]).has(KEYS["a"])


def test_a_marker_in_another_layout_is_still_read(filled: Store) -> None:
    """The same content, written by hand: the hash is over the content."""
    marker = filled.path(KEYS["a"]) / MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()), indent=2))

    assert filled.has(KEYS["a"])
    assert filled.meta(KEYS["a"])["label"] == "a"


def test_the_word_files_in_a_label_is_no_list_of_files(filled: Store) -> None:
    meta = {"label": '"files": {"x.txt": {"size": 0}}', "notes": {"files": {"y.txt": {"size": 5}}}}
    filled.put(KEYS["d"], text("x"), meta)

    assert filled.has(KEYS["d"])
    (filled.path(KEYS["d"]) / "x.txt").write_text("longer")
    assert not filled.has(KEYS["d"])


def test_what_was_seen_is_read_once_and_stays(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, real = list[str](), stores.contents
    monkeypatch.setattr(stores, "contents", lambda file: reads.append(file) or real(file))  # type: ignore[func-returns-value]
    seen = FrozenStore(filled, [KEYS["a"], KEYS["b"], "score/none"])
    shutil.rmtree(filled.path(KEYS["a"]))

    for _ in range(3):
        assert [seen.has(key) for key in (*map(KEYS.__getitem__, "abc"), "score/none")] == [True, True, False, False]
        assert seen.meta(KEYS["a"]) == {"cost": {"seconds": 1.0}, "label": "a"}
    assert len(reads) == 2
    with pytest.raises(StoreError, match="expected a finished result"):
        seen.meta("score/none")


def test_the_state_of_results_changes_with_each_of_them(filled: Store) -> None:
    keys = [KEYS["a"], KEYS["b"]]
    before = FrozenStore(filled, keys).state
    assert FrozenStore(filled, keys).state == before == FrozenStore(filled, keys[::-1]).state

    shutil.rmtree(filled.path(KEYS["b"]))
    fewer = FrozenStore(filled, keys).state
    filled.put(KEYS["b"], text("y"), {"label": "b"})

    assert len({before, fewer, FrozenStore(filled, keys).state}) == 3


# A finished run


def titer(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    done = titer_run(folder, tiny_folder, attacks=["none"], defenses=["none"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def run(ran: Path, tmp_path: Path) -> list[object]:
    """The words of the command that made a finished run, whose folder is a copy."""
    shutil.copytree(ran / "out", tmp_path / "out")
    shutil.copytree(ran / "store", tmp_path / "store")
    return ["run", ran / "tiny.yaml", "--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu"]


def written(folder: Path) -> dict[str, int]:
    """When each file of a run was written."""
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def tables(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.glob("*.csv")}


def prepared(words: list[object]) -> Session:
    checked = config.load(str(words[1]))
    return session.prepare(checked, source=str(words[1]), out=Path(str(words[3])), store=Path(str(words[5])))


def test_a_finished_run_is_not_planned_again_and_nothing_is_written(
    run: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, first = written(tmp_path / "out"), titer(*run)
    monkeypatch.setattr(session, "prepare", None)

    again = titer(*run)

    assert again.exit_code == first.exit_code == 0
    assert again.stdout == first.stdout
    assert "ran 0, found" in again.stdout and "leaderboard" in again.stdout
    assert written(tmp_path / "out") == before


def test_a_finished_run_needs_no_torch(run: list[object]) -> None:
    code = (
        "import sys; from benchmark.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, run)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "ran 0, found" in done.stdout


@pytest.mark.slow
def test_planning_needs_no_library_of_models(ran: Path) -> None:
    """diffusers, transformers, peft and open_clip take seconds to import; torch alone is in the plug-ins."""
    code = (
        "import sys; from benchmark.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "found = {'diffusers', 'transformers', 'peft', 'open_clip', 'torchvision', 'matplotlib'} & set(sys.modules); "
        "assert not found, found"
    )
    call = [sys.executable, "-c", code, "status", "smoke", "--store", str(ran / "store")]

    assert subprocess.run(call, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["cells.csv", "board.md", "leaderboard.parquet", "report/index.html"])
@pytest.mark.parametrize("lost", [True, False])
def test_a_run_with_a_table_that_is_lost_or_altered_is_no_finished_one(
    run: list[object], tmp_path: Path, name: str, lost: bool
) -> None:
    file, words = tmp_path / "out" / name, (str(run[1]), "", Path(str(run[3])), Path(str(run[5])))
    assert published.again(*words) is not None
    if lost:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b" ")

    assert published.again(*words) is None


@pytest.mark.parametrize(("name", "lost"), [("cells.csv", True), ("report/index.html", False)])
def test_a_table_that_is_lost_or_altered_is_written_again(
    run: list[object], tmp_path: Path, name: str, lost: bool
) -> None:
    file = tmp_path / "out" / name
    before, content = tables(tmp_path / "out"), file.read_bytes()
    if lost:
        file.unlink()
    else:
        file.write_bytes(content + b" ")

    assert titer(*run).exit_code == 0

    assert tables(tmp_path / "out") == before
    assert file.is_file() and file.read_bytes()[-1:] != b" "


def republished(words: list[object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the command makes the tables anew."""
    made, real = list[Ran](), Ran.publish
    monkeypatch.setattr(Ran, "publish", lambda self, seen=None: made.append(self) or real(self, seen))  # type: ignore[func-returns-value]
    assert titer(*words).exit_code == 0
    return bool(made)


def test_an_unchanged_run_is_not_published_again(run: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not republished(run, monkeypatch)


def test_another_version_of_the_code_publishes_again(run: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "code", lambda: "another")

    assert republished(run, monkeypatch)


def test_another_library_publishes_again(run: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    real = published.versions()
    monkeypatch.setattr(published, "versions", lambda: real | {"pandas": "99"})

    assert republished(run, monkeypatch)


def test_another_result_publishes_again(run: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a result was damaged and computed again: its cost is another."""
    marker = next((tmp_path / "store" / "score").glob("clip_score-*")) / MARKER
    found = json.loads(marker.read_text())
    found["cost"]["seconds"] = 1234.5
    marker.write_text(json.dumps(found | {"sha256": stores.digest(found)}, sort_keys=True))

    assert republished(run, monkeypatch)
    assert "1234.5" in (tmp_path / "out" / "records.csv").read_text()


def test_a_lost_result_is_computed_again(run: list[object], tmp_path: Path) -> None:
    shutil.rmtree(next((tmp_path / "store" / "score").glob("clip_score-*")))

    assert "ran 1, found" in titer(*run).stdout


def test_another_card_or_restriction_is_another_run(run: list[object], ran: Path) -> None:
    card = ran / "cat.yaml"
    content = card.read_text()
    try:
        card.write_text(content.replace("an emoji of a dog", "a picture of a dog"))
        assert "ran 0," not in titer(*run).stdout
    finally:
        card.write_text(content)
    assert titer(*run).exit_code == 0

    where = Path(str(run[3])), Path(str(run[5]))
    assert published.again(str(run[1]), "", *where) is not None
    assert published.again(str(run[1]), "defense=none", *where) is None


def test_a_run_from_python_gets_the_same_leaderboard_again(run: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file, with the types that it had: a rank is a whole number, a missing one is missing."""
    job = prepared(run)
    job.publish()
    fresh = job.leaderboard
    again = prepared(run)
    monkeypatch.setattr(Ran, "publish", None)

    again.refresh()

    assert fresh is not None and again.board is None
    assert again.leaderboard is not None
    assert again.leaderboard.dtypes.astype(str).to_dict() == fresh.dtypes.astype(str).to_dict()
    assert again.leaderboard.equals(fresh)


def test_tables_read_each_marker_once(run: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    job = prepared(run)
    reads, real = list[str](), stores.contents
    monkeypatch.setattr(stores, "contents", lambda file: reads.append(file) or real(file))  # type: ignore[func-returns-value]

    job.publish()

    markers = [path for path in reads if path.endswith(MARKER)]
    assert len(markers) == len(set(markers)) == len(job.plan.tasks)


def test_a_failed_run_is_tried_again(tiny_folder: Path, tiny_run: Path, tmp_path: Path) -> None:
    bad = {"use": "esd", "as": "diverges", "steps": 3, "ddim_steps": 2, "lr": 1e30}
    first = titer_run(tmp_path, tiny_folder, store=tiny_run / "store", defenses=["none", bad], attacks=["none"])
    words = [tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu"]

    assert [first.exit_code, titer("run", *words).exit_code] == [1, 1]
    assert not published.read(tmp_path / "out")["inputs"]


def test_what_names_a_file_or_a_foreign_plug_in_is_planned_again(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.touch()

    assert published.is_foreign("metric", "somebodys")
    assert published.is_foreign("defense", "esd+somebodys")
    assert published.is_foreign("metric", {"use": "presence", "model": str(file)})
    assert not published.is_foreign("defense", "esd+imma")
    assert not published.is_foreign("metric", {"use": "presence", "model": "mini:judge", "threshold": 0.5})


@pytest.mark.slow
def test_a_large_board_is_read_from_its_store_whole(tmp_path: Path) -> None:
    """1,000 cells of 200 images: every cell has the mean of its own file."""
    made = large.plan()
    store = large.fill(made, tmp_path / "store")

    board = Session(made, store, None, tmp_path / "out", "large").publish()

    assert len(made.cells) == 1000
    found = board.cells[board.cells["number"] == "presence_after"]
    assert len(found) == 1000 and set(found["n"]) == {200} and set(found["coverage"]) == {1.0}
    by_name = {f"{r.concept}/{r.defense}/{r.attack}@{r.budget}#{r.seed}": r.value for r in found.itertuples()}
    for cell in made.cells[::37]:
        file = store.path(cell.scores["presence", "concept"]) / "scores.parquet"
        assert by_name[cell.name] == pytest.approx(pq.read_table(file)["value"].to_numpy().mean())
