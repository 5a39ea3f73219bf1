"""What a search hands over is the best that it has seen, by a loss that its control and every defense share."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.held_out import Best, Candidates, HeldOut, checks, pairs_of, selected
from attacks.p4d import P4D
from attacks.prompt_search import DenoisingSearch
from attacks.random_prefix import RandomPrefix
from attacks.unlearndiffatk import UnlearnDiffAtk
from benchmark.diffusion import Model
from benchmark.model.generate import seed_of
from benchmark.plan.seeds import SEARCHED
from benchmark.runner.flags import evidence, flags_of
from benchmark.runner.stages.drawing import asked
from benchmark.store.artifacts import load_snapshot, save_snapshot
from benchmark.types import PROMPT, Concept, Examples, Prompt, Snapshot
from tests.attacks.test_prompts import named, run

FEW: Any = {"tokens": 2, "every": 2, "held_out": 4}
SEARCHES: list[Any] = [UnlearnDiffAtk(**FEW), RandomPrefix(**FEW), P4D(**FEW)]


@pytest.mark.parametrize("method", SEARCHES, ids=named)
def test_the_found_prompt_has_the_least_loss_of_all_seen(
    method: DenoisingSearch, model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out again from the texts, as they are drawn: of the prompt itself and each candidate."""
    seen, pairs, wanted = list[tuple[str, ...]](), list[HeldOut](), list[Tensor]()
    see, loss = Best.see, HeldOut.loss

    def noted(self: Best, texts: Any, loss: Tensor) -> None:
        seen.append(tuple(texts))
        see(self, texts, loss)

    def kept(self: HeldOut, model: Model, text: Tensor, to: Tensor) -> Tensor:
        pairs.append(self)
        wanted.append(to)
        return loss(self, model, text, to)

    monkeypatch.setattr(Best, "see", noted)
    monkeypatch.setattr(HeldOut, "loss", kept)
    base = model.clone()
    with torch.no_grad():
        base.unet.conv_in.weight.mul_(1.5)
    (snapshot,) = run(method, model, concept, examples, base=base.frozen(), budgets=[7])

    prompts = concept.of("concept")
    assert len(seen) == checks(7, 2) == 4
    every = [[PROMPT] * len(prompts), *seen]
    texts = [[p.text for p in asked(prompts, found)] for found in every]
    losses = torch.stack([loss(pairs[0], model, model.encode_text(said), wanted[0]) for said in texts])
    for i, text in enumerate(snapshot.prompts):
        at = int(losses[:, i].argmin())
        assert text == every[at][i]
        assert snapshot.search["loss_after"][i] == pytest.approx(losses[at, i].item(), rel=1e-4)
        assert snapshot.search["loss_before"][i] == pytest.approx(losses[0, i].item(), rel=1e-4)


def test_a_held_out_loss_is_the_mean_over_its_pairs(model: Model) -> None:
    """Against the errors one by one; the times are one in each part of the schedule."""
    z_0 = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    pairs, text = pairs_of(model, ["a", "b"], z_0, 10), model.encode_text(["c", "d"])

    found = pairs.loss(model, text, pairs.targets(model))

    assert torch.equal(pairs.t // 100, torch.arange(10).expand(2, 10))
    for i in range(2):
        each = []
        for t, eps in zip(pairs.t[i], pairs.eps[i], strict=True):
            z_t = model.noised(z_0[i : i + 1], eps[None], t[None])
            each.append((model.predict(z_t, t[None], text[i : i + 1]) - eps).square().mean())
        torch.testing.assert_close(found[i], torch.stack(each).mean())


def test_control_and_treatment_choose_by_the_same_pairs(
    model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the seed of the run: a prompt's pairs are those of its text."""
    made, make = list[HeldOut](), pairs_of
    monkeypatch.setattr("attacks.prompt_search.pairs_of", lambda *words: made.append(make(*words)) or made[-1])
    for seed, method in enumerate(SEARCHES):
        run(method, model, concept, examples, seed=seed, budgets=[1])

    assert len(made) == 3
    for other in made[1:]:
        assert all(torch.equal(getattr(made[0], n), getattr(other, n)) for n in ("z_0", "t", "eps"))
    assert not torch.equal(made[0].eps[0], made[0].eps[1])


def test_a_search_looks_at_no_noise_of_an_evaluated_image(model: Model) -> None:
    """Neither its pairs nor the image that it denoises: a row's own seed is for the evaluation alone."""
    row = Prompt(text="a", split="concept", seed=7)
    z_0 = torch.zeros(1, *model.latent_shape)
    pairs = pairs_of(model, ["a"], z_0, 4)

    evaluated = {seed_of(row, number, "") for number in range(50)}
    assert 7 in evaluated
    assert not evaluated & {seed_of(row, number, SEARCHED) for number in range(50)}
    for seed in evaluated:
        drawn = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))
        assert not any(torch.equal(eps, drawn) for eps in pairs.eps[0])


