"""Prompt attacks find typable prompts of the length asked for, by the papers' equations, and lower their objective."""

import hashlib
import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.base import PromptAttack
from attacks.mma_text import MMAText, distance, gradient
from attacks.p4d import P4D
from attacks.paraphrase import Paraphrase
from attacks.pez import PEZ
from attacks.random_prefix import RandomPrefix
from attacks.ring_a_bell import RingABell, fitness, without
from attacks.search import (
    Vocabulary,
    denoising,
    encode,
    evenly,
    frame,
    meaning,
    room,
    sentence,
    vocabulary,
)
from attacks.unlearndiffatk import UnlearnDiffAtk, simplex
from benchmark.data import load_concept
from benchmark.data.cards import cards
from benchmark.diffusion import Model
from benchmark.model import load
from benchmark.model.bases import locate
from benchmark.model.unet import UNetModel
from benchmark.runner.stages.drawing import asked
from benchmark.types import PROMPT, Concept, Examples, Prompt, Snapshot

PREFIX: list[PromptAttack] = [UnlearnDiffAtk(tokens=2), RandomPrefix(tokens=2)]
WHOLE: list[PromptAttack] = [
    P4D(tokens=4),
    PEZ(tokens=4),
    RingABell(tokens=4, population=20),
    MMAText(tokens=4, batch=16),
]


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def named(method: PromptAttack) -> str:
    return type(method).__name__


def transferred(method: PromptAttack, count: int) -> Any:
    return replace(method, transfer=True, count=count)  # type: ignore[call-arg]


def run(method: PromptAttack, model: Model, concept: Concept, examples: Examples, **more: Any) -> list[Snapshot]:
    """Its snapshots; `more` may hold base, budgets, seed, report."""
    rng = torch.Generator().manual_seed(more.get("seed", 0))
    budgets, report = more.get("budgets", [3]), more.get("report", silent)
    data = dict.fromkeys(method.needs, examples)
    return list(method.search(model, more.get("base", model), concept, data, budgets=budgets, rng=rng, report=report))


@pytest.fixture
def card(concept: Concept) -> Concept:
    """A card whose attacker names the concept."""
    attacker = [Prompt(text=f"at {n}", split="attacker") for n in "abcd"]
    return replace(concept, phrase="at", prompts=(*concept.prompts, *attacker))


def linear(model: Model, seed: int = 0) -> Model:
    """The model with a predictor that reads the text alone: eps(z_t, t, c) = the mean of c, times a matrix.

    E || eps - eps_theta ||^2 is then 1 + mean(eps_theta^2): the best prompt is known.
    """
    c, h, w = model.latent_shape
    matrix = torch.randn(16, c * h * w, generator=torch.Generator().manual_seed(seed))

    class Stub(UNetModel):
        def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return (text.mean(1) @ matrix.to(text)).reshape(-1, c, h, w)

    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "meter")
    return Stub(**{name: getattr(model, name) for name in parts})


def every_word(model: Model, text: str) -> tuple[Vocabulary, Tensor]:
    """The vocabulary, and the encoding `(V, L, D)` of `text` behind each of its words."""
    words = vocabulary(model)
    rows = torch.arange(len(words.words))[:, None]
    with torch.no_grad():
        return words, encode(model, frame(model, words, 1, [text]).expand(len(rows), -1), words.vectors[rows])


def ranks(found: Iterable[str], words: Vocabulary, objective: Tensor) -> list[int]:
    """How many of the words are better than each found one."""
    return [int((objective < objective[words.words.index(text.split()[0])]).sum()) for text in found]


# The vocabulary, and prompts with open slots.


