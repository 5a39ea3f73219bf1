"""The checks that every plug-in passes, built-in or not, on a tiny random pipeline: seconds on one core.

    from benchmark.conformance import check_defense

    def test_it_keeps_the_contract() -> None:
        check_defense(Mine, {"steps": 2})

A broken contract is a PluginError that says what was expected and what was got. Fields that are not given are made
small if their names are known (`SMALL`), and keep their defaults otherwise.
"""

import inspect
import math
import random
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields as fields_of
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import TypeAdapter
from torch import Generator, Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from attacks.base import Attack, PromptAttack, SamplingAttack, WeightAttack
from benchmark.data import load_concept
from benchmark.diffusion import Model
from benchmark.errors import PluginError
from benchmark.types import ELSE, PROMPT, Concept, Delta, Examples, Prompt, Report, Snapshot
from defenses.base import Defense
from metrics.base import ImageMetric, Metric, PairMetric, ReferenceMetric, SetMetric
from metrics.embedders import embed

SMALL: Mapping[str, Any] = {
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
ON_MINI: Mapping[str, Any] = {"model": "mini:judge", "embedder": "mini:judge", "backbone": "mini"}
CARD = "robot"  # what metrics that read a card are given: the judges know it, and code draws it
HEADINGS: Mapping[type, tuple[str, ...]] = {
    Defense: ("Differs", "Protects"),
    Attack: ("Access", "Budget"),
    Metric: ("Direction", "Range", "Per", "Backbone", "Reference"),
}
FORBIDDEN = ("print(", "manual_seed(", "torch.save", "torch.load", "cuda", "argparse", "__main__", "os.environ")


# The pipeline, and what a method is given.


def tiny_tokenizer() -> CLIPTokenizer:
    """One token a letter, 12 tokens a text."""
    letters = list(string.ascii_lowercase)
    entries = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={e: i for i, e in enumerate(entries)}, merges=[], model_max_length=12)


def tiny_pipeline() -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline of 8 px with random weights, always the same; the global generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 8),
            latent_channels=4,
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            sample_size=8,
        )
        tokenizer = tiny_tokenizer()
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = CLIPTextConfig(vocab_size=len(tokenizer.get_vocab()), max_position_embeddings=12, **size, **ends)
        schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDPMScheduler(**schedule),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def tiny_model() -> Model:
    """The tiny pipeline as methods see it: frozen, on the CPU."""
    pipe = tiny_pipeline()
    return Model(
        unet=pipe.unet, vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, scheduler=pipe.scheduler
    ).frozen()


def tiny_concept() -> Concept:
    """A card that fits the tiny tokenizer: two short prompts in every split."""
    splits = ("concept", "retained", "safe", "attacker", "defender", "prior", "benign")
    label = {"concept": "cat", "retained": "dog"}
    prompts = [Prompt(text=f"{s[:2]} {n}", split=s, label=label.get(s)) for s in splits for n in ("a", "b")]  # type: ignore[arg-type]
    labels = {"cat": "a cat", "dog": "a dog", ELSE: ELSE}
    return Concept(name="cat", phrase="cat", kind="object", prompts=tuple(prompts), labels=labels)


def tiny_examples() -> Examples:
    """Four captioned pictures of noise, 8 px."""
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=seeded(1), dtype=torch.uint8)
    return Examples(images=images, captions=("a cat", "a cat", "one", "two"))


def small(cls: type[Any], given: Mapping[str, Any] | None = None) -> Any:
    """An instance with few steps, whatever fields it has; `given` fields win."""
    wanted = {**SMALL, **(ON_MINI if issubclass(cls, Metric) else {})}
    return cls(**{f.name: wanted[f.name] for f in fields_of(cls) if f.name in wanted} | dict(given or {}))


# What a third party calls.


def check_defense(cls: type[Defense], fields: Mapping[str, Any] | None = None) -> None:
    """Run all checks of a defense.

    Args:
        cls: the plug-in.
        fields: those that make it small, and those without a default.

    Raises:
        PluginError: it breaks the contract; the message says how.
    """
    check_class(cls, Defense, fields)
    method, model, concept, examples = small(cls, fields), tiny_model(), tiny_concept(), tiny_examples()
    with unchanged(model):
        protects_repeatably(method, model, concept, examples)
        delta_applies(method, model, concept, examples)


