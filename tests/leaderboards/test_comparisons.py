"""Tables over several defenses: paired differences with Holm, Pareto membership, and what makes presence vary."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from leaderboards.bootstrap import FloatArray
from leaderboards.intervals import holm
from leaderboards.pareto import non_dominated
from leaderboards.variance import SOURCES, complete, components
from tests.leaderboards.test_board import PROMPTS, Frames, frames, make, row, where


def noisy(*defenses: str, level: float = 0.3, gain: float = 0.0, **setting: tuple[str | int, ...]) -> Frames:
    """Frames in which each image shows the concept at random; the second defense shows it more often by `gain`."""
    scores, cells, costs = frames(*defenses, **setting)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    attacked = (scores["split"] == "concept") & (scores["defense"] != "none") & (scores["budget"] > 0)
    rate = level + gain * (scores["defense"] == defenses[-1])
    scores.loc[attacked, "value"] = (rng.random(len(scores)) < rate)[attacked].astype(float)
    return scores, cells, costs


def pair(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    return table[where(table, defense_a=a, defense_b=b)]


def at(table: pd.DataFrame, a: str, b: str, attack: str, budget: int) -> pd.Series:
    found = pair(table, a, b)
    return found[where(found, number="presence", attack=attack, budget=budget)].iloc[0]


def test_differences_by_hand() -> None:
    table = make(frames("esd", "imma", concepts=("cat", "dog"), seeds=(0, 1))).comparisons
    ten = at(table, "esd", "imma", "lora", 10)  # 0.4 of 5 images and 0.1: 2 and 0 of 5
    assert ten["value"] == pytest.approx(0.4) and ten["ci_low"] < 0.4 < ten["ci_high"]
    assert ten[["concepts", "prompts"]].tolist() == [2, 2 * PROMPTS]
    worst = pair(table, "esd", "imma").set_index("number").loc["worst_presence"]
    assert worst["value"] == pytest.approx(0.8 - 0.4) and pd.isna(worst["attack"]) and pd.isna(worst["budget"])
    assert set(map(tuple, table[["defense_a", "defense_b"]].to_numpy())) == {
        ("esd", "imma"),
        ("esd", "none"),
        ("imma", "none"),
    }


def test_only_what_both_have_is_compared() -> None:
    scores, cells, costs = noisy("esd", "imma", concepts=("cat", "dog"))
    scores = scores[~where(scores, defense="imma", attack="lora", budget=50)]
    lost = where(scores, defense="esd", attack="lora", budget=10, prompt_id="concept0", concept="cat")
    cells.loc[where(cells, defense="esd", attack="lora", budget=10, concept="cat"), "expected"] -= 5
    scores = scores[~lost]
    table = make((scores, cells, costs)).comparisons
    found = pair(table, "esd", "imma")
    assert not where(found, attack="lora", budget=50).any()
    ten = at(table, "esd", "imma", "lora", 10)
    of_ten = where(scores, attack="lora", budget=10, split="concept")
    if_shared = ~((scores["concept"] == "cat") & (scores["prompt_id"] == "concept0"))
    means = scores[of_ten & if_shared].groupby(["defense", "concept"])["value"].mean().groupby("defense").mean()
    assert ten["value"] == pytest.approx(means["esd"] - means["imma"]) and ten["prompts"] == 2 * PROMPTS - 1


def test_collapsed_cells_are_not_compared() -> None:
    scores, cells, costs = frames("esd", "imma")
    scores.loc[where(scores, defense="esd", attack="lora", budget=50, metric="clip_score"), "value"] = 0.1
    table = make((scores, cells, costs)).comparisons
    assert not where(table, defense_a="esd", attack="lora", budget=50).any()
    assert where(table, defense_a="imma", attack="lora", budget=50).sum() == 1


def test_holm_corrects_for_the_pairs_within_one_number_attack_and_budget() -> None:
    table = make(noisy("esd", "gift", "imma", gain=0.15), draws=200).comparisons
    assert len(table) == 6 * (1 + 6)
    for _, family in table.groupby(["number", "attack", "budget"], dropna=False):
        assert len(family) == 6
        assert family["p_holm"].tolist() == pytest.approx(holm(family["p"].to_numpy()))


def test_a_difference_is_found_where_there_is_one_and_its_sign_follows_the_order() -> None:
    table = make(noisy("esd", "imma", gain=0.5, concepts=("cat", "dog", "car")), draws=300).comparisons
    fifty = at(table, "esd", "imma", "lora", 50)
    assert fifty["value"] < 0 and fifty["ci_high"] < 0 and fifty["fixed_high"] < 0 and fifty["p_fixed_holm"] < 0.05
    assert fifty["detectable_fixed"] < -fifty["value"]
    assert fifty["p"] == 2.0**-2  # three concepts: of concepts in general they cannot say more
    none = at(make(noisy("esd", "imma", gain=0.0), draws=300).comparisons, "esd", "imma", "lora", 50)
    assert none["ci_low"] < 0 < none["ci_high"] and none["p_holm"] > 0.05


def test_a_comparison_does_not_depend_on_other_defenses() -> None:
    data = noisy("esd", "gift", "imma", concepts=("cat", "dog"), seeds=(0, 1))
    few = tuple(f[f["defense"] != "gift"] for f in data)
    alone, crowd = (pair(make(d).comparisons, "esd", "imma") for d in (few, data))  # type: ignore[arg-type]
    drop = {"columns": ["p_holm", "p_fixed_holm"]}
    pd.testing.assert_frame_equal(*(t.drop(**drop).reset_index(drop=True) for t in (alone, crowd)))


def test_one_concept_asks_one_question() -> None:
    table = make(noisy("esd", "imma", gain=0.3)).comparisons
    for general, fixed in (("ci_low", "fixed_low"), ("ci_high", "fixed_high"), ("p", "p_fixed")):
        assert table[general].tolist() == pytest.approx(table[fixed].tolist())


def test_concepts_that_differ_widen_what_is_said_of_concepts_in_general_alone() -> None:
    scores, cells, costs = noisy("esd", "imma", level=0.1, concepts=("cat", "dog", "car"))
    hit = where(scores, defense="imma", concept="dog", split="concept") & (scores["budget"] > 0)
    scores.loc[hit, "value"] = 1.0
    found = at(make((scores, cells, costs), draws=300).comparisons, "esd", "imma", "lora", 50)
    assert found["ci_low"] < -0.8 and found["ci_high"] > 0
    assert found["fixed_low"] > -0.45 and found["fixed_high"] < -0.15 and found["p_fixed"] < 0.01


def test_non_dominated_by_hand() -> None:
    losses = np.array([[[0.2, 0.2], [0.1, 0.3], [0.3, 0.3], [0.2, 0.2], [0.2, 0.3]]])
    assert non_dominated(losses).tolist() == [[True, True, False, True, False]]


def test_pareto_of_defenses_that_trade_presence_for_accuracy() -> None:
    scores, cells, costs = frames("esd", "gift", "imma")
    scores.loc[where(scores, defense="esd", split="retained"), "value"] = 1.0
    table = make((scores, cells, costs), draws=1000).pareto.set_index("defense")
    # imma is lowest in presence, esd best in accuracy; gift is beaten by imma, and the control by esd
    assert table["non_dominated"].to_dict() == {"esd": True, "gift": False, "imma": True, "none": False}
    assert table["pareto"].drop("esd").to_dict() == {"gift": 0.0, "imma": 1.0, "none": 0.0}
    # imma is as accurate as esd in the draws of 5 of 6 prompts without the one that it lost
    assert table.loc["esd", "pareto"] == pytest.approx(1 - (5 / 6) ** 5, abs=0.06)


def test_membership_is_shared_where_two_are_about_equal() -> None:
    data = noisy("esd", "imma", level=0.5, concepts=("cat", "dog"))
    board = make(data, draws=400)
    shares = board.pareto.set_index("defense")["pareto"]
    assert 0 < shares["esd"] < 1 or 0 < shares["imma"] < 1
    assert shares["esd"] + shares["imma"] >= 1  # one of two is always free
    assert board.pareto["worst_presence"].tolist() == [row(board, d)["worst_presence"] for d in board.pareto["defense"]]


def test_pareto_is_missing_without_both_numbers() -> None:
    scores, cells, costs = frames("esd", "imma")
    board = make((scores[~where(scores, defense="esd", split="retained")], cells, costs))
    table = board.pareto.set_index("defense")
    assert pd.isna(table.loc["esd", "non_dominated"]) and pd.isna(table.loc["esd", "pareto"])
    assert table.loc["imma", "non_dominated"]


def draw(rng: np.random.Generator, spread: dict[str, float], images: int = 4) -> tuple[FloatArray, list[FloatArray]]:
    """Prompt means and images from the model of `variance`; `spread` are standard deviations."""
    D, A, S, P = 6, 5, 4, 10
    shapes = {
        "defense": (D, 1, 1, 1, 1),
        "attack": (1, A, 1, 1, 1),
        "defense x attack": (D, A, 1, 1, 1),
        "attack seed": (D, A, S, 1, 1),
        "prompt": (1, 1, 1, P, 1),
        "prompt x cell": (D, A, S, P, 1),
        "image seed": (D, A, S, P, images),
    }
    y = sum(spread[source] * rng.normal(size=shape) for source, shape in shapes.items())
    assert isinstance(y, np.ndarray)
    return y.mean(axis=-1), list(y.reshape(-1, images))


@pytest.mark.slow
def test_variance_components_are_unbiased() -> None:
    spread = dict(zip(SOURCES, (0.5, 0.4, 0.3, 0.2, 0.6, 0.3, 0.5), strict=True))
    rng = np.random.default_rng(0)
    found = pd.DataFrame([components(*draw(rng, spread)) for _ in range(50)])
    for source, value in spread.items():
        error = 4 * stats.sem(found[source])
        assert found[source].mean() == pytest.approx(value**2, abs=error), source


def test_the_seed_of_images_alone_explains_nothing_else() -> None:
    quiet = dict.fromkeys(SOURCES, 0.0) | {"image seed": 1.0}
    found = pd.DataFrame([components(*draw(np.random.default_rng(i), quiet)) for i in range(40)]).mean()
    assert found["image seed"] == pytest.approx(1, rel=0.05)
    assert found.drop("image seed").max() < 0.03


def test_sources_of_one_level_are_missing() -> None:
    y, within = draw(np.random.default_rng(0), dict.fromkeys(SOURCES, 0.3), images=1)
    one = components(y[:1, :, :1], within)
    assert np.isnan([one["defense"], one["defense x attack"], one["attack seed"], one["prompt x cell"]]).all()
    assert np.isfinite([one["attack"], one["prompt"], one["image seed"]]).all()


def test_what_lacks_the_most_is_dropped() -> None:
    cells = {(d, a, s) for d in "xy" for a in ("lora", "ti", "p4d") for s in (0, 1, 2)}
    assert complete(cells) == (["x", "y"], ["lora", "p4d", "ti"], [0, 1, 2])
    assert complete(cells - {("x", a, 2) for a in ("lora", "ti", "p4d")}) == (["x", "y"], ["lora", "p4d", "ti"], [0, 1])
    assert complete(cells - {("x", "ti", s) for s in range(3)}) == (["x", "y"], ["lora", "p4d"], [0, 1, 2])
    assert complete(set()) == ([], [], [])


@pytest.mark.slow
def test_shares_sum_to_one_and_follow_what_was_put_in() -> None:
    data = noisy("aegis", "esd", "imma", concepts=("cat", "dog"), seeds=(0, 1))
    table = make(data).variance
    assert set(table["concept"]) == {"cat", "dog", "all"} and len(table) == 3 * len(SOURCES)
    assert table.groupby("concept")["share"].sum().tolist() == pytest.approx([1, 1, 1])
    every = table[table["concept"] == "all"].set_index("source")["share"]
    assert every["image seed"] > 0.8
    exact = make(frames("aegis", "esd", "imma", concepts=("cat", "dog"), seeds=(0, 1))).variance
    shares = exact[exact["concept"] == "all"].set_index("source")["share"]
    assert shares[["attack seed", "prompt"]].tolist() == pytest.approx([0, 0])  # the hits are the same for each
    assert shares["defense"] + shares["defense x attack"] > 0.2


def test_tables_of_one_defense_have_no_pairs_but_the_control() -> None:
    board = make(frames("esd"))
    assert set(board.comparisons["defense_b"]) == {"none"}
    assert board.variance.set_index(["concept", "source"]).loc[("cat", "defense"), "variance"] != 0
