"""Whether a model can be run here, and for how long: what `titer doctor --model` says, before a run is begun.

    hours = samples of the plan x seconds of one / 3600

The seconds are measured on this device with the architecture of the model's own denoiser and meaningless weights, so
none need be here. A sample that is trained on counts as three in a plan. Texts, the VAE and the judges are left out.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.config import Config
from benchmark.errors import DataError
from benchmark.model import bases, weights
from benchmark.session import planned

if TYPE_CHECKING:
    from benchmark.diffusion import Model

GIB = 2**30
FULL_TRAINING = 3  # copies of the U-Net beside two whole models: its gradients and Adam's two moments
SIMULATED = 4  # further copies where a training simulates an attack on all of it: the attacked one, and its own three
OF_A_FLOW = 5  # copies of the transformer in float32 beside one whole model: defended and attacked, and these three
SPARE = 1.1  # of the disk: what is downloaded is written beside what is there
BATCH = 4  # samples at once when timed on an accelerator; one on a CPU


def checks(source: str, config: Config | None, device: str) -> list[dict[str, Any]]:
    """What was looked at: name, ok, and what was found. What could not be looked at has its reason."""
    look = Look(source, config, device)
    rows = [row("access", look.access)]
    if rows[-1]["ok"]:
        found = {"model": look.model, "weights": look.weights, "disk": look.disk, "memory": look.memory}
        rows += [row(name, check) for name, check in found.items()]
        if rows[-1]["ok"]:  # what does not fit is not timed
            rows.append(row("speed", look.speed))
            rows += [row(f"hours of {config.raw.name}", look.hours)] if config else []
    return rows


def row(name: str, look: Callable[[], str]) -> dict[str, Any]:
    """One line of the list."""
    try:
        return {"name": name, "ok": True, "found": look()}
    except DataError as error:
        return {"name": name, "ok": False, "found": " ".join(str(error).split())}


@dataclass(frozen=True)
class Look:
    """What can be known of a model without its weights, or with them if they are here."""

    source: str
    config: Config | None
    device_name: str

    @cached_property
    def here(self) -> Path | None:
        """The model's folder, if its weights are on this machine."""
        try:
            return bases.locate(self.source, download=False)
        except bases.AbsentError:
            return None

    @cached_property
    def folder(self) -> Path:
        """A folder with the model's settings at least; a few kilobytes are fetched if the weights are not here."""
        if self.here:
            return self.here
        place, revision = bases.parse(self.source)
        family = weights.family_of(bases.fetch(place, revision, [weights.INDEX], download=True))
        return bases.fetch(place, revision, bases.patterns(family, ("json", "txt", "jinja")), download=True)

    @property
    def family(self) -> Any:
        """The model's family."""
        return weights.family_of(self.folder)

    @cached_property
    def files(self) -> list[tuple[str, int, bool]]:
        """Name, bytes and absence of the files that a run reads, as the hub has them; none if the model is here.

        Raises:
            DataError: the hub does not say.
        """
        if self.here:
            return []
        import huggingface_hub

        place, revision = bases.parse(self.source)
        try:
            found = huggingface_hub.snapshot_download(
                place,
                revision=revision,
                allow_patterns=bases.patterns(self.family),
                ignore_patterns=bases.VARIANTS,
                dry_run=True,
            )
        except Exception as error:  # the hub's client raises its own, its transport's and the system's
            raise DataError(bases.refusal(error, place, revision)) from error
        return [(file.filename, file.file_size or 0, file.will_download) for file in found]

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return sum(size for _, size, absent in self.files if absent)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Numbers in the whole model and in its denoiser."""
        denoiser = sum(p.numel() for p in blank(self.folder, self.family.denoiser).parameters())
        if self.here is None:  # U-Nets are published in float32, flows in half of it
            stored = sum(size for name, size, _ in self.files if name.endswith(".safetensors"))
            return stored // (2 if self.family.is_flow else 4), denoiser
        files = [file for part in self.family.weights(self.here) for file in weights.weight_files(self.here / part)]
        return sum(prod(shape) for file in files for shape in weights.tensors(file).values()), denoiser

    @property
    def part(self) -> str:
        """What people call the denoiser."""
        return "transformer" if self.family.is_flow else "U-Net"

    @property
    def device(self) -> str:
        """cpu, or the accelerator."""
        import torch

        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return auto if self.device_name == "auto" else self.device_name

    @property
    def precision(self) -> Any:
        """The config's precision."""
        return self.config.raw.precision if self.config else "float32"

    def access(self) -> str:
        """Whether the weights are here, or the hub would give them."""
        return "not needed: the weights are here" if self.here else f"the hub gives it ({self.missing / GIB:.1f} GiB)"

    def model(self) -> str:
        """Who it is, and of which family."""
        place, revision = bases.parse(self.source)
        return f"{place}{f'@{revision}' if revision else ''}, {weights.family_of(self.folder).pipelines[0]}"

    def weights(self) -> str:
        """What is here."""
        if self.here is None:
            return "not here: titer run gets them"
        whole, denoiser = (f"{numbers / 1e6:,.0f}" for numbers in self.size)
        return f"{whole} million numbers, {denoiser} in the {self.part}, whole safetensors in {self.here}"

    def disk(self) -> str:
        """Whether what is missing fits."""
        from huggingface_hub import constants

        place = self.here or existing(Path(constants.HF_HUB_CACHE))
        free, needed = shutil.disk_usage(place).free, int(self.missing * SPARE)
        if needed > free:
            raise DataError(
                f"expected {needed / GIB:.1f} GiB free at {place}, got {free / GIB:.1f}: make room, or set HF_HOME."
            )
        return f"{free / GIB:.1f} GiB free, {needed / GIB:.1f} needed for weights"

    def memory(self) -> str:
        """Whether the base and a copy fit, and what the largest training needs before activations."""
        whole, denoiser = (4 * numbers for numbers in self.size)
        held, most = 2 * whole, 2 * whole + FULL_TRAINING * denoiser
        if self.family.is_flow:  # base and copy share what does not differ
            held = whole // 2 if self.precision == "bfloat16" else whole
            most = held + OF_A_FLOW * denoiser
        free = free_memory(self.device)
        text = f"{held / GIB:.1f} GiB for the base and a defended copy, {most / GIB:.1f} to train a whole {self.part}"
        text += f" ({(most + SIMULATED * denoiser) / GIB:.1f} where that simulates an attack on all of it)"
        if held > free:
            raise DataError(f"expected {text}, got {free / GIB:.1f} GiB free on {self.device}: take a larger one.")
        short = "; too little for that" * (most > free)
        return f"{text}, beside activations; {free / GIB:.1f} GiB free on {self.device}{short}"

    @cached_property
    def seconds(self) -> float:
        """Seconds of one sample through the U-Net, without gradients."""
        return seconds_a_sample(self.blank_model(), BATCH if self.device != "cpu" else 1)

    def blank_model(self) -> "Model":
        """A model of this architecture whose denoiser has meaningless weights, and which reads no text."""
        from dataclasses import replace
        from types import SimpleNamespace

        import torch
        from transformers import AutoTokenizer

        family = self.family
        kind = torch.bfloat16 if family.is_flow and self.precision == "bfloat16" else torch.float32
        denoiser = blank(self.folder, family.denoiser).to_empty(device=self.device).eval().requires_grad_(False)
        for tensor in (*denoiser.parameters(), *denoiser.buffers()):
            tensor.data = torch.full_like(tensor, 0.01, dtype=kind)
        index = weights.read_json(self.folder / weights.INDEX)
        parts: dict[str, Any] = dict.fromkeys((*family.parts, *family.optional))
        for name in family.settings:
            if name != "scheduler":
                parts[name] = AutoTokenizer.from_pretrained(self.folder / name, trust_remote_code=False)
        parts |= {"vae": blank(self.folder, "vae"), family.denoiser: denoiser}
        pipe = SimpleNamespace(**parts, config={flag: index.get(flag) for flag in family.flags})
        found: Model = family.module.model(pipe, bases.schedule_of(self.folder, family))
        return replace(found, precision=self.precision)

    def speed(self) -> str:
        """Milliseconds of one sample."""
        return (
            f"{1000 * self.seconds:,.1f} ms for a sample through the {self.part} in {self.precision} on {self.device}"
        )

    def hours(self) -> str:
        """Hours of the config on this device."""
        assert self.config is not None
        passes = planned(self.config, "any").passes
        hours = passes * self.seconds / 3600
        return f"about {hours:,.1f} hours for {passes:,} samples, beside texts, the VAE and the judges"


def blank(folder: Path, part: str) -> Any:
    """A part of a folder's config, without storage."""
    import diffusers
    import torch

    library, cls = weights.read_json(folder / weights.INDEX)[part]
    assert library == "diffusers", library  # `check_parts` lets no other pass
    with torch.device("meta"):
        return getattr(diffusers, cls).from_config(weights.read_json(folder / part / "config.json"))


def seconds_a_sample(model: "Model", batch: int) -> float:
    """Seconds of a sample: the median of three batches after a first one, or that one if it takes long."""
    import torch

    z = torch.zeros(batch, *model.latent_shape, device=model.device)
    text = torch.zeros(batch, *model.text_shape, device=model.device)
    t = model.trajectory(2)[0].to(model.device)
    times = list[float]()
    with torch.no_grad():
        while len(times) < 4 and sum(times) < 20:
            started = time.monotonic()
            float(model.predict(z, t, text).sum())  # waits for the device
            times.append(time.monotonic() - started)
    measured = sorted(times[1:] or times)
    return measured[len(measured) // 2] / batch


def free_memory(device: str) -> int:
    """Bytes that can be had on a device."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return folder if folder.exists() else existing(folder.parent)