def check_attack(cls: type[Attack], fields: Mapping[str, Any] | None = None) -> None:
    """Run all checks of an attack, as `check_defense`."""
    check_class(cls, Attack, fields)
    method, model, concept, examples = small(cls, fields), tiny_model(), tiny_concept(), tiny_examples()
    rewords_repeatably(method, concept)
    with unchanged(model):
        if isinstance(method, WeightAttack):
            finetunes_each_budget(method, model, concept, examples)
            finetunes_alike_under_more_budgets(method, model, concept, examples)
        elif isinstance(method, PromptAttack):
            searches_each_budget(method, model, concept, examples)
            searches_alike_under_more_budgets(method, model, concept, examples)
            found_prompts_can_be_typed(method, model, concept, examples)
        elif isinstance(method, SamplingAttack):
            starts_inside_the_trajectory(method, model)


def check_metric(cls: type[Metric], fields: Mapping[str, Any] | None = None) -> None:
    """Run all checks of a metric, as `check_defense`."""
    check_class(cls, Metric, fields)
    method = small(cls, fields)
    scores_black_white_and_grey(method)
    scores_whatever_the_batch(method)
    measures_distances(method)


def check_class(cls: type[Any], base: type[Any], fields: Mapping[str, Any] | None = None) -> None:
    """What can be checked without running the method."""
    is_a_frozen_dataclass(cls, base)
    documents_itself(cls, base)
    fields_survive_json(cls, fields)
    presets_name_fields(cls, fields)
    if cls.__module__ != "__main__":  # a script or notebook may print
        keeps_its_hands_off(inspect.getsource(sys.modules[cls.__module__]), cls.__name__)


# The checks, one claim each.


def expect(holds: object, expected: str, got: object = "something else") -> None:
    """Raise unless it holds.

    Raises:
        PluginError: what was expected and what was got.
    """
    if not holds:
        raise PluginError(f"expected {expected}, got {got}: see CONTRIBUTING.md for the contract.")


def is_a_frozen_dataclass(cls: type[Any], base: type[Any]) -> None:
    """A plug-in is a frozen, keyword-only dataclass with a version."""
    expect(issubclass(cls, base), f"{cls.__name__} to derive from {base.__name__}", [b.__name__ for b in cls.__bases__])
    own = vars(cls).get("__dataclass_params__")  # a class without the decorator inherits its parent's
    expect(own and own.frozen, f"@dataclass(frozen=True, kw_only=True) above {cls.__name__}", "a class without it")
    free = [f.name for f in fields_of(cls) if not f.kw_only]
    expect(not free, f"keyword-only fields in {cls.__name__}", free)
    version = getattr(cls, "version", None)
    expect(isinstance(version, int), f"{cls.__name__}.version to be a whole number", version)


def documents_itself(cls: type[Any], base: type[Any]) -> None:
    """The text at the top of its file has the lines that readers look for."""
    text = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    missing = [line for line in HEADINGS[base] if line not in text]
    expect(not missing, f"the lines {HEADINGS[base]} at the top of the file of {cls.__name__}", f"none for {missing}")


def fields_survive_json(cls: type[Any], fields: Mapping[str, Any] | None = None) -> None:
    """The runner rebuilds a method from the JSON of its fields."""
    adapter = TypeAdapter(cls)
    method = adapter.validate_python(dict(fields or {}))
    again = adapter.validate_python(adapter.dump_python(method, mode="json"))
    expect(again == method, f"{method} after a round trip through JSON", again)


def presets_name_fields(cls: type[Any], fields: Mapping[str, Any] | None = None) -> None:
    """A preset sets known fields to valid values."""
    known = {f.name for f in fields_of(cls)}
    for name, preset in getattr(cls, "presets", {}).items():
        expect(set(preset) <= known, f"fields of {cls.__name__} in its preset {name!r}", sorted(set(preset) - known))
        TypeAdapter(cls).validate_python({**(fields or {}), **preset})


def keeps_its_hands_off(source: str, where: str) -> None:
    """A method neither prints, saves, seeds globally nor picks a device."""
    found = [word for word in FORBIDDEN if word in source]
    expect(not found, f"a method that leaves printing, seeds, files and devices to the runner in {where}", found)


def protects_repeatably(method: Defense, model: Model, concept: Concept, examples: Examples) -> None:
    """Same seed, same delta; the global generators stay; only a control changes nothing."""
    with global_state_kept():
        first, second = (protect(method, model, concept, examples) for _ in range(2))
    expect(isinstance(first, Delta), "protect to return a Delta", type(first).__name__)
    expect(first.dense.keys() == second.dense.keys(), "the same names in the delta for the same seed")
    unequal = [name for name in first.dense if not torch.equal(first.dense[name], second.dense[name])]
    expect(not unequal, "the same delta for the same seed", f"others at {unequal[:3]}: draw from `rng` only")
    expect(not unequal and all_equal(first.low_rank, second.low_rank), "the same adapters for the same seed")
    control = method.fidelity == "control"
    expect(first.is_zero == control, "a delta that is zero in a control only", f"is_zero={first.is_zero}")


