"""Tails and quantiles of the normal distribution and of Student's t, to their last digits however far out.

`statistics.NormalDist.cdf` is 0 beyond 8.3 standard deviations; the complementary error function is not. Student's tail
is half the regularised incomplete beta function, here by its continued fraction (Lentz's algorithm).
"""

import math
from functools import lru_cache
from statistics import NormalDist

NORMAL = NormalDist()
ENDLESS = 1e7  # more degrees of freedom are the normal distribution to nine digits
TINY, PRECISE, STEPS = 1e-300, 1e-15, 20_000


def normal_tail(z: float) -> float:
    """P(Z > z)."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def t_tail(t: float, freedom: float) -> float:
    """P(T > t) with `freedom` > 0 degrees of freedom, also fractional or infinite."""
    if freedom > ENDLESS:
        return normal_tail(t)
    if t < 0:
        return 1 - t_tail(-t, freedom)
    if math.isinf(t):
        return 0.0
    # with x = f / (f + t^2): P(|T| > t) = I_x(f / 2, 1 / 2)
    return 0.5 * _beta(freedom / (freedom + t * t), t * t / (freedom + t * t), freedom / 2, 0.5)


@lru_cache(maxsize=4096)
def t_quantile(share: float, freedom: float) -> float:
    """The t below which `share` of the distribution lies, by bisection; `share` is in (0, 1)."""
    if share < 0.5:
        return -t_quantile(1 - share, freedom)
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - share:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - share else (low, middle)
    return (low + high) / 2


def _beta(x: float, rest: float, a: float, b: float) -> float:
    """I_x(a, b), the regularised incomplete beta function; `rest` is 1 - x, given apart so that none of it is lost."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _fraction(x, a, b) / a
    return 1 - math.exp(log_front) * _fraction(rest, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function."""
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, STEPS):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / _away(1 + factor * d), _away(1 + factor / c)
            found *= c * d
        if abs(c * d - 1) < PRECISE:
            break
    return found


def _away(value: float) -> float:
    """Not 0."""
    return value if abs(value) > TINY else TINY
