"""How large a change is, by scope: where a method that trains little changed much, something else was changed too."""

from collections.abc import Mapping

from benchmark.diffusion import Model, Scope
from benchmark.types import Delta

SCOPES: tuple[Scope, ...] = ("x", "selfattn")


def by_scope(model: Model, delta: Delta) -> dict[str, dict[str, float]]:
    """Norm of the change, and its share of the base's norm, by `unet.x`, `unet.selfattn`, `unet.rest` and the parts."""
    squares: dict[str, list[float]] = {}
    for part, module in model.parts.items():
        scopes = scopes_of(model) if part == model.part else {}
        for name, weight in module.named_parameters():
            scope = next((which for which, names in scopes.items() if name in names), "rest")
            at = squares.setdefault(f"{part}.{scope}" if scopes else part, [0.0, 0.0])
            at[0] += square(delta, f"{part}.{name}")
            at[1] += float(weight.detach().double().square().sum())
    return {
        name: {"change": own**0.5, "share": (own / base) ** 0.5 if base else 0.0}
        for name, (own, base) in squares.items()
    }


def scopes_of(model: Model) -> Mapping[Scope, set[str]]:
    """The parameters of the denoiser's attentions, as far as it has such."""
    found: dict[Scope, set[str]] = {}
    for scope in SCOPES:
        try:
            found[scope] = model.scope(scope)
        except ValueError:
            found[scope] = set()
    return found


def square(delta: Delta, name: str) -> float:
    """The squared norm of a parameter's change, adapters multiplied out: || B A ||^2 = tr(B^T B A A^T)."""
    found = float(delta.dense[name].double().square().sum()) if name in delta.dense else 0.0
    if (pair := delta.low_rank.get(name.removesuffix(".weight"))) and name.endswith(".weight"):
        down, up = (factor.flatten(1).double() for factor in pair)
        found += float(((up.T @ up) * (down @ down.T)).sum())
    return found


def largest(norms: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float, float]]:
    """Scopes with a change, name, norm and share, the largest first."""
    told = [(name, each["change"], each["share"]) for name, each in norms.items() if each["change"]]
    return sorted(told, key=lambda each: -each[1])