def delta_applies(method: Defense, model: Model, concept: Concept, examples: Examples) -> None:
    """The delta fits the base, and changes what it predicts."""
    delta = protect(method, model, concept, examples)
    changed = [name.partition(".")[0] for name in (*delta.dense, *delta.low_rank)]
    defended = model.with_delta(delta)
    if set(changed) - {"vae"} or not changed:
        z, t, text = torch.zeros(1, *model.latent_shape), torch.tensor(5), ["cat"]
        a, b = (m.predict_noise(z, t, m.encode_text(text)) for m in (model, defended))
        expect(torch.equal(a, b) == delta.is_zero, "a delta that changes the noise predicted unless it is zero")


def rewords_repeatably(method: Attack, concept: Concept) -> None:
    """What an attacker asks for in place of a prompt is a text, and the same one each time."""
    card = replace(concept, paraphrases=("small pet",))
    with global_state_kept():
        first, second = (method.reword("a cat", card) for _ in range(2))
    expect(isinstance(first, str) and first, "`reword` to return a text", repr(first))
    expect(first == second, f"`reword` to return {first!r} again", repr(second))


def finetunes_each_budget(method: WeightAttack, model: Model, concept: Concept, examples: Examples) -> None:
    """Each step is reported once, each snapshot differs from the last, and a learned word is asked for."""
    card, budgets, seen = replace(concept, paraphrases=("small pet",)), method.budgets([1, 3]), list[int]()

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)

    with global_state_kept():
        snapshots = finetuned(method, model, card, examples, budgets, report)
    steps = [s.steps for s in snapshots]
    expect(steps == list(budgets), f"a snapshot at each of {list(budgets)}", steps)
    expect(seen == list(range(1, max(budgets) + 1)), "one report for each step, from 1", seen)
    expect(any(bool(t.any()) for t in learned(snapshots[-1]).values()), "weights or words that changed", "none")
    expect(not any(same(a, b) for a, b in pairwise(snapshots)), "snapshots that differ from the last", "the same twice")
    unasked = [word for word in snapshots[-1].tokens if word not in method.reword("a cat", card)]
    expect(not unasked, "`reword` to ask for each learned word", f"prompts without {unasked}")


def finetunes_alike_under_more_budgets(
    method: WeightAttack, model: Model, concept: Concept, examples: Examples
) -> None:
    """The state after b steps is the end of a run of b steps."""
    card = replace(concept, paraphrases=("small pet",))
    once, often = (
        finetuned(method, model, card, examples, method.budgets(asked), silent)[-1] for asked in ([4], [1, 2, 3, 4])
    )
    expect(learned(once), "a snapshot that holds weights or words", "an empty one")
    expect(same(once, often), "the same last snapshot however many come before it", "another one")


def searches_each_budget(method: PromptAttack, model: Model, concept: Concept, examples: Examples) -> None:
    """Once a step it reports, and it is a function of its generator; the global generators stay as they were."""
    seen = list[int]()

    def report(*, step: int, total: int, loss: float) -> None:
        seen.append(step)

    card, data = replace(concept, phrase="at"), dict.fromkeys(method.needs, examples)
    with global_state_kept():
        snapshots = list(method.search(model, model, card, data, budgets=[1, 3], rng=seeded(3), report=report))  # type: ignore[arg-type]
    steps = [s.steps for s in snapshots]
    expect(steps == [1, 3], "a snapshot at each of [1, 3]", steps)
    expect(seen == [1, 2, 3], "one report for each step, from 1", seen)
    expect(all(s.delta.is_zero and not s.tokens for s in snapshots), "a prompt attack to change prompts only")
    again = searched(method, model, concept, examples, [1, 3])
    expect(snapshots == again, "the same prompts for the same seed, without `base` unless it `uses_base`", again)


def searches_alike_under_more_budgets(method: PromptAttack, model: Model, concept: Concept, examples: Examples) -> None:
    """The prompts after b steps are those of a run of b steps."""
    for snapshot in searched(method, model, concept, examples, [1, 2, 3, 4]):
        alone = searched(method, model, concept, examples, [snapshot.steps])
        expect(alone == [snapshot], f"{snapshot} however many budgets come before it", alone)


