"""Values that nobody can mean are refused before anything is computed, in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.config import config
from benchmark.config.claims import NUMBERS
from benchmark.data import load_concept
from benchmark.errors import ConfigError
from leaderboards import cells
from tests.runs import CARD, tiny_config

NAN, INF = float("nan"), float("inf")
CLAIM = {"claim": "c", "defense": "esd", "statement": "s", "source": "x", "check": "bound", "at_most": 0.5}


def parse(**changes: Any) -> config.Config:
    return config.parse(tiny_config(Path("/tmp"), Path("model"), concepts=["cat"]) | changes)


def esd(**fields: Any) -> dict[str, Any]:
    return {"defenses": ["none", {"use": "esd", **fields}]}


def lora(**fields: Any) -> dict[str, Any]:
    return {"attacks": ["none", {"use": "lora", **fields}]}


def search(**grid: Any) -> dict[str, Any]:
    return {"attacks": ["none", {"use": "search:lora", "develop": "bomb", "trials": 3, "grid": grid}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *((esd(lr=bad), "defense 'esd': at 'lr': expected") for bad in (NAN, INF, -1, 0, True)),
        *((esd(steps=bad), "at 'steps': expected a number from 1") for bad in (-3, 0, 10**20)),
        (esd(batch=0), "at 'batch': expected a number from 1"),
        (esd(ddim_steps=0), "at 'ddim_steps': expected a number from 1"),
        *(
            ({"attacks": [{"use": "merge", "percent": bad}]}, "at 'percent': expected numbers from 1 to 100")
            for bad in ([0], [25, 101])
        ),
        (esd(eta=NAN), "at 'eta': expected a finite number"),
        *((lora(rank=bad), "at 'rank': expected a number from 1") for bad in (-1, 0, 10**12)),
        (lora(batch=10**12), "at 'batch': expected a number from 1"),
        (lora(against=5), "expected `against:` with a defense's label"),
        (lora(against=None), "expected `against:` with a defense's label"),
        (esd(preset=["a"]), "unknown preset of defense 'esd'"),
        *((esd(**{"as": bad}), "at 'as': expected a name") for bad in (None, ["a"], "", "=1", "a\x1b[2J")),
        ({"defenses": ["none", "+".join(["esd"] * 3000)]}, "at most 8 defenses on top of each other"),
        (search(lr={"low": 0, "high": INF}), "finite number"),
        (search(lr={"low": NAN, "high": 1}), "finite number"),
        (
            {"attacks": [{"use": "search:lora", "develop": "bomb", "grid": {k: [*range(99)] for k in "abcdef"}}]},
            "got 941,480,149,401",
        ),
        *(({"seeds": bad}, "at 'seeds.0'") for bad in ([-1], [2**70], [True], ["0"], [0.5])),
        ({"seeds": [0, 0]}, "expected different seeds, got 0 twice"),
        ({"concepts": ["cat", "cat"]}, "expected different concepts, got 'cat' twice"),
        ({"budgets": [10**18]}, "at 'budgets.0'"),
        ({"images": {"concept": 10**12}}, "at 'images.concept'"),
        ({"prompts": {"concept": 10**30}}, "at 'prompts.concept'"),
        ({"draws": 10**12}, "at 'draws'"),
        ({"draws": 10**400}, "at 'draws'"),
        ({"draws": 16**5000}, "at 'draws'"),
        *(({"sampling": {"guidance": bad}}, "at 'sampling.guidance'") for bad in (NAN, INF, 1e300)),
        *(({"name": bad}, "at 'name'") for bad in (".", "..", "-x", "a" * 300, "a\n")),
        ({"name": False}, "got False: put it in quotes"),
        ({"metrics": [{"use": "presence", "model": "mini:judge", "threshold": NAN}]}, "at 'threshold'"),
        ({"metrics": [{"use": "presence", "model": "mini:judge", "threshold": 7}]}, "a number from -1 to 1"),
        ({"claims": [{**CLAIM, "defense": "esdd"}]}, "unknown defense in claim 'c': 'esdd': did you mean 'esd'"),
        ({"claims": [{**CLAIM, "against": "x"}]}, "unknown defense in claim 'c'"),
        ({"claims": [{**CLAIM, "attack": "lroa"}]}, "unknown attack in claim 'c': 'lroa': did you mean 'lora'"),
        ({"claims": [{**CLAIM, "attack": "lora", "budget": 77}]}, "unknown budget in claim 'c': '77'"),
        ({"claims": [{**CLAIM, "number": "presense"}]}, "unknown number in claim 'c': 'presense'"),
        ({"claims": [{**CLAIM, "at_most": NAN}]}, "at 'claims.0.at_most'"),
        ({"model": "x" * 10**5, "modle": "x"}, "unknown key 'modle'"),
        ({"claims": ["x" * 10**6]}, "at 'claims.0'"),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_short_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_stage_may_be_left_out_and_a_claim_may_name_what_is_there() -> None:
    parse(defenses=["none", {"use": "patronus", "d2_steps": 0, "u2_lr": 0}])
    parse(claims=[{**CLAIM, "attack": "lora", "budget": 2, "number": "presence_after"}, {**CLAIM, "against": "none"}])


def test_claims_know_the_numbers_of_cells() -> None:
    assert set(NUMBERS) >= {*cells.NUMBERS, *cells.FURTHER}


def test_a_card_may_lie_beside_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text(yaml.safe_dump(CARD))
    values = tiny_config(tmp_path / "x", Path("model"), concepts=["mine.yaml", "nowhere.yaml"])
    (tmp_path / "sub" / "c.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)

    found, missing = config.load("sub/c.yaml").raw.concepts

    assert load_concept(found).name == "cat"
    with pytest.raises(ConfigError, match="seen from here or from the config's folder"):
        load_concept(missing)


def test_a_share_that_has_a_counts_name_is_no_count() -> None:
    """SalUn's weight alpha is below 1 in its release; an adapter's alpha is a whole number."""
    found = parse(defenses=["none", {"use": "salun", "alpha": 0.5}, {"use": "cure", "alpha": 0.5}])

    assert [entry.method.alpha for entry in found.defenses[1:]] == [0.5, 0.5]
    with pytest.raises(ConfigError, match="at 'alpha'"):
        parse(defenses=["none", {"use": "spm", "alpha": 0}])
    with pytest.raises(ConfigError, match="finite"):
        parse(defenses=["none", {"use": "salun", "alpha": NAN}])
