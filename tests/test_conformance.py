"""Every file in defenses/, attacks/ and metrics/ keeps its contract. A new file is tested without a new test."""

import dataclasses
import inspect
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from attacks.base import Attack, PromptAttack, SamplingAttack, WeightAttack
from benchmark.data import load_concept
from benchmark.diffusion import Model
from benchmark.registry import find, names
from benchmark.types import PROMPT, Concept, Delta, Examples, Prompt, Report, Snapshot
from defenses.base import Defense
from metrics.base import ImageMetric, Metric, PairMetric, SetMetric
from metrics.embedders import embed

SMALL = {
    "steps": 3,
    "ddim_steps": 4,
    "rank": 2,
    "alpha": 2,
    "lr": 1e-3,
    "batch": 2,
    "perceptual": "pixels",
    "features": 4,
    "latent_batch": 2,
    "d1_steps": 1,
    "d1_batch": 2,
    "d2_steps": 2,
    "d2_batch": 2,
    "u1_steps": 1,
    "u1_batch": 2,
    "u2_steps": 1,
    "u2_batch": 3,
    "u2_adapt": 2,
    "u2_batches": 2,
    "d1_lr": 1e-3,
    "d2_lr": 1e-3,
    "u1_lr": 1e-3,
    "u2_lr": 1e-3,
}
ON_MINI = {"model": "mini:judge", "embedder": "mini:judge", "backbone": "mini"}


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


def finetuned(
    method: WeightAttack, model: Model, concept: Concept, examples: Examples, budgets: Sequence[int], report: Report
) -> list[Snapshot]:
    """What a weight attack yields; the base of one that reads it differs from the model in its VAE."""
    base = model.clone()
    for parameter in base.vae.parameters() if method.uses_base else ():
        parameter.data.add_(1e-3)
    data, rng = dict.fromkeys(method.needs, examples), torch.Generator().manual_seed(3)
    return list(method.finetune(model, base, concept, data, budgets=budgets, rng=rng, report=report))