@pytest.mark.parametrize("method", SEARCHES, ids=named)
def test_a_snapshot_depends_on_no_other_budget(
    method: DenoisingSearch, model: Model, concept: Concept, examples: Examples
) -> None:
    several = run(method, model, concept, examples, budgets=[1, 2, 3])

    for snapshot in several:
        assert run(method, model, concept, examples, budgets=[snapshot.steps, 4])[0] == snapshot
    losses = torch.tensor([s.search["loss_after"] for s in several])
    assert bool((losses[1:] <= losses[:-1]).all()), "a larger budget hands over nothing worse"


def test_nothing_better_leaves_the_prompt_and_says_so() -> None:
    """Candidates that are never better: the prompt itself, and a search that did not converge."""

    def walk() -> Iterator[Candidates]:
        while True:
            yield Candidates(torch.zeros(2, 1, dtype=torch.long), torch.ones(2))

    (snapshot,) = selected(
        walk(),
        lambda rows: ["x"] * len(rows),
        best=Best([PROMPT] * 2, torch.tensor([1.0, 1.0])),
        judge=lambda rows: torch.tensor([1.0, 2.0]),
        budgets=[3],
        report=lambda **_: None,
        remedy="-",
    )

    assert snapshot.prompts == (PROMPT, PROMPT)
    assert flags_of(snapshot, []) == ["not converged"]


@pytest.mark.parametrize(
    ("search", "converged"),
    [
        ({"loss_before": (1.0, 1.0), "loss_after": (0.5, 1.0)}, True),
        ({"loss_before": (1.0, 1.0, 1.0), "loss_after": (0.5, 1.0, 1.0)}, False),
        ({"loss_before": (1.0,), "loss_after": (0.5,), "largest_weight": (0.01,)}, False),
        ({"loss_before": (1.0,), "loss_after": (0.5,), "largest_weight": (0.7,)}, True),
    ],
)
def test_a_search_converged_if_most_of_its_losses_fell_and_it_chose(search: Any, converged: bool) -> None:
    snapshot = Snapshot(steps=1, prompts=("a",), search=search)

    assert evidence(snapshot)["converged"] is converged
    assert flags_of(snapshot, []) == ["not converged"] * (not converged)


def test_the_evidence_is_kept(tmp_path: Any) -> None:
    snapshot = Snapshot(steps=3, prompts=("a", ""), search={"loss_before": (1.0, 0.5), "loss_after": (0.25, 0.5)})
    save_snapshot(tmp_path / "step-000003", snapshot)

    assert load_snapshot(tmp_path / "step-000003") == snapshot


def test_an_image_of_a_refused_text_is_left_out_and_no_other_prompt_gets_another_text() -> None:
    prompts = [Prompt(text=text, split="concept") for text in "abc"]

    assert [p.text for p in asked(prompts, ["x {prompt}", "", "z {prompt}"])] == ["x a", "z c"]


@pytest.mark.parametrize("method", SEARCHES, ids=named)
def test_many_prompts_are_searched_a_few_at_a_time(
    method: DenoisingSearch, model: Model, concept: Concept, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many at once: the same texts, and the same losses to rounding."""
    prompts = tuple(Prompt(text=f"co {n}", split="concept") for n in "abcde")
    card = replace(concept, prompts=prompts)
    (few,) = run(method, model, card, examples, budgets=[2])
    monkeypatch.setattr("attacks.search.TOGETHER", 5)
    (all_,) = run(method, model, card, examples, budgets=[2])

    assert few.prompts == all_.prompts
    assert few.search["loss_after"] == pytest.approx(all_.search["loss_after"], rel=1e-5)
