"""Attack runs and the steps of the defenses, against the same by hand, with the settings of the demo on its model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.diffusion import Model
from benchmark.model import bases
from benchmark.types import Concept, Examples, Report
from tests.bench import loops, loops_patronus
from tests.bench.paired import Ratio, Turns, alternate, ratio
from tests.bench.table import Row, compared

NAMES = ("lora", "esd", "imma", "gift", "patronus-decoder", "patronus-unet", "aegis")
ALIKE = 1e-3  # how far the losses of two loops of one objective may be apart
Loop = Callable[..., Iterator[float]]


@dataclass(frozen=True)
class Case:
    """A method, its steps, and the loop that does the same by hand; `block` steps make one pair."""

    method: Any
    loop: Loop
    steps: int
    block: int = 1

    def cut(self, steps: int) -> "Case":
        """With so many steps: the fields of that name, or none where the budget says it."""
        names = {f for f in ("steps", "d1_steps", "d2_steps", "u1_steps", "u2_steps") if getattr(self.method, f, None)}
        return replace(self, method=replace(self.method, **dict.fromkeys(names, steps)), steps=steps)


@dataclass(frozen=True)
class Bed:
    """What a method is given."""

    model: Model
    concept: Concept
    data: Mapping[str, Examples]


def bed(folder: Any = None, *, count: int = 16, device: str = "cpu") -> Bed:
    """The demo's model and concept; the images are noise, which takes as long as pictures do."""
    model, concept = bases.load(folder or bases.locate("mini"), device=device), load_concept("cigarette")
    return Bed(model, concept, noise_for(model, concept, count))


def noise_for(model: Model, concept: Concept, count: int) -> dict[str, Examples]:
    """Images of the model's size with the captions of the attacker, for every need of a method."""
    side, rng = model.latent_shape[1] * 2 ** (len(model.vae.config.block_out_channels) - 1), torch.Generator()
    images = torch.randint(0, 256, (count, 3, side, side), generator=rng, dtype=torch.uint8).to(model.device)
    texts = [prompt.text for prompt in concept.of("attacker")]
    given = Examples(images=images, captions=tuple(texts[i % len(texts)] for i in range(count)))
    return dict.fromkeys(("concept", "safe", "benign"), given)


def demo(kind: str) -> dict[str, Any]:
    """The demo's methods by their plug-in's name."""
    found = config.load("demo")
    return {entry.use: entry.method for entry in (found.defenses if kind == "defense" else found.attacks)}


def cases() -> dict[str, Case]:
    """All comparisons of steps, by name."""
    defenses, attacks = demo("defense"), demo("attack")
    whole = replace(defenses["patronus"], parts="unet", u1_batch=4, u2_batch=4, u2_adapt=3, u2_batches=2, rank=4)
    return {
        "lora": Case(attacks["lora"], loops.lora, 60),
        "esd": Case(defenses["esd"], loops.esd, 26),
        "imma": Case(defenses["imma"], loops.imma, 42, block=2),  # a step of each kind
        "gift": Case(defenses["gift"], loops.gift, 22),
        "patronus-decoder": Case(defenses["patronus"], loops_patronus.decoder, 7),
        "patronus-unet": Case(whole, loops_patronus.unet, 8),
        "aegis": Case(defenses["aegis"], loops.aegis, 22),
    }


def train(method: Any, at: Bed, steps: int, seed: int, report: Report) -> None:
    """Run a defense, or an attack for so many steps."""
    rng = torch.Generator().manual_seed(seed)
    needs = {name: at.data[name] for name in method.needs}
    if hasattr(method, "protect"):
        method.protect(at.model, at.concept, needs, rng=rng, report=report)
        return
    verb = method.finetune if method.changes == "weights" else method.search
    for _ in verb(at.model, at.model, at.concept, needs, budgets=[steps], rng=rng, report=report):
        pass


def in_turn(case: Case, at: Bed) -> tuple[Ratio, float]:
    """The ratio of the steps, and how far the losses are apart.

    Raises:
        ValueError: the two minimise something else.
    """
    other = case.loop(at.model, at.concept, dict(at.data), case.method, torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):  # peft initialises from the global generator
        turns = Turns(other)
        train(case.method, at, case.steps, 1, turns)
    if turns.apart() > ALIKE:
        raise ValueError(f"expected losses of one objective from the loop by hand, got {turns.losses[:3]}: mend it.")
    return ratio(turns.ours, turns.theirs, block=case.block), turns.apart()


def steps_of(name: str, at: Bed | None = None, steps: int | None = None) -> Sequence[Row]:
    """The row of one method's step."""
    case = cases()[name]
    found, apart = in_turn(case.cut(steps or case.steps), at or bed())
    what = f"{name}: a step against a bare loop on latents encoded beforehand"
    return [compared(what, found, target=">= 0.97", note=f"losses apart by {apart:.0e}")]


def published(at: Bed | None = None, *, steps: int = 20, rounds: int = 5) -> Sequence[Row]:
    """A whole LoRA attack run against loops that encode image and caption at each step."""
    at, method = at or bed(), demo("attack")["lora"]

    def ours() -> None:
        train(method, at, steps, 1, silent)

    def theirs(accumulate: int) -> Callable[[], None]:
        def run() -> None:
            rng = torch.Generator().manual_seed(1)
            loop = loops.published_lora(at.model, dict(at.data), method, rng, accumulate=accumulate)
            for _ in range(steps):
                next(loop)

        return run

    rows = []
    with torch.random.fork_rng(devices=[]):
        for accumulate, how in ((method.batch, f"one by one, {method.batch} to a step"), (1, "all in one batch")):
            found = ratio(*alternate(ours, theirs(accumulate), rounds))
            what = f"lora: a run of {steps} steps against the published scripts' loop, {how}"
            rows.append(compared(what, found, target=">= 1.5" if accumulate > 1 else ""))
    return rows


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""
