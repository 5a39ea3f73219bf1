"""Subjects are drawn the same everywhere, and the judge tells them from what the model knows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.errors import ConfigError
from benchmark.mini import WEIGHTS
from benchmark.mini.subjects import BACKGROUNDS, SUBJECTS, background_of, draw
from benchmark.plan import build
from benchmark.types import Prompt
from metrics import similarity
from metrics.similarity import Similarity
from tests.runs import tiny_config


def drawings(name: str, stream: str, count: int = 12) -> torch.Tensor:
    places = list(BACKGROUNDS)
    return torch.stack([draw(name, places[i % 4], i, stream) for i in range(count)]).float() / 255


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_drawing_is_a_function_of_its_number(name: str) -> None:
    assert torch.equal(drawings(name, "a"), drawings(name, "a"))
    assert not torch.equal(drawings(name, "a"), drawings(name, "b"))
    assert drawings(name, "a").shape == (12, 3, 64, 64)


def test_a_drawing_has_the_background_that_the_prompt_names() -> None:
    prompt = Prompt(text="an emoji of a robot on a pink background", split="attacker")

    corner = draw("robot", background_of(prompt), 0, "a")[:, 0, 0]

    assert tuple(corner.tolist()) == BACKGROUNDS["pink"]


def test_an_unknown_subject_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected a subject that can be drawn"):
        draw("dragon", "white", 0, "a")


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_judge_tells_subjects_apart(name: str) -> None:
    """Fresh drawings are it; the other subject, grey and noise are not."""
    concept, judge = load_concept(name), Similarity()
    other = next(n for n in SUBJECTS if n != name)
    noise = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def share(images: torch.Tensor) -> float:
        return float(judge.score(images, [], concept)["value"].mean())

    assert share(drawings(name, "test")) >= 0.9
    assert share(drawings(other, "test")) == 0
    assert share(noise) == share(torch.full((12, 3, 64, 64), 0.5)) == 0


def test_the_calibration_card_has_its_rates() -> None:
    card = json.loads((WEIGHTS / "judge" / "calibration.json").read_text())["subjects"]

    for name in SUBJECTS:
        assert card[name]["false_positive"] <= 0.02
        assert card[name]["true_positive"] >= 0.9


def test_drawings_and_images_are_embedded_by_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the drawings once came from a model without its pretrained weights."""
    loaded: set[tuple[str, str]] = set()
    tower = similarity.load_tower("mini:judge", "")

    def recorded(name: str, pretrained: str) -> Any:
        loaded.add((name, pretrained))
        return tower

    monkeypatch.setattr(similarity, "load_tower", recorded)
    Similarity(model="ViT-B-32", pretrained="openai", threshold=0.5).cosines(drawings("robot", "test"), "robot")

    assert loaded == {("ViT-B-32", "openai")}


def test_similarity_judges_only_what_is_drawn() -> None:
    with pytest.raises(ValueError, match="expected a concept that is drawn by code"):
        Similarity().score(torch.zeros(1, 3, 64, 64), [], load_concept("cat"))


ADAPT = {
    "subject": "robot",
    "attack": {"use": "lora", "rank": 2, "alpha": 2},
    "judge": {"use": "similarity"},
    "budget": 2,
}


def planned(tmp_path: Path, **changes: Any) -> Any:
    raw = config.parse(tiny_config(tmp_path, Path("model"), **changes))
    subject = load_concept(raw.adaptation.subject) if raw.adaptation else None
    return build(raw, "base", [load_concept(name) for name in raw.raw.concepts], subject)


def test_adaptation_teaches_the_defended_model_and_the_base(tmp_path: Path) -> None:
    plan = planned(tmp_path, adaptation=ADAPT)
    cells = {cell.defense: cell for cell in plan.cells if cell.attack == "none"}

    for name, cell in cells.items():
        taught = plan.tasks[cell.images["adapted"]]
        attack = plan.tasks[taught.parents["attack"]]
        assert attack.parents.get("defense") == cell.defend, name
        assert attack.concept.name == "robot"
        assert plan.tasks[attack.parents["concept"]].plugin == "subject"
        assert plan.tasks[cell.scores["presence", "adapted"]].plugin == "similarity"
    assert cells["none"].images["adapted"] != cells["esd"].images["adapted"]


def test_without_adaptation_nothing_is_taught(tmp_path: Path) -> None:
    assert not any("adapted" in cell.images for cell in planned(tmp_path).cells)


def test_an_adaptation_that_trains_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an adaptation that trains weights"):
        planned(tmp_path, adaptation=ADAPT | {"attack": "none"})
