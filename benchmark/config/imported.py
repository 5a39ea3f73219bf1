"""Defenses that somebody else trained: `{use: imported, as: esd-official, files: {van_gogh: imports/esd-vg}}`.

`titer import` wrote each folder: the change as safetensors, and what it was made of in `import.json`. Only that note is
read here; whoever runs it checks the files against the hashes in it. The change's hash is the row's key, not its path.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from benchmark.errors import ConfigError, shown
from benchmark.given.files import contents
from benchmark.types import Concept

USE, NOTE, SCHEMA = "imported", "import.json", 1
BYTES = 64 << 20  # of the note: it names every tensor that a file lacks


@dataclass(frozen=True, kw_only=True)
class Change:
    """One imported change.

    Attributes:
        folder: where it is on this machine.
        sha256: hash of its files' names and hashes.
        files: hash of each file.
        base: hash of the weights that it is a change of.
        model: the base as it was named.
        merged: of a method that looks at the prompt first, which merged weights do not.
        parts: what it changes: parts of the model, or scopes of its denoiser.
        warnings: what the import mistrusted.
    """

    folder: str
    sha256: str
    files: Mapping[str, str]
    base: str
    model: str
    merged: bool
    parts: frozenset[str]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What stands in an entry's place of a method: the change of each concept that was released."""

    changes: Mapping[str, Change]

    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()
    fidelity: ClassVar[Literal["weights-only"]] = "weights-only"
    takes_several: ClassVar[bool] = True  # a release for several concepts is named by all: `a+b`

    @property
    def badge(self) -> str:
        """`weights-only`: how it was trained was not seen. With `merged` it is not even the method of its paper."""
        return "weights-only, merged" if any(change.merged for change in self.changes.values()) else self.fidelity

    @property
    def removable(self) -> str | None:
        """The part that can be put back from the base, if the changes are of that one alone."""
        parts = {part for change in self.changes.values() for part in change.parts}
        if parts == {"vae"}:
            return "vae"
        return "text_encoder" if parts and all(part.startswith("text_encoder") for part in parts) else None

    def requires(self, concept: Concept) -> tuple[str, ...]:
        """Nothing: an import was made for the base itself."""
        return ()

    def passes(self) -> int:
        """Nothing is trained."""
        return 0


def method(given: Mapping[str, Any]) -> Imported:
    """The method of an entry's `files:`.

    Raises:
        ConfigError: there are none, another key is there, or a folder is none that `titer import` wrote.
    """
    files = given.get("files")
    if not isinstance(files, Mapping) or not files or not all(isinstance(at, str) for at in files.values()):
        raise ConfigError(
            f"expected `files: {{CONCEPT: FOLDER, ...}}` with `use: {USE}`, got {shown(files)}: name what "
            "`titer import` wrote."
        )
    if other := next((name for name in given if name not in ("use", "as", "files")), ""):
        raise ConfigError(f"expected use, as and files of an imported defense, got {shown(other)}: remove it.")
    return Imported(changes={str(concept): change(str(concept), Path(at)) for concept, at in files.items()})


def change(concept: str, folder: Path) -> Change:
    """What `titer import` noted in a folder.

    Raises:
        ConfigError: it wrote none there, or one for another concept.
    """
    note = folder.expanduser() / NOTE
    try:
        told = json.loads(contents(note, BYTES).decode())
        if told["schema"] != SCHEMA:
            raise ValueError(f"schema {told['schema']}")
        files = {str(name): str(each["sha256"]) for name, each in told["files"].items()}
        found = Change(
            folder=str(folder.expanduser()),
            sha256=digest(files),
            files=files,
            base=str(told["base"]["sha256"]),
            model=str(told["base"]["model"]),
            merged=bool(told["merged"]),
            parts=frozenset(str(part) for part, norm in told["norms"].items() if norm["change"] > 0),
            warnings=tuple(map(str, told["warnings"])),
        )
        erased = told["concept"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"expected an imported change for {shown(concept)} in {folder}, got {type(error).__name__} of its {NOTE}: "
            f"write it with `titer import SOURCE ... -o {folder}`."
        ) from error
    if erased != concept:
        raise ConfigError(
            f"expected a change that erases {shown(concept)} in {folder}, got one of {shown(erased)}: name another "
            "folder, or import it with that --concept."
        )
    return found


def digest(files: Mapping[str, str]) -> str:
    """The hash that a change goes by, from the hashes of its files by name."""
    return hashlib.sha256("\n".join(f"{sha} {name}" for name, sha in sorted(files.items())).encode()).hexdigest()
