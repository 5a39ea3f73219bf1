"""What the distances between two sets of features share: the unbiased squared MMD and its jackknife interval.

    MMD^2 = mean_{i != j} k(f_i, f_j) + mean_{i != j} k(g_i, g_j) - 2 mean_{i, j} k(f_i, g_j)

With pairs (f_i and g_i come from one prompt and seed) the last mean leaves out i = j as the others do: these n terms
are no sample of two independent images and would push the number below 0 (Gretton et al., JMLR 2012, MMD_u^2).

The interval is the delete-one jackknife's, value +- 1.96 s, for pairs or, without them, for each set. A bootstrap would
draw an image twice, and k(x, x) would leak into the means that leave it out: its draws lie above the number. The
jackknife needs no draws and has a closed form in the sums of rows. It takes the images for independent: with many
images of few prompts the interval is too narrow.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 1024  # of a kernel matrix at once: memory is O(N), not O(N^2)
Z = 1.959963984540054
Kernel = Callable[[Tensor, Tensor], Tensor]


def checked(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Features in float64.

    Raises:
        ValueError: fewer than two images, different embedders, or a number that is not finite.
    """
    if f.ndim != 2 or g.ndim != 2 or f.shape[1] != g.shape[1] or min(len(f), len(g)) < 2:
        raise ValueError(
            f"expected features (N, D) and (M, D) of 2 images or more, got {tuple(f.shape)} and "
            f"{tuple(g.shape)}: draw more images with one embedder."
        )
    if not bool(torch.isfinite(f).all() and torch.isfinite(g).all()):
        raise ValueError("expected finite features, got some that are not: look at the images.")
    return f.double(), g.double()


def unbiased_mmd(kernel: Kernel, f: Tensor, g: Tensor, *, pairs: bool) -> dict[str, float]:
    """Squared MMD of features `(N, D)` and `(M, D)` with its interval.

    Raises:
        ValueError: pairs are asked for of sets of different sizes.
    """
    f, g = checked(f, g)
    if pairs and len(f) != len(g):
        raise ValueError(f"expected pairs, got {len(f)} and {len(g)} images: draw the same of both, or `pairs: false`.")
    value, variance = (with_pairs if pairs else without_pairs)(kernel, f, g)
    half = Z * math.sqrt(variance)
    return {"value": value, "ci_low": value - half, "ci_high": value + half}


def with_pairs(kernel: Kernel, f: Tensor, g: Tensor) -> tuple[float, float]:
    """The number over n pairs and its variance (NaN below 3 pairs)."""
    n, own = len(f), diagonal(kernel, f, g)
    ff, gg = rows(kernel, f, f) - diagonal(kernel, f, f), rows(kernel, g, g) - diagonal(kernel, g, g)
    r = ff + gg - (rows(kernel, f, g) - own) - (rows(kernel, g, f) - own)  # sums of h(z_i, z_j) over j != i
    total = r.sum()
    left_out = (total - 2 * r) / ((n - 1) * (n - 2)) if n > 2 else torch.full_like(r, math.nan)
    return float(total / (n * (n - 1))), jackknife(left_out)


def without_pairs(kernel: Kernel, f: Tensor, g: Tensor) -> tuple[float, float]:
    """The number over two independent sets and its variance (NaN below 3 images)."""
    n, m = len(f), len(g)
    a, b = rows(kernel, f, f) - diagonal(kernel, f, f), rows(kernel, g, g) - diagonal(kernel, g, g)
    c_f, c_g = rows(kernel, f, g), rows(kernel, g, f)
    A, B, C = a.sum(), b.sum(), c_f.sum()
    value = A / (n * (n - 1)) + B / (m * (m - 1)) - 2 * C / (n * m)
    if min(n, m) < 3:
        return float(value), math.nan
    no_f = (A - 2 * a) / ((n - 1) * (n - 2)) + B / (m * (m - 1)) - 2 * (C - c_f) / ((n - 1) * m)
    no_g = A / (n * (n - 1)) + (B - 2 * b) / ((m - 1) * (m - 2)) - 2 * (C - c_g) / (n * (m - 1))
    return float(value), jackknife(no_f) + jackknife(no_g)


def jackknife(left_out: Tensor) -> float:
    """(n - 1)/n times the sum of squared deviations of the n numbers without one image each."""
    n = len(left_out)
    return float((left_out - left_out.mean()).square().sum() * (n - 1) / n)


def rows(kernel: Kernel, f: Tensor, g: Tensor) -> Tensor:
    """Sums `(N,)` of the kernel matrix `(N, M)` over its rows."""
    return torch.cat([kernel(part, g).sum(1) for part in f.split(ROWS)])


def diagonal(kernel: Kernel, f: Tensor, g: Tensor) -> Tensor:
    """k(f_i, g_i), `(N,)`."""
    return torch.cat([kernel(a, b).diagonal() for a, b in zip(f.split(32), g.split(32), strict=True)])
