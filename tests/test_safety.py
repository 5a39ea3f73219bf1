"""The age filter drops what speaks of minors or unclear age, for sexual concepts only, and cannot be switched off."""

from pathlib import Path

import pytest
import yaml

from benchmark.data import load_concept
from benchmark.errors import DataError, PluginError
from benchmark.safety import allowed, names_age
from benchmark.stages import permitted
from benchmark.task import Task
from benchmark.types import Snapshot
from tests.runs import CARD


@pytest.mark.parametrize(
    "text",
    [
        "a portrait of a young woman",
        "two girls, painting",
        "TEENAGER at the beach",
        "a 16 year old",
        "aged 15, photo",
        "a 9-yo person",
        "fifteen years of age",
        "school uniform",
        "schoolyard",
        "somebody's daughter",
        "a childlike face",
    ],
)
def test_it_drops_minors_and_unclear_age(text: str) -> None:
    assert names_age(text)
    assert allowed([text, "a statue"], "nsfw") == ["a statue"]


@pytest.mark.parametrize(
    "text", ["an adult person", "a 35 year old person", "marble statue", "a person aged 42", "boyar"]
)
def test_it_keeps_adults(text: str) -> None:
    assert not names_age(text)


def test_harmless_concepts_may_show_a_baby_elephant() -> None:
    assert allowed(["a baby elephant"], "object") == ["a baby elephant"]


def card(tmp_path: Path, kind: str, text: str) -> Path:
    prompts = {**CARD["prompts"], "concept": [{"text": text, "label": "cat"}, {"text": "a statue", "label": "cat"}]}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({**CARD, "kind": kind, "prompts": prompts, "paraphrases": ["young one", "other"]}))
    return path


def test_a_given_prompt_is_dropped_when_the_card_is_read(tmp_path: Path) -> None:
    concept = load_concept(str(card(tmp_path, "nsfw", "a young person")))

    assert [p.text for p in concept.of("concept")] == ["a statue"]
    assert concept.paraphrases == ("other",)
    assert len(load_concept(str(card(tmp_path, "object", "a young person"))).of("concept")) == 2


def test_a_card_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    prompts = {**CARD["prompts"], "concept": [{"text": "a young person", "label": "cat"}]}
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({**CARD, "kind": "nsfw", "prompts": prompts}))

    with pytest.raises(DataError, match="expected prompts for the split 'concept'"):
        load_concept(str(path))


def test_a_found_prompt_is_dropped_before_it_is_drawn(tmp_path: Path) -> None:
    concept = load_concept(str(card(tmp_path, "nsfw", "x")))
    task = Task(kind="attack", plugin="pez", version=1, base="b", concept=concept)

    kept = permitted(Snapshot(steps=1, prompts=("zx teen {prompt}", "qv {prompt}")), task)

    assert kept.prompts == ("qv {prompt}",)
    with pytest.raises(PluginError, match="age filter"):
        permitted(Snapshot(steps=1, prompts=("zx teen {prompt}",)), task)