def found_prompts_can_be_typed(method: PromptAttack, model: Model, concept: Concept, examples: Examples) -> None:
    """Their tokens decode to the text and the text encodes to them; what leaves no room for words is refused."""
    for snapshot in searched(method, model, concept, examples, [1, 3]):
        expect(snapshot.prompts, "prompts in every snapshot", "none")
        for prompt in snapshot.prompts:
            text = prompt.replace(PROMPT, "").strip()
            ids = model.tokenizer(text, add_special_tokens=False).input_ids
            room = model.tokenizer.model_max_length - 2
            expect(0 < len(ids) <= room, f"a prompt of 1 to {room} tokens", len(ids))
            expect(not set(ids) & set(model.tokenizer.all_special_ids), "words, no special tokens", repr(text))
            expect(model.tokenizer.decode(ids).strip() == text, "a text that its own tokens spell", repr(text))
            expect(len(text.split()) == len(ids), "one word for each token", repr(text))


def starts_inside_the_trajectory(method: SamplingAttack, model: Model) -> None:
    """Same noise, same start; the models and the global generators stay as they were."""
    budgets = method.budgets([1, 3])
    expect(budgets and list(budgets) == sorted(set(budgets)), "rising budgets", budgets)
    z_T = torch.randn(2, *model.latent_shape, generator=seeded(3))
    text = model.encode_text(["a cat", "a dog"])
    null, noise = model.encode_text([""]).expand_as(text), z_T.clone()
    with global_state_kept():
        for budget in budgets:
            (z, at), (again, _) = (
                method.begin(model, model, z_T, text, null, budget=budget, steps=12, scale=2.0) for _ in range(2)
            )
            expect(z.shape == z_T.shape, f"latents {tuple(z_T.shape)}", tuple(z.shape))
            expect(bool(torch.isfinite(z).all()), "finite latents", "others")
            expect(torch.equal(z, again), "the same start for the same noise", "another one")
            expect(isinstance(at, int) and 0 < at < 12, "a number of steps from 1 to 11 of 12", at)
    expect(torch.equal(z_T, noise), "the noise to stay as it was", "other noise")


def scores_black_white_and_grey(method: Metric) -> None:
    """One number an image (or a set), within the bounds; it says who it is."""
    images = torch.stack([torch.full((3, 64, 64), v) for v in (0.0, 0.5, 1.0)])
    prompts = [Prompt(text=f"a {CARD}", split="concept", label=CARD)] * 3
    with global_state_kept():
        values = per_image(method, images, prompts, images.flip(0))
    if isinstance(method, SetMetric):
        g = embed(method.embedder, images.flip(0) * 0.9)
        values = torch.tensor([method.distance(values, g, rng=Generator())["value"]])
    count, (low, high) = 1 if method.per == "set" else 3, method.bounds
    expect(values.shape == (count,), f"{count} numbers", tuple(values.shape))
    expect(bool(((values >= low) & (values <= high)).all()), f"numbers from {low} to {high}", values.tolist())
    expect(method.identity(), "an identity that names the variant", "an empty one")


def scores_whatever_the_batch(method: Metric) -> None:
    """Four images together have the numbers that each has alone."""
    images, others = torch.rand(2, 4, 3, 64, 64, generator=seeded(0))
    prompts = [Prompt(text=t, split="concept", label=CARD) for t in ("a cat", "a dog", "a key", "a car")]
    together = per_image(method, images, prompts, others)
    beside = [others if method.per == "reference" else others[i : i + 1] for i in range(4)]
    single = [per_image(method, images[i : i + 1], prompts[i : i + 1], beside[i]) for i in range(4)]
    alike = torch.allclose(together, torch.cat(single), rtol=1.3e-6, atol=1e-5, equal_nan=True)
    expect(alike, f"{torch.cat(single).tolist()} for images together as alone", together.tolist())


def measures_distances(method: Metric) -> None:
    """Same seed, same numbers; symmetric; further for sets further apart; an interval is around its value."""
    if not isinstance(method, SetMetric):
        expect(method.per in ("image", "pair", "reference"), "per to be image, pair, reference or set", method.per)
        return
    f, g = torch.nn.functional.normalize(torch.randn(2, 40, 8, generator=seeded(0)), dim=-1)
    with global_state_kept():
        found, again, back, far = (
            dict(method.distance(a, b, rng=seeded(3))) for a, b in ((f, g), (f, g), (g, f), (f, g + 0.5))
        )
    expect(set(found) >= {"value", "ci_low", "ci_high"}, "value, ci_low and ci_high", sorted(found))
    expect(repr(found) == repr(again), "the same numbers for the same seed", again)  # NaN is where it was
    symmetric = math.isclose(back["value"], found["value"], rel_tol=1e-9, abs_tol=1e-12)
    expect(symmetric, f"the same distance the other way, {found['value']}", back["value"])
    expect(far["value"] > found["value"], "a larger distance between sets further apart", far["value"])
    inside = math.isnan(found["ci_low"]) or found["ci_low"] < found["value"] < found["ci_high"]
    expect(inside, "an interval around the value", found)
    expect(method.embedded_by() in method.identity(), "the embedder's identity in the metric's", method.identity())


