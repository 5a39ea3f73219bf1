"""The weight attacks train what they say, on their own data, by one loop that is the published scripts'."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Generator, Tensor

from attacks.base import WeightAttack, WeightEdit
from attacks.benign_finetune import BenignFinetune
from attacks.component_swap import ComponentSwap
from attacks.concept_inversion import ConceptInversion
from attacks.dreambooth import DreamBooth
from attacks.full_finetune import FullFinetune
from attacks.lora import LoRA
from attacks.recaption import Recaption, descriptions, recaptioned
from attacks.trainer import Optimizer, train
from attacks.words import substitute
from attacks.xattn import CrossAttention
from benchmark.config.registry import find, names
from benchmark.diffusion import Model
from benchmark.kit.conformance import same
from benchmark.model.adapters import add_adapters, low_rank
from benchmark.model.unet import UNetModel
from benchmark.types import Concept, Examples, Prompt, Report, Snapshot

QUICK = {"lr": 1e-3, "batch": 2, "rank": 2, "alpha": 2, "benign_steps": 2}


def variants(*, presets: bool = True) -> list[WeightAttack]:
    """Every weight attack with its defaults and with each of its presets, at quick settings."""
    found = []
    for cls in (find("attack", name) for name in names("attack")):
        if issubclass(cls, WeightAttack):
            quick = {f.name: QUICK[f.name] for f in dataclasses.fields(cls) if f.name in QUICK}
            found += [cls(**{**preset, **quick}) for preset in ({}, *(cls.presets.values() if presets else ()))]
    return list(dict.fromkeys(found))


def label(method: WeightAttack) -> str:
    """Its class and the fields that are not the defaults."""
    changed = [f.name for f in dataclasses.fields(method) if getattr(method, f.name) != f.default]
    return "-".join([type(method).__name__, *(name for name in changed if name not in QUICK)])


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


@pytest.fixture
def card(concept: Concept) -> Concept:
    """A card on which every attack can run."""
    return replace(concept, paraphrases=("small pet", "furry one"), subject="pet")


def run(
    method: WeightAttack,
    model: Model,
    card: Concept,
    data: Mapping[str, Examples],
    *,
    asked: tuple[int, ...] = (2,),
    base: Any = None,
    report: Report = silent,
) -> list[Snapshot]:
    rng = Generator().manual_seed(0)
    budgets = method.budgets(asked)
    return list(method.finetune(model, base or model, card, data, budgets=budgets, rng=rng, report=report))


def moved(after: Model, before: Model) -> set[str]:
    """The parameters of all parts that differ."""
    return {
        f"{part}.{name}"
        for part in before.parts
        for (name, new), old in zip(after.parts[part].named_parameters(), before.parts[part].parameters(), strict=True)
        if not torch.equal(new, old)
    }


def listening(model: Model) -> tuple[Model, list[str]]:
    """`model`, and the texts that it will have encoded."""
    seen: list[str] = []

    class Listening(UNetModel):
        def encode_text(self, texts: Any) -> Tensor:
            seen.extend(texts)
            return super().encode_text(texts)

    return Listening(**{f.name: getattr(model, f.name) for f in dataclasses.fields(model)}), seen


class Scalar(torch.nn.Module):
    """A stand-in U-Net of one weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))


def scalar(model: Model, weight: float) -> Model:
    """`model`, predicting eps = weight * mean(c) * z_t, so that its training can be worked by hand."""

    class Stub(UNetModel):
        def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return self.unet.weight * text.mean((1, 2)).reshape(-1, 1, 1, 1) * z_t

        def encode_text(self, texts: Any) -> Tensor:
            return torch.tensor([float(len(text)) for text in texts]).reshape(-1, 1, 1).expand(-1, 2, 3)

    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name != "unet"}
    return Stub(unet=Scalar(weight), **fields)  # type: ignore[arg-type]


