"""Every file in defenses/, attacks/ and metrics/ keeps its contract. A new file is tested without a new test."""

import dataclasses
import inspect
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from attacks.base import Attack, WeightAttack
from benchmark.diffusion import Model
from benchmark.registry import find, names
from benchmark.types import Concept, Delta, Examples, Prompt
from defenses.base import Defense
from metrics.base import ImageMetric, Metric

SMALL = {"steps": 3, "ddim_steps": 4, "rank": 2, "alpha": 2, "lr": 1e-3, "batch": 2}
ON_MINI = {"model": "mini:judge"}


def small(kind: str, name: str) -> object:
    """A plug-in with few steps, whatever fields it has."""
    cls = find(kind, name)
    wanted = {**SMALL, **(ON_MINI if kind == "metric" else {})}
    return cls(**{f.name: wanted[f.name] for f in dataclasses.fields(cls) if f.name in wanted})


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def global_state() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize(("kind", "base"), [("defense", Defense), ("attack", Attack), ("metric", Metric)])
def test_every_file_holds_one_frozen_keyword_only_dataclass(kind: str, base: type) -> None:
    for name in names(kind):
        cls = find(kind, name)

        assert issubclass(cls, base), name
        assert dataclasses.is_dataclass(cls), name
        assert cls.__dataclass_params__.frozen, name
        assert all(f.kw_only for f in dataclasses.fields(cls)), name
        assert isinstance(cls.version, int), name


@pytest.mark.parametrize("kind", ["defense", "attack", "metric"])
def test_every_file_documents_itself(kind: str) -> None:
    wanted = {
        "defense": ("Differs", "Protects"),
        "attack": ("Access", "Budget"),
        "metric": ("Direction", "Range", "Per", "Backbone", "Reference"),
    }
    for name in names(kind):
        text = inspect.getmodule(find(kind, name)).__doc__

        for line in wanted[kind]:
            assert line in text, f"{name} lacks the line {line!r}"


@pytest.mark.parametrize("kind", ["defense", "attack", "metric"])
def test_fields_survive_json(kind: str) -> None:
    """The runner rebuilds a method from the JSON of its fields."""
    for name in names(kind):
        adapter = TypeAdapter(find(kind, name))
        method = adapter.validate_python({})

        assert adapter.validate_python(adapter.dump_python(method, mode="json")) == method


@pytest.mark.parametrize("kind", ["defense", "attack", "metric"])
def test_presets_name_known_fields(kind: str) -> None:
    for name in names(kind):
        cls = find(kind, name)
        for preset in getattr(cls, "presets", {}).values():
            TypeAdapter(cls).validate_python(dict(preset))
            assert set(preset) <= {f.name for f in dataclasses.fields(cls)}


@pytest.mark.parametrize("folder", ["defenses", "attacks", "metrics"])
def test_no_method_prints_saves_seeds_or_picks_a_device(folder: str) -> None:
    forbidden = ("print(", "manual_seed(", "torch.save", "torch.load", "cuda", "argparse", "__main__", "os.environ")
    for file in Path(folder).glob("*.py"):
        source = file.read_text()
        for word in forbidden:
            assert word not in source, f"{file}: {word}"


@pytest.mark.parametrize("name", names("defense"))
def test_a_defense_is_a_function_of_its_generator(
    name: str, model: Model, concept: Concept, examples: Examples
) -> None:
    """Same seed, same delta; the base and the global generators stay as they were."""
    method = small("defense", name)
    data = dict.fromkeys(method.needs, examples)
    before = global_state()
    first, second = (
        method.protect(model, concept, data, rng=torch.Generator().manual_seed(3), report=silent) for _ in range(2)
    )

    assert before == global_state()
    assert isinstance(first, Delta)
    assert first.dense.keys() == second.dense.keys()
    assert all(torch.equal(first.dense[n], second.dense[n]) for n in first.dense)
    assert first.is_zero == (method.fidelity == "control")


@pytest.mark.parametrize("name", names("defense"))
def test_a_defenses_delta_applies(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method = small("defense", name)
    delta = method.protect(
        model, concept, dict.fromkeys(method.needs, examples), rng=torch.Generator().manual_seed(3), report=silent
    )

    defended = model.with_delta(delta)

    z, t, text = torch.zeros(1, *model.latent_shape), torch.tensor(5), model.encode_text(["cat"])
    same = torch.equal(model.predict_noise(z, t, text), defended.predict_noise(z, t, text))
    assert same == delta.is_zero


@pytest.mark.parametrize("name", names("attack"))
def test_a_weight_attack_yields_each_budget(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method = small("attack", name)
    if not isinstance(method, WeightAttack):
        assert method.changes != "weights"
        return
    data = dict.fromkeys(method.needs, examples)
    seen: list[int] = []
    before = global_state()

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)

    rng = torch.Generator().manual_seed(3)
    snapshots = list(method.finetune(model, concept, data, budgets=[1, 3], rng=rng, report=report))

    assert before == global_state()
    assert [s.steps for s in snapshots] == [1, 3]
    assert seen == [1, 2, 3]
    assert not snapshots[-1].delta.is_zero


@pytest.mark.parametrize("name", names("attack"))
def test_more_budgets_change_no_snapshot(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method = small("attack", name)
    if not isinstance(method, WeightAttack):
        assert method.changes != "weights"
        return
    data = dict.fromkeys(method.needs, examples)

    def final(budgets: list[int]) -> Delta:
        rng = torch.Generator().manual_seed(3)
        *_, last = method.finetune(model, concept, data, budgets=budgets, rng=rng, report=silent)
        return last.delta

    once, often = model.with_delta(final([4])), model.with_delta(final([1, 2, 3, 4]))

    assert all(torch.equal(a, b) for a, b in zip(once.unet.parameters(), often.unet.parameters(), strict=True))


@pytest.mark.parametrize("name", names("metric"))
def test_a_metric_accepts_black_white_and_grey(name: str) -> None:
    from benchmark.data import load_concept

    method = small("metric", name)
    card = load_concept("cigarette")
    images = torch.stack([torch.full((3, 64, 64), v) for v in (0.0, 0.5, 1.0)])
    prompts = [Prompt(text="a cigarette", split="concept", label="cigarette")] * 3
    assert isinstance(method, ImageMetric)

    columns = method.score(images, prompts, card if method.reads_concept else None)

    low, high = method.bounds
    assert columns["value"].shape == (3,)
    assert bool(((columns["value"] >= low) & (columns["value"] <= high)).all())
    assert method.identity()


@pytest.mark.parametrize("name", names("metric"))
def test_a_metric_does_not_depend_on_the_batch(name: str) -> None:
    from benchmark.data import load_concept

    method = small("metric", name)
    card = load_concept("cigarette") if method.reads_concept else None
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(text=t, split="concept", label="cigarette") for t in ("a cat", "a dog", "a key", "a car")]

    together = method.score(images, prompts, card)["value"]
    single = torch.cat([method.score(images[i : i + 1], prompts[i : i + 1], card)["value"] for i in range(4)])

    torch.testing.assert_close(together, single)
