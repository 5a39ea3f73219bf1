"""Imported weights are rows: beside their self-trained twin, under the hash of their change, with what is not known."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmark import session
from benchmark.cli import app
from benchmark.config import config
from benchmark.config.entries import entries
from benchmark.diffusion import Model
from benchmark.errors import ConfigError, DataError
from benchmark.model.bases import find, fingerprint
from benchmark.plan import Plan
from benchmark.plan.matrix import Cell
from benchmark.plan.task import Task
from benchmark.results.notes import notes
from benchmark.runner.stages import Bench, run
from benchmark.session.prepare import check_imported, planned
from benchmark.store import Store
from benchmark.store.artifacts import load_delta, load_images
from tests import checkpoints as c
from tests import releases
from tests.runs import tiny_config, write_config

runner = CliRunner()


class Silent:
    """Events that nobody watches."""

    def started(self, task: Task) -> None: ...

    def step(self, *, step: int, total: int, loss: float) -> None: ...

    def finished(self, task: Task, outcome: str) -> None: ...


SMALL = {"prompts": {"concept": 2, "retained": 1, "safe": 1, "attacker": 1}, "budgets": [1]}


def called(*words: Any) -> Any:
    """What a command answers; it ends well."""
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def adopted(folder: Path, base: Path, model: Model, name: str, make: releases.Maker) -> str:
    """The folder of an imported release."""
    make(model, folder / name, base)
    called("import", folder / name, "--base", base, "--concept", "cat", "--method", "m", "-o", folder / f"{name}-in")
    return str(folder / f"{name}-in")


@pytest.fixture(scope="module")
def esd(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, loaded: Model) -> str:
    """An imported U-Net."""
    return adopted(tmp_path_factory.mktemp("esd"), tiny_folder, loaded, "esd.safetensors", releases.full)


# A board.


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, loaded: Model) -> tuple[session.Session, Path]:
    """ESD, its own export as somebody's file, an adapter and a text encoder, all on one board by the command."""
    root = tmp_path_factory.mktemp("board")
    esd = {"use": "esd", "steps": 2, "ddim_steps": 3, "lr": 0.01}
    at = ["--store", root / "store", "--out", root / "out", "--device", "cpu"]
    first = write_config(root, tiny_folder, defenses=["none", esd], attacks=["none"], metrics=["black"], **SMALL)
    job = session.prepare(config.load(str(first)), source=str(first), out=None, store=root / "store", claim=False)
    job.store.open()
    job.compute(Silent(), "cpu", 64)
    called("export", first, "cat/esd", "--to", root / "model", *at[:2])
    state = load_file(root / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    c.saved(state, root / "ESD-Cat-Diffusers-UNet.safetensors")
    given = c.pairs(loaded)
    c.saved(c.peft(given, "unet."), root / "pytorch_lora_weights.safetensors")
    releases.text_folder(loaded, root / "text_encoder", tiny_folder)
    sources = {"official": "ESD-Cat-Diffusers-UNet.safetensors", "adapter": "pytorch_lora_weights.safetensors"}
    imported = []
    for label, source in (sources | {"text": "text_encoder"}).items():
        words = ["--base", tiny_folder, "--concept", "cat", "--method", label, "-o", root / "imports" / label]
        called("import", root / source, *words)
        imported.append({"use": "imported", "as": label, "files": {"cat": f"imports/{label}"}})
    source = write_config(root, tiny_folder, defenses=["none", esd, *imported], **SMALL)
    called("run", source, *at)
    job = session.prepare(
        config.load(str(source)), source=str(source), out=None, store=root / "store", claim=False, weights="cached"
    )
    return job, root / "out"


def cell(job: session.Session, defense: str, attack: str = "none", budget: int = 0) -> Cell:
    return next(x for x in job.plan.cells if (x.defense, x.attack, x.budget) == (defense, attack, budget))


@pytest.mark.slow
def test_an_imported_file_stands_beside_its_self_trained_twin(board: tuple[session.Session, Path]) -> None:
    """Equal to rounding: weights, images and scores, before and after an attack."""
    job, out = board
    assert job.left == []
    own, theirs = (load_delta(job.store.path(cell(job, d).defend or "")) for d in ("esd", "official"))
    for name, value in own.dense.items():
        torch.testing.assert_close(theirs.dense.get(name, torch.zeros_like(value)), value, rtol=0, atol=1e-7)
    for attack, budget in (("none", 0), ("lora", 1)):
        keys = [cell(job, d, attack, budget).images["concept"] for d in ("esd", "official", "none")]
        esd, official, base = (load_images(job.store.path(key)).images.int() for key in keys)
        assert int((esd - official).abs().max()) <= 1
        assert int((esd - base).abs().max()) > 1
    cells = pd.read_csv(out / "cells.csv").set_index(["defense", "attack", "budget", "number"])["value"]
    for number in ("clip_score", "presence_after"):
        for at in (("none", 0), ("lora", 1)):
            assert cells["esd", *at, number] == pytest.approx(cells["official", *at, number], abs=1e-3)


@pytest.mark.slow
def test_each_kind_of_change_is_a_row_of_its_own_images(board: tuple[session.Session, Path]) -> None:
    job, _ = board
    keys = [cell(job, d).images["concept"] for d in ("none", "official", "adapter", "text")]
    images = [load_images(job.store.path(key)).images for key in keys]

    assert len(set(keys)) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


@pytest.mark.slow
def test_a_row_of_weights_says_what_is_not_known_of_them(board: tuple[session.Session, Path]) -> None:
    job, out = board
    rows = pd.read_csv(out / "leaderboard.csv").set_index("defense")

    for label in ("official", "adapter", "text"):
        assert rows.loc[label, "fidelity"] == "weights-only"
        assert rows.loc[label, ["defend_seconds", "peak_memory_mib", "defend_steps", "defend_passes"]].isna().all()
    assert rows.loc["esd", "defend_seconds"] >= 0
    assert "no tensor of text_encoder" not in str(rows.loc["text", "flags"])
    assert job.store.meta(cell(job, "official").defend or "")["cost"] == {}


@pytest.mark.slow
def test_weights_that_do_not_erase_here_have_no_attacked_cell_that_counts(board: tuple[session.Session, Path]) -> None:
    """The judge sees the concept in no image of the tiny model's: nobody lowers it."""
    _, out = board
    cells = pd.read_csv(out / "cells.csv")
    attacked = cells[(cells["defense"] == "official") & (cells["budget"] > 0)]
    before = cells[(cells["defense"] == "official") & (cells["budget"] == 0)]
    trained = cells[(cells["defense"] == "esd") & (cells["budget"] > 0)]

    assert set(attacked["status"]) == {"invalid"}
    assert attacked["reason"].str.startswith("does not erase here: presence 0.00 before any attack, 0.00").all()
    assert not before["reason"].fillna("").str.contains("erase").any()
    assert not trained["reason"].str.contains("erase").any()
    status = pd.read_csv(out / "leaderboard.csv").set_index("defense").loc["official", "status"]
    assert status == "3 of 3 cells not ok (3 invalid); unranked: no cell that counts"


# The plan.


def made(folder: Path, model: Path, *defenses: Any, **more: Any) -> Plan:
    return planned(config.parse(tiny_config(folder, model, defenses=["none", *defenses], **more)), "base")


def task_of(plan: Plan) -> Any:
    return next(task for task in plan.tasks.values() if task.plugin == "imported")


def test_the_key_is_the_changes_hash_and_not_its_path(
    esd: str, tiny_folder: Path, loaded: Model, tmp_path: Path
) -> None:
    shutil.copytree(esd, tmp_path / "elsewhere")
    other = adopted(tmp_path, tiny_folder, loaded, "text", releases.text_folder)
    plans = [
        made(tmp_path, tiny_folder, {"use": "imported", "as": label, "files": {"cat": str(place)}})
        for label, place in (("a", esd), ("b", tmp_path / "elsewhere"), ("a", other))
    ]

    keys = [task_of(plan).key for plan in plans]

    assert keys[0] == keys[1] != keys[2]
    assert "imported" in keys[0] and str(tmp_path) not in json.dumps(task_of(plans[0]).identity())


def test_a_concept_without_a_file_is_not_released(esd: str, tiny_folder: Path, tmp_path: Path) -> None:
    values = tiny_config(tmp_path, tiny_folder)
    text = Path(values["concepts"][0]).read_text().replace("cat", "kit")
    (tmp_path / "kit.yaml").write_text(text)
    concepts = [*values["concepts"], str(tmp_path / "kit.yaml")]
    theirs = {"use": "imported", "as": "theirs", "files": {"cat": esd}}

    plan = made(tmp_path, tiny_folder, theirs, {"use": "imma", "after": "theirs"}, concepts=concepts)

    skipped = {(s.concept, s.defense, s.attack): s.reason for s in plan.skipped}
    assert skipped == {("kit", d, a): "not released" for d in ("theirs", "theirs+imma") for a in ("none", "lora")}
    have = {(x.concept.name, x.defense) for x in plan.cells}
    assert ("cat", "theirs") in have and ("kit", "none") in have and ("kit", "theirs") not in have


def test_what_an_import_mistrusted_stands_beside_its_cells(esd: str, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(esd, tmp_path / "doubted")
    note = json.loads((tmp_path / "doubted" / "import.json").read_text())
    (tmp_path / "doubted" / "import.json").write_text(json.dumps(note | {"warnings": ["of another base"]}))
    theirs = {"use": "imported", "as": "theirs", "files": {"cat": str(tmp_path / "doubted")}}
    plan = made(tmp_path, tiny_folder, theirs, "esd", {"use": "imma", "after": "theirs"})

    found = notes(plan, [], {})

    assert set(found.values()) == {"of another base"}
    assert {name.split("/")[1] for name in found} == {"theirs", "theirs+imma"}


def test_a_folder_is_found_beside_the_config(esd: str, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(esd, tmp_path / "imports" / "esd")
    theirs = {"use": "imported", "as": "theirs", "files": {"cat": "imports/esd"}}

    (_, entry) = config.load(str(write_config(tmp_path, tiny_folder, defenses=["none", theirs]))).defenses

    assert entry.method.changes["cat"].folder == str(tmp_path / "imports" / "esd")
    assert any("files" in case["then"]["properties"] for case in config.cases("defense"))


def test_settings_cannot_be_chosen_on_a_concept_that_was_not_released(
    esd: str, tiny_folder: Path, tmp_path: Path
) -> None:
    theirs = {"use": "imported", "as": "theirs", "files": {"cat": esd}}
    search = {"use": "search:lora", "develop": "bomb", "grid": {"lr": [0.1, 0.01]}}

    plan = made(tmp_path, tiny_folder, theirs, attacks=["none", search])

    (skip,) = plan.skipped
    assert (skip.defense, skip.attack) == ("theirs", "search:lora")
    assert skip.reason == "not released for bomb, on which it chooses its settings"


def test_a_defense_can_be_trained_on_imported_weights_and_not_the_reverse(
    esd: str, tiny_folder: Path, tmp_path: Path
) -> None:
    theirs = {"use": "imported", "as": "theirs", "files": {"cat": esd}}
    plan = made(tmp_path, tiny_folder, theirs, {"use": "imma", "after": "theirs"})

    tasks = {task.label: task for task in plan.tasks.values() if task.kind == "defend"}
    assert tasks["theirs+imma on cat"].parents["defense"] == tasks["theirs for cat, imported"].key
    with pytest.raises(ConfigError, match="expected an imported change first"):
        entries("defense", ("esd", theirs, "esd+theirs"))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("imported", "expected `files: {CONCEPT: FOLDER, ...}` with `use: imported`, got None"),
        ({"use": "imported", "files": {}}, "got {}: name what `titer import` wrote"),
        ({"use": "imported", "files": {"cat": 3}}, "expected `files:"),
        ({"use": "imported", "files": {"cat": "no/where"}, "lr": 1}, "got 'lr': remove it"),
        ({"use": "imported", "files": {"cat": "no/where"}}, "in no/where, got FileNotFoundError of its import.json"),
    ],
)
def test_a_wrong_entry_is_one_line(item: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        entries("defense", (item,))

    assert message in str(refused.value)


def test_a_change_for_another_concept_or_base_is_refused(esd: str, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a change that erases 'dog' in .*, got one of 'cat'"):
        entries("defense", ({"use": "imported", "files": {"dog": esd}},))
    theirs = {"use": "imported", "as": "theirs", "files": {"cat": esd}}
    parsed = config.parse(tiny_config(tmp_path, tiny_folder, defenses=["none", theirs]))

    check_imported(parsed, find(str(tiny_folder), "cached"))
    check_imported(parsed, find("mini", "cached").__class__("unresolved:a/b@main", None))
    with pytest.raises(ConfigError, match=r"expected changes of .* from 'theirs', got one of .*import it with `--base"):
        check_imported(parsed, find("mini", "cached"))


def test_files_that_changed_since_the_import_are_refused(esd: str, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(esd, tmp_path / "theirs")
    plan = planned(
        config.parse(
            tiny_config(
                tmp_path,
                tiny_folder,
                defenses=["none", {"use": "imported", "files": {"cat": str(tmp_path / "theirs")}}],
            )
        ),
        fingerprint(tiny_folder),
    )
    bench = Bench(tiny_folder, Store(tmp_path / "store"))
    write, meta = run(task_of(plan), bench, lambda **_: None)
    write(tmp_path / "kept")
    assert load_delta(tmp_path / "kept").dense.keys() == load_delta(Path(esd)).dense.keys()
    assert meta == {"cost": {}, "flags": [], "fidelity": "weights-only"}
    file = tmp_path / "theirs" / "delta.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))

    with pytest.raises(DataError, match=r"that its import.json names, got others: import it again"):
        run(task_of(plan), bench, lambda **_: None)