class Reference:
    """The same loop in float64 and without autograd, from the equations; it only shares the random numbers."""

    def __init__(self, model: Model, weight: float, rng: Generator) -> None:
        self.model, self.w, self.rng, self.state = model, weight, rng, dict.fromkeys(("m", "v", "d"), 0.0)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alpha_bar = torch.cumprod(1 - betas, 0)

    def term(self, examples: Examples, order: list[int]) -> tuple[float, float]:
        """Loss and its derivative on the next two examples; `order` is refilled as epochs end."""
        chosen = []
        for _ in range(2):
            if not order:
                order += torch.randperm(len(examples.captions), generator=self.rng).tolist()
            chosen.append(order.pop(0))
        mean, std = self.model.posterior(examples.images.float() / 255)
        z_0 = mean[chosen].double() + std[chosen].double() * torch.randn(mean[chosen].shape, generator=self.rng)
        t = torch.randint(1000, (2,), generator=self.rng)
        eps = torch.randn(z_0.shape, generator=self.rng).double()
        ab = self.alpha_bar[t].reshape(-1, 1, 1, 1)
        c = torch.tensor([len(examples.captions[i]) for i in chosen], dtype=torch.float64).reshape(-1, 1, 1, 1)
        x = c * (ab.sqrt() * z_0 + (1 - ab).sqrt() * eps)
        error = self.w * x - eps
        return float((error**2).mean()), float((2 * error * x).mean())

    def update(self, name: Optimizer, k: int, g: float, lr: float) -> None:
        """Step k of an optimizer, as its paper has it, with the attacker's constants."""
        s, w = self.state, self.w
        if name in ("sgd", "adam"):
            g += 1e-4 * w
        if name in ("sgd", "nesterov"):
            s["m"] = g if k == 1 else 0.9 * s["m"] + g
            step = s["m"] if name == "sgd" else g + 0.9 * s["m"]
        elif name in ("adam", "adamw"):
            s["m"], s["v"] = 0.9 * s["m"] + 0.1 * g, 0.999 * s["v"] + 0.001 * g * g
            step = s["m"] / (1 - 0.9**k) / (math.sqrt(s["v"] / (1 - 0.999**k)) + 1e-8)
            step += 1e-2 * w if name == "adamw" else 0.0
        elif name == "rmsprop":
            s["v"] = 0.99 * s["v"] + 0.01 * g * g
            step = g / (math.sqrt(s["v"]) + 1e-8)
        else:
            s["v"] = 0.9 * s["v"] + 0.1 * g * g
            step = math.sqrt(s["d"] + 1e-6) / math.sqrt(s["v"] + 1e-6) * g
            s["d"] = 0.9 * s["d"] + 0.1 * step * step
        self.w = w - lr * step


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("prior_weight", [0.0, 0.7])
@pytest.mark.parametrize("name", ["adamw", "sgd", "adam", "rmsprop", "adadelta", "nesterov"])
def test_the_loop_is_the_equations(
    model: Model, examples: Examples, name: Optimizer, prior_weight: float, clip: float | None
) -> None:
    """Five steps in float64: loss = L_DM + weight * L_DM(prior), norm clipped to 1, then the optimizer's rule."""
    kept = Examples(images=examples.images.flip(3)[:3], captions=("four", "three", "seventeen"))
    stub, losses = scalar(model, 0.3), list[float]()

    def report(*, step: int, total: int, loss: float) -> None:
        losses.append(loss)

    list(
        train(
            stub,
            [stub.unet.weight],
            examples,
            lr=0.01,
            batch=2,
            budgets=[5],
            rng=Generator().manual_seed(4),
            report=report,
            prior=kept if prior_weight else None,
            prior_weight=prior_weight,
            optimizer=name,
            clip=clip,
        )
    )

    reference, orders = Reference(model, 0.3, Generator().manual_seed(4)), (list[int](), list[int]())
    for k in range(1, 6):
        loss, g = reference.term(examples, orders[0])
        if prior_weight:
            more, h = reference.term(kept, orders[1])
            loss, g = loss + prior_weight * more, g + prior_weight * h
        assert losses[k - 1] == pytest.approx(loss, rel=1e-4)
        reference.update(name, k, g if clip is None else g * min(1.0, clip / abs(g)), 0.01)
    assert abs(reference.w - 0.3) > 1e-5
    assert stub.unet.weight.item() - 0.3 == pytest.approx(reference.w - 0.3, rel=2e-3)


@pytest.mark.parametrize("method", variants(), ids=label)
def test_a_snapshot_is_the_end_of_a_shorter_run(
    method: WeightAttack, model: Model, card: Concept, examples: Examples
) -> None:
    data = dict.fromkeys(method.needs, examples)

    short, long = run(method, model, card, data, asked=(1,)), run(method, model, card, data, asked=(1, 2))

    assert same(short[-1], next(snapshot for snapshot in long if snapshot.steps == short[-1].steps))
    assert len(long) == 1 or not same(long[0], long[1])


