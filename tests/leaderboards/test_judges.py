"""Second judges, calibration, UnlearnCanvas' numbers, SGR and flags, from score rows to the leaderboard."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.plan import Plan, build
from benchmark.results import records
from benchmark.store import Store
from leaderboards import agreement
from leaderboards.bootstrap import Draws
from leaderboards.evidence import Images
from tests.leaderboards.test_board import LORA_50, PROMPTS, Frames, cell, distances, frames, make, row, where
from tests.leaderboards.test_board import build as build_board
from tests.runs import tiny_config

LORA_10 = LORA_50 | {"budget": 10}


def second(data: Frames, name: str = "presence_second", **changed: object) -> Frames:
    """The frames with another judge, who says the opposite of the images of prompt concept0 in the `changed` cells."""
    scores, cells, costs = data
    more = scores[(scores["metric"] == "presence") & (scores["split"] == "concept")].assign(
        metric=name, identity="other-v2"
    )
    flip = where(more, prompt_id="concept0", **changed) if changed else pd.Series(False, more.index)
    more.loc[flip, "value"] = 1 - more.loc[flip, "value"]
    return pd.concat([scores, more], ignore_index=True), cells, costs


def kappa_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    observed = (a == b).mean()
    chance = sum((a == k).mean() * (b == k).mean() for k in (0, 1))
    return (observed - chance) / (1 - chance)


def test_disagreement_and_kappa_are_cohens() -> None:
    """One prompt of six, five images each: 5 of 30. Of each five, 2 are hits, which the second judge turns round."""
    numbers = cell(make(second(frames("esd"), **LORA_10)), **LORA_10)
    a = np.tile([1, 1, 0, 0, 0], PROMPTS)
    b = a.copy()
    b[:5] = 1 - b[:5]

    assert numbers.loc["judge_disagreement", "value"] == pytest.approx(1 / 6)
    assert numbers.loc["judge_kappa", "value"] == pytest.approx(kappa_by_hand(a, b))
    assert numbers.loc["judge_disagreement", ["n", "prompts", "identity", "flag"]].tolist() == [
        *(30, PROMPTS, "presence_second", "judges disagree"),
    ]
    for name in ("judge_disagreement", "judge_kappa"):
        low, value, high = numbers.loc[name, ["ci_low", "value", "ci_high"]]
        assert low < value < high


@pytest.mark.parametrize("seed", range(3))
def test_kappa_agrees_with_another_implementation(seed: int) -> None:
    """2 (ad - bc) / ((a + b)(b + d) + (a + c)(c + d)), from the two-by-two table: it shares no step with ours."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 2, (2, 200)).astype(float)
    y = np.where(rng.random(200) < 0.6, x, y)
    ids = np.arange(200)
    found = agreement.verdicts(Images(ids, ids // 10, x), Images(ids[::-1], ids[::-1] // 10, y[::-1]))
    a, b, c, d = ((x == i) & (y == j) for i, j in ((1, 1), (1, 0), (0, 1), (0, 0)))
    a, b, c, d = (float(part.sum()) for part in (a, b, c, d))

    share, kappa = agreement.compare(found, Draws(200, 0))

    assert share.value == pytest.approx((b + c) / 200)
    assert kappa.value == pytest.approx(2 * (a * d - b * c) / ((a + b) * (b + d) + (a + c) * (c + d)))


def test_judges_that_say_the_same_of_every_image_have_no_kappa() -> None:
    numbers = cell(make(second(frames("esd"))), defense="esd", attack="none", budget=0)

    assert numbers.loc["judge_disagreement", "value"] == 0 and np.isnan(numbers.loc["judge_kappa", "value"])
    assert pd.isna(numbers.loc["judge_disagreement", "flag"])


def test_only_images_that_both_scored_are_compared() -> None:
    scores, cells, costs = second(frames("esd"), **LORA_10)
    lost = where(scores, metric="presence_second", prompt_id="concept0", **LORA_10)
    scores.loc[lost, "value"] = np.nan
    numbers = cell(make((scores, cells, costs)), **LORA_10)

    assert numbers.loc["judge_disagreement", ["value", "n", "prompts"]].tolist() == [0, 25, 5]
    assert set(numbers["status"]) == {"partial"}  # the second judge's own row lacks images


def test_the_leaderboard_pools_the_images_of_a_row_and_counts_those_before_the_attack_once() -> None:
    esd = row(make(second(frames("esd"), **LORA_10)), "esd")

    assert esd["judge_disagreement"] == pytest.approx(
        5 / (30 * (1 + 2 + 1))
    )  # before; lora at 10, 50; inversion at 100
    assert esd["second_judge"] == "other-v2" and 0 < esd["judge_kappa"] < 1
    assert "judges disagree" not in esd["flags"] and "one judge" not in esd["flags"]
    apart = row(make(second(frames("esd"), defense="esd")), "esd")
    assert apart["judge_disagreement"] == pytest.approx(1 / 6) and "judges disagree" in apart["flags"]


def test_one_judge_is_said_to_be_one() -> None:
    esd = row(make(frames("esd")), "esd")

    assert pd.isna(esd["second_judge"]) and np.isnan(esd["judge_disagreement"]) and "one judge" in esd["flags"]


def test_a_third_judge_has_rows_of_its_own() -> None:
    data = second(second(frames("esd"), **LORA_10), "presence_a_resnet")
    numbers = cell(make(data), **LORA_10)

    assert numbers.loc["judge_disagreement", "value"] == pytest.approx(1 / 6)
    assert numbers.loc["judge_disagreement_a_resnet", "value"] == 0
    alone = cell(make(second(frames("esd"), "presence_a_resnet", **LORA_10)), **LORA_10)
    assert alone.loc["judge_disagreement", "identity"] == "presence_a_resnet"


def test_rates_of_the_calibration_card_are_told_or_their_absence_is() -> None:
    scores, cells, costs = frames("esd", concepts=("cat", "dog"))
    known = cells.assign(judge_tpr=cells["concept"].map({"cat": 0.9, "dog": 0.8}), judge_fpr=0.02)
    esd = row(make((scores, known, costs)), "esd")
    assert esd[["judge_tpr", "judge_fpr"]].tolist() == pytest.approx([0.85, 0.02])
    assert "uncalibrated" not in esd["flags"]

    half = known.assign(judge_tpr=known["judge_tpr"].where(known["concept"] == "cat"))
    for frame in (half, cells):
        esd = row(make((scores, frame, costs)), "esd")
        assert np.isnan(esd["judge_tpr"]) and "judge uncalibrated" in esd["flags"]


def crossed(data: Frames, share: float = 0.5) -> Frames:
    scores, cells, costs = data
    cross = scores[(scores["split"] == "retained") & (scores["budget"] == 0)].assign(split="cross")
    return pd.concat([scores, cross.assign(value=(cross["image"] < 5 * share).astype(float))]), cells, costs


def test_unlearncanvas_numbers_before_the_attack() -> None:
    board = make(crossed(frames("gift", "esd")))
    numbers = cell(board, defense="none", attack="none", budget=0)

    assert numbers["value"][["ua", "ira"]].tolist() == pytest.approx([0, 5 / 6])
    assert numbers.loc["cra", "value"] == pytest.approx(3 / 5)
    assert row(board, "esd")[["ua", "ira", "cra"]].tolist() == pytest.approx([1, 5 / 6, 3 / 5])
    seen, unseen = numbers.loc["presence_after"], numbers.loc["ua"]
    assert (unseen["ci_low"], unseen["ci_high"]) == pytest.approx((1 - seen["ci_high"], 1 - seen["ci_low"]))
    assert not {"ua", "ira", "cra"} & set(cell(board, **LORA_10).index)


def test_a_card_of_one_domain_has_no_cra() -> None:
    board = make(frames("esd"))

    assert np.isnan(row(board, "esd")["cra"]) and "cra" not in set(board.cells["number"])
    assert row(board, "esd")[["ua", "ira"]].tolist() == pytest.approx([1, 5 / 6])


SIMILAR = {("none", 0): 0.5, ("none", 10): 0.8, ("none", 50): 0.9, ("esd", 0): 0.4, ("esd", 10): 0.6, ("esd", 50): 0.9}


def similar(data: Frames) -> Frames:
    scores, cells, costs = data
    own = scores[(scores["metric"] == "presence") & (scores["split"] == "concept") & (scores["attack"] != "inversion")]
    value = [SIMILAR[pair] for pair in zip(own["defense"], own["budget"], strict=True)]
    tilt = own["prompt_id"].str[-1].astype(int) * 0.01
    return pd.concat([scores, own.assign(metric="sgr", identity="clip", value=value + tilt)]), cells, costs


def test_sgr_is_the_relative_gap_to_the_base_under_the_same_attack() -> None:
    board = make(similar(frames("esd")))
    early, late = (cell(board, **(LORA_50 | {"budget": b})) for b in (10, 50))
    mean = 0.025  # of the tilt over six prompts

    assert early.loc["sgr", "value"] == pytest.approx(0.2 / (0.8 + mean)) and late.loc["sgr", "value"] == 0
    assert early.loc["sgr_similarity", "value"] == pytest.approx(0.6 + mean)
    assert early.loc["sgr", "ci_low"] < early.loc["sgr", "value"] < early.loc["sgr", "ci_high"]
    assert cell(board, defense="none", attack="lora", budget=10).loc["sgr", "value"] == 0
    assert "sgr" not in cell(board, defense="esd", attack="none", budget=0).index
    esd = row(board, "esd")
    assert esd["sgr"] == pytest.approx(early.loc["sgr", "value"] / 2)  # the paper's: the mean over budgets
    assert esd[["sgr_peak", "sgr_final"]].tolist() == pytest.approx([early.loc["sgr", "value"], 0])


def test_a_board_without_sgr_has_no_column_of_it() -> None:
    assert not [name for name in make(frames("esd")).leaderboard if name.startswith("sgr")]


def test_kid_comes_before_fid_and_few_images_are_flagged() -> None:
    scores, cells, costs = frames("esd")
    few = distances(cells, fid=20.0, kid=0.1, cmmd=0.3).assign(flag="")
    few.loc[few["metric"] == "fid", "flag"] = "small sample"
    board = build_board(scores, cells, costs, few, draws=60)
    numbers = board.cells[where(board.cells, defense="esd", attack="none", budget=0)]
    order = [name for name in numbers["number"] if name in ("fid", "kid", "cmmd")]

    assert order == ["cmmd", "kid", "fid"]
    assert numbers.set_index("number").loc["fid", "flag"] == "small sample"
    assert "fid: small sample" in row(board, "esd")["flags"]


def test_a_row_says_what_it_was_measured_with_and_how_sure_the_titer_is() -> None:
    """From one line: who holds longest, at what cost, how sure that is, and by which detector."""
    scores, cells, costs = second(frames("esd", concepts=("cat", "dog"), seeds=(0, 1)))
    weak = where(scores, defense="esd", concept="dog", attack="lora", seed=1, split="concept") & (
        scores["budget"] == 10
    )
    scores.loc[weak, "value"] = 1.0
    esd = row(build_board(scores, cells, costs, distances(cells, kid=0.1), draws=60), "esd")

    assert esd[["titer", "titer_lowest", "titer_highest"]].tolist() == [">=50", "0", ">=50"] and esd["titer_runs"] == 4
    assert esd[["titer_low", "titer_high"]].isna().all()  # four runs do not bound a median
    assert esd["judge"] == "presence-v1" and esd["second_judge"] == "other-v2"
    assert esd["measured_with"] == "clip_score: clip_score-v1; kid: kid v1"
    assert esd["worst_presence_low"] <= esd["worst_presence"] <= esd["worst_presence_high"]


def test_records_tell_the_rates_of_the_embedded_judges(tmp_path: Path) -> None:
    values = tiny_config(tmp_path, Path("model"), concepts=["cigarette"], attacks=["none"])
    raw = config.parse(values)
    plan: Plan = build(raw, "base", [load_concept("cigarette")])

    found = records.cells(plan, Store(tmp_path / "store"), {}, {})

    assert found["judge_tpr"].between(0.5, 1).all() and found["judge_fpr"].between(0, 0.2).all()
