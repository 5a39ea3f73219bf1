"""The closed forms solve their equations, give all layers one map, and touch only what reads the text."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark.diffusion import Model
from benchmark.model import load
from benchmark.types import Concept, Delta
from defenses.base import Defense
from defenses.closed_form import Change, gram, grouped, solve, weight
from defenses.cure import CURE, spectrum
from defenses.mace import MACE
from defenses.rece import RECE, derived, reached
from defenses.text_rows import Span, all_rows, encoded, from_last_words, guide_of, last_words, paired, uce
from defenses.uce import UCE
from tests import pipelines

D = 9
METHODS: dict[str, Defense] = {
    "uce": UCE(),
    "uce-kept": UCE(keep="prior", erase="defender"),
    "uce-new": UCE(**UCE.presets["new"]),
    "rece": RECE(epochs=2),
    "cure": CURE(),
    "mace-cfr": MACE(lora_steps=0, s=1e-3),
}
SHARED = pytest.mark.parametrize("name", METHODS)


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def protect(method: Defense, model: Model, concept: Concept) -> Delta:
    data: Any = dict.fromkeys(method.needs)
    return method.protect(model, concept, data, rng=torch.Generator().manual_seed(0), report=silent)


def whole(delta: Delta) -> dict[str, Tensor]:
    """Every change as a matrix, by the module's name."""
    merged = {name: (up.double() @ down.double()) for name, (down, up) in delta.low_rank.items()}
    return merged | {name.removesuffix(".weight"): t.double() for name, t in delta.dense.items()}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    found: dict[str, Model] = {}

    def family(name: str) -> Model:
        if name not in found:
            found[name] = load(pipelines.write(name, tmp_path_factory.mktemp(name) / name))
        return found[name]

    return family


# The map.


@pytest.mark.parametrize("lam", [1e-3, 0.5, 30.0])
def test_the_map_is_the_direct_solution_for_every_layer(lam: float) -> None:
    """Eq. 7, solved for one layer's weights: equal to 1e-10, and so is the normal equation's residual."""
    c, g, p, W_0 = rows(3), rows(3, 1), rows(5, 2), rows(4, 3)
    M = lam * torch.eye(D).double() + 0.7 * c.T @ c + 0.2 * p.T @ p
    right = lam * W_0 + 0.7 * (W_0 @ g.T) @ c + 0.2 * (W_0 @ p.T) @ p

    W = W_0 @ solve(c, g, p, lam=lam, s_e=0.7, s_p=0.2).T

    torch.testing.assert_close(W, torch.linalg.solve(M, right.T).T, rtol=1e-10, atol=1e-10)
    assert float((W @ M - right).norm() / right.norm()) < 1e-10


def test_one_pair_is_the_formula_by_hand() -> None:
    """T = I + (g - c) c^T / (lam + |c|^2); what is left of W_0 c is lam / (lam + |c|^2)."""
    c, g, none, W_0 = rows(1), rows(1, 1), rows(0), rows(4, 3)
    size = float(0.5 + (c @ c.T))

    T = solve(c, g, none, lam=0.5, s_e=1.0, s_p=1.0).T

    torch.testing.assert_close(T, torch.eye(D).double() + (g - c).T @ c / size)
    left = W_0 @ T @ c.T - W_0 @ g.T
    torch.testing.assert_close(left, 0.5 / size * (W_0 @ c.T - W_0 @ g.T))


def test_without_weight_on_the_old_rows_become_the_guides_and_kept_ones_stay() -> None:
    c, g, p = rows(3), rows(3, 1), rows(2, 2)

    exact = solve(c, g, rows(0), lam=1e-12, s_e=1.0, s_p=1.0).T
    held = solve(c, g, p, lam=1e-9, s_e=1.0, s_p=1e9).T

    torch.testing.assert_close(c @ exact.T, g, rtol=0, atol=1e-8)
    torch.testing.assert_close(p @ held.T, p, rtol=0, atol=1e-6)


def test_order_and_repetition_change_nothing_and_no_scale_no_map() -> None:
    c, g, none = rows(3), rows(3, 1), rows(0)
    T = solve(c, g, none, lam=0.5, s_e=1.0, s_p=1.0).T

    turned = solve(c.flip(0), g.flip(0), none, lam=0.5, s_e=1.0, s_p=1.0).T
    twice = solve(torch.cat([c, c]), torch.cat([g, g]), none, lam=0.5, s_e=0.5, s_p=1.0).T

    torch.testing.assert_close(turned, T)
    torch.testing.assert_close(twice, T)
    assert not solve(c, g, none, lam=0.5, s_e=0.0, s_p=1.0).dense.any()


