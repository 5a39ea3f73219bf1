"""SPM's gate is its equation; at 1 the adapters are the merged ones, at 0 the base."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.diffusion import Model, sample
from benchmark.guard import guarded
from benchmark.kit.conformance import check_defense, silent, tiny_flow
from benchmark.types import Concept, Delta
from defenses.spm import SPM
from defenses.spm_gate import DOWN, UP, Gate, SPMGate, adapted, overlap

QUICK = {"steps": 2, "ddim_steps": 3, "lr": 1e-2}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def large(model: Model, concept: Concept) -> dict[str, Tensor]:
    """The adapters of the concept, of a size that is seen."""
    trained = SPMGate(**QUICK).layers(model, concept, {}, rng=rng(), report=silent)  # type: ignore[arg-type]
    return {n: torch.randn(t.shape, generator=rng(1)) * 0.1 if n.endswith(UP) else t for n, t in trained.items()}


def merged(modules: dict[str, Tensor], share: float) -> Delta:
    names = [name.removesuffix(DOWN) for name in modules if name.endswith(DOWN)]
    return Delta(low_rank={name: (modules[name + DOWN], share * modules[name + UP]) for name in names})


def drawn(model: Model, text: str, *, w: float = 3.0) -> Tensor:
    z = torch.randn(1, *model.latent_shape, generator=rng(2))
    read, null = model.encode_text([text]), model.encode_text([""])
    return sample(model, z, read, null, steps=2, guidance=w)


def gamma(model: Model, said: list[str], **fields: object) -> list[float]:
    gate = Gate(**{"texts": ("cat",), "metric": "clipcos_tokenuni", "factor": 1.0} | fields)  # type: ignore[arg-type]
    return gate.read(model, said)[:, -1, 0].tolist()


@pytest.mark.slow
def test_it_keeps_the_contract() -> None:
    check_defense(SPMGate, {"steps": 2, "ddim_steps": 2})


def test_it_trains_what_spm_merges(model: Model, concept: Concept) -> None:
    found = SPMGate(**QUICK).layers(model, concept, {}, rng=rng(), report=silent)  # type: ignore[arg-type]
    spm = SPM(**QUICK).protect(model, concept, {}, rng=rng(), report=silent).low_rank  # type: ignore[arg-type]

    assert {n.removesuffix(DOWN) for n in found if n.endswith(DOWN)} == set(spm)
    assert all(torch.equal(found[n + DOWN], D) and torch.equal(found[n + UP], U) for n, (D, U) in spm.items())


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_a_gate_that_is_open_is_the_merged_form(model: Model, concept: Concept, w: float) -> None:
    """The phrase has gamma 1, for its own prediction and for that of the empty text."""
    modules = large(model, concept)
    behind = guarded(model, SPMGate().guard(concept).fitted(modules), w)

    assert gamma(model, ["cat"], texts=(concept.phrase,)) == pytest.approx([1.0])
    torch.testing.assert_close(
        drawn(behind, "cat", w=w), drawn(model.with_delta(merged(modules, 1.0)), "cat", w=w), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(drawn(behind, "cat", w=w), drawn(model, "cat", w=w), atol=1e-2)


def test_the_change_grows_with_the_square_of_gamma(model: Model, concept: Concept) -> None:
    """Both factors are scaled: of a gamma of 1.5, 2.25 U D; a gate that is shut leaves the base, to the bit."""
    modules = large(model, concept)
    half, shut = (
        guarded(model, Gate(texts=("cat",), metric="tokenuni", factor=factor).fitted(modules), 3.0)
        for factor in (1.5, 0.0)
    )

    wanted = drawn(model.with_delta(merged(modules, 2.25)), "a cat")
    torch.testing.assert_close(drawn(half, "a cat"), wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(drawn(shut, "a cat"), drawn(model, "a cat"))
    assert torch.equal(drawn(half, "a dog"), drawn(model, "a dog"))  # shares no token


def test_each_text_of_a_batch_has_its_own_gate(model: Model, concept: Concept) -> None:
    behind = guarded(model, SPMGate(metric="tokenuni").guard(concept).fitted(large(model, concept)), 3.0)
    z, t = torch.randn(2, *model.latent_shape, generator=rng(2)), torch.tensor(300)
    text, null = behind.encode_text(["cat", "dog"]), behind.encode_text(["", ""])

    both = behind.guided(z, t, text, null, 3.0)

    alone = [behind.guided(z[i : i + 1], t, text[i : i + 1], null[:1], 3.0) for i in (0, 1)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-4)
    plain = model.guided(z, t, text[:, :-1], null[:, :-1], 3.0)
    torch.testing.assert_close(both[1], plain[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both[0], plain[0], atol=1e-3)


def test_gamma_is_the_larger_of_cosine_and_shared_tokens(model: Model) -> None:
    """By hand: the cosine of all rows side by side, and the share of the phrase's tokens that are said."""
    c, p = (model.encode_text([text]).flatten() for text in ("cat", "a dog"))
    cosine = float(F.cosine_similarity(c, p, dim=0))
    tokens = {name: set(model.ids([name])[0].tolist()) - set(model.ids([""])[0].tolist()) for name in ("cat", "a cot")}
    share = len(tokens["cat"] & tokens["a cot"]) / len(tokens["cat"])

    assert gamma(model, ["a dog"], metric="clipcos", factor=2.0) == pytest.approx([2 * cosine], rel=1e-5)
    assert 0 < share < 1 and gamma(model, ["a cot"], metric="tokenuni") == pytest.approx([share])
    for text in ("a dog", "a cot", "cat"):
        parts = [gamma(model, [text], metric=metric)[0] for metric in ("clipcos", "tokenuni")]
        assert gamma(model, [text])[0] == pytest.approx(max(parts))
    assert gamma(model, ["a dog"], texts=("cat", "a dog")) == pytest.approx([1.0])  # the largest over what is erased


def test_words_given_as_vectors_have_the_gate_of_their_text(model: Model) -> None:
    gate = Gate(texts=("cat",), metric="clipcos_tokenuni", factor=1.0)
    texts = ["a cot", "cat", "a dog", ""]

    torch.testing.assert_close(gate.read_words(model, model.words(model.ids(texts))), gate.read(model, texts))


def test_a_phrase_of_marks_alone_shares_nothing() -> None:
    rows = torch.tensor([[[1], [2], [2]]])

    assert overlap(rows, rows, rows).tolist() == [0.0]


def test_a_convolution_has_its_strides_and_padding() -> None:
    layer, x = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), torch.randn(2, 3, 8, 8, generator=rng())
    down, up = torch.randn(1, 3, 3, 3, generator=rng(1)), torch.randn(5, 1, 1, 1, generator=rng(2))

    whole = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
    torch.testing.assert_close(adapted(layer, x, down, up), F.conv2d(x, whole, stride=2, padding=1))


def test_it_stands_beside_a_flow_transformer_too(concept: Concept) -> None:
    model = tiny_flow()
    modules = large(model, concept)
    behind = guarded(model, SPMGate().guard(concept).fitted(modules), 3.0)

    torch.testing.assert_close(
        drawn(behind, "cat"), drawn(model.with_delta(merged(modules, 1.0)), "cat"), atol=1e-4, rtol=1e-4
    )