def learned(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """All numbers of a snapshot, by name: changed weights, adapters, new words."""
    pairs = {f"{n}.{i}": t for n, pair in snapshot.delta.low_rank.items() for i, t in enumerate(pair)}
    return {**snapshot.delta.dense, **pairs, **snapshot.tokens}


def same(a: Snapshot, b: Snapshot) -> bool:
    """Whether two snapshots hold the same numbers, to the bit."""
    x, y = learned(a), learned(b)
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


@pytest.mark.parametrize("name", names("attack"))
def test_a_weight_attack_yields_each_budget(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    """Each step is reported once, each snapshot differs from the last, and a learned word is asked for."""
    method = small("attack", name)
    if not isinstance(method, WeightAttack):
        assert method.changes != "weights"
        return
    card, budgets = dataclasses.replace(concept, paraphrases=("small pet",)), method.budgets([1, 3])
    seen: list[int] = []
    before = global_state()

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)

    snapshots = finetuned(method, model, card, examples, budgets, report)

    assert before == global_state()
    assert [s.steps for s in snapshots] == list(budgets)
    assert seen == list(range(1, max(budgets) + 1))
    assert any(bool(t.any()) for t in learned(snapshots[-1]).values())
    assert not any(same(a, b) for a, b in pairwise(snapshots))
    assert all(word in method.reword("a cat", card) for word in snapshots[-1].tokens)


@pytest.mark.parametrize("name", names("attack"))
def test_more_budgets_change_no_snapshot(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    method = small("attack", name)
    if not isinstance(method, WeightAttack):
        assert method.changes != "weights"
        return
    card = dataclasses.replace(concept, paraphrases=("small pet",))
    once, often = (
        finetuned(method, model, card, examples, method.budgets(asked), silent)[-1] for asked in ([4], [1, 2, 3, 4])
    )

    assert learned(once)
    assert same(once, often)


def per_image(method: Metric, images: torch.Tensor, prompts: list[Prompt], others: torch.Tensor) -> torch.Tensor:
    """What a metric computes image by image: its value or, for a distance between sets, its features."""
    if isinstance(method, ImageMetric):
        return method.score(images, prompts, load_concept("cigarette") if method.reads_concept else None)["value"]
    if isinstance(method, PairMetric):
        return method.score(images, prompts, others)["value"]
    assert isinstance(method, SetMetric)
    return embed(method.embedder, images)


@pytest.mark.parametrize("name", names("metric"))
def test_a_metric_accepts_black_white_and_grey(name: str) -> None:
    method = small("metric", name)
    images = torch.stack([torch.full((3, 64, 64), v) for v in (0.0, 0.5, 1.0)])
    prompts = [Prompt(text="a cigarette", split="concept", label="cigarette")] * 3
    before = global_state()

    values = per_image(method, images, prompts, images.flip(0))

    assert before == global_state()
    low, high = method.bounds
    if method.per == "set":
        g = embed(method.embedder, images.flip(0) * 0.9)
        values = torch.tensor([method.distance(values, g, rng=torch.Generator())["value"]])
    assert values.shape == (1 if method.per == "set" else 3,)
    assert bool(((values >= low) & (values <= high)).all())
    assert method.identity()


@pytest.mark.parametrize("name", names("metric"))
def test_a_metric_does_not_depend_on_the_batch(name: str) -> None:
    method = small("metric", name)
    images, others = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(text=t, split="concept", label="cigarette") for t in ("a cat", "a dog", "a key", "a car")]

    together = per_image(method, images, prompts, others)
    single = [per_image(method, images[i : i + 1], prompts[i : i + 1], others[i : i + 1]) for i in range(4)]

    torch.testing.assert_close(together, torch.cat(single))


@pytest.mark.parametrize("name", names("metric"))
def test_a_distance_is_a_function_of_two_sets_and_its_generator(name: str) -> None:
    """Same seed, same numbers; symmetric; further for sets further apart; an interval is around its value."""
    method = small("metric", name)
    if not isinstance(method, SetMetric):
        assert method.per in ("image", "pair")
        return
    f, g = torch.nn.functional.normalize(torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    before = global_state()

    def distance(f: torch.Tensor, g: torch.Tensor) -> dict[str, float]:
        return dict(method.distance(f, g, rng=torch.Generator().manual_seed(3)))

    found = distance(f, g)

    assert set(found) >= {"value", "ci_low", "ci_high"}
    assert repr(found) == repr(distance(f, g))  # NaN is where it was
    assert distance(g, f)["value"] == pytest.approx(found["value"], rel=1e-9)
    assert distance(f, g + 0.5)["value"] > found["value"]
    assert math.isnan(found["ci_low"]) or found["ci_low"] < found["value"] < found["ci_high"]
    assert before == global_state()
    assert method.embedded_by() in method.identity()


def prompt_attacks() -> list[str]:
    """Those that search."""
    return [name for name in names("attack") if issubclass(find("attack", name), PromptAttack)]


def sampling_attacks() -> list[str]:
    return [name for name in names("attack") if issubclass(find("attack", name), SamplingAttack)]


def found(name: str, model: Model, concept: Concept, examples: Examples, budgets: list[int]) -> list[Snapshot]:
    """What a prompt attack yields on a card whose attacker names the concept; it gets only what it declares."""
    method = small("attack", name)
    assert isinstance(method, PromptAttack)
    data, base = dict.fromkeys(method.needs, examples), model if method.uses_base else None
    card = dataclasses.replace(concept, phrase="at")
    rng = torch.Generator().manual_seed(3)
    return list(method.search(model, base, card, data, budgets=budgets, rng=rng, report=silent))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", prompt_attacks())
def test_a_prompt_attack_yields_each_budget(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    """Once a step it reports, and it is a function of its generator; the global generators stay as they were."""
    method = small("attack", name)
    assert isinstance(method, PromptAttack)
    seen: list[int] = []
    before = global_state()

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)

    card, rng = dataclasses.replace(concept, phrase="at"), torch.Generator().manual_seed(3)
    data = dict.fromkeys(method.needs, examples)
    snapshots = list(method.search(model, model, card, data, budgets=[1, 3], rng=rng, report=report))

    assert before == global_state()
    assert [s.steps for s in snapshots] == [1, 3]
    assert seen == [1, 2, 3]
    assert all(s.delta.is_zero and not s.tokens for s in snapshots)
    assert snapshots == found(name, model, concept, examples, [1, 3])


@pytest.mark.parametrize("name", prompt_attacks())
def test_more_budgets_change_no_found_prompt(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    often = found(name, model, concept, examples, [1, 2, 3, 4])

    for snapshot in often:
        assert found(name, model, concept, examples, [snapshot.steps]) == [snapshot]


@pytest.mark.parametrize("name", prompt_attacks())
def test_found_prompts_can_be_typed(name: str, model: Model, concept: Concept, examples: Examples) -> None:
    """Their tokens decode to the text and the text encodes to them; what leaves no room for words is refused."""
    for snapshot in found(name, model, concept, examples, [1, 3]):
        assert snapshot.prompts
        for prompt in snapshot.prompts:
            text = prompt.replace(PROMPT, "").strip()
            ids = model.tokenizer(text, add_special_tokens=False).input_ids

            assert ids
            assert len(ids) <= model.tokenizer.model_max_length - 2
            assert not set(ids) & set(model.tokenizer.all_special_ids)
            assert model.tokenizer.decode(ids).strip() == text
            assert len(text.split()) == len(ids)


@pytest.mark.parametrize("name", sampling_attacks())
def test_a_sampling_attack_starts_inside_the_trajectory(name: str, model: Model) -> None:
    """Same noise, same start; the models and the global generators stay as they were."""
    method = small("attack", name)
    assert isinstance(method, SamplingAttack)
    budgets = method.budgets([1, 3])
    z_T = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    text = model.encode_text(["a cat", "a dog"])
    null = model.encode_text([""]).expand_as(text)
    before, noise = global_state(), z_T.clone()

    for budget in budgets:
        (z, at), (again, _) = (
            method.begin(model, model, z_T, text, null, budget=budget, steps=12, scale=2.0) for _ in range(2)
        )

        assert z.shape == z_T.shape
        assert bool(torch.isfinite(z).all())
        assert torch.equal(z, again)
        assert isinstance(at, int)
        assert 0 < at < 12
    assert budgets
    assert list(budgets) == sorted(set(budgets))
    assert before == global_state()
    assert torch.equal(z_T, noise)