def test_a_singular_system_is_refused() -> None:
    with pytest.raises(ValueError, match="raise lam"):
        solve(torch.zeros(1, D), rows(1), rows(0), lam=0.0, s_e=1.0, s_p=1.0)


def test_maps_follow_each_other() -> None:
    a, b = (Change(rows(2, seed).T, rows(2, seed + 1)) for seed in (3, 5))

    torch.testing.assert_close(a.then(b).T, a.T @ b.T)


# What it does to a model.


@SHARED
def test_every_layer_gets_one_map(name: str, model: Model, concept: Concept) -> None:
    """T - I, found from half of the layers, gives the change of the others."""
    delta, layers = whole(protect(METHODS[name], model, concept)), model.text_layers()
    half, rest = layers[::2], layers[1::2]
    W_0 = torch.cat([weight(model, layer) for layer in half])
    D_ = torch.cat([delta[f"unet.{layer.name}"] for layer in half])
    change = torch.linalg.lstsq(W_0, D_).solution

    assert float(change.norm()) > 1e-3
    for layer in rest:
        torch.testing.assert_close(weight(model, layer) @ change, delta[f"unet.{layer.name}"], rtol=1e-3, atol=1e-5)


@SHARED
def test_only_what_reads_the_text_moves(name: str, model: Model, concept: Concept) -> None:
    delta = protect(METHODS[name], model, concept)

    assert {f"{n.removeprefix('unet.')}.weight" for n in whole(delta)} == model.scope("x-strict")


def test_the_rank_is_at_most_that_of_the_erased_rows(model: Model, concept: Concept) -> None:
    for method, most in ((METHODS["uce-new"], 1), (UCE(rows="last", erase="wordings"), 3)):
        card = replace(concept, wordings=("a cat", "cats"))
        ranks = {int(torch.linalg.matrix_rank(t, rtol=1e-5)) for t in whole(protect(method, model, card)).values()}

        assert max(ranks) <= most