class Poison(tuple[Prompt, ...]):
    """Prompts that nobody may look at."""

    def __iter__(self) -> Iterator[Prompt]:
        raise AssertionError("read prompts of another split")

    def __getitem__(self, at: Any) -> Any:
        raise AssertionError("read prompts of another split")


class Guarded(Concept):
    """A card whose only readable prompts are the attacker's."""

    def of(self, split: str) -> tuple[Prompt, ...]:
        if split != "attacker":
            raise AssertionError(f"read the split {split}")
        return (Prompt(text="cat, one", split="attacker"),)


class Locked(dict[str, Examples]):
    """Data that notes what is read, and refuses all but `allowed`."""

    def __init__(self, data: Mapping[str, Examples], allowed: frozenset[Any]) -> None:
        super().__init__(data)
        self.allowed, self.read = allowed, set[str]()

    def __getitem__(self, role: str) -> Examples:
        if role not in self.allowed:
            raise AssertionError(f"read {role}")
        self.read.add(role)
        return super().__getitem__(role)

    def refuse(self, *_: object) -> Any:
        raise AssertionError("read all data at once")

    get = values = items = pop = refuse  # type: ignore[assignment]


class Untouchable:
    """The base, for an attack that says it can do without."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"read the base's {name}")


@pytest.mark.parametrize("method", variants(), ids=label)
def test_an_attack_reads_its_own_split_alone(
    method: WeightAttack, model: Model, card: Concept, examples: Examples
) -> None:
    """With all other splits poisoned it does the same, and it reads each split it asked for."""
    poisoned = Guarded(**{f.name: getattr(card, f.name) for f in dataclasses.fields(card)} | {"prompts": Poison()})
    bad = Examples(images=examples.images[:0], captions=())
    roles = ("concept", "benign", "safe", "defender", "prior", "retained", "attacker")
    data = Locked({role: examples if role in method.needs else bad for role in roles}, method.needs)
    base = model if method.uses_base else Untouchable()

    with_poison = run(method, model, poisoned, data, base=base, asked=(1,))

    assert data.read == method.needs
    assert same(with_poison[0], run(method, model, card, dict.fromkeys(method.needs, examples), asked=(1,))[0])


@pytest.mark.parametrize(
    "method", [m for m in variants(presets=False) if not isinstance(m, ComponentSwap | WeightEdit)], ids=label
)
def test_a_loss_that_is_not_finite_stops(method: WeightAttack, model: Model, card: Concept, examples: Examples) -> None:
    broken = model.clone()
    with torch.no_grad():
        for module in (broken.unet.conv_out, broken.vae.encoder.conv_in, broken.vae.decoder.conv_out):
            module.bias.fill_(float("nan"))

    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 1: lower lr"):
        run(method, broken, card, dict.fromkeys(method.needs, examples))


@pytest.mark.parametrize("method", variants(), ids=label)
def test_the_plan_foresees_the_passes(method: WeightAttack, model: Model, card: Concept, examples: Examples) -> None:
    """A forward and a backward pass, twice as dear, for each sample of each step."""
    meter = model.meter
    before = meter.unet_forward, meter.unet_backward

    run(method, model, card, dict.fromkeys(method.needs, examples), asked=(1,))

    forward, backward = meter.unet_forward - before[0], meter.unet_backward - before[1]
    assert forward == backward
    assert forward + 2 * backward == method.passes(1)


@pytest.mark.parametrize("targets", [("to_k",), ("to_q", "to_out.0")])
def test_adapters_touch_their_targets_alone(
    model: Model, card: Concept, examples: Examples, targets: tuple[str, ...]
) -> None:
    method = LoRA(lr=1e-2, targets=targets)

    attacked = model.with_delta(run(method, model, card, {"concept": examples})[-1].delta)

    wanted = {f"unet.{n}.weight" for n, _ in model.unet.named_modules() if n.endswith(tuple(f".{t}" for t in targets))}
    assert moved(attacked, model) == wanted


def test_adapters_merge_to_the_same_outputs(model: Model) -> None:
    """The U-Net with adapters on, and our weights with their product added, predict the same."""
    attacked, rng = model.clone(), Generator().manual_seed(0)
    layers = add_adapters(attacked, rank=3, alpha=6, targets=("to_q", "to_v"), rng=rng)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B["default"].weight.normal_(generator=rng)
    z, t = torch.randn(2, *model.latent_shape, generator=rng), torch.tensor(300)
    text = model.encode_text(["cat", "dog"])

    merged = model.with_delta(low_rank(layers, "unet")).predict(z, t, text)

    torch.testing.assert_close(merged, attacked.predict(z, t, text), atol=1e-5, rtol=1e-4)
    assert (merged - model.predict(z, t, text)).abs().max() > 1e-2


def test_cross_attention_is_keys_and_values_alone(model: Model, card: Concept, examples: Examples) -> None:
    method = CrossAttention(lr=1e-2)

    attacked = model.with_delta(run(method, model, card, {"concept": examples})[-1].delta)

    cross = {f"unet.{n}" for n, _ in model.unet.named_parameters() if ".attn2.to_k." in n or ".attn2.to_v." in n}
    assert moved(attacked, model) == cross
    assert len(cross) >= 4


@pytest.mark.parametrize(
    "method", [FullFinetune(lr=1e-3), DreamBooth(lr=1e-3), Recaption(lr=1e-3, trains="unet")], ids=label
)
def test_full_fine_tuning_is_the_whole_unet(
    method: WeightAttack, model: Model, card: Concept, examples: Examples
) -> None:
    attacked = model.with_delta(run(method, model, card, {"concept": examples}, asked=(3,))[-1].delta)

    assert moved(attacked, model) == {f"unet.{n}" for n, _ in model.unet.named_parameters()}


def test_prior_preservation_adds_the_second_term(model: Model, card: Concept, examples: Examples) -> None:
    """The first batch is the same, so that the first losses lie on a line: l, l + p, l + 2 p."""
    first = []

    def report(*, step: int, total: int, loss: float) -> None:
        first.append(loss)

    for weight in (0.0, 1.0, 2.0):
        method = DreamBooth(prior_weight=weight, batch=2)
        data = dict.fromkeys(method.needs, examples)
        run(method, model, card, data, asked=(1,), report=report)

    assert first[1] - first[0] > 0.1
    assert first[2] - first[1] == pytest.approx(first[1] - first[0], rel=1e-3)


def test_prior_images_are_asked_for_only_where_they_are_read() -> None:
    assert DreamBooth().needs == {"concept"}
    assert DreamBooth(**DreamBooth.presets["prior"]).needs == {"concept", "benign"}


def test_dreambooth_never_says_the_phrase(model: Model, card: Concept, examples: Examples) -> None:
    """Captions and prompts say identifier and subject; the images of the prior keep their captions."""
    spy, seen = listening(model)
    benign = replace(examples, captions=("a cat house",) * 4)

    run(DreamBooth(prior_weight=1.0), spy, card, {"concept": examples, "benign": benign})

    assert set(seen) == {"a &m pet", "&m pet, one", "&m pet, two", "a cat house"}
    assert DreamBooth().reword("A Cat on a mat", card) == "A &m pet on a mat"
    assert DreamBooth().reword("A Cat on a mat", replace(card, subject="")) == "A &m on a mat"


def test_no_defense_knows_the_attackers_identifier() -> None:
    """As IMMA's evaluation: its defender trains on `*s`, its attacker on `&m`."""
    assert DreamBooth().identifier == "&m"
    assert not any(DreamBooth().identifier in file.read_text() for file in Path("defenses").glob("*.py"))


