"""Bad input is one line that says what was expected, what was got and what to do."""

from pathlib import Path
from typing import Any

import pytest

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.data.cards import cards, spread
from benchmark.errors import ConfigError, DataError, InputError
from benchmark.types import Prompt
from tests.runs import CARD, tiny_config


def parse(**changes: Any) -> config.Config:
    values = tiny_config(Path("/tmp"), Path("model"), concepts=["cat"])
    return config.parse({k: v for k, v in (values | changes).items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defences": ["none"]}, "unknown key 'defences': did you mean 'defenses'"),
        ({"defenses": ["eds"]}, "unknown defense 'eds': did you mean 'esd'"),
        ({"attacks": ["lroa"]}, "unknown attack 'lroa': did you mean 'lora'"),
        ({"defenses": [{"use": "esd", "etaa": 1}]}, "'etaa': did you mean 'eta'"),
        ({"defenses": [{"use": "esd", "preset": "fsat"}]}, "did you mean 'fast'"),
        ({"defenses": [{"use": "esd", "scope": "z"}]}, "defense 'esd': at 'scope'"),
        ({"defenses": [{"use": "esd", "steps": "many"}]}, "defense 'esd': at 'steps'"),
        ({"defenses": [{"eta": 1}]}, "expected `use: NAME`"),
        ({"defenses": ["esd", {"use": "esd", "lr": 1}]}, "'esd' twice"),
        ({"sampling": {"stepz": 3}}, "at 'sampling.stepz'"),
        ({"sampling": {"steps": 0}}, "at 'sampling.steps'"),
        ({"budgets": [5, 3]}, "expected rising budgets above 0"),
        ({"concepts": []}, "at 'concepts'"),
        ({"model": None}, "at 'model'"),
    ],
)
def test_a_mistake_is_one_helpful_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        config.load("demoo")


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "c.yaml").write_text("")

    for name in "abc":
        with pytest.raises(ConfigError, match="expected"):
            config.load(str(tmp_path / f"{name}.yaml"))


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_is_valid(name: str) -> None:
    loaded = config.load(name)

    assert loaded.raw.name == name
    for concept in loaded.raw.concepts:
        if not concept.endswith(".yaml"):  # the user's own file
            load_concept(concept, model=loaded.raw.model)


def test_a_preset_gives_the_fields_and_the_config_overrides() -> None:
    entry = parse(defenses=[{"use": "esd", "preset": "fast", "steps": 7}]).defenses[0]

    assert (entry.method.steps, entry.method.lr, entry.method.sampled_from) == (7, 5e-5, "frozen")


def test_only_keeps_the_control() -> None:
    kept = config.restrict(parse(), {"defense": ("esd",), "attack": ("lora",)})

    assert [d.label for d in kept.defenses] == ["none", "esd"]
    assert [a.label for a in kept.attacks] == ["none", "lora"]
    with pytest.raises(ConfigError, match="unknown defense 'esdd': did you mean 'esd'"):
        config.restrict(parse(), {"defense": ("esdd",)})


@pytest.mark.parametrize("name", cards())
def test_every_shipped_card_has_all_splits(name: str) -> None:
    concept = load_concept(name)

    assert concept.name == name.removeprefix("real/")
    for split in ("concept", "retained", "safe", "attacker", "defender"):
        assert concept.of(split), split
    assert not any(concept.name in p.text.split() for p in (*concept.of("safe"), *concept.of("retained")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labelz": {}}, "expected a concept card"),
        ({"name": "cow"}, "the label 'cow'"),
        ({"prompts": {"concept": [{"text": "a {n}", "label": "cat"}]}}, "expected a value for each placeholder"),
        ({"prompts": {"concept": [{"text": "a", "label": "cta"}]}}, "did you mean 'cat'"),
        ({"prompts": {"concept": [{"text": "a"}], "attacker": [{"text": "a"}]}}, "without common prompts"),
    ],
)
def test_a_bad_card_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import yaml

    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(CARD | change))

    with pytest.raises((DataError, ConfigError), match=message):
        load_concept(str(path))


def test_an_unreadable_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    for path in (tmp_path / "empty.yaml", tmp_path / "missing.yaml"):
        with pytest.raises(InputError):
            load_concept(str(path))


@pytest.mark.parametrize("count", [0, 1, 3, 7, 12, 99])
def test_spread_takes_as_many_as_asked_without_repeats(count: int) -> None:
    prompts = tuple(Prompt(text=str(i), split="safe") for i in range(12))

    chosen = spread(prompts, count)

    assert len(chosen) == (12 if count in (0, 99) else count)
    assert len(set(chosen)) == len(chosen)
