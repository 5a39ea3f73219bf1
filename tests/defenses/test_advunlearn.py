"""AdvUnlearn's terms are its equations, its search is the release's, and a pool changes only what is spent."""

from dataclasses import replace

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept
from defenses.advunlearn import AdvUnlearn
from defenses.draws import Draws, Seen
from tests.defenses.test_esd import predictor, silent

SMALL = {"steps": 3, "ddim_steps": 3, "attack_steps": 2, "pool": 2, "retain_pool": 2, "retain_batch": 2, "lr": 1e-3}
T = torch.tensor(3)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def seen(value: float, null: float | None = None) -> Seen:
    z = torch.zeros(1, 4, 2, 2)
    return Seen(z, T, torch.tensor([0]), z + value, None if null is None else z + null)


def delta(model: Model, concept: Concept, **fields: object) -> dict[str, torch.Tensor]:
    method = AdvUnlearn(**{**SMALL, **fields})  # type: ignore[arg-type]
    return dict(method.protect(model, concept, {}, rng=rng(), report=silent).dense)


def test_the_terms_are_the_equations(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """(15 - (2 - 4))^2 = 289; (10 - 4)^2 = 36, of which 0.3 is added: 299.8."""
    edited, method = predictor(model, 5.0), AdvUnlearn()
    monkeypatch.setattr(type(edited), "encode_text", lambda *_: torch.full((1, 3, 4), 2.0), raising=False)

    erase = method.erase_loss(edited, seen(6.0, 2.0), torch.full((1, 3, 4), 3.0))
    keep = method.keep_loss(edited, seen(4.0), ["anything"])

    assert erase.item() == pytest.approx(289)
    assert (erase + method.retain_weight * keep).item() == pytest.approx(299.8)


@pytest.mark.parametrize("part", ["text_encoder", "denoiser"])
def test_only_the_part_is_trained(model: Model, concept: Concept, part: str) -> None:
    """Of the text encoder all layers, but no table; of the denoiser the scope, with the public text encoder."""
    found = {name for name, t in delta(model, concept, part=part).items() if bool(t.any())}

    if part == "denoiser":
        assert {name.removeprefix("unet.") for name in found} <= model.scope("u-old")
    else:
        layers = {f"text_encoder.{n}" for n, _ in model.text_encoder.named_parameters() if "embedding" not in n}
        blind = {name for name in layers if name.endswith("k_proj.bias")}  # a softmax does not see them
        assert layers - blind <= found <= layers
    assert AdvUnlearn(part=part).removable == ("text_encoder" if part == "text_encoder" else None)  # type: ignore[arg-type]


def test_the_search_ends_before_its_last_step_and_adds_up_its_gradients(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x* of one step is the word it began with; Adam sees g, then g + g'."""
    z, words = torch.randn(1, *model.latent_shape, generator=rng()), model.words(model.ids(["cat"]))
    one = Seen(z, T, torch.tensor([0]), torch.zeros_like(z), None)
    start, gradients = torch.randn(1, 1, 16, generator=rng()), list[torch.Tensor]()

    class Watched(torch.optim.Adam):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            gradients.append(self.param_groups[0]["params"][0].grad.clone())

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    _, x = AdvUnlearn(attack_steps=2).search(model, lambda: one, words, start)
    AdvUnlearn(attack_steps=2, accumulate=False).search(model, lambda: one, words, start)

    torch.testing.assert_close(x[:, 1:2], start)
    torch.testing.assert_close(gradients[1], 2 * gradients[0])
    torch.testing.assert_close(gradients[3], gradients[2])


def test_the_search_brings_the_concept_back(model: Model) -> None:
    z, words = torch.randn(2, *model.latent_shape, generator=rng()), model.words(model.ids(["cat"]))
    with torch.no_grad():
        wanted = model.predict(z, T, model.encode_text(["dog"]).expand(2, -1, -1))
    one, start = Seen(z, T, torch.tensor([0]), wanted, None), torch.randn(1, 1, 16, generator=rng())

    def error(x: torch.Tensor) -> float:
        with torch.no_grad():
            return float((model.predict(z, T, model.encode_words(x).expand(2, -1, -1)) - wanted).square().mean())

    method = AdvUnlearn(attack_steps=20, attack_lr=0.05)
    first = AdvUnlearn(attack_steps=1).search(model, lambda: one, words, start)[1]

    assert error(method.search(model, lambda: one, words, start)[1]) < error(first)


def test_each_text_has_draws_of_its_own() -> None:
    """Pooled in turns; without a pool each is drawn when it is asked for."""
    asked = list[int]()

    def see(i: int, whole: bool) -> Seen:
        asked.append(i)
        return seen(float(i))

    pooled, fresh = Draws(see, 2, 5, whole=True), Draws(see, 2, 0, whole=True)

    assert asked == [0, 1, 0, 1, 0]
    assert {float(pooled(1, True, rng()).eps.mean()) for _ in range(4)} == {1.0}
    assert len(asked) == 5 and float(fresh(1, True, rng()).eps.mean()) == 1.0 and len(asked) == 6


@pytest.mark.parametrize("fields", [{"pool": 0, "retain_pool": 0}, {"part": "denoiser"}, {"retain": "iter"}])
def test_what_is_not_pooled_is_paid_for(model: Model, concept: Concept, fields: dict[str, object]) -> None:
    """One step of sampling at most, unguided: k of 1 is 0, so that no trajectory is random."""
    once = {**SMALL, **fields, "ddim_steps": 1, "sampler": "ddim"}
    before = model.meter.unet_forward + 2 * model.meter.unet_backward

    AdvUnlearn(**once).protect(model, concept, {}, rng=rng(), report=silent)  # type: ignore[arg-type]

    spent = model.meter.unet_forward + 2 * model.meter.unet_backward - before
    assert spent == AdvUnlearn(**once).passes()  # type: ignore[arg-type]


def test_what_it_keeps_is_a_split_of_the_card(model: Model, concept: Concept) -> None:
    bare = replace(concept, prompts=tuple(p for p in concept.prompts if p.split != "prior"))

    with pytest.raises(ValueError, match="expected prompts of the split prior"):
        delta(model, bare)
    with pytest.raises(ValueError, match="expected a pool of at least 3"):
        delta(model, replace(concept, wordings=("a", "b")), erase="wordings")
