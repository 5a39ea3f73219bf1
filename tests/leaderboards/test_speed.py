"""A board of 1,000 cells with 200 images each: it is complete, and its rows are those of the defense alone."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from leaderboards.board import build
from leaderboards.evidence import KEY, with_runs

PROMPTS, IMAGES = 50, 4
BUDGETS = (0, 10, 50, 100, 200)
ATTACKS = {"dreambooth": "weights", "lora": "weights", "p4d": "prompts", "rewording": "sampling", "ti": "prompts"}
SCORED = [("concept", "presence"), ("concept", "presence_second"), ("safe", "clip_score")]
Frames = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def big(defenses: int = 8, concepts: int = 5) -> Frames:
    """Frames of defenses x concepts x 5 attacks x 5 budgets, the control among the defenses."""
    rng, scores, cells, costs = np.random.default_rng(0), [], [], []
    names = ["none", *(f"defense{i}" for i in range(1, defenses))]
    images = {
        split: pd.DataFrame(
            {
                "prompt_id": [f"{split}-{prompt:08x}" for prompt in range(PROMPTS) for _ in range(IMAGES)],
                "image": list(range(IMAGES)) * PROMPTS,
            }
        )
        for split in ("concept", "safe", "retained")
    }
    for (defense, level), concept in product(
        zip(names, rng.uniform(0.1, 0.5, len(names)), strict=True), range(concepts)
    ):
        start = {"model": "sd14", "scenario": "relearn", "concept": f"concept{concept}", "defense": defense}
        costs.append(start | {"defend_seconds": 1.0, "peak_memory_mib": 1.0, "fidelity": "faithful"})
        for (attack, kind), budget in product(ATTACKS.items(), BUDGETS):
            cell = start | {"attack": attack, "budget": budget, "seed": 0}
            ran = {"kind": kind, "status": "ok", "reason": "", "expected": PROMPTS * IMAGES, "key": f"k{len(cells)}"}
            cells.append(cell | ran)
            rate = 0.9 if defense == "none" else level * np.log1p(budget) / np.log1p(BUDGETS[-1])
            for split, metric in [*SCORED, *([("retained", "presence")] if budget == 0 else [])]:
                easy = rng.beta(rate * 2 + 0.01, 2 - rate * 2 + 0.01, PROMPTS) if split == "concept" else 0.9
                hits = rng.random((IMAGES, PROMPTS)) < easy
                value = 0.3 + 0.01 * hits if metric == "clip_score" else hits.astype(float)
                named = cell | {"split": split, "metric": metric, "identity": f"{metric} v1"}
                scores.append(images[split].assign(**named, value=value.T.ravel()))
    columns = [*cell, "split", "metric", "identity", "prompt_id", "image", "value"]
    return pd.concat(scores, ignore_index=True)[columns], pd.DataFrame(cells), pd.DataFrame(costs)


@pytest.mark.slow
def test_a_large_board_is_complete_and_each_row_is_its_own() -> None:
    scores, cells, costs = big()
    board = build(scores, cells, costs, draws=2000)
    assert len(cells) == 1000 and len(board.leaderboard) == 8
    assert board.cells.groupby(KEY).ngroups == 1000 and set(board.cells["status"]) == {"ok"}
    assert board.leaderboard["rank"].tolist()[:-1] == list(range(1, 8))
    judged = with_runs(scores[(scores["metric"] == "presence") & (scores["split"] == "concept")])
    means = judged.groupby(KEY)["value"].mean()
    found = board.cells[board.cells["number"] == "presence_after"].set_index(KEY)["value"]
    pd.testing.assert_series_equal(found, means, check_names=False)
    mine = [frame[frame["defense"].isin(["none", "defense3"])] for frame in (scores, cells, costs)]
    alone, crowd = (b.leaderboard.set_index("defense").loc["defense3"] for b in (build(*mine, draws=2000), board))
    pd.testing.assert_series_equal(alone.drop(["rank", "band"]), crowd.drop(["rank", "band"]))
