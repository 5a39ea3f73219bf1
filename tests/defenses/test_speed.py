"""SPEED leaves what it must keep, exactly, and draws from its generator alone."""

import pytest
import torch
from torch import Generator, Tensor

from benchmark.diffusion import Model
from benchmark.types import Concept
from defenses.closed_form import weight
from defenses.speed import SPEED, centres, moved, null_space

D = 9


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=seeded(seed), dtype=torch.float64)


def change(method: SPEED, r: Tensor) -> Tensor:
    """D for two targets and anchors."""
    t, a = rows(2, 1), rows(2, 2)
    return method.change(rows(5, 3), t.T @ t, a.T @ t, r, rows(3, 4).T, seeded())


@pytest.mark.parametrize("threshold", [1e-6, 1e9])
def test_what_must_stay_is_not_moved(threshold: float) -> None:
    """D K_2 = 0 even where everything is in the null space (P = I); D (I - P) = 0, hence D R = 0."""
    r = rows(4)
    method = SPEED(threshold=threshold, is_filtered=False, copies=0)
    P = null_space(r.T @ r / 4, threshold)

    D_ = change(method, r)

    assert float(D_.norm()) > 1e-2
    torch.testing.assert_close(D_ @ rows(3, 4).T, torch.zeros(5, 3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(D_ @ (torch.eye(D).double() - P), torch.zeros(5, D).double(), rtol=0, atol=1e-9)
    if threshold < 1:
        torch.testing.assert_close(D_ @ r.T, torch.zeros(5, 4).double(), rtol=0, atol=1e-6)
    else:
        torch.testing.assert_close(P, torch.eye(D).double())


def test_the_change_is_the_least_squares_solution() -> None:
    """Without K_2's weight, D minimises || (W_0 + D P) t - W_0 a ||^2 + rho || D P ||^2: the gradient is zero."""
    t, a, W_0 = rows(2, 1), rows(2, 2), rows(5, 3)
    method = SPEED(rho=0.3, lam=1e12, threshold=1e-6, is_filtered=False, copies=0)
    r = rows(4)
    D_ = method.change(W_0, t.T @ t, a.T @ t, r, rows(3, 4).T, seeded()).requires_grad_()
    P = null_space(r.T @ r / 4, 1e-6)

    (slope,) = torch.autograd.grad(
        ((W_0 + D_ @ P) @ t.T - W_0 @ a.T).square().sum() + 0.3 * (D_ @ P).square().sum(), D_
    )

    assert float(slope.abs().max()) < 1e-8


def test_only_what_would_move_is_kept() -> None:
    """Copies move along the smallest right singular vector, and are filtered as the rows are."""
    W_e = torch.diag(torch.tensor([1.0, 0.0, 0.0])).double()
    r = torch.tensor([[5.0, 0, 0], [1, 0, 0], [0, 9, 0]]).double()

    assert moved(r, W_e).tolist() == [[5, 0, 0]]

    W_0 = torch.diag(torch.tensor([3.0, 2.0, 0.1])).double()
    R = SPEED(copies=4).retained(W_0, W_e, r, seeded())
    assert float(R[2, 2]) == 0.0  # all four copies are as long as the mean: none is longer
    R = SPEED(copies=4, is_filtered=False).retained(W_0, W_e, r, seeded())
    assert float(R[2, 2]) > 0.0
    assert float(R[1, 2]) == 0.0  # copies of the row that would not move are left out


def test_centres_are_means_of_what_is_nearest() -> None:
    group = torch.cat([rows(5) * 0.01 + 10 * k for k in range(3)])

    found = centres(group, 3, rng=seeded(1))

    assert found.shape == (3, D)
    nearest = torch.cdist(group, found).argmin(1)
    for k in range(3):
        torch.testing.assert_close(found[k], group[nearest == k].mean(0))
    assert len(centres(rows(2), 3, rng=seeded())) == 2


@pytest.mark.parametrize(("params", "endings"), [("V", {"to_v"}), ("K", {"to_k"}), ("KV", {"to_k", "to_v"})])
def test_it_edits_the_values_alone(params: str, endings: set[str], model: Model, concept: Concept) -> None:
    method = SPEED(params=params)  # type: ignore[arg-type]

    delta = method.protect(model, concept, {}, rng=seeded(), report=lambda *, step, total, loss: None)

    assert {name.split(".")[-2] for name in delta.dense} == endings
    for layer in model.text_layers():
        if layer.name.endswith(tuple(endings)):
            assert delta.dense[f"unet.{layer.name}.weight"].shape == weight(model, layer).shape


def test_all_rows_are_those_of_a_text_but_the_first(model: Model, concept: Concept) -> None:
    S_tt, _, r, K_2 = SPEED(rows="all", keep="empty").given(model, concept, "words", seeded())
    one, _, _, _ = SPEED().given(model, concept, "words", seeded())

    assert int(torch.linalg.matrix_rank(one)) == 1
    assert int(torch.linalg.matrix_rank(S_tt)) > 1
    assert (len(r), K_2.shape[1]) == (11, 4)
