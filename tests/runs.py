"""Configs on the tiny model, for the tests of the runner and the command."""

import shutil
from pathlib import Path
from typing import Any

import yaml
from click.testing import Result
from typer.testing import CliRunner

CARD = {
    "name": "cat",
    "phrase": "cat",
    "kind": "object",
    "paraphrases": ["kitten", "small pet"],
    "labels": {"cat": "an emoji of a cat", "dog": "an emoji of a dog", "something else": "something else"},
    "prompts": {
        "concept": [{"text": "a cat {n}", "label": "cat", "each": {"n": ["one", "two"]}}],
        "retained": [{"text": "a dog {n}", "label": "dog", "each": {"n": ["one", "two"]}}],
        "safe": [{"text": "dog {n}", "each": {"n": ["one", "two"]}}],
        "attacker": [{"text": "cat, {n}", "each": {"n": ["one", "two"]}}],
        "defender": [{"text": "{n} cat", "each": {"n": ["one", "two"]}}],
        "benign": [{"text": "dog, {n}", "each": {"n": ["one", "two"]}}],
        "prior": [{"text": "{n} dog", "each": {"n": ["one", "two"]}}],
    },
}


def tiny_config(folder: Path, model: Path, /, **changes: Any) -> dict[str, Any]:
    """A config that runs in seconds; the concept card is written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / "cat.yaml"
    card.write_text(yaml.safe_dump(CARD))
    return {
        "name": "tiny",
        "model": str(model),
        "sampling": {"steps": 2, "guidance": 2.0},
        "concepts": [str(card)],
        "budgets": [1, 2],
        "draws": 100,
        "defenses": ["none", {"use": "esd", "steps": 2, "ddim_steps": 3, "lr": 0.01}],
        "attacks": ["none", {"use": "lora", "rank": 2, "alpha": 2, "lr": 0.01}],
        "metrics": [
            {"use": "presence", "model": "mini:judge"},
            {"use": "clip_score", "model": "mini:judge"},
        ],
    } | changes


def write_config(folder: Path, model: Path, /, **changes: Any) -> Path:
    """The config as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(folder, model, **changes)))
    return path


def run(folder: Path, model: Path, /, *, store: Path | None = None, **changes: Any) -> Result:
    """`titer run` with the config in a folder, there on the CPU; results that `store` has are not computed again."""
    from benchmark.cli import app

    if store is not None:
        shutil.copytree(store, folder / "store")
    config = write_config(folder, model, **changes)
    words = ["run", config, "--out", folder / "out", "--store", folder / "store", "--device", "cpu"]
    return CliRunner().invoke(app, [str(word) for word in words])