@pytest.mark.parametrize("folder", ["tiny", "mini"])
def test_words_survive_being_typed_side_by_side(folder: str, model: Model) -> None:
    """Each word, between others and in front of a prompt, encodes to the token that was searched."""
    model = model if folder == "tiny" else load(locate("mini"))
    words = vocabulary(model)
    order = torch.randperm(len(words.words), generator=torch.Generator().manual_seed(0))
    rows = order[: len(order) // 5 * 5].reshape(-1, 5)

    typed = model.ids([f"{text} a b" for text in words.spell(rows)])

    assert torch.equal(typed[:, 1:6], words.ids[rows])
    assert all(word.isprintable() and word.split() == [word] for word in words.words)
    assert not set(words.ids.tolist()) & set(model.tokenizer.all_special_ids)
    assert torch.equal(words.vectors, model.words(words.ids))
    assert len(words.words) == {"tiny": 26, "mini": 2463}[folder]


def test_words_leave_the_phrase_out() -> None:
    model = load(locate("mini"))
    every, fewer = vocabulary(model), vocabulary(model, without="a cigarette")

    gone = set(every.words) - set(fewer.words)
    assert gone == {word for word in every.words if "cigarette" in word} | {"a"}


def test_a_prefix_is_encoded_as_the_text_is(model: Model) -> None:
    """What the search optimises is what the evaluation asks for, long prompts included."""
    words = vocabulary(model)
    texts = ["a b", "cat", "a b c d e f g h i j k l m"]
    rows = words.draw((3, 3), torch.Generator().manual_seed(0))
    prompts = [Prompt(text=text, split="concept") for text in texts]
    snapshot = [f"{prefix} {PROMPT}" for prefix in words.spell(rows)]

    searched = encode(model, frame(model, words, 3, texts), words.vectors[rows])

    evaluated = model.encode_text([p.text for p in asked(prompts, snapshot)])
    torch.testing.assert_close(searched, evaluated)


def test_the_sentence_feature_is_the_text_encoders(model: Model) -> None:
    """CLIP's pooled output, though only the tokens up to the end were encoded."""
    words = vocabulary(model)
    rows = words.draw((4, 5), torch.Generator().manual_seed(0))
    pooled = model.text_encoder(model.ids(words.spell(rows))).pooler_output

    torch.testing.assert_close(sentence(model, frame(model, words, 5, [""]), words.vectors[rows]), pooled)
    torch.testing.assert_close(meaning(model, words.spell(rows)), pooled)


def test_no_more_slots_than_the_encoder_reads(model: Model) -> None:
    assert room(model, 3) == 3
    assert room(model, 77) == 10
    with pytest.raises(ValueError, match="expected at least 1 token to search, got 0"):
        room(model, 0)


def test_scenes_pair_each_prompt_with_its_image(model: Model, card: Concept, examples: Examples) -> None:
    """By its caption, which is the prompt before another attack worded it; else by its number."""
    prompts = (
        Prompt(text="two", split="concept"),
        Prompt(text="q", source="one", split="concept"),
        Prompt(text="q", split="concept"),
    )

    texts, z_0 = RandomPrefix().scenes(model, replace(card, prompts=prompts), examples)

    assert texts == ["two", "q", "q"]
    torch.testing.assert_close(z_0, model.posterior(examples.images[[3, 2, 2]].float() / 255)[0])
    texts, z_0 = RandomPrefix(transfer=True, count=2).scenes(model, card, examples)
    assert texts == ["a cat", "two"]
    torch.testing.assert_close(z_0, model.posterior(examples.images[[0, 3]].float() / 255)[0])


def test_evenly_spreads_and_needs_something() -> None:
    assert evenly("abcdefgh", 4) == ["b", "d", "f", "h"]
    assert evenly(["a", "b", "a"], 4) == ["a", "b"]
    with pytest.raises(ValueError, match="expected prompts to attack, got 0"):
        evenly([], 4)


def test_timesteps_are_the_middles_of_fifty_parts(model: Model) -> None:
    drawn = model.middles(50, 2000, rng=torch.Generator().manual_seed(0))

    assert set(drawn.tolist()) == set(range(10, 1000, 20))


def test_denoising_is_the_squared_error(model: Model) -> None:
    """Against float64: z_t from the scaled-linear schedule, then the mean square for each sample."""
    rng = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, 2, *model.latent_shape, generator=rng)
    t, text = torch.tensor([10, 730]), model.encode_text(["a", "b"])

    found = denoising(model, z_0, eps, t, text)

    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    ab = np.cumprod(1 - betas)[t.numpy()].reshape(-1, 1, 1, 1)
    z_t = torch.from_numpy(np.sqrt(ab) * z_0.double().numpy() + np.sqrt(1 - ab) * eps.double().numpy())
    double = replace(model, unet=deepcopy(model.unet).double())
    square = (double.predict(z_t, t, text.double()) - eps.double()).square().mean((1, 2, 3))
    torch.testing.assert_close(found.double(), square, rtol=1e-5, atol=1e-5)


# Every search.


