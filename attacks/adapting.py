"""Adapters trained on captioned images, on the denoiser and perhaps the text encoders: what adapter attacks share."""

from collections.abc import Iterator, Sequence

from torch import Generator, nn

from attacks.trainer import Optimizer, anew, train
from benchmark.diffusion import Model
from benchmark.model.adapters import add_adapters, decomposed, low_rank
from benchmark.types import Delta, Examples, Report, Snapshot

EVERY = "all"  # of the targets: every Linear and Conv2d
OF_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")  # of CLIP, as train_dreambooth_lora.py has them


def adapted(
    model: Model,
    examples: Examples,
    *,
    rank: int,
    alpha: int,
    lr: float,
    batch: int,
    targets: Sequence[str],
    optimizer: Optimizer = "adamw",
    dora: bool = False,
    text_encoder: bool = False,
    budgets: Sequence[int],
    rng: Generator,
    report: Report,
) -> Iterator[Snapshot]:
    """Yield the adapters after each budget: low rank, or with `dora` the change of the weights under them.

    Raises:
        ValueError: `targets` name no layer of this model, or the loss is not finite.
    """
    attacked = model.clone(only=())
    wanted = {model.part: named(model.denoiser, targets)}
    wanted |= {name: OF_TEXT for _, name in model.readers} if text_encoder else {}
    layers = {
        part: add_adapters(attacked, part=part, rank=rank, alpha=alpha, targets=names, rng=rng, dora=dora)
        for part, names in wanted.items()
    }
    pauses = train(
        attacked,
        [p for part in wanted for p in attacked.parts[part].parameters() if p.requires_grad],
        examples,
        lr=lr,
        batch=batch,
        budgets=budgets,
        rng=rng,
        report=report,
        encode=anew(attacked, examples.captions) if text_encoder else None,
        optimizer=optimizer,
    )
    learned = decomposed if dora else low_rank
    for step in pauses:
        deltas = [learned(found, part) for part, found in layers.items()]
        yield Snapshot(
            steps=step,
            delta=Delta(
                dense={name: tensor for delta in deltas for name, tensor in delta.dense.items()},
                low_rank={name: pair for delta in deltas for name, pair in delta.low_rank.items()},
            ),
        )


def named(denoiser: nn.Module, targets: Sequence[str]) -> Sequence[str]:
    """The targets; every Linear and Conv2d by its whole name for `all`."""
    if tuple(targets) != (EVERY,):
        return targets
    return [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