def test_an_adapter_is_the_dense_change(model: Model, concept: Concept) -> None:
    delta = protect(METHODS["uce-new"], model, concept)
    change = UCE(**UCE.presets["new"]).change(model, concept, "words")

    assert delta.low_rank and not delta.dense
    for layer in model.text_layers():
        wanted = weight(model, layer) @ change.dense
        torch.testing.assert_close(whole(delta)[f"unet.{layer.name}"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sd21", "sdxl", "sd3-t5", "flux"])
def test_it_fits_every_family(name: str, families: Callable[[str], Model], concept: Concept) -> None:
    """UCE there too: what reads the text, and on flows the pooled vector beside it."""
    family = families(name)
    groups = grouped(family)

    for method in (UCE(), UCE(**UCE.presets["new"]), RECE(), CURE(), MACE(lora_steps=0, s=1e-2)):
        delta = protect(method, family, concept)
        family.with_delta(delta)
        assert set(whole(delta)) == {f"{family.part}.{la.name}" for layers in groups.values() for la in layers}
    assert ("pooled" in groups) == (family.part == "transformer")


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3-t5", "flux"])
def test_rows_put_back_are_the_text(name: str, families: Callable[[str], Model]) -> None:
    family = families(name)
    text = family.encode_text(["a cat", "dog"])

    for reads in grouped(family):
        rows_ = family.text_rows(text, reads)
        torch.testing.assert_close(family.with_text_rows(text, rows_, reads), text)
        assert rows_.shape[-1] == weight(family, grouped(family)[reads][0]).shape[1]
        assert not torch.equal(family.with_text_rows(text, rows_ + 1, reads), text)


# Which rows.


def test_the_last_word_stands_before_the_first_end(families: Callable[[str], Model]) -> None:
    """Where the padding is the end token (1.x), where it is another (2.x), and where a text is cut."""
    for name in ("sd1", "sd21", "sdxl"):
        family = families(name)
        (found,) = family.stretches(["ab", "", "abcdefghijklmnopq"])

        assert found.ends.tolist() == [3, 1, 11]


def test_t5s_rows_stand_below_those_of_clip(families: Callable[[str], Model]) -> None:
    clip, t5 = families("sd3-t5").stretches(["a b"])

    assert (clip.start, t5.start, t5.ids.shape[1]) == (0, 12, 10)
    assert int(t5.ids[0, int(t5.ends[0])]) == families("sd3-t5").tokenizer_3.eos_token_id


def test_a_phrase_of_two_tokens_gives_the_second_and_the_empty_guide_the_first(model: Model) -> None:
    c, g = paired(model, [("ab", "")], "words", last_words)
    whole_text = encoded(model, ["ab"], "words")[0]

    torch.testing.assert_close(c, whole_text[2:3])
    torch.testing.assert_close(g, encoded(model, ["zz"], "words")[0, :1])  # the begin token's row is every prompt's


def test_the_empty_guide_is_not_zeros_on_sdxl(families: Callable[[str], Model]) -> None:
    """Its empty text is zeros; the rows that the release reads are those of the encoders."""
    family = families("sdxl")
    _, g = paired(family, [("cat", "")], "words", last_words)

    assert not family.encode_text([""]).any()
    assert float(g.norm()) > 0.1
    assert encoded(family, ["cat"], "words").shape[1] == 12  # the pooled vector is cut off


def test_rows_are_aligned_at_the_last_word() -> None:
    """The subjects at 3 and 5 of 77 rows leave 72."""
    row = torch.arange(77.0)[:, None]

    c, g = from_last_words(row, row, [Span(0, 77, 4)], [Span(0, 77, 6)])

    assert (c[:, 0].tolist(), g[:, 0].tolist()) == (list(range(3, 75)), list(range(5, 77)))


# RECE.


def test_derived_rows_are_where_the_gradient_is_zero() -> None:
    W_0, T, c = rows(30, 1), torch.eye(D).double() + 0.3 * rows(D, 2), rows(2)
    a = derived(W_0.T @ W_0, T, c, 0.1).requires_grad_()

    (slope,) = torch.autograd.grad((a @ (W_0 @ T).T - c @ W_0.T).square().sum() + 0.1 * a.square().sum(), a)

    assert float(slope.abs().max()) < 1e-9


def test_sums_over_layers_need_the_base_once(model: Model) -> None:
    """sum W_k^T W_k of the layers themselves is T^T S T."""
    layers = grouped(model)["words"]
    size = weight(model, layers[0]).shape[1]
    T = torch.eye(size).double() + 0.1 * torch.randn(size, size, generator=torch.Generator().manual_seed(1)).double()
    direct = sum(((W := weight(model, layer) @ T).T @ W for layer in layers), torch.zeros(size, size).double())

    torch.testing.assert_close(T.T @ gram(model, layers) @ T, direct)


def test_without_epochs_rece_is_uce(model: Model, concept: Concept) -> None:
    for card in (concept, replace(concept, kind="style")):
        ours, theirs = (whole(protect(method, model, card)) for method in (RECE(epochs=0), UCE()))

        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_epoch_erases_what_was_derived(model: Model, concept: Concept) -> None:
    """T is T_0 U_1, and the rows that the formula found before bring less of the concept back after."""
    method = RECE()
    S, guide = gram(model, model.text_layers()), guide_of(concept, None)
    pairs, p = [(concept.phrase, guide)], encoded(model, [""], "words")[0]
    T_0 = uce(model, pairs, "words", p, [""])
    c, g = paired(model, pairs, "words", all_rows)
    a = derived(S, T_0.T, c, method.rho)

    T_1, before = method.step(S, T_0, c, g, p)

    U_1 = solve(a, g, p, lam=0.1, s_e=1.0, s_p=0.1).T
    torch.testing.assert_close(T_1.T, T_0.T @ U_1)
    assert before == pytest.approx(reached(S, T_0.T, a, c))
    assert reached(S, T_1.T, a, c) < before


# CURE.


def test_the_spectrum_is_between_nothing_and_all() -> None:
    E = rows(4)

    for alpha in (1.0, 2.0, 5.0):
        V, f = spectrum(E, alpha)
        assert bool(((f >= 0) & (f <= 1)).all())
        torch.testing.assert_close(V.T @ V, torch.eye(4).double())
    assert float(spectrum(E, 1.0)[1].sum()) == pytest.approx(1.0)
    assert spectrum(E[:1], 7.0)[1].tolist() == pytest.approx([1.0])


def test_one_row_is_projected_out(model: Model, concept: Concept) -> None:
    """I - P is then a projection: singular, and doing it again changes nothing."""
    T = CURE(erase="phrase", keep="none").change(model, concept, "words").T

    torch.testing.assert_close(T @ T, T)
    assert float(torch.linalg.svdvals(T)[-1]) < 1e-10


def test_what_is_kept_wholly_is_not_forgotten(model: Model, concept: Concept) -> None:
    """E_r = E_f of one row: P_f - P_f P_r is zero."""
    same = replace(concept, prompts=tuple(replace(p, text=concept.phrase, split="prior") for p in concept.prompts[:1]))

    assert float(CURE(erase="phrase").change(model, same, "words").dense.abs().max()) < 1e-10