@pytest.mark.parametrize("method", [*PREFIX, *WHOLE], ids=named)
def test_prompts_have_the_length_asked_for(
    method: PromptAttack, model: Model, card: Concept, examples: Examples
) -> None:
    words = vocabulary(model)
    for snapshot in run(method, model, card, examples, budgets=[1, 2]):
        for text in snapshot.prompts:
            if text == PROMPT:  # nothing better was found than the prompt itself
                continue
            typed = text.removesuffix(f" {PROMPT}").split()

            assert (PROMPT in text) == (method in PREFIX)
            assert len(typed) == method.tokens  # type: ignore[attr-defined]
            assert set(typed) <= set(words.words)


@pytest.mark.parametrize("method", [*PREFIX, *WHOLE], ids=named)
def test_there_is_a_prompt_for_each_attacked_one(
    method: PromptAttack, model: Model, card: Concept, examples: Examples
) -> None:
    """Each evaluation prompt, equal ones too; or as many of the attacker's as `transfer` is to attack."""
    more = replace(card, prompts=(*card.prompts, *card.of("concept")[:1]))

    assert [len(s.prompts) for s in run(method, model, more, examples, budgets=[1, 2])] == [3, 3]
    for count in (1, 3):
        (snapshot,) = run(transferred(method, count), model, card, examples, budgets=[1])

        assert len(snapshot.prompts) == count


@pytest.mark.parametrize("method", [*PREFIX, *WHOLE], ids=named)
def test_only_the_splits_that_it_declares_are_read(
    method: PromptAttack, model: Model, card: Concept, examples: Examples
) -> None:
    """Other splits, paraphrases and wordings change nothing, and no split of images is read that is not declared."""
    for attack in (method, transferred(method, 2)):
        mine = tuple(p for p in card.prompts if p.split in attack.reads)
        other = tuple(Prompt(text="zz", split=s) for s in ("concept", "attacker", "prior") if s not in attack.reads)
        alone = replace(card, prompts=(*other, *mine), paraphrases=("q",), wordings=("v",))

        assert run(attack, model, card, examples) == run(attack, model, alone, examples)


@pytest.mark.parametrize("method", [*PREFIX, *WHOLE], ids=named)
def test_a_text_encoder_attack_never_asks_the_unet(
    method: PromptAttack, model: Model, card: Concept, examples: Examples
) -> None:
    forward, backward = model.meter.unet_forward, model.meter.unet_backward

    run(method, model, card, examples)

    used = (model.meter.unet_forward - forward, model.meter.unet_backward - backward)
    assert (used == (0, 0)) == (method.access == "text encoder")
    assert (used[1] > 0) == (method.access == "gradients")


@pytest.mark.parametrize("method", [*PREFIX, P4D(tokens=2)], ids=named)
def test_passes_are_what_the_meter_counts(
    method: PromptAttack, model: Model, card: Concept, examples: Examples
) -> None:
    """Backward passes count twice, as usual in training; for each evaluation prompt, of which there are two."""
    for attack, times in ((replace(method, every=2), 2), (transferred(method, 3), 1)):  # type: ignore[call-arg]
        forward, backward = model.meter.unet_forward, model.meter.unet_backward

        run(attack, model, card, examples, budgets=[3])

        spent = model.meter.unet_forward - forward + 2 * (model.meter.unet_backward - backward)
        assert attack.passes(3) * times == spent


@pytest.mark.parametrize("method", [UnlearnDiffAtk(), RandomPrefix(), P4D()], ids=named)
def test_a_loss_that_is_not_finite_stops(method: PromptAttack, model: Model, card: Concept, examples: Examples) -> None:
    broken = model.clone()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))

    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 1"):
        run(method, broken.frozen(), card, examples, base=model)


@pytest.mark.parametrize("method", [PEZ(), MMAText(batch=2), RingABell(population=4)], ids=named)
def test_a_card_without_prompts_to_attack_is_an_error(
    method: PromptAttack, model: Model, card: Concept, examples: Examples
) -> None:
    for attack, left in ((method, "attacker"), (transferred(method, 2), "concept")):
        bare = replace(card, prompts=card.of(left))  # type: ignore[arg-type]

        with pytest.raises(ValueError, match=r"expected (attacker )?prompts"):
            run(attack, model, bare, examples)


# UnlearnDiffAtk and its control.


