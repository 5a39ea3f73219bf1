"""Make the embedded models from nothing: `python -m benchmark.mini.recipe.train --build build/mini`.

`--part flow` makes the flow model on what the package has of the first: its autoencoder, text encoder and tokenizer.
Stages run in order and are skipped when their result is in the build folder; each resumes from its checkpoint.
Deterministic for a seed, a machine and a number of threads. About 100 minutes on 2 cores; needs npm for the art.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from benchmark.mini import WEIGHTS
from benchmark.mini.recipe.art import fetch
from benchmark.mini.recipe.autoencoder import train_autoencoder
from benchmark.mini.recipe.calibrate import calibrate
from benchmark.mini.recipe.cards import write_cards
from benchmark.mini.recipe.clip import train_judge, train_text_encoder
from benchmark.mini.recipe.dataset import Art
from benchmark.mini.recipe.denoiser import train_denoiser
from benchmark.mini.recipe.flow import train_flow
from benchmark.mini.recipe.pool import SCHEDULE, judged_pool, plain_pool
from benchmark.mini.recipe.words import train_tokenizer

SEED = 0


def tokenizer(build: Path) -> None:
    train_tokenizer(build / "art", build, seed=SEED)


def text_encoder(build: Path) -> None:
    pool = plain_pool(Art(build / "art", others=False), seed=SEED + 2)
    train_text_encoder(pool, CLIPTokenizer.from_pretrained(build / "tokenizer"), build, seed=SEED + 2, steps=900)


def vae(build: Path) -> None:
    train_autoencoder(Art(build / "art"), build, seed=SEED + 1)


def unet(build: Path) -> None:
    train_denoiser(
        Art(build / "art", others=False),
        AutoencoderKL.from_pretrained(build / "vae").eval(),
        CLIPTokenizer.from_pretrained(build / "tokenizer"),
        CLIPTextModel.from_pretrained(build / "text_encoder").eval(),
        build,
        seed=SEED + 3,
    )


def judge(build: Path, name: str = "judge", seed: int = SEED + 4, steps: int = 900) -> None:
    pool = judged_pool(Art(build / "art"), AutoencoderKL.from_pretrained(build / "vae").eval(), seed=seed)
    train_judge(name, pool, CLIPTokenizer.from_pretrained(build / "tokenizer"), build, seed=seed, steps=steps)


def second(build: Path) -> None:
    judge(build, "second", SEED + 5)


STAGES: dict[str, Callable[[Path], None]] = {
    "tokenizer": tokenizer,
    "text_encoder": text_encoder,
    "vae": vae,
    "unet": unet,
    "judge": judge,
    "second": second,
}


LAST = ("cards", "install", "calibrate")


def flow(build: Path, weights: Path = WEIGHTS) -> None:
    """Train the flow model where it is not trained yet, on an accelerator if there is one, and install it."""
    if not (build / "flow").exists():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        train_flow(Art(build / "art", others=False), weights / "pipeline", build, seed=SEED + 6, device=device)
    shutil.rmtree(weights / "flow", ignore_errors=True)
    found = StableDiffusion3Pipeline.from_pretrained(build / "flow", text_encoder_3=None, tokenizer_3=None)
    found.to(torch.float16).save_pretrained(weights / "flow")
    shutil.copy(build / "flow.csv", weights / "losses")
    strip_paths(weights / "flow")


def install(build: Path, target: Path = WEIGHTS) -> None:
    """Copy the finished models in half precision to where the package looks for them, with their loss logs."""
    for name in ("pipeline", "judge", "second", "image_tower"):
        shutil.rmtree(target / name, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(build / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(build / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(build / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(build / "unet"),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(target / "pipeline")
    for name in ("judge", "second"):
        shutil.copytree(build / name, target / name)
    from transformers import CLIPVisionModel

    CLIPVisionModel.from_pretrained(build / "image_tower").half().save_pretrained(target / "image_tower")
    (target / "losses").mkdir(exist_ok=True)
    for log in sorted(build.glob("*.csv")):
        shutil.copy(log, target / "losses")
    strip_paths(target)


def strip_paths(folder: Path) -> None:
    """Take the build folder's name out of saved configs."""
    for file in folder.rglob("*.json"):
        values = json.loads(file.read_text())
        if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Run the stages that have no result yet, or those that are named, then install."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build/mini"))
    parser.add_argument("--stage", choices=[*STAGES, *LAST], action="append")
    parser.add_argument("--part", choices=["flow"], help="the flow model, instead of all the rest")
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    fetch(asked.build / "art")
    if asked.part:
        flow(asked.build)
        return
    for name in asked.stage or [*STAGES, *LAST]:
        if name == "cards":
            write_cards()
        elif name == "install":
            install(asked.build)
        elif name == "calibrate":
            calibrate(asked.build / "art")
        elif not (asked.build / name).exists():
            STAGES[name](asked.build)


if __name__ == "__main__":
    main()
