"""Deltas are swapped on one copy of the base, and the weights are those of a fresh copy, to the bit."""

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from attacks.lora import LoRA
from benchmark.diffusion import Model
from benchmark.model import load
from benchmark.model.resident import Resident
from benchmark.runner import stages
from benchmark.runner.executors import local
from benchmark.runner.loop import run
from benchmark.runner.stages import Bench
from benchmark.store import Store
from benchmark.types import Delta
from tests import pipelines
from tests.runner.test_loop import Silent, files, make_plan

DENSE = ("unet.conv_in.weight", "unet.conv_out.bias", "vae.decoder.conv_in.weight")
LAYERS = ("unet.conv_in", "unet.time_embedding.linear_1")


def random_delta(model: Model, seed: int) -> Delta:
    """Some of the named weights, dense and low-rank; two deltas often change the same ones."""
    rng, chosen = Generator().manual_seed(seed), random.Random(seed)
    shapes = {f"{part}.{n}": p.shape for part, m in model.parts.items() for n, p in m.named_parameters()}
    dense = {name: 0.1 * torch.randn(shapes[name], generator=rng) for name in DENSE if chosen.random() < 0.6}
    pairs = {}
    for name in LAYERS:
        out, *inner = shapes[f"{name}.weight"]
        width = torch.Size(inner).numel()
        if chosen.random() < 0.6:
            pairs[name] = torch.randn(2, width, generator=rng), 0.1 * torch.randn(out, 2, generator=rng)
    return Delta(dense=dense, low_rank=pairs)


def weights(model: Model) -> dict[str, Any]:
    return {f"{part}.{n}": p.clone() for part, m in model.parts.items() for n, p in m.named_parameters()}


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_was_worn_before_the_weights_are_those_of_a_fresh_copy(model: Model, seed: int) -> None:
    rng, resident = random.Random(seed), Resident(model)
    deltas = {str(number): random_delta(model, number) for number in range(6)}
    for _ in range(12):
        chosen = rng.sample(sorted(deltas), rng.randrange(1, 4))

        found = resident.wear({name: lambda name=name: deltas[name] for name in chosen})  # type: ignore[misc]

        assert same(weights(found), weights(model.with_delta(*(deltas[name] for name in chosen))))
        assert not any(p.requires_grad for part in found.parts.values() for p in part.parameters())


def test_what_is_worn_is_not_loaded_again(model: Model) -> None:
    """A worker that holds a defended model reads each attack's delta, and the defense's once."""
    resident, loaded = Resident(model), list[str]()

    def layer(name: str) -> Any:
        return lambda: loaded.append(name) or random_delta(model, len(name))

    first = resident.wear({"defense": layer("defense"), "one": layer("one")})
    second = resident.wear({"defense": layer("defense"), "three": layer("three")})
    resident.drop()
    resident.wear({"defense": layer("defense")})

    assert loaded == ["defense", "one", "three"]
    assert first.unet is second.unet


def test_a_delta_that_does_not_fit_leaves_nothing_half_made(model: Model) -> None:
    resident, good = Resident(model), random_delta(model, 1)
    resident.wear({"good": lambda: good})
    wrong = Delta(dense={**random_delta(model, 2).dense, "unet.nothing": torch.zeros(1)})

    with pytest.raises(ValueError, match=r"unet\.nothing"):
        resident.wear({"wrong": lambda: wrong})

    assert same(weights(resident.wear({"good": lambda: good})), weights(model.with_delta(good)))


def test_a_large_model_is_worn_over_its_own_memory(tmp_path: Path) -> None:
    """What no delta changed is the base's; what one did is not, whatever was worn before."""
    base = load(pipelines.write("sd3", tmp_path))
    names = sorted(base.scope("x"))[:3]
    deltas = [Delta(dense={f"transformer.{n}": torch.ones_like(base.denoiser.get_parameter(n))}) for n in names]
    resident, before = Resident(base), {n: w.clone() for n, w in base.denoiser.named_parameters()}

    for worn in ([0], [0, 1], [2], [0, 2], [1]):
        model = resident.wear({str(i): partial(deltas.__getitem__, i) for i in worn})
        wanted = base.with_delta(*(deltas[i] for i in worn))
        for name, weight in model.denoiser.named_parameters():
            assert torch.equal(weight, wanted.denoiser.get_parameter(name)), (worn, name)
        at = {n: w.data_ptr() for n, w in base.denoiser.named_parameters()}
        shared = {n for n, w in model.denoiser.named_parameters() if w.data_ptr() == at[n]}
        assert set(at) - set(names) <= shared
        assert not shared & {names[i] for i in worn}
    assert all(torch.equal(w, before[n]) for n, w in base.denoiser.named_parameters())


def test_a_method_that_breaks_the_model_it_is_given_harms_no_other(
    tiny_folder: Path, tiny_run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """An attack that changes the defended model in place: the images before and after it are as they were."""
    plan = make_plan(tmp_path, tiny_folder, metrics=[{"use": "presence", "model": "mini:judge"}])
    real = LoRA.finetune

    def rude(self: LoRA, model: Model, *words: Any, **more: Any) -> Any:
        yield from real(self, model, *words, **more)
        if "defense" in task_at_work.parents:
            for parameter in model.unet.parameters():
                parameter.data.mul_(2)

    monkeypatch.setattr(LoRA, "finetune", rude)
    staged = stages.run

    def noted(task: Any, *words: Any) -> Any:
        nonlocal task_at_work
        task_at_work = task
        return staged(task, *words)

    task_at_work: Any = None
    monkeypatch.setattr(stages, "run", noted)

    outcome = run(plan, Bench(tiny_folder, Store(tmp_path / "rude").open()), Silent(), local.execute)

    whole = files(tiny_run / "store")
    assert not outcome.failed
    assert files(tmp_path / "rude") == {f: whole[f] for f in whole if f.startswith(("titer-", *plan.tasks))}
