"""SOURCE of `titer import` -> weight files on this machine: a file, a folder, or a hub id with or without a path in it.

file.pt, file.safetensors                          one file
folder                                             a pipeline, one part of it, or an adapter
author/name, author/name/path/in/it, ...@revision  the same on the hub; a path may name a file
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.errors import DataError, shown
from benchmark.given.files import is_file, is_folder
from benchmark.imports.read import READABLE
from benchmark.model.bases import HUB_ID, at_home, fetch
from benchmark.model.weights import INDEX
from benchmark.store.files import sha256

STEMS = "diffusion_pytorch_model|model|pytorch_model|adapter_model|pytorch_lora_weights"
NAMED = re.compile(rf"(?P<stem>{STEMS})(?P<variant>\.[\w-]+?)?(-\d{{5}}-of-(?P<shards>\d{{5}}))?\.(?P<ending>\w+)")
MODULES = ("eraser_config.json", "eraser_weights.pt")  # of adapters with an activation inside: no change of weights
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """Where the weights are.

    Attributes:
        address: as `titer import` takes it again; a hub id has its commit.
        parts: the files of each part by its name; of a file, or a folder that does not say, under "".
        settings: the folder of an adapter, with its `adapter_config.json`.
        index: the folder of a pipeline.
    """

    address: str
    parts: dict[str, tuple[Path, ...]]
    settings: Path | None = None
    index: Path | None = None
    hashes: dict[str, str] = field(default_factory=dict, compare=False)

    def hash(self, part: str) -> None:
        """Hash the files of a part, which is read now."""
        for file in self.parts[part]:
            self.hashes[f"{part}/{file.name}" if part else file.name] = sha256(file)

    @property
    def sha256(self) -> str:
        """The hash of the only file, or of the names and hashes of several."""
        if len(self.hashes) == 1:
            return next(iter(self.hashes.values()))
        return hashlib.sha256("\n".join(f"{h} {n}" for n, h in sorted(self.hashes.items())).encode()).hexdigest()


def find(source: str) -> Source:
    """The weight files of a source; those of the hub are fetched.

    Raises:
        DataError: there is no such source, or nothing in it can be read.
    """
    place = Path(at_home(source))
    if is_file(place):
        return of_file(place, str(place))
    if is_folder(place):
        return of_folder(place, str(place))
    name, _, revision = source.partition("@")
    author, _, rest = name.partition("/")
    repository, _, path = rest.partition("/")
    if not HUB_ID.fullmatch(f"{author}/{repository}") or ".." in name:
        raise DataError(
            f"expected a file, a folder or a hub id like author/name/path@revision, got {shown(source)}: check the "
            "path."
        )
    return of_hub(f"{author}/{repository}", path.strip("/"), revision or None)


def of_file(file: Path, address: str) -> Source:
    """One file.

    Raises:
        DataError: its name says that it holds no weights.
    """
    if file.name in MODULES:
        raise DataError(modules(file))
    if file.suffix not in READABLE:
        raise DataError(f"expected a file that ends in {', '.join(READABLE)}, got {file}: name the weights.")
    beside = file.parent if file.name.startswith("adapter_model.") and is_file(file.parent / ADAPTER) else None
    return Source(address, {"": (file,)}, settings=beside)


def of_folder(folder: Path, address: str) -> Source:
    """A pipeline's folder, or that of one part or adapter.

    Raises:
        DataError: it holds no weights, or several files and no word on which.
    """
    if is_file(folder / INDEX):
        inner = {part.name: weights_in(part) for part in sorted(folder.iterdir()) if part.is_dir()}
        parts = {name: files for name, files in inner.items() if files}
        if not parts:
            raise DataError(f"expected weights in the parts of the pipeline {folder}, got none: copy it again.")
        return Source(address, parts, index=folder)
    if any(is_file(folder / name) for name in MODULES):
        raise DataError(modules(folder))
    files = weights_in(folder) or tuple(sorted(f for f in folder.iterdir() if f.suffix in READABLE and f.is_file()))
    if not files or (len(files) > 1 and not NAMED.fullmatch(files[0].name)):
        got = ", ".join(file.name for file in files[:5]) or "none"
        raise DataError(f"expected one weight file, or a model's, in {folder}, got {got}: name the file.")
    return Source(address, {"": files}, settings=folder if is_file(folder / ADAPTER) else None)


def weights_in(folder: Path) -> tuple[Path, ...]:
    """The files of one model in a folder: safetensors before pickles, the plain ones before a variant's.

    Raises:
        DataError: a shard is missing.
    """
    groups: dict[tuple[bool, str, str], list[Path]] = {}
    shards: dict[Path, int] = {}
    for file in sorted(folder.iterdir()):
        found = NAMED.fullmatch(file.name)
        if found and file.suffix in READABLE and is_file(file):
            at = (file.suffix != ".safetensors", found["variant"] or "", found["stem"])
            groups.setdefault(at, []).append(file)
            shards[file] = int(found["shards"] or 1)
    if not groups:
        return ()
    files = groups[min(groups)]
    if len(files) != shards[files[0]]:
        raise DataError(f"expected {shards[files[0]]} shards in {folder}, got {len(files)}: copy it again.")
    return tuple(files)


def of_hub(place: str, path: str, revision: str | None) -> Source:
    """A file or a folder of a hub's page.

    Raises:
        DataError: the hub says no, or the page does not say which of its files is the model.
    """
    if path.endswith(READABLE):
        local = fetch(place, revision, [path], download=True) / path
        if not is_file(local):
            raise DataError(f"expected the file {path} in {place}, got none: see https://huggingface.co/{place}.")
        return of_file(local, address(place, path, local, len(Path(path).parts)))
    within = f"{path}/" if path else ""
    folder = fetch(place, revision, [f"{within}*.json"], download=True) / path
    if not any(is_file(folder / name) for name in (INDEX, "config.json", ADAPTER)):
        raise DataError(
            f"expected a pipeline, a part of one or an adapter in {place}/{path}, got no settings of any: name a file."
        )
    below = f"{within}*/" if is_file(folder / INDEX) else within
    for endings, variants in ((("safetensors",), False), (("safetensors",), True), (("bin", "pt"), True)):
        files = [f"{below}*.{ending}" for ending in endings]
        folder = fetch(place, revision, files, download=True, variants=variants) / path
        if is_folder(folder) and (any(weights_in(p) for p in (folder, *filter(Path.is_dir, folder.iterdir())))):
            break
    return of_folder(folder, address(place, path, folder, len(Path(path).parts)))


def address(place: str, path: str, local: Path, depth: int) -> str:
    """A hub's file or folder with the commit that the cache has it under."""
    root = local.parents[depth - 1] if depth else local
    commit = f"@{root.name}" if root.parent.name == "snapshots" else ""
    return f"{place}/{path}".rstrip("/") + commit


def modules(place: Path) -> str:
    """Why extra layers are no import."""
    return (
        f"expected changed weights, got extra layers in {place}: they have an activation inside, so that no change of "
        "weights does the same."
    )
