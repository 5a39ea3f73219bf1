"""The doctor of models: what is missing, what fits, and how long a config takes, before a run is begun."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from typer.testing import CliRunner

from benchmark import session
from benchmark.cli import app
from benchmark.cli import doctor as fitness
from benchmark.config import config
from benchmark.model import load
from tests.pipelines import write
from tests.runs import write_config

runner = CliRunner()
GIB = 2**30


def doctor(*words: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code and the rows by name."""
    result = runner.invoke(app, ["doctor", "--device", "cpu", "--json", *(str(word) for word in words)])
    assert result.stdout, result.output
    return result.exit_code, {row["name"]: row for row in json.loads(result.stdout)}


@pytest.mark.parametrize("name", ["sd1", "sd21", "sdxl"])
def test_a_model_that_is_here_is_measured_by_its_architecture(tiny_folders: dict[str, Path], name: str) -> None:
    code, rows = doctor("--model", tiny_folders[name])
    model = load(tiny_folders[name])
    numbers = sum(p.numel() for part in model.parts.values() for p in part.parameters())

    assert code == 0
    assert list(rows) == ["access", "model", "weights", "disk", "memory", "speed"]
    whole, unet = fitness.Look(str(tiny_folders[name]), None, "cpu").size
    assert unet == sum(p.numel() for p in model.unet.parameters())
    assert numbers <= whole <= numbers + 100  # position ids are stored beside parameters
    assert "ms for a sample through the U-Net in float32 on cpu" in rows["speed"]["found"]


@pytest.mark.parametrize("name", ["sd3-t5", "flux", "flux2"])
def test_a_flow_is_measured_by_its_own_architecture(name: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path / "model")
    source = write_config(tmp_path, folder, precision="bfloat16", defenses=["none"])
    code, rows = doctor("--model", folder, "--preset", source)
    model = load(folder)
    stored = {t.data_ptr(): t.numel() for part in model.modules.values() for t in part.state_dict().values()}
    numbers = sum(stored.values())

    assert code == 0, rows
    look = fitness.Look(str(folder), config.load(str(source)), "cpu")
    whole, denoiser = look.size
    assert denoiser == sum(p.numel() for p in model.denoiser.parameters())
    assert numbers <= whole <= numbers + 100
    assert "ms for a sample through the transformer in bfloat16 on cpu" in rows["speed"]["found"]
    most = 2 * whole + 5 * 4 * denoiser
    assert f"{2 * whole / GIB:.1f} GiB for the base and a defended copy, {most / GIB:.1f} to" in rows["memory"]["found"]
    assert f"({(most + 4 * 4 * denoiser) / GIB:.1f} where that simulates an attack" in rows["memory"]["found"]
    assert {p.dtype for p in look.blank_model().denoiser.parameters()} == {torch.bfloat16}


def test_the_hours_are_the_plans_samples_times_the_measured_seconds(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the config on this model, whatever model it names."""
    monkeypatch.setattr(fitness, "seconds_a_sample", lambda model, batch: 90.0)
    source = write_config(tmp_path, tiny_folders["sd1"], precision="bfloat16", model="sd14")

    _, rows = doctor("--model", tiny_folders["sdxl"], "--preset", source)

    passes = session.planned(config.load(str(source)), "any").passes
    assert passes > 100
    assert f"about {passes / 40:,.1f} hours for {passes:,} samples" in rows["hours of tiny"]["found"]
    assert "in bfloat16" in rows["speed"]["found"]


def test_the_blank_model_takes_as_many_seconds_as_it_waits(
    tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of our own: a batch of 2 takes 3 seconds, the first one 19, after which no third is waited for."""
    model = fitness.Look(str(tiny_folders["sdxl"]), None, "cpu").blank_model()
    ticks = iter([0.0, 19.0, 20.0, 23.0])
    monkeypatch.setattr(fitness, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    before = model.meter.unet_forward

    assert fitness.seconds_a_sample(model, 2) == 1.5
    assert model.meter.unet_forward - before == 4


def test_a_fault_in_the_folder_is_the_finding(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()

    code, rows = doctor("--model", tmp_path / "model")

    assert code == 1
    assert list(rows) == ["access"]
    assert "expected safetensors weights" in rows["access"]["found"]


class Page:
    """`snapshot_download` of a model whose settings can be had, and whose weights are only listed."""

    def __init__(self, folder: Path, sizes: dict[str, int]) -> None:
        self.folder, self.sizes = folder, sizes

    def __call__(self, place: str, **options: Any) -> Any:
        if options.get("dry_run"):
            files = [SimpleNamespace(filename=n, file_size=s, will_download=True) for n, s in self.sizes.items()]
            return [*files, SimpleNamespace(filename="unet/config.json", file_size=9, will_download=False)]
        if options["local_files_only"]:
            raise hub.LocalEntryNotFoundError("not in the cache")
        assert not any(pattern.endswith("safetensors") for pattern in options["allow_patterns"])
        return str(self.folder)


@pytest.fixture
def page(tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """A page on the hub with 3 GiB of weights."""
    shutil.copytree(tiny_folders["sdxl"], tmp_path / "settings", ignore=shutil.ignore_patterns("*.safetensors"))
    found = Page(tmp_path / "settings", {"unet/diffusion_pytorch_model.safetensors": 3 * GIB})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    return found


def test_a_model_on_the_hub_is_measured_without_its_weights(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "free_memory", lambda device: 7 * GIB)

    code, rows = doctor("--model", "sdxl")

    assert code == 0, rows
    assert rows["access"]["found"] == "the hub gives it (3.0 GiB)"
    assert rows["weights"]["found"] == "not here: titer run gets them"
    assert "3.3 needed" in rows["disk"]["found"]
    assert "6.0 GiB for the base and a defended copy" in rows["memory"]["found"]
    assert "stable-diffusion-xl-base-1.0@4621659840" in rows["model"]["found"]
    assert rows["speed"]["ok"]


def test_too_little_disk_or_memory_is_bad(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what does not fit is not timed."""
    monkeypatch.setattr(fitness, "free_memory", lambda device: 5 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2 * GIB))

    code, rows = doctor("--model", "sdxl")

    assert code == 1
    assert not rows["disk"]["ok"] and "expected 3.3 GiB free" in rows["disk"]["found"]
    assert not rows["memory"]["ok"] and "got 5.0 GiB free on cpu" in rows["memory"]["found"]
    assert "speed" not in rows


def test_a_gated_model_is_said_to_be_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(place: str, **options: Any) -> str:
        raise hub.GatedRepoError("no", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)

    code, rows = doctor("--model", "some/model")

    assert code == 1
    assert "ask for it at https://huggingface.co/some/model" in rows["access"]["found"]


def test_timing_leaves_the_global_generator_alone(tiny_folders: dict[str, Path]) -> None:
    before = torch.get_rng_state()

    doctor("--model", tiny_folders["sd1"])

    assert torch.equal(before, torch.get_rng_state())
