"""Where the defense is an invertible map of the text, the attack is the base again; else it is refused."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks.closed_form_inversion import ClosedFormInversion
from attacks.component_swap import ComponentSwap
from benchmark.diffusion import Model
from benchmark.model import load
from benchmark.model.generate import generate
from benchmark.types import Concept, Delta, Prompt
from defenses.base import Defense
from defenses.cure import CURE
from defenses.rece import RECE
from defenses.speed import SPEED
from defenses.uce import UCE
from tests import pipelines

INVERTIBLE = {
    "uce": UCE(),
    "uce-new": UCE(**UCE.presets["new"]),
    "rece": RECE(lam=3.0, rho=1.0),
    "cure": CURE(erase="wordings"),
}
SINGULAR = CURE(erase="phrase", keep="none")


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {name: load(pipelines.write(name, tmp_path_factory.mktemp(name) / "m")) for name in ("sdxl", "flux")}


def defended(method: Defense, model: Model, concept: Concept) -> Model:
    card = replace(concept, wordings=("a cat", "cats", "one cat"))
    delta = method.protect(model, card, {}, rng=torch.Generator().manual_seed(0), report=silent)
    return model.with_delta(delta)


@torch.no_grad()
def predicted(model: Model, text: Tensor) -> Tensor:
    z = torch.randn(len(text), *model.latent_shape, generator=torch.Generator().manual_seed(1))
    return model.predict(z, model.trajectory(4)[1], text)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_base_answers_again(name: str, model: Model, concept: Concept) -> None:
    """The prediction of the base for each prompt and the empty one, to rounding; without it they are far apart."""
    target, text = defended(INVERTIBLE[name], model, concept), model.encode_text(["cat", "a dog", ""])
    wanted = predicted(model, text)

    found = predicted(target, ClosedFormInversion().ask(target, model, text))

    assert relative(found, wanted) < 1e-4
    assert relative(predicted(target, text), wanted) > 100 * relative(found, wanted)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_it_works_where_the_text_has_a_pooled_vector(name: str, models: dict[str, Model], concept: Concept) -> None:
    """FLUX's layers have fewer outputs than inputs: what they do not see stays."""
    base = models[name]
    target, text = defended(UCE(**UCE.presets["new"]), base, concept), base.encode_text(["cat", "dog"])
    wanted = predicted(base, text)

    found = predicted(target, ClosedFormInversion().ask(target, base, text))

    assert relative(found, wanted) < 1e-4 < relative(predicted(target, text), wanted)


def test_a_singular_map_is_refused_with_its_condition_number(model: Model, concept: Concept) -> None:
    target, text = defended(SINGULAR, model, concept), model.encode_text(["cat"])

    with pytest.raises(ValueError, match=r"condition number of (inf|[\d.]+e\+\d+), above 1e\+06"):
        ClosedFormInversion().ask(target, model, text)


def test_with_a_ridge_nothing_is_refused(model: Model, concept: Concept) -> None:
    """The smaller the ridge, the less is missed, and a large one leaves the text as it is."""
    target, text = defended(SINGULAR, model, concept), model.encode_text(["cat"])
    left = [
        missed(target, model, text, ClosedFormInversion(ridge=r).ask(target, model, text)) for r in (1e-4, 1.0, 1e9)
    ]

    assert left[0] < left[1] < left[2]
    assert left[2] == pytest.approx(missed(target, model, text, text), rel=1e-3)


def missed(target: Model, base: Model, text: Tensor, x: Tensor) -> float:
    """sum || W x - W_0 c ||^2."""
    layers = [layer.name for layer in base.text_layers()]
    pairs = [[m.denoiser.get_parameter(f"{name}.weight") for m in (target, base)] for name in layers]
    return float(sum((x @ W.T - text @ W_0.T).square().sum() for W, W_0 in pairs))


def test_the_condition_number_is_that_of_the_map(model: Model, concept: Concept) -> None:
    """Layers that see all directions alike, and a map that shrinks one of them to a fiftieth."""
    base = model.clone()
    whole = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
    for layer in base.text_layers():
        base.denoiser.get_parameter(f"{layer.name}.weight").data = whole.clone()
    T = torch.diag(torch.tensor([0.02, *[1.0] * 15]))
    change = {f"unet.{layer.name}.weight": whole @ (T - torch.eye(16)) for layer in base.text_layers()}
    target, text = base.with_delta(Delta(dense=change)), torch.ones(1, 12, 16)

    x = ClosedFormInversion().ask(target, base, text)

    torch.testing.assert_close(x[0, 0], 1 / T.diag(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="condition number of 50, above 49"):
        ClosedFormInversion(max_condition=49).ask(target, base, text)


def test_of_changes_that_are_no_map_it_undoes_what_a_text_can(model: Model, concept: Concept) -> None:
    """SPEED changes the values alone: the answer is nearer to the base's, and not the base's."""
    target, text = defended(SPEED(copies=0), model, concept), model.encode_text(["cat"])

    x = ClosedFormInversion().ask(target, model, text)

    assert 0 < missed(target, model, text, x) < missed(target, model, text, text)


def test_an_undefended_model_reads_the_text_itself(model: Model) -> None:
    text = model.encode_text(["cat", ""])

    assert torch.equal(ClosedFormInversion().ask(model, model.clone(), text), text)


def test_images_of_the_attacked_model_are_the_bases(model: Model, concept: Concept) -> None:
    """Through the sampler, the empty text's part of the guidance included."""
    target, prompts = (
        defended(UCE(), model, concept),
        [Prompt(text="cat", split="concept"), Prompt(text="b", split="concept")],
    )
    settings = {"images": 2, "steps": 3, "guidance": 3.0, "stream": "", "batch": 3, "report": silent}
    attack = ClosedFormInversion()

    def drawn(of: Model, ask: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return generate(of, prompts, **settings, ask=ask).images.int()  # type: ignore[arg-type]

    plain = drawn(model)
    assert int((drawn(target, lambda text: attack.ask(target, model, text)) - plain).abs().max()) <= 1
    assert int((drawn(target) - plain).abs().max()) > 1


@pytest.mark.parametrize("method", [*INVERTIBLE.values(), SINGULAR, SPEED()], ids=lambda m: type(m).__name__)
def test_keys_and_values_put_back_undo_every_closed_form(method: Defense, model: Model, concept: Concept) -> None:
    """Also the one that no text undoes. Nothing else is put back."""
    target = defended(method, model, concept)

    (snapshot,) = ComponentSwap(part="keys_values").finetune(
        target, model, concept, {}, budgets=(1,), rng=torch.Generator(), report=silent
    )

    assert {name.removeprefix("unet.") for name in snapshot.delta.dense} == model.scope("x-strict")
    text = model.encode_text(["cat"])
    torch.testing.assert_close(predicted(target.with_delta(snapshot.delta), text), predicted(model, text))
