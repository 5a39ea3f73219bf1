"""Receler's erasers fold into what they stand behind, are silent at first, and are silenced outside their mask."""

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept, Delta
from defenses.erasers import Eraser, added
from defenses.receler import Receler, masked, outputs, silence
from tests.defenses.test_esd import silent

SHAPE = (4, 4, 4)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def erasers(model: Model) -> tuple[dict[str, torch.nn.Module], dict[str, Eraser]]:
    layers = {name: model.unet.get_submodule(name) for name in outputs(model)}
    return layers, {n: Eraser.drawn(layer.out_features, 3, rng(), layer.weight) for n, layer in layers.items()}  # type: ignore[arg-type]


def test_folded_erasers_answer_as_added_ones(model: Model) -> None:
    """Of any numbers: W' = (I + U D) W and b' = (I + U D) b + U d + u."""
    edited = model.clone()
    layers, found = erasers(edited)
    for one in found.values():
        for p in one.parameters:
            p.data = 0.5 * torch.randn(p.shape, generator=rng(1))
    dense = {}
    for name, one in found.items():
        dense[f"unet.{name}.weight"], dense[f"unet.{name}.bias"] = one.folded(layers[name])  # type: ignore[arg-type]
    z, t, text = torch.randn(1, *SHAPE, generator=rng()), torch.tensor(5), model.encode_text(["cat"])

    with added(layers, found), torch.no_grad():
        with_erasers = edited.predict(z, t, text)

    torch.testing.assert_close(model.with_delta(Delta(dense=dense)).predict(z, t, text), with_erasers)
    assert not torch.allclose(with_erasers, model.predict(z, t, text))
    assert torch.equal(edited.predict(z, t, text), model.predict(z, t, text))


def test_at_first_they_say_nothing_and_only_the_way_out_has_a_gradient(model: Model) -> None:
    """The loss of the first step, without A, is ESD's on the base."""
    edited = model.clone(only=())
    layers, found = erasers(edited)
    method = Receler(steps=1, ddim_steps=1, insert=False, sampler="ddim")

    with added(layers, found) as said:
        loss = next(iter(method.losses(edited, model, "cat", said, rng())))
        loss.backward()

    draws = rng()
    torch.rand((1, 7, 16), generator=draws)  # A: as many as fit behind three words, and before the last row
    torch.randint(1, (), generator=draws)
    z, t = torch.randn(1, *SHAPE, generator=draws), torch.tensor(1)
    eps_c, eps_null = (model.predict(z, t, model.encode_text([text])) for text in ("cat", ""))
    wanted = (eps_c - (eps_null - (eps_c - eps_null))).square().mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for one in found.values():
        assert bool(one.U.grad.any()) and bool(one.u.grad.any())  # type: ignore[union-attr]
        assert not bool(one.D.grad.any()) and not bool(one.d.grad.any())  # type: ignore[union-attr]


def test_what_is_said_inside_the_mask_is_free() -> None:
    """Without a mask it is the mean square; a mask of half the size counts for four places each."""
    E = torch.randn(2, 16, 8, generator=rng())
    M = torch.tensor([[True, False, False, False]] * 2)
    inside = E.clone().reshape(2, 4, 4, 8)
    inside[:, :2, :2] *= 10

    assert silence([E], torch.zeros(2, 16, dtype=torch.bool), SHAPE).item() == pytest.approx(E.square().mean().item())
    torch.testing.assert_close(silence([inside.reshape(2, 16, 8)], M, SHAPE), silence([E], M, SHAPE))
    assert silence([E], torch.ones(2, 4, dtype=torch.bool), SHAPE).item() == 0


def test_the_mask_is_where_the_image_attends_to_the_words() -> None:
    """Of the layers with the wanted size, or the next below; the least is outside; without contrast all is inside."""
    fine, coarse = torch.zeros(1, 2, 16, 5), torch.zeros(1, 2, 4, 5)
    coarse[..., 1] = torch.tensor([0.0, 0.05, 0.2, 1.0])
    fine[..., 0, 1] = 1.0

    assert masked([fine, coarse], [1], 8, 0.1).tolist() == [[False, False, True, True]]
    assert masked([fine, coarse], [1], 16, 0.1)[0].tolist() == [True] + [False] * 15
    assert masked([fine], [1], 4, 0.1).shape == (1, 16)
    assert masked([coarse], [2], 4, 0.1).all()


def test_free_vectors_are_read_or_not(model: Model, concept: Concept) -> None:
    """In the release's preset the search changes nothing; what moves is the output of the attention to the text."""

    def delta(**fields: object) -> dict[str, torch.Tensor]:
        method = Receler(steps=2, ddim_steps=3, rank=2, lr=1e-3, **fields)  # type: ignore[arg-type]
        return dict(method.protect(model, concept, {}, rng=rng(), report=silent).dense)

    with_a, other = delta(attack_steps=2), delta(attack_steps=3)
    without, also = delta(insert=False, attack_steps=2), delta(insert=False, attack_steps=3)

    assert all(torch.equal(t, also[name]) for name, t in without.items())
    assert any(not torch.equal(t, other[name]) for name, t in with_a.items())
    assert all(".attn2.to_out.0." in name for name in with_a)
