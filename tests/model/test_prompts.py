"""Prompts that the model cannot read whole are counted before a run, and flagged in the rows."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.model.prompts import cut, limit_of
from tests.runs import CARD, write_config

runner = CliRunner()


def test_a_text_is_cut_when_it_has_more_tokens_than_the_model_reads(tiny_folder: Path) -> None:
    limit = limit_of(tiny_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder / "tokenizer")
    texts = [" ".join(["cat"] * count) for count in range(1, limit + 3)]
    counts = {text: len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in texts}

    assert cut(tiny_folder, texts) == {text: count for text, count in counts.items() if count > limit}
    assert 0 < len(cut(tiny_folder, texts)) < len(texts)


def test_a_missing_or_odd_limit_is_clips(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    for text in ("{}", "no json", json.dumps({"model_max_length": 10**30})):
        (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(text)
        assert limit_of(tmp_path) == 77


def test_short_prompts_need_no_tokenizer(tmp_path: Path) -> None:
    assert cut(tmp_path, ["a cat", "a dog"]) == {}


@pytest.mark.parametrize("words", [1, 120])
def test_a_plan_counts_them_and_the_rows_carry_a_flag(tiny_folder: Path, tmp_path: Path, words: int) -> None:
    config = write_config(tmp_path, tiny_folder, defenses=["none"], attacks=["none"])
    text = "a cat " + "very " * words + "{n}"
    prompts = {**CARD["prompts"], "concept": [{"text": text, "label": "cat", "each": {"n": ["1", "2"]}}]}  # type: ignore[dict-item]
    (tmp_path / "cat.yaml").write_text(yaml.safe_dump(CARD | {"prompts": prompts}))
    store = ["--store", str(tmp_path / "store")]
    plan = runner.invoke(app, ["plan", str(config), *store])
    facts = json.loads(runner.invoke(app, ["plan", str(config), *store, "--json"]).stdout)
    ran = runner.invoke(app, ["run", str(config), *store, "--out", str(tmp_path / "out"), "--device", "cpu"])
    flags = str(pd.read_csv(tmp_path / "out" / "leaderboard.csv")["flags"].iloc[0])

    assert ran.exit_code == 0, ran.output
    assert facts["cut_prompts"] == (2 if words > 1 else 0)
    assert ("2 prompts are longer than the model reads" in plan.stdout) == (words > 1)
    assert ("presence_after: 2 prompts cut" in flags) == (words > 1)