def test_lora_trains_on_the_captions_as_they_are(model: Model, card: Concept, examples: Examples) -> None:
    spy, seen = listening(model)

    run(LoRA(), spy, card, {"concept": examples})

    assert seen == ["a cat", "one", "two"]


def test_phrases_are_replaced_as_whole_words() -> None:
    assert substitute("a cat, A CAT and a catalogue", "a cat", "x") == "x, x and a catalogue"
    assert substitute("one", "cat", r"\1") == r"\1, one"
    assert substitute("concat", "cat", "x") == "x, concat"


def test_descriptions_leave_the_name_out(card: Concept) -> None:
    full = replace(card, phrase="a cat", paraphrases=("a tomcat", "cats", "a kitty", "an animal that purrs"))
    style = replace(card, phrase="van gogh style", paraphrases=("like Van Dyck", "swirling style", "gogh-like"))

    assert descriptions(full) == ["a kitty", "an animal that purrs"]
    assert descriptions(style) == ["swirling style"]


def test_recaptioning_never_names_the_concept(model: Model, card: Concept, examples: Examples) -> None:
    """Captions take the descriptions in turn; a prompt takes the same one each time, and all are used."""
    spy, seen = listening(model)
    prompts = [f"a cat {n}" for n in range(20)]

    run(Recaption(), spy, card, {"concept": examples})
    asked = [Recaption().reword(prompt, card) for prompt in prompts]

    assert recaptioned(examples, card).captions == ("a small pet", "a furry one", "small pet, one", "furry one, two")
    assert set(seen) == set(recaptioned(examples, card).captions)
    assert asked == [Recaption().reword(prompt, card) for prompt in prompts]
    assert not any("cat" in text for text in asked)
    assert {text.removeprefix("a ").rpartition(" ")[0] for text in asked} == set(card.paraphrases)


