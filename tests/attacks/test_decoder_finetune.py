"""The decoder attack is the release's, trains the decoder alone, and brings a spoilt decoder back."""

from typing import Any

import numpy as np
import pytest
import torch

from attacks.decoder_finetune import PARTS, DecoderFinetune
from benchmark.diffusion import Model, batches
from benchmark.types import Concept, Delta, Examples, Snapshot


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def attack(model: Model, concept: Concept, examples: Examples, steps: int, **fields: Any) -> Snapshot:
    method = DecoderFinetune(**{"lr": 1e-2, "batch": 2} | fields)
    rng = torch.Generator().manual_seed(0)
    *_, last = method.finetune(model, model, concept, {"concept": examples}, budgets=[steps], rng=rng, report=silent)
    return last


def error(model: Model, examples: Examples) -> float:
    x = examples.images.float() / 255
    z = model.vae.encode(x * 2 - 1).latent_dist.mean
    return float((model.vae.decode(z).sample / 2 + 0.5 - x).square().mean())


def test_only_the_decoder_moves(model: Model, concept: Concept, examples: Examples) -> None:
    delta = attack(model, concept, examples, 2).delta

    moved = {name for name, tensor in delta.dense.items() if bool(tensor.any())}
    assert moved
    assert all(name.startswith(tuple(f"vae.{part}" for part in PARTS)) for name in moved)


@pytest.mark.slow
def test_it_restores_what_a_decoder_has_lost(model: Model, concept: Concept, examples: Examples) -> None:
    """A decoder that answers white for everything reconstructs again."""
    bias = "vae.decoder.conv_out.bias"
    spoilt = model.with_delta(Delta(dense={bias: torch.full((3,), 5.0)}))

    restored = spoilt.with_delta(attack(spoilt, concept, examples, 60).delta)

    assert error(restored, examples) < error(spoilt, examples) / 10


def in_double(model: Model) -> Model:
    copy = model.clone()
    for part in copy.parts.values():
        part.double()
    return copy


@pytest.mark.parametrize(("preset", "optimizer"), [({}, "sgd"), (DecoderFinetune.presets["adam"], "adam")])
def test_the_steps_are_the_releases(
    model: Model, concept: Concept, examples: Examples, preset: dict[str, Any], optimizer: str
) -> None:
    """Three steps again in float64, each optimizer written out: SGD is v <- 0.9 v + g with decay in g, Adam likewise.

    The loss is in the decoder's own units, [-1, 1], of latents sampled from their posterior.
    """
    small = in_double(model)
    method = DecoderFinetune(**preset, batch=2)
    assert (method.lr, method.optimizer) == (1e-4, optimizer)

    delta = attack(small, concept, examples, 3, lr=method.lr, optimizer=method.optimizer).delta

    vae, rng = small.clone().vae.requires_grad_(False), torch.Generator().manual_seed(0)
    theta = {n: p for n, p in vae.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))}
    start = {n: p.numpy().copy() for n, p in theta.items()}
    first, second = ({n: np.zeros_like(p) for n, p in start.items()} for _ in range(2))
    order = batches(4, 2, rng=rng)
    for step in range(1, 4):
        x = examples.images[next(order)].double() / 255 * 2 - 1
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).double()
        z = posterior.mean + torch.exp(posterior.logvar / 2) * noise
        for p in theta.values():
            p.requires_grad_(True)
        error = ((vae.decode(z).sample - x) ** 2).sum() / x.numel()
        gradients = torch.autograd.grad(error, list(theta.values()))
        for (name, p), gradient in zip(theta.items(), gradients, strict=True):
            p.requires_grad_(False)
            g = gradient.numpy() + 1e-4 * p.numpy()
            if optimizer == "sgd":
                first[name] = 0.9 * first[name] + g
                move = first[name]
            else:
                first[name], second[name] = 0.9 * first[name] + 0.1 * g, 0.999 * second[name] + 0.001 * g**2
                move = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            p.copy_(torch.from_numpy(p.numpy() - 1e-4 * move))
    for name, p in theta.items():
        expected = (p.numpy() - start[name]).astype(np.float32)
        np.testing.assert_allclose(delta.dense[f"vae.{name}"], expected, rtol=1e-5, atol=1e-12)


def test_adam_is_far_stronger_at_the_same_rate(model: Model, concept: Concept, examples: Examples) -> None:
    def moved(optimizer: str) -> float:
        delta = attack(model, concept, examples, 5, lr=1e-4, optimizer=optimizer).delta
        return sum(float(change.square().sum()) for change in delta.dense.values()) ** 0.5

    assert moved("adam") > 3 * moved("sgd")
