"""A base by preset, folder or hub id -> Model. The one place that knows how diffusers loads."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.errors import DataError, unknown
from benchmark.mini import WEIGHTS

if TYPE_CHECKING:
    from benchmark.diffusion import Model

PRESETS = {
    "mini": str(WEIGHTS / "pipeline"),
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def locate(source: str) -> Path:
    """The folder of a model.

    Raises:
        DataError: no such preset or folder, or the folder lacks a part.
    """
    path = Path(PRESETS.get(source, source))
    if not path.is_dir():
        path = cached(source)
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if missing or not (path / "model_index.json").is_file():
        lacking = ", ".join([*missing, *([] if (path / "model_index.json").is_file() else ["model_index.json"])])
        raise DataError(
            f"expected a Stable Diffusion folder with {', '.join(PARTS)} and model_index.json at {path}, "
            f"which lacks {lacking}: save it with pipeline.save_pretrained."
        )
    return path


def cached(source: str) -> Path:
    """The snapshot of a hub id, downloaded if it is not at hand."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["model_index.json", *(f"{part}/*" for part in PARTS)]
    try:
        return Path(
            snapshot_download(PRESETS.get(source, source), allow_patterns=wanted, ignore_patterns=["*.bin", "*fp16*"])
        )
    except (HFValidationError, OSError, ValueError) as error:
        raise DataError(
            f"expected a model preset, a folder or a hub id that can be downloaded, got {source!r} "
            f"({type(error).__name__}). {unknown('model', source, PRESETS)}"
        ) from error


def fingerprint(folder: Path, parts: Iterable[str] = PARTS) -> str:
    """Thirty-two hex digits over the contents of a model's files; paths outside the folder do not enter."""
    digest = hashlib.sha256()
    for part in parts:
        for file in sorted((folder / part).rglob("*")):
            if file.is_file() and file.suffix in (".safetensors", ".json", ".txt"):
                digest.update(str(file.relative_to(folder)).encode())
                with file.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:32]


def load(folder: Path, *, device: str = "cpu") -> "Model":
    """Load a Stable Diffusion folder in float32, frozen."""
    import torch
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    from benchmark.diffusion import Model

    pipe = StableDiffusionPipeline.from_pretrained(
        folder,
        dtype=torch.float32,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    kept = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "trained_betas")
    scheduler = DDPMScheduler(**{k: config[k] for k in kept if config.get(k) is not None})
    pipe.to(device)
    return Model(
        unet=pipe.unet, vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, scheduler=scheduler
    ).frozen()
