"""The marker of a finished result: is it as it was written, and is it of this key?

    {"cost": ..., "files": {name: {"size", "mtime_ns", "sha256"}}, "identity_of": {...}, "sha256": of the rest, ...}

The key of a result ends with the hash of its identity, so that a folder under another's name is known. Markers are
read in their thousands, so that this is told from the text where it can be; what is not certain is parsed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from benchmark.plan.task import canonical

SEAL, FILES, IDENTITY = b', "sha256": "', b'"files": ', b'"identity_of": '
PARENTS = b'"parents": {'
END = re.compile(rb', "seed": -?\d+, "version": -?\d+}')  # of an identity: its names are sorted
LENGTH = 32  # hex digits of a key's hash


def is_sealed(content: bytes) -> bool:
    """True for a marker that is, byte for byte, as `put` wrote it; another may still hold the same."""
    start = content.rfind(SEAL)
    end = start + len(SEAL) + 65  # 64 hex digits and a quotation mark
    if start < 0 or content[end - 1 : end] != b'"':
        return False
    rest = hashlib.sha256(content[:start])
    rest.update(content[end:])
    return rest.hexdigest().encode() == content[start + len(SEAL) : end - 1]


def is_of(content: bytes, key: str) -> bool:
    """True if the text of a sealed marker alone says that it is of a key; False where it has to be parsed."""
    start = content.find(IDENTITY)
    if start < 0:
        return True  # it was put without
    start += len(IDENTITY)
    end = END.search(content, start)
    if not end or content.find(b'\\"', start, end.end()) >= 0:  # a quotation mark inside a string
        return False
    first = content.find(PARENTS, start)
    last = content.find(b"}", first)
    parts = compact(content[start:first]), compact(content[first:last]), compact(content[last : end.end()])
    return hashlib.sha256(b"".join(parts)).hexdigest()[:LENGTH] == key[-LENGTH:]


@lru_cache(4096)  # but for their parents, many tasks are alike
def compact(text: bytes) -> bytes:
    """JSON, or a part of it that begins and ends outside of strings, without the spaces between its values."""
    parts = text.split(b'"')  # what is outside of strings, and inside, in turn
    parts[::2] = [part.replace(b" ", b"") for part in parts[::2]]
    return b'"'.join(parts)


def is_identity_of(marker: Mapping[str, Any], key: str) -> bool:
    """True if a marker is of a key, or does not say."""
    if "identity_of" not in marker:
        return True
    veiled = marker.get("identity_sha256")  # an NSFW suite's identity is not told, but for its hash
    found = str(veiled) if veiled else hashlib.sha256(canonical(marker["identity_of"]).encode()).hexdigest()
    return found[:LENGTH] == key[-LENGTH:]


def recorded(marker: Mapping[str, Any]) -> str:
    """The hash that a marker must hold; one of an older version holds none."""
    return digest(marker) if "files" in marker else ""


def digest(marker: Mapping[str, Any]) -> str:
    """The hash of a marker's content, less that hash."""
    text = json.dumps({name: value for name, value in marker.items() if name != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