# What the checks share.


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def seeded(seed: int) -> Generator:
    """A generator of its own."""
    return Generator().manual_seed(seed)


def global_state() -> tuple[object, ...]:
    """Where the global generators are."""
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Refuse who draws from, or seeds, a global generator."""
    before = global_state()
    yield
    expect(before == global_state(), "the global generators to stay as they were", "others: draw from `rng` only")


@contextmanager
def unchanged(model: Model) -> Iterator[None]:
    """Refuse who changes the model."""
    before = {f"{p}.{n}": t.clone() for p, part in model.parts.items() for n, t in part.named_parameters()}
    yield
    after = {f"{p}.{n}": t for p, part in model.parts.items() for n, t in part.named_parameters()}
    moved = [name for name, tensor in before.items() if name not in after or not torch.equal(tensor, after[name])]
    expect(not moved, "the model to stay as it was", f"changes at {moved[:3]}: train `model.clone()`")
    free = [name for name, tensor in after.items() if tensor.requires_grad]
    expect(not free, "the model to stay frozen", f"gradients at {free[:3]}: train `model.clone()`")


def all_equal(a: Mapping[str, Sequence[Tensor]], b: Mapping[str, Sequence[Tensor]]) -> bool:
    """Whether two sets of adapters are the same, to the bit."""
    return a.keys() == b.keys() and all(torch.equal(x, y) for n in a for x, y in zip(a[n], b[n], strict=True))


def protect(method: Defense, model: Model, concept: Concept, examples: Examples) -> Delta:
    """What a defense returns when it gets what it declares."""
    return method.protect(model, concept, dict.fromkeys(method.needs, examples), rng=seeded(3), report=silent)  # type: ignore[arg-type]


def finetuned(
    method: WeightAttack, model: Model, concept: Concept, examples: Examples, budgets: Sequence[int], report: Report
) -> list[Snapshot]:
    """What a weight attack yields; the base of one that reads it differs from the model in its VAE."""
    base = model.clone()
    for parameter in base.vae.parameters() if method.uses_base else ():
        parameter.data.add_(1e-3)
    data = dict.fromkeys(method.needs, examples)
    return list(method.finetune(model, base, concept, data, budgets=budgets, rng=seeded(3), report=report))  # type: ignore[arg-type]


def searched(
    method: PromptAttack, model: Model, concept: Concept, examples: Examples, budgets: Sequence[int]
) -> list[Snapshot]:
    """What a prompt attack yields on a card whose attacker names the concept; it gets only what it declares."""
    data, base = dict.fromkeys(method.needs, examples), model if method.uses_base else None
    card = replace(concept, phrase="at")
    return list(method.search(model, base, card, data, budgets=budgets, rng=seeded(3), report=silent))  # type: ignore[arg-type]


def learned(snapshot: Snapshot) -> dict[str, Tensor]:
    """All numbers of a snapshot, by name: changed weights, adapters, new words."""
    pairs = {f"{n}.{i}": t for n, pair in snapshot.delta.low_rank.items() for i, t in enumerate(pair)}
    return {**snapshot.delta.dense, **pairs, **snapshot.tokens}


def same(a: Snapshot, b: Snapshot) -> bool:
    """Whether two snapshots hold the same numbers, to the bit."""
    x, y = learned(a), learned(b)
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


def per_image(method: Metric, images: Tensor, prompts: list[Prompt], others: Tensor) -> Tensor:
    """What a metric computes image by image: its value or, for a distance between sets, its features."""
    if isinstance(method, ImageMetric):
        return method.score(images, prompts, load_concept(CARD) if method.reads_concept else None)["value"]
    if isinstance(method, PairMetric | ReferenceMetric):
        return method.score(images, prompts, others)["value"]
    if isinstance(method, SetMetric):
        return embed(method.embedder, images)
    raise PluginError(
        f"expected a metric of images, pairs, references or sets, got {type(method).__name__}: see metrics.base."
    )
