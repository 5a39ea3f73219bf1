"""A device that does not exist, or is not here, is refused at once."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import benchmark
from benchmark.cli import app
from benchmark.errors import ConfigError
from benchmark.model.devices import check_name, present
from tests.runs import tiny_config, write_config

ABSENT = [
    "gpu",
    "CPU",
    "tpu",
    "",
    "cpu:0",
    "cuda:",
    *([] if torch.cuda.is_available() else ["cuda", "cuda:0"]),
    "cuda:99",
]


@pytest.mark.parametrize("device", [*ABSENT, *([] if torch.backends.mps.is_available() else ["mps"])])
def test_a_run_on_a_device_that_is_not_here_is_one_line_and_makes_no_folder(
    tiny_folder: Path, tmp_path: Path, device: str
) -> None:
    config = write_config(tmp_path / "config", tiny_folder)
    words = ["run", config, "--out", tmp_path / "out", "--store", tmp_path / "store", "--device", device]

    result = CliRunner().invoke(app, list(map(str, words)))

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "expected " in result.stderr
    assert repr(device) in result.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store").exists()


def test_a_script_and_the_doctor_refuse_it_too(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the device"):
        benchmark.run(tiny_config(tmp_path, tiny_folder), out=tmp_path / "out", store=tmp_path / "store", device="gpu")
    result = CliRunner().invoke(app, ["doctor", "--model", str(tiny_folder), "--device", "gpu"])

    assert result.exit_code == 2
    assert not (tmp_path / "store").exists()


def test_which_gpu_a_worker_gets_is_rays_to_say() -> None:
    check_name("cuda", on_ray=True)  # another machine of the cluster may have one
    for device in ("cuda:1", "mps"):
        with pytest.raises(ConfigError, match="on Ray"):
            check_name(device, on_ray=True)


def test_a_device_that_is_here_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert present("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert [present(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(ConfigError, match="cuda, cuda:1"):
        present("cuda:2")