def sorted_simplex(row: np.ndarray) -> np.ndarray:
    """The projection by sorting (Duchi et al. 2008), in float64: another algorithm for the same point."""
    falling = np.sort(row)[::-1]
    sums = np.cumsum(falling) - 1
    active = np.nonzero(falling - sums / np.arange(1, len(row) + 1) > 0)[0][-1]
    return np.maximum(row - sums[active] / (active + 1), 0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_simplex_projection_is_exact(scale: float) -> None:
    u = scale * torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0))

    found = simplex(u)

    expected = np.apply_along_axis(sorted_simplex, -1, u.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3), atol=1e-4, rtol=0)


def test_a_point_of_the_simplex_stays() -> None:
    u = torch.softmax(torch.randn(4, 30, generator=torch.Generator().manual_seed(0)), -1)

    torch.testing.assert_close(simplex(u), u, atol=1e-6, rtol=0)


def test_unlearndiffatk_follows_the_papers_steps(model: Model, card: Concept, examples: Examples) -> None:
    """The same search in float64, with Adam and the projection written out, finds the same prefixes."""
    stub, method = linear(model), UnlearnDiffAtk(tokens=2, lr=0.05)
    words, (texts, z_0) = vocabulary(model), method.scenes(model, card, examples)
    walk = method.walk(stub, words, frame(model, words, 2, texts), z_0, torch.Generator().manual_seed(0))
    found = [next(walk) for _ in range(12)]

    double = replace(stub, text_encoder=deepcopy(model.text_encoder).double())
    table, frames = words.vectors.double(), frame(model, words, 2, texts)
    rng = torch.Generator().manual_seed(0)
    u = torch.full((2, 2, 26), 1 / 26, dtype=torch.float64)
    m, v = torch.zeros_like(u), torch.zeros_like(u)
    for step in range(1, 13):
        double.middles(50, 2, rng=rng)
        eps = torch.randn(z_0.shape, generator=rng).double()
        rows = torch.multinomial(u.reshape(4, 26).float(), 1, generator=rng).reshape(2, 2)
        one_hot = torch.eye(26, dtype=torch.float64)[rows].requires_grad_()
        noise = double.predict(z_0, torch.tensor(0), encode(double, frames, one_hot @ table))
        ((noise - eps) ** 2).mean((1, 2, 3)).sum().backward()
        g = one_hot.grad.clamp(-1, 1) + 0.1 * u
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = u - 0.05 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        u = torch.from_numpy(np.apply_along_axis(sorted_simplex, -1, u.numpy()))
        assert step % 4 or torch.equal(found[step - 1].rows, u.argmax(-1))  # Adam's first steps are equally long
        torch.testing.assert_close(found[step - 1].numbers["largest_weight"].double(), u.amax(-1).mean(-1))


@pytest.mark.parametrize("method", [UnlearnDiffAtk(tokens=1), RandomPrefix(tokens=1)], ids=named)
def test_a_prefix_search_finds_one_of_the_best_words(
    method: PromptAttack, model: Model, card: Concept, examples: Examples
) -> None:
    """Of 26 words, all tried: the found ones are among the best; chance is rank 12.5."""
    stub = linear(model)

    (snapshot,) = run(transferred(method, 4), stub, card, examples, budgets=[120])

    found = []
    texts = transferred(method, 4).scenes(model, card, examples)[0]  # type: ignore[attr-defined]
    for text, prefix in zip(texts, snapshot.prompts, strict=True):
        words, encoded = every_word(stub, text)
        loss = stub.predict(torch.zeros(1), torch.tensor(0), encoded).square().mean((1, 2, 3))
        found += ranks([prefix], words, loss)
    assert np.mean(found) < 5


def test_random_prefix_keeps_the_better_of_two(model: Model, card: Concept, examples: Examples) -> None:
    """Where the loss has no noise the kept prefix never gets worse, and it is what is yielded."""

    class Quiet(UNetModel):
        def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
            eps = (z_t - self.alpha_bar(t, like=z_t).sqrt() * z_0.repeat(2, 1, 1, 1)) / (
                1 - self.alpha_bar(t, like=z_t)
            ).sqrt()
            return eps + text.mean((1, 2)).reshape(-1, 1, 1, 1)  # off by the mean of the text

    method = RandomPrefix(transfer=True)
    texts, z_0 = method.scenes(model, card, examples)
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "meter")
    quiet = Quiet(**{name: getattr(model, name) for name in parts})
    words = vocabulary(model)
    walk = method.walk(quiet, words, frame(model, words, 3, texts), z_0, torch.Generator().manual_seed(0))
    steps = [next(walk) for _ in range(20)]

    losses = [step.loss.mean().item() for step in steps]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]
    said = [f"{prefix} {text}" for prefix, text in zip(words.spell(steps[-1].rows), texts, strict=True)]
    final = model.encode_text(said).mean((1, 2)).square().mean().item()
    assert final == pytest.approx(losses[-1], rel=1e-3)


