"""SPM's loss is its equation, its adapters are of rank 1 on the release's layers, its strength is a product."""

from itertools import pairwise

import pytest
import torch

from benchmark.diffusion import Model
from benchmark.types import Concept
from defenses.membranes import attending
from defenses.spm import SPM
from tests.defenses.test_esd import predictor, silent

C, NULL, ANCHOR = (torch.full((1, 3, 4), value) for value in (3.0, 1.0, 2.0))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def delta(model: Model, concept: Concept, **fields: object) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    method = SPM(steps=2, ddim_steps=3, lr=1e-3, **fields)  # type: ignore[arg-type]
    return dict(method.protect(model, concept, {}, rng=rng(), report=silent).low_rank)


def test_the_loss_is_esds_and_what_the_anchors_move(model: Model) -> None:
    """(15 - (2 - 4))^2 = 289, and 1000 times (10 - 4)^2, the mean over anchors."""
    frozen, edited, z_t = predictor(model, 2.0), predictor(model, 5.0), torch.zeros(2, 4, 2, 2)

    loss = SPM().loss(edited, frozen, z_t, torch.tensor(3), C, NULL, ANCHOR.expand(4, -1, -1))

    assert loss.item() == pytest.approx(289 + 1000 * 36)


def test_adapters_are_on_all_layers_of_the_transformers_and_of_rank_1(model: Model, concept: Concept) -> None:
    """By name, as the release lists them: the projections, both attentions, the feed-forward net."""
    inside = [name for name, _ in model.unet.named_parameters() if ".attentions." in name and name.endswith(".weight")]
    layers = {name.removesuffix(".weight") for name in inside if "norm" not in name}
    found = delta(model, concept)

    assert set(attending(model)) == layers
    assert {name.removeprefix("unet.") for name in found} == layers
    assert all(len(down) == 1 and up.shape[1] == 1 for down, up in found.values())
    assert {name.split("attentions.")[1][2:].rpartition(".")[2] for name in found} >= {"proj_in", "proj_out", "to_q"}


def test_strength_is_a_product(model: Model, concept: Concept) -> None:
    once, four = delta(model, concept), delta(model, concept, strength=4.0)

    for name, (down, up) in once.items():
        assert torch.equal(four[name][0], down) and torch.equal(four[name][1], 4 * up)


def test_anchors_are_as_long_as_the_concept(model: Model) -> None:
    """0.8 to 1.2 times; the release's four are two empty texts and two drawn ones."""
    c, null = model.encode_text(["cat"]), model.encode_text([""])

    ours, all_drawn = SPM().others(c, null, rng()), SPM(anchors="all").others(c, null, rng())

    assert torch.equal(ours[:2], null.expand(2, -1, -1)) and len(all_drawn) == 4
    lengths = torch.cat([ours[2:], all_drawn]).flatten(1).norm(dim=1) / c.norm()
    assert lengths.min() > 0.8 - 1e-4 and lengths.max() < 1.2 + 1e-4 and lengths.unique().numel() > 1


def test_the_rate_warms_up_and_restarts() -> None:
    """Of 3000 steps 500 go up, and the cosine falls three times."""
    rate = SPM().rate

    assert [rate(0), rate(250), rate(500), rate(3000)] == pytest.approx([0, 0.5, 1, 0])
    falls = [rate(i) for i in range(500, 3000)]
    assert sum(b > a + 0.5 for a, b in pairwise(falls)) == 2
    assert SPM(steps=2).rate(0) == 1
