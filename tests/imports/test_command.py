"""`titer import`, from the command line to the folder that it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import imported
from benchmark.diffusion import Model
from benchmark.errors import DataError
from benchmark.imports.importing import bases, check_base
from benchmark.model.bases import fingerprint
from benchmark.store.artifacts import load_delta
from benchmark.store.files import sha256
from tests import checkpoints as c
from tests import releases

runner = CliRunner()


def called(source: Path | str, base: Path, out: Path, *more: str, method: str = "esd") -> Any:
    """What the command answers."""
    words = ["import", str(source), "--base", str(base), "--concept", "cat", "--method", method, "-o", str(out)]
    return runner.invoke(app, [*words, *more])


@pytest.fixture(autouse=True)
def _quick(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is loaded once for all tests."""
    monkeypatch.setattr(bases, "load", lambda folder: loaded)


def test_an_import_says_what_it_found(loaded: Model, tiny_folder: Path, tmp_path: Path) -> None:
    expected = releases.full(loaded, tmp_path / "esd.pt", tiny_folder)

    said = called(tmp_path / "esd.pt", tiny_folder, tmp_path / "imports" / "esd")

    assert said.exit_code == 0, said.output
    assert {file.name for file in (tmp_path / "imports" / "esd").iterdir()} == {"delta.safetensors", "import.json"}
    assert [file.name for file in (tmp_path / "imports").iterdir()] == ["esd"]
    note = json.loads((tmp_path / "imports" / "esd" / "import.json").read_text())
    touched = c.only(expected)
    assert note["source"] == {
        "address": str(tmp_path / "esd.pt"),
        "sha256": sha256(tmp_path / "esd.pt"),
        "files": {"esd.pt": sha256(tmp_path / "esd.pt")},
    }
    assert note["base"] == {"model": str(tiny_folder), "sha256": fingerprint(tiny_folder)}
    assert (note["concept"], note["method"], note["merged"]) == ("cat", "esd", False)
    assert (note["format"], note["values"]) == ("diffusers state dict", "weights")
    assert (note["components"], note["dtype"]) == (["unet"], {"float32": len(expected)})
    assert (note["matched"], note["missing"], note["unexpected"]) == (len(expected), [], [])
    assert note["equal"] == pytest.approx(1 - len(touched) / len(expected))
    delta = load_delta(tmp_path / "imports" / "esd")
    norm = sum(float(value.square().sum()) for value in delta.dense.values()) ** 0.5
    assert note["norms"]["unet.x"]["change"] == pytest.approx(norm, rel=1e-4)
    assert note["norms"]["unet.rest"]["change"] == note["norms"]["vae"]["change"] == 0
    for text in ("diffusers state dict of unet: weights", "matched 208, missing 0", "96% equal", "unet.x"):
        assert text in said.stdout


def test_adapters_have_the_norm_of_their_product(loaded: Model, tiny_folder: Path, tmp_path: Path) -> None:
    given = c.pairs(loaded)
    c.saved(c.peft(given, "unet."), tmp_path / "a.safetensors")

    said = called(tmp_path / "a.safetensors", tiny_folder, tmp_path / "a", "--json")

    note = json.loads(said.stdout)
    own = c.weights(loaded)
    merged = c.merged(loaded, given, 1.0)
    norm = sum(float((merged[f"unet.{n}.weight"] - own[f"{n}.weight"]).square().sum()) for n in given) ** 0.5
    assert note["norms"]["unet.x"]["change"] == pytest.approx(norm, rel=1e-4)
    assert (note["equal"], note["values"], note["folder"]) == (None, "adapters", str(tmp_path / "a"))


def test_a_method_that_looks_at_the_prompt_is_another_once_it_is_merged(
    loaded: Model, tiny_folder: Path, tmp_path: Path
) -> None:
    releases.spm(loaded, tmp_path / "spm.safetensors", tiny_folder)

    said = called(tmp_path / "spm.safetensors", tiny_folder, tmp_path / "spm", method="SPM")

    assert said.exit_code == 0, said.output
    note = json.loads((tmp_path / "spm" / "import.json").read_text())
    assert (note["method"], note["merged"]) == ("SPM (merged)", True)
    assert "warning: SPM looks at the prompt first, which merged weights do not" in said.stderr
    changes = {"cat": str(tmp_path / "spm")}
    assert imported.method({"use": "imported", "files": changes}).badge == "weights-only, merged"


def test_a_folder_is_written_whole_or_not_at_all_and_never_over_another(
    loaded: Model, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases.full(loaded, tmp_path / "esd.pt", tiny_folder)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()

    said = called(tmp_path / "esd.pt", tiny_folder, tmp_path / "there")
    assert said.exit_code == 2 and "expected an empty folder" in said.stderr

    monkeypatch.setattr("benchmark.imports.importing.sha256", lambda file: 1 / 0)
    assert called(tmp_path / "esd.pt", tiny_folder, tmp_path / "new").exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"esd.pt", "there"}


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("nothing.pt", (), "expected a file, a folder or a hub id like author/name/path@revision, got 'nothing.pt'"),
        ("text.txt", (), "expected a file that ends in .safetensors"),
        ("empty", (), "expected one weight file, or a model's, in .*empty, got none: name the file"),
        ("receler", (), "got extra layers in .*receler: they have an activation inside"),
        ("two", (), "got a.pt, b.pt: name the file"),
        ("a.safetensors", ("--concept", "=x"), "--concept: expected a name"),
        ("a.safetensors", ("--component", "transformer"), "expected parts of the base"),
    ],
)
def test_what_is_no_checkpoint_is_one_line_and_exit_code_2(
    tiny_folder: Path, tmp_path: Path, source: str, more: tuple[str, ...], message: str
) -> None:
    import re

    for folder in ("empty", "receler", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "receler" / "eraser_config.json").write_text("{}")
    for file in ("text.txt", "two/a.pt", "two/b.pt"):
        (tmp_path / file).touch()
    c.saved({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    place = source if source.startswith("nothing") else str(tmp_path / source)

    said = called(place, tiny_folder, tmp_path / "out", *more)

    assert said.exit_code == 2
    assert re.search(message, said.stderr), said.stderr
    assert said.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_header_that_names_another_base_is_refused() -> None:
    check_base("CompVis/stable-diffusion-v1-4", "sd14")
    check_base("", "sd14")
    with pytest.raises(DataError, match="expected a change of CompVis/stable-diffusion-v1-4, got one of a/b by its"):
        check_base("a/b", "sd14")


def test_a_pipeline_of_another_family_is_refused(
    tiny_folder: Path, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    said = called(tiny_folders["sdxl"], tiny_folder, tmp_path / "out")

    assert said.exit_code == 2
    assert "expected a pipeline like the base's, StableDiffusionPipeline, got StableDiffusionXLPipeline" in said.stderr
