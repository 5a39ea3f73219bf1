"""Which names in a store are ours. Only these are listed and removed; what a user keeps beside them is left alone.

defend, attack, generate, embed, score      a folder for each kind of task, with results and their locks
<plugin-params>-<32 hex digits>             a result
<plugin-params>-<32 hex digits>.lock        while a process computes it
tmp/<32 hex digits>                         what is being written
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

KINDS = ("attack", "defend", "embed", "generate", "score")
TEMPORARY = "tmp"
RESULT, LOCK, ASIDE = (
    re.compile(p, re.DOTALL) for p in (r".+-[0-9a-f]{32}", r".+-[0-9a-f]{32}\.lock", r"[0-9a-f]{32}")
)


def results(root: Path, *, through_links: bool) -> list[Path]:
    """Everything that has the name of a result, finished or not, whatever it is.

    Args:
        through_links: also what lies in a kind's folder that is a link to another place.
    """
    return [path for kind in KINDS for path in named(root / kind, RESULT, through_links=through_links)]


def leftovers(root: Path) -> list[Path]:
    """What a killed process may have left beside the results; nothing behind a link."""
    return [*named(root / TEMPORARY, ASIDE, through_links=False), *locks(root)]


def locks(root: Path) -> list[Path]:
    """The locks of results; nothing behind a link."""
    return [path for kind in KINDS for path in named(root / kind, LOCK, through_links=False)]


def named(folder: Path, pattern: re.Pattern[str], *, through_links: bool) -> Iterator[Path]:
    """What of a folder has a name of ours, in order; nothing if the folder is a link that is not to be followed."""
    if through_links or not folder.is_symlink():
        found = list[Path]()
        with suppress(OSError):  # there is no such folder, or it is none
            found = sorted(folder.iterdir())
        yield from (path for path in found if pattern.fullmatch(path.name))
