"""A model's folder is refused before it is built, and one whose weights do not fit before anything is computed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.errors import DataError
from benchmark.model import find, load
from tests.runs import write_config

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "m"))


def settings(file: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def header(text: str, data: bytes = b"") -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)


def entry(name: str = "a", dtype: str = "F32", shape: Any = (1,), at: Any = (0, 4)) -> str:
    return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": at}})


def schedule(**changes: Any) -> Change:
    return settings("scheduler/scheduler_config.json", **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (settings("model_index.json", unet=["os", "system"]), "expected a class of diffusers"),
        (settings("model_index.json", scheduler=["evil", "E"]), "for scheduler in"),
        (settings("model_index.json", text_encoder=["transformers", "AutoModel"]), "T5's or Qwen's of transformers"),
        (settings("model_index.json", text_encoder=["transformers", "Qwen2ForCausalLM"]), "Qwen's of transformers"),
        (settings("model_index.json", tokenizer=["transformers", "Qwen2TokenizerFastest"]), "Qwen's of transformers"),
        (settings("text_encoder/config.json", auto_map={"AutoModel": "evil.E"}), "got `auto_map` in"),
        (settings("unet/config.json", _class_name="AutoencoderKL"), "expected settings of UNet2DConditionModel"),
        (settings("unet/config.json", block_out_channels="x"), "expected block_out_channels of whole numbers"),
        (settings("unet/config.json", block_out_channels=[10**6] * 2), "below 1,000,000"),
        (lambda folder: (folder / "text_encoder/config.json").write_text("{}"), "expected the sizes of a model"),
        (lambda folder: (folder / "model_index.json").write_text('{"a":' + "[" * 10**5 + "]" * 10**5 + "}"), "JSON"),
        (schedule(beta_start=float("nan")), "expected beta_start from 0.0 to 1.0"),
        (schedule(num_train_timesteps=0), "expected num_train_timesteps from 1"),
        (schedule(beta_schedule="nope"), "expected a beta_schedule of linear"),
        (schedule(trained_betas=["x"]), "as trained_betas"),
        (lambda folder: [file.unlink() for file in (folder / "tokenizer").iterdir()], "expected tokenizer.json, or"),
        (lambda folder: [file.write_text("{") for file in (folder / "tokenizer").iterdir()], "expected JSON in"),
        (header("[]"), "expected whole safetensors"),
        (header('{"a":' + "[" * 10**5 + "]" * 10**5 + "}"), "recursion"),
        (header(entry(shape=[-1], at=[-4, 0])), "no whole number from 0"),
        (header(entry(at=["0", "4"])), "no whole number from 0"),
        (header(entry(shape=[3]), b"\0" * 4), "4 bytes for 'a' of shape [3]"),
        (header(entry(dtype="F99"), b"\0" * 4), "the type F99"),
        (header(entry()[:-1] + "," + entry("b")[1:], b"\0" * 4), "expected one tensor after the other"),
        (header(entry(at=[4, 8]), b"\0" * 8), "got 'a' at 4 and not at 0"),
        (
            lambda folder: (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": [1]}'),
            "expected the shards that",
        ),
        (
            lambda folder: (folder / WEIGHTS).rename(folder / WEIGHTS.replace(".safe", ".fp16.safe")),
            "which is a variant's: give it that name",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(folder: Path, change: Change, message: str) -> None:
    change(folder)

    with pytest.raises(DataError) as caught:
        find(str(folder), "cached")

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def without(file: str) -> Change:
    def change(folder: Path) -> None:
        kept = load_file(folder / file)
        kept.pop(next(name for name in kept if name.endswith("weight")))
        save_file(kept, folder / file, metadata={"format": "pt"})

    return change


def with_first(make: Callable[[Any], Any]) -> Change:
    def change(folder: Path) -> None:
        kept = load_file(folder / WEIGHTS)
        name = next(iter(kept))
        save_file({**kept, name: make(kept[name])}, folder / WEIGHTS, metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(WEIGHTS), "among the weights of"),
        (without("text_encoder/model.safetensors"), "among the weights of"),
        (with_first(lambda tensor: tensor.flatten()[:3].clone()), "that fit each other"),
        (with_first(lambda tensor: tensor * float("nan")), "expected finite weights in"),
    ],
)
def test_weights_that_do_not_fit_stop_a_run_before_its_first_task(
    folder: Path, tmp_path: Path, change: Change, message: str
) -> None:
    change(folder)

    config = write_config(tmp_path, folder)
    words = ["run", str(config), "--store", str(tmp_path / "s"), "--out", str(tmp_path / "o"), "--device", "cpu"]
    said = CliRunner().invoke(app, words)

    assert said.exit_code == 2, said.output
    assert message in said.stderr.splitlines()[-1]
    assert not list((tmp_path / "s").glob("*/*/done.json"))
    with pytest.raises(DataError):
        load(folder)


def test_a_single_file_and_a_home_are_told(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.safetensors").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(DataError, match=r"got the file .*one.safetensors: write one with .*from_single_file"):
        find(str(tmp_path / "one.safetensors"), "cached")
    assert find("~/m", "cached") == find(str(folder), "cached")
    with pytest.raises(DataError, match="expected a model preset, a folder or a hub id"):
        find("/" + "a" * 5000, "cached")
