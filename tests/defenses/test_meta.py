"""What defenses against simulated attacks share: a copy is attacked, and what is found there goes to the original."""

from typing import Any

import pytest
import torch
from torch import nn

from benchmark.config.registry import find
from benchmark.diffusion import Model
from benchmark.kit import conformance
from benchmark.types import Concept, Examples
from defenses.meta import attack, fork, reset, step, trainable, transfer


class Quadratic(nn.Module):
    """1/2 (p - a)^2, and a number q that is frozen."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p, dtype=torch.float64))
        self.q = nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def loss(self, a: float) -> torch.Tensor:
        return (self.p - a).square() / 2


def test_an_attack_goes_down_and_can_be_looked_at_after_each_step() -> None:
    """p <- p - lr (p - 3), by hand."""
    copy = Quadratic(1.0)
    optimizer = torch.optim.SGD([copy.p], 0.5)

    seen = [(k, copy.p.item()) for k in attack(optimizer, [lambda: copy.loss(3.0)] * 3)]

    assert seen == [(0, 2.0), (1, 2.5), (2, 2.75)]


def test_what_is_found_at_the_copy_is_added_to_the_original() -> None:
    original, copy = Quadratic(1.0), Quadratic(5.0)

    value = transfer(copy.loss(3.0), copy, original)
    transfer(copy.loss(4.0), copy, original)

    assert value.item() == 2.0
    assert original.p.grad is not None
    assert original.p.grad.item() == 2.0 + 1.0
    assert original.p.item() == 1.0 and original.q.grad is None


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_moves_the_optimizers_parameters_alone_and_clips_their_gradient(clip: float | None) -> None:
    one, other = Quadratic(1.0), Quadratic(1.0)

    step(one.loss(3.0) + other.loss(3.0), torch.optim.SGD([one.p], 0.1), clip=clip)

    assert one.p.item() == pytest.approx(1 + 0.1 * (clip or 2.0))
    assert other.p.grad is None


def test_a_copy_to_attack_shares_what_is_not_trained(model: Model) -> None:
    edited = model.clone(only={"unet.conv_out.bias"}).frozen()
    edited.denoiser.get_parameter("conv_out.bias").requires_grad_(True)

    few, every = fork(edited), fork(edited, every=True)

    for (name, p), (_, one), (_, all_) in zip(
        edited.denoiser.named_parameters(),
        few.denoiser.named_parameters(),
        every.denoiser.named_parameters(),
        strict=True,
    ):
        assert (p.data_ptr() == one.data_ptr()) == (name != "conv_out.bias") and one.requires_grad == p.requires_grad
        assert p.data_ptr() != all_.data_ptr() and all_.requires_grad
    (w,), theta = trainable(few.denoiser), trainable(edited.denoiser)
    w.data += 1
    reset([w], theta)
    assert torch.equal(w, theta[0])


MIMA = {"adaptation": "dreambooth", "prior": 1.0, "theta": "x", "merge": True}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resalign", {"attacks": 1}),
        ("meta_unlearning", {}),
        ("imma", MIMA),
        ("clamp", {"inner_steps": 1}),
        ("lcfdsd", {"contrast": True}),
    ],
)
def test_a_flow_is_immunised_through_the_same_interface(
    name: str, fields: dict[str, Any], concept: Concept, examples: Examples
) -> None:
    method = conformance.small(find("defense", name), {"steps": 2, **fields})
    flow = conformance.tiny_flow()
    before = flow.meter.unet_forward + 2 * flow.meter.unet_backward

    delta = conformance.protect(method, flow, concept, examples)

    assert not delta.is_zero
    flow.with_delta(delta)
    slack = 3 * method.steps * method.batch * 2 if name == "resalign" else 0  # a prior, in one attack of fifteen
    assert abs(flow.meter.unet_forward + 2 * flow.meter.unet_backward - before - method.passes()) <= slack
