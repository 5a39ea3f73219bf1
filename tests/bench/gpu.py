"""On a GPU: a model of Stable Diffusion 1.4's size with random weights, at its resolution, in bfloat16.

U-Net, VAE and text encoder are built from their public configs; attention is torch's SDPA (diffusers' default), and
the convolutions are channels-last. How fast random weights compute is how fast trained ones do.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmark.config import registry
from benchmark.data import load_concept
from benchmark.data.cards import spread
from benchmark.diffusion import Model
from benchmark.model.unet import UNetModel
from benchmark.runner.limits import free, out_of_memory
from benchmark.types import Concept, Prompt
from tests.bench.paired import alternate, ratio
from tests.bench.sampling import Draw
from tests.bench.table import Row, compared, number
from tests.bench.training import Bed, noise_for, train

WORDS = 49408
SHORT = {"steps": 12, "d1_steps": 4, "d2_steps": 2, "u1_steps": 4, "u2_steps": 2}
SHORT |= {"mask_batches": 2, "warm_steps": 4, "anchor_images": 4, "image_steps": 4, "pairs": 4, "edit_steps": 4}
SHORT |= {"rounds": 2, "invert_steps": 4, "pool": 4, "retain_pool": 2, "anchoring": 10.0}
SHORT |= {"features": 4, "u1_batch": 8, "d2_images": 12, "d2_latents": 8}


@dataclass(frozen=True)
class Size:
    """What is measured: the model, where, with which batches."""

    build: Callable[[], Model]
    concept: Callable[[], Concept] = lambda: load_concept("cigarette")
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    steps: int = 50
    rounds: int = 3
    training: int = 12


def sd14(device: str = "cuda") -> Model:
    """Random weights in the shapes of Stable Diffusion 1.4, channels-last."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        text = CLIPTextConfig(
            vocab_size=WORDS,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=WORDS - 2,
            eos_token_id=WORDS - 1,
        )
        text_encoder = CLIPTextModel(text)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    unet.to(memory_format=torch.channels_last)
    vae.to(memory_format=torch.channels_last)
    return UNetModel(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer(),
        scheduler=DDPMScheduler(**schedule),
        precision="bfloat16",
    ).frozen()


def tokenizer() -> CLIPTokenizer:
    """A tokenizer with as many words as CLIP's: the letters, and words that nobody writes."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"word{i}</w>" for i in range(WORDS - 2 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def rows(size: Size | None = None) -> Sequence[Row]:
    """Everything that needs a GPU, or one row that says that there is none."""
    if size is None and not torch.cuda.is_available():
        return [Row(what="Stable Diffusion 1.4's size on a GPU", value=None, note="this machine has no GPU")]
    size = size or Size(sd14)
    model = size.build()
    return [*drawing(model, size), *training(model, size)]


def drawing(model: Model, size: Size) -> Iterator[Row]:
    """Images a second at each batch that fits; the quickest against the pipeline, in the same run."""
    prompts, speeds = size.concept().of("concept"), dict[int, float]()
    for batch in size.batches:
        draw = of_batch(model, prompts, batch, size.steps)
        try:
            draw.harness()
            clear(model)
            speeds[batch] = batch / seconds(model, draw.harness)
        except Exception as error:
            if not out_of_memory(error):
                raise
            free()
            break
        memory = used(model)
        yield Row(
            what=f"images a second, batch {batch}, {size.steps} steps", value=speeds[batch], unit="/s", note=memory
        )
    best = max(speeds, key=speeds.__getitem__)
    draw = of_batch(model, prompts, best, size.steps)
    ours, theirs, pure = settled(model, draw.harness), settled(model, draw.batched), settled(model, in_bfloat16(draw))
    what = f"generate: batch {best}, the quickest, against the diffusers pipeline"
    yield compared(
        f"{what} in the same mixed precision", ratio(*alternate(ours, theirs, size.rounds)), target=">= 1.05"
    )
    yield compared(f"{what} with weights in bfloat16", ratio(*alternate(ours, pure, size.rounds)))


def of_batch(model: Model, prompts: Sequence[Prompt], batch: int, steps: int) -> Draw:
    """So many images of a few prompts."""
    chosen = spread(tuple(prompts), min(batch, len(prompts)))
    return Draw(model, chosen, images=batch // len(chosen), steps=steps, guidance=7.5)


def in_bfloat16(draw: Draw) -> Callable[[], object]:
    """The pipeline with all weights in bfloat16, which rounds them."""
    copy = draw.model.clone()
    for part in copy.parts.values():
        part.bfloat16()
    plain = replace(copy, precision="float32")
    other = Draw(plain, draw.prompts, images=draw.images, steps=draw.steps, guidance=draw.guidance)
    other.z_T = other.z_T.to(torch.bfloat16)
    return other.batched


def training(model: Model, size: Size) -> Iterator[Row]:
    """Steps a second and peak memory of every defense and every attack that trains or searches."""
    concept = size.concept()
    at = Bed(model, concept, noise_for(model, concept, 16))
    for kind in ("defense", "attack"):
        for name in registry.names(kind):
            cls = registry.find(kind, name)
            if kind == "defense" and cls.fidelity == "control":
                continue
            if kind == "attack" and not (hasattr(cls, "finetune") or hasattr(cls, "search")):
                continue
            if kind == "attack" and cls.standing != "attack":  # an edit: its steps are percent
                continue
            yield steps_of(kind, name, cls, at, size.training)


def steps_of(kind: str, name: str, cls: Any, at: Bed, steps: int) -> Row:
    """The row of one method at its defaults, with few steps."""
    known = {field.name for field in fields(cls)}
    wanted = {**SHORT, "steps": steps, "perceptual": "pixels"}
    what = f"{kind} {name}: steps a second"
    times = list[float]()

    def report(*, step: int, total: int, loss: float) -> None:
        sync(at.model)
        times.append(time.perf_counter())

    clear(at.model)
    try:
        method = cls(**{field: value for field, value in wanted.items() if field in known})
        train(method, at, steps, 1, report)
    except Exception as error:  # one method that cannot run here leaves the others their rows
        free()
        return Row(what=what, value=None, note=f"{type(error).__name__}: {str(error)[:200]}")
    gaps = [after - before for before, after in pairwise(times[1:])]
    batch = f"batch {method.batch}" if "batch" in known else "its own batches"
    if not gaps:
        return Row(what=what, value=None, note="it has no steps to count")
    note = f"{batch}, {len(gaps)} steps, {used(at.model)}"
    return Row(what=what, value=len(gaps) / sum(gaps), unit="/s", note=note)


def settled(model: Model, call: Callable[[], object]) -> Callable[[], None]:
    """A call that waits for the device before it returns."""

    def wait() -> None:
        call()
        sync(model)

    return wait


def seconds(model: Model, call: Callable[[], object]) -> float:
    """How long a call takes, the device included."""
    started = time.perf_counter()
    settled(model, call)()
    return time.perf_counter() - started


def sync(model: Model) -> None:
    """Wait for the device."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def clear(model: Model) -> None:
    """Forget the largest memory so far."""
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def used(model: Model) -> str:
    """The largest memory since."""
    if model.device.type != "cuda":
        return "no GPU: memory not measured"
    return f"peak {number(torch.cuda.max_memory_allocated() / 1e9)} GB"