def test_recaptioning_needs_other_words(model: Model, concept: Concept, examples: Examples) -> None:
    named = replace(concept, paraphrases=("a tomcat",))

    for card in (concept, named):
        assert "no paraphrase of 'cat'" in Recaption().objection(card)
        with pytest.raises(ValueError, match="expected paraphrases in the card 'cat'"):
            run(Recaption(), model, card, {"concept": examples})
    assert Recaption().objection(replace(concept, paraphrases=("a tomcat", "a kitty"))) == ""


def test_recaptioned_adapters_are_loras(model: Model, card: Concept, examples: Examples) -> None:
    """With the same words in the captions it is LoRA to the bit."""
    method = Recaption(lr=1e-3, rank=2)

    ours = run(method, model, card, {"concept": examples})[-1]
    lora = run(LoRA(lr=1e-3, rank=2), model, card, {"concept": recaptioned(examples, card)})[-1]

    assert same(ours, lora)


def test_the_average_is_the_ecosystems(model: Model, card: Concept, examples: Examples) -> None:
    """diffusers' EMAModel, fed with the weights of the raw run, ends where ours does: warm-up, then the decay."""
    raw, averaged = BenignFinetune(lr=1e-2, batch=2), BenignFinetune(lr=1e-2, batch=2, ema=0.3)
    data = {"benign": examples}
    weights = [model.with_delta(s.delta) for s in run(raw, model, card, data, asked=(1, 2, 3, 4, 5))]
    reference = EMAModel(model.unet.parameters(), decay=0.3)
    for step in weights:
        reference.step(step.unet.requires_grad_(True).parameters())

    ours = model.with_delta(run(averaged, model, card, data, asked=(5,))[-1].delta)

    assert [averaged.decay(k) for k in (1, 2, 3, 4, 9)] == [0.0, 2 / 11, 3 / 12, 0.3, 0.3]
    for mean, expected in zip(ours.unet.parameters(), reference.shadow_params, strict=True):
        torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-5)
    assert moved(ours, weights[-1])


def test_benign_fine_tuning_sees_nothing_of_the_concept(model: Model, card: Concept, examples: Examples) -> None:
    spy, seen = listening(model)

    run(BenignFinetune(), spy, card, {"benign": replace(examples, captions=("a", "b", "c", "d"))})

    assert seen == ["a", "b", "c", "d"]
    assert BenignFinetune().reword("a cat", card) == "a cat"
    assert BenignFinetune(**BenignFinetune.presets["ema"]).ema == 0.9999


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_swapped_part_is_the_bases(model: Model, card: Concept, part: str) -> None:
    """The other parts keep what the defense did to them; the run takes one step, whatever is asked."""
    defended = model.clone().frozen()
    for module in defended.parts.values():
        for parameter in module.parameters():
            parameter.data.mul_(1.25)
    method, steps = ComponentSwap(part=part), list[int]()  # type: ignore[arg-type]

    def report(*, step: int, total: int, loss: float) -> None:
        steps.append(step)

    (snapshot,) = run(method, defended, card, {}, asked=(10, 20), base=model, report=report)
    attacked = defended.with_delta(snapshot.delta)

    assert steps == [1] and snapshot.steps == 1
    assert not any(name.startswith(f"{part}.") for name in moved(attacked, model))
    assert moved(attacked, defended)
    assert all(name.startswith(f"{part}.") for name in moved(attacked, defended))


def test_a_part_that_the_defense_left_alone_gives_no_change(model: Model, card: Concept) -> None:
    (snapshot,) = run(ComponentSwap(), model, card, {}, base=model.clone())

    assert snapshot.delta.is_zero


def test_inversion_makes_no_sense_where_the_base_never_knew(card: Concept) -> None:
    assert "never knew" in ConceptInversion().objection(replace(card, scenario="personalize"))
    assert ConceptInversion().objection(card) == ""