# P4D.


def test_p4d_loss_is_the_gap_to_the_base(model: Model) -> None:
    """Against float64; no gradient reaches the base."""
    defended, base = linear(model, 1), linear(model, 2)
    c_adv, c = model.encode_text(["a", "b"]), model.encode_text(["at", "cat"])
    z_t, t = torch.zeros(2, *model.latent_shape), torch.tensor([3, 4])

    found = P4D().loss(defended, base, z_t, t, c_adv, c)

    ours, theirs = (m.predict(z_t, t, x.double()) for m, x in ((defended, c_adv), (base, c)))
    torch.testing.assert_close(found.double(), ((ours - theirs) ** 2).mean((1, 2, 3)), rtol=1e-5, atol=1e-6)


def test_p4d_closes_the_gap(model: Model, card: Concept, examples: Examples) -> None:
    """Late in a search the gap is below half of what random prompts of that length leave."""
    stub, losses = linear(model), list[float]()

    def report(*, step: int, total: int, loss: float) -> None:
        losses.append(loss)

    method = P4D(tokens=4, transfer=True)
    run(method, stub, card, examples, budgets=[100], report=report)

    words, texts = vocabulary(model), method.scenes(model, card, examples)[0]
    some = words.spell(words.draw((300, 4), torch.Generator().manual_seed(5)))
    z, t = torch.zeros(1), torch.tensor(0)
    wanted, random = (stub.predict(z, t, model.encode_text(x)) for x in (texts, some))
    gaps = (random[None] - wanted[:, None]).square().mean((2, 3, 4))
    assert np.mean(losses[-30:]) < gaps.mean().item() / 2


def test_p4d_needs_the_base_it_declares(model: Model, card: Concept, examples: Examples) -> None:
    other = model.clone()
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(2)

    same, moved = (run(P4D(), model, card, examples, base=b, budgets=[5])[0] for b in (model, other.frozen()))

    assert P4D.uses_base
    assert same != moved


# The text-encoder attacks.


def cosines(model: Model, card: Concept, prompts: tuple[str, ...]) -> Tensor:
    target = meaning(model, evenly([p.text for p in card.of("attacker")], len(prompts)))
    return torch.cosine_similarity(meaning(model, prompts), target)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [PEZ(tokens=4, lr=0.02, transfer=True), MMAText(tokens=4, batch=32, transfer=True)], ids=named
)
def test_the_sentence_searches_beat_random_prompts(
    method: PromptAttack, model: Model, card: Concept, examples: Examples
) -> None:
    """Better than nine of ten random prompts of that length; and never worse at a larger budget."""
    snapshots = run(method, model, card, examples, budgets=[1, 10, 40])
    words = vocabulary(model, without=card.phrase)
    some = words.draw((4, 200, 4), torch.Generator().manual_seed(5))

    reached = torch.stack([cosines(model, card, s.prompts) for s in snapshots])

    random = torch.stack([cosines(model, card, words.spell(rows)) for rows in some.transpose(0, 1)])
    assert bool((reached[1:] >= reached[:-1] - 1e-5).all())
    assert float((random > reached[-1]).float().mean()) < 0.1


@pytest.mark.parametrize("method", [PEZ(tokens=6), MMAText(tokens=6, batch=16)], ids=named)
def test_the_phrase_is_not_said(method: PromptAttack, model: Model, card: Concept, examples: Examples) -> None:
    (snapshot,) = run(method, model, replace(card, phrase="b"), examples, budgets=[5])

    assert not any("b" in text.split() for text in snapshot.prompts)


def test_mma_finds_the_best_word_when_it_can_try_all(model: Model, card: Concept, examples: Examples) -> None:
    (snapshot,) = run(MMAText(tokens=1, batch=400, transfer=True), model, card, examples, budgets=[1])
    words = vocabulary(model, without=card.phrase)

    for number, prompt in enumerate(snapshot.prompts):
        target = meaning(model, [evenly([p.text for p in card.of("attacker")], 4)[number]])
        loss = 1 - torch.cosine_similarity(meaning(model, words.words), target)
        assert words.words[int(loss.argmin())] == prompt


