"""Weights on this machine: files of torch's cache, and folders or hub ids as transformers reads them.

A PLACE is a folder, or a hub id `owner/name` or `owner/name@revision`, which the hub's client fetches into its cache.
Nothing pickled is read from a place; files of torch's cache have the hash in their name, and hold nothing but tensors.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HASHED: dict[Path, str] = {}  # the files whose content is in an identity here
ABSENT = "absent"  # in the place of a hash: such an identity can be planned with, not run
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
READ = ("*.json", "*.safetensors")
# For transformers: nothing is fetched by it, and a folder that brings code of its own is refused, not asked about.
OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def digest(file: Path) -> str:
    """The sha256 of a file, in hex; each is read once."""
    if file not in HASHED:
        with file.open("rb") as handle:
            HASHED[file] = hashlib.file_digest(handle, "sha256").hexdigest()
    return HASHED[file]


def wanted_hash(url: str) -> str:
    """The first digits of the sha256 that torch's hub writes at the end of a file name."""
    return url.rpartition("-")[2].rpartition(".")[0]


def cached_file(url: str) -> Path:
    """The file of `url` in torch's cache.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: its hash is not the one in its name.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise FileNotFoundError(f"expected the weights {file.name}, got no file {file}: download {url} to there.")
    found = digest(file)
    if not found.startswith(wanted_hash(url)):
        raise ValueError(
            f"expected sha256 {wanted_hash(url)}… of {file}, got {found[:8]}…: delete it and download {url} again."
        )
    return file


def cached_weights(url: str) -> tuple[Path, dict[str, Tensor]]:
    """The file of `url` in torch's cache, and what it holds. Libraries may read it, too: it holds nothing but tensors.

    Raises:
        FileNotFoundError, ValueError: as `cached_file`.
    """
    return cached_file(url), torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)


def local(place: str) -> Path | None:
    """The folder that a place names, there or not; None for a hub id."""
    path = Path(place).expanduser()
    return None if HUB_ID.fullmatch(place) and not path.is_dir() else path.resolve()


def place_identity(place: str) -> str:
    """A folder's kind of model and the hash of its files, or the hub id with its revision; no path, no download."""
    folder = local(place)
    if folder is None:
        return place if "@" in place else f"{place}@main"
    files = sorted(file for pattern in READ for file in folder.glob(pattern))
    if not any(file.suffix == ".safetensors" for file in files) or not (folder / "config.json").is_file():
        return ABSENT
    kind = json.loads((folder / "config.json").read_text()).get("model_type", "model")
    named = "".join(f"{file.name}={digest(file)}\n" for file in files if file.name != "calibration.json")
    return f"{kind}/{hashlib.sha256(named.encode()).hexdigest()[:12]}"


def fetched(place: str) -> Path:
    """The folder of a place, which the hub's client may have to fetch first.

    Raises:
        FileNotFoundError: there is none, or it lacks what transformers reads.
    """
    folder = local(place) or from_hub(place)
    lacking = [pattern for pattern in ("config.json", "*.safetensors") if not any(folder.glob(pattern))]
    if lacking:
        raise FileNotFoundError(
            f"expected config.json and *.safetensors of {place}, got no {' and no '.join(lacking)}: save the model and "
            "its image processor with save_pretrained; pickled weights are not read."
        )
    return folder


def from_hub(hub_id: str) -> Path:
    """The hub's files, from its cache or fetched into it.

    Raises:
        FileNotFoundError: they are not in the cache and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(READ)))
    except (HFValidationError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"expected the weights of {hub_id!r}, got neither a folder nor a hub id that can be fetched "
            f"({type(error).__name__}): name a folder, or fetch it where there is a network."
        ) from error
