"""The trained erasers know no U-Net: on a tiny flow transformer each trains, and what it returns fits."""

import pytest

from benchmark.config.registry import find
from benchmark.diffusion import Model
from benchmark.kit import conformance
from benchmark.types import Concept, Examples

ERASERS = ["salun", "concept_ablation", "sdd", "race", "stereo", "duo", "spm", "advunlearn"]
SCOPES = {"advunlearn": [{}, {"part": "denoiser", "scope": "u"}]}


@pytest.fixture(scope="module")
def flow() -> Model:
    return conformance.tiny_flow()


@pytest.mark.parametrize(("name", "fields"), [(n, f) for n in ERASERS for f in SCOPES.get(n, [{}])])
def test_an_eraser_trains_a_flow(
    name: str, fields: dict[str, str], flow: Model, concept: Concept, examples: Examples
) -> None:
    method = conformance.small(find("defense", name), fields)

    delta = conformance.protect(method, flow, concept, examples)

    assert not delta.is_zero
    flow.with_delta(delta)
