"""Tiny SD 3, FLUX.1 and FLUX.2 through the whole run: defended, attacked, drawn, scored."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from tests import pipelines
from tests.runs import write_config

DEFENSES = [
    "none",
    {"use": "esd", "steps": 1, "ddim_steps": 2, "sampler": "ddim", "lr": 0.01},
    {"use": "imma", "steps": 2, "lr": 0.01},
    {"use": "erase_anything", "steps": 2, "ddim_steps": 2, "rank": 2},
]
ATTACKS = ["none", {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01}, "img2img"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3-t5", "flux", "flux2"])
def test_a_flow_goes_through_the_run(name: str, tmp_path: Path) -> None:
    folder = pipelines.write(name, tmp_path / "model")
    counts = dict.fromkeys(("concept", "retained", "safe", "attacker", "defender", "prior", "benign"), 1)
    metrics = [{"use": "presence", "model": "mini:judge"}]
    given = {"defenses": DEFENSES, "attacks": ATTACKS, "metrics": metrics, "prompts": counts, "budgets": [1]}
    source = write_config(tmp_path, folder, **given, precision="bfloat16", sampling={"steps": 10, "guidance": 2.0})
    places = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store"), "--device", "cpu"]

    found = CliRunner().invoke(app, ["run", str(source), "-q", *places])

    assert found.exit_code == 0, found.output
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert set(cells.defense) == {"none", "esd", "imma", "erase_anything"}
    assert set(cells.attack) == {"none", "lora", "img2img"}
    assert not set(cells.status) & {"failed", "partial", "skipped"}, cells.groupby("status").size()
