"""The decoder attack trains the decoder alone, and brings a spoilt decoder back."""

import torch

from attacks.decoder_finetune import PARTS, DecoderFinetune
from benchmark.diffusion import Model
from benchmark.types import Concept, Delta, Examples, Snapshot


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def attack(model: Model, concept: Concept, examples: Examples, steps: int) -> Snapshot:
    method, rng = DecoderFinetune(lr=1e-2, batch=2), torch.Generator().manual_seed(0)
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


def test_it_restores_what_a_decoder_has_lost(model: Model, concept: Concept, examples: Examples) -> None:
    """A decoder that answers white for everything reconstructs again."""
    bias = "vae.decoder.conv_out.bias"
    spoilt = model.with_delta(Delta(dense={bias: torch.full((3,), 5.0)}))

    restored = spoilt.with_delta(attack(spoilt, concept, examples, 60).delta)

    assert error(restored, examples) < error(spoilt, examples) / 10