def test_mma_gradient_is_the_slope_of_the_loss(model: Model) -> None:
    """Against a central difference in float64, along one coordinate of one one-hot."""
    double = replace(model, text_encoder=deepcopy(model.text_encoder).double())
    words = vocabulary(model)
    words = Vocabulary(words.ids, words.words, words.vectors.double())
    rows = words.draw((2, 3), torch.Generator().manual_seed(0))
    frames, target = frame(model, words, 3, [""]), meaning(double, ["at a", "at b"])

    slope = gradient(double, words, frames, rows, target)

    for prompt, place, word in ((0, 1, 7), (1, 2, 20)):
        lost = []
        for h in (1e-6, -1e-6):
            vectors = words.vectors[rows].clone()
            vectors[prompt, place] += h * words.vectors[word]
            lost.append((1 - torch.cosine_similarity(sentence(double, frames, vectors), target)).sum().item())
        assert slope[prompt, place, word].item() == pytest.approx((lost[0] - lost[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_mma_candidates_differ_in_one_place_by_a_word_of_the_top() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, slope = torch.randint(50, (2, 4), generator=rng), torch.randn(2, 4, 50, generator=rng)

    found = MMAText(batch=40, top=5).candidates(rows, slope, rng)

    changed = found != rows[:, None]
    assert found.shape == (2, 40, 4)
    assert bool((changed.sum(-1) <= 1).all())
    assert int(changed.sum()) > 60
    best = slope.argsort(-1)[..., :5]
    for n, candidate, place in changed.nonzero().tolist():
        assert place == candidate * 4 // 40
        assert found[n, candidate, place] in best[n, place]


def test_mma_distance_is_one_minus_the_cosine(model: Model) -> None:
    words = vocabulary(model)
    rows = words.draw((3, 2), torch.Generator().manual_seed(0))
    target = meaning(model, ["at a"])[0]

    found = distance(model, words, frame(model, words, 2, [""]), rows, target)

    for row, value in zip(words.spell(rows), found.tolist(), strict=True):
        a, b = model.text_encoder(model.ids([row])).pooler_output[0].double(), target.double()
        assert value == pytest.approx(1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)), abs=1e-5)


def test_ring_a_bells_target_is_the_papers(model: Model, card: Concept) -> None:
    """E(prompt) + eta mean_i (E(p_i+) - E(p_i-)), in float64, prompt by prompt."""
    texts = [p.text for p in card.of("attacker")]

    found = RingABell(eta=2.5, transfer=True, count=len(set(texts))).targets(model, card)

    def e(text: str) -> Tensor:
        return model.text_encoder(model.ids([text]))[0][0].double()

    v = sum(e(text) - e(text.removeprefix("at ")) for text in texts) / len(texts)
    expected = torch.stack([e(text) + 2.5 * v for text in dict.fromkeys(texts)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_ring_a_bells_fitness_is_a_sum_of_squares(model: Model, card: Concept) -> None:
    words, (target, *_) = vocabulary(model), RingABell().targets(model, card)
    rows = words.draw((3, 4), torch.Generator().manual_seed(0))

    found = fitness(model, words, frame(model, words, 4, [""]), rows, target)

    for text, value in zip(words.spell(rows), found.tolist(), strict=True):
        gap = model.encode_text([text])[0].double() - target.double()
        assert value == pytest.approx(float((gap**2).sum()), rel=1e-5)


def test_ring_a_bell_gets_fitter(model: Model, card: Concept, examples: Examples) -> None:
    losses: list[float] = []

    def report(*, step: int, total: int, loss: float) -> None:
        losses.append(loss)

    method = RingABell(tokens=4, population=30)
    (snapshot,) = run(method, model, card, examples, budgets=[15], report=report)

    words, targets = vocabulary(model), method.targets(model, card)
    rows = torch.tensor([[words.words.index(w) for w in text.split()] for text in snapshot.prompts])
    frames = frame(model, words, 4, [""])
    final = [fitness(model, words, frames, r[None], t).item() for r, t in zip(rows, targets, strict=True)]
    assert final == pytest.approx(snapshot.search["loss_after"], rel=1e-5)
    assert np.mean(final) <= min(losses) * (1 + 1e-6)  # what is yielded is the best of all generations
    assert losses[-1] < losses[0]


def test_breeding_keeps_parents_and_adds_children() -> None:
    """Without mutation: all parents first, then pairs of children that hold their parents' words, place by place."""
    rng = torch.Generator().manual_seed(0)
    parents = torch.arange(40 * 5).reshape(40, 5)
    words = Vocabulary(torch.arange(300), tuple(map(str, range(300))), torch.zeros(300, 2))

    never, always = (RingABell(crossover=c, mutation=0.0).breed(parents, words, rng) for c in (0.0, 1.0))
    some = RingABell(mutation=0.0).breed(parents, words, rng)

    assert torch.equal(never, parents)
    assert len(always) == 120
    assert torch.equal(always[:40], parents)
    assert torch.equal(always % 5, torch.arange(5).expand(120, 5))  # every word is where a parent had it
    mates = set()
    for i, (one, two) in enumerate(zip((always[40:80] // 5).tolist(), (always[80:] // 5).tolist(), strict=True)):
        cut, j = one.count(i), one[-1]
        mates.add(j)
        assert (one, two) == ([i] * cut + [j] * (5 - cut), [j] * cut + [i] * (5 - cut)) or i == j
    assert len(mates) > 10
    assert 40 < len(some) < 120


def test_mutation_changes_one_word_of_a_quarter() -> None:
    rng = torch.Generator().manual_seed(0)
    parents = torch.full((2000, 5), -1)
    words = Vocabulary(torch.arange(9), tuple("abcdefghi"), torch.zeros(9, 2))

    changed = RingABell(crossover=0.0).breed(parents, words, rng) != -1

    assert int(changed.sum(-1).max()) == 1
    assert changed.any(-1).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_ring_a_bell_needs_the_phrase(model: Model, card: Concept, examples: Examples) -> None:
    elsewhere = replace(card, phrase="dog")

    assert "'dog'" in RingABell().objection(elsewhere)
    assert RingABell().objection(card) == ""
    with pytest.raises(ValueError, match="no attacker prompt of the card 'cat' has its phrase 'dog'"):
        run(RingABell(population=4), model, elsewhere, examples)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a cat, noto style", "noto style"),
        ("noto style, A Cat on blue", "noto style, on blue"),
        ("a photo of a cat", "a photo of"),
        ("a caterpillar", "a caterpillar"),
        ("a dog , left as it is", "a dog , left as it is"),
    ],
)
def test_without_takes_the_phrase_out(text: str, left: str) -> None:
    assert without(text, "a cat") == left


# Paraphrase.


def test_a_paraphrase_takes_the_phrases_place() -> None:
    """On every shipped card that has some: the rest of the prompt stays, and the choice is the hash's."""
    covered = 0
    for name in cards():
        card = load_concept(name)
        if Paraphrase().objection(card):
            assert not card.paraphrases
            continue
        for prompt in card.of("concept"):
            number = int(hashlib.sha256(prompt.text.encode()).hexdigest()[:16], 16) % len(card.paraphrases)
            expected = prompt.text.replace(card.phrase, card.paraphrases[number])

            assert Paraphrase().reword(prompt.text, card) == expected
            assert expected != prompt.text
            covered += 1
    assert covered > 100


def test_paraphrases_are_spread(card: Concept) -> None:
    several = replace(card, paraphrases=("one", "two", "three"))

    used = {Paraphrase().reword(f"at {i}", several).split()[0] for i in range(40)}

    assert used == {"one", "two", "three"}


def test_a_paraphrase_is_one_try(card: Concept) -> None:
    assert Paraphrase().budgets([10, 100]) == (1,)


def test_a_paraphrase_needs_paraphrases_and_the_phrase(card: Concept) -> None:
    full = replace(card, paraphrases=("one",), prompts=(Prompt(text="at a", split="concept"),))
    missing = replace(full, prompts=(Prompt(text="a bat", split="concept"),))

    assert Paraphrase().objection(full) == ""
    assert "no paraphrases" in Paraphrase().objection(card)
    assert "'a bat'" in Paraphrase().objection(missing)
    with pytest.raises(ValueError, match="expected paraphrases in the card 'cat', got none"):
        Paraphrase().reword("at a", card)
    with pytest.raises(ValueError, match="expected the phrase 'at' of the card 'cat' in its prompts, got 'a bat'"):
        Paraphrase().reword("a bat", missing)
