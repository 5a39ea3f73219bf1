"""Files, folders and hub ids -> frames of text, a chunk at a time: a million rows never lie in memory at once.

Every cell is a string; what is missing is "". JSON is the exception: its format has to be read as a whole.
Files have a largest size, lines too: a file without line ends would be one row of any length.
"""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from benchmark.data.sets import HUB, Listed
from benchmark.errors import DataError, clipped
from benchmark.given.files import contents, is_file, is_folder, opened

CHUNK = 20_000
FILE_BYTES, JSON_BYTES = 1 << 30, 256 << 20
LINE_BYTES = 1 << 20  # also of a row of parquet, on average over a few
CHUNK_BYTES = 64 << 20  # of what is decoded at once
CAPTION_BYTES = 64 << 10
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
UNREAD = (".heic", ".heif", ".avif")  # Pillow reads these with plug-ins, or not everywhere
CAPTIONS = (".txt", ".caption")  # beside an image, under its name, as kohya's scripts have them
# MemoryError: a compressed page of any size, of which pyarrow cannot say so beforehand.
FAULTS = (OSError, ValueError, TypeError, AttributeError, EOFError, RecursionError, MemoryError)


def chunks(path: Path, folders: Sequence[str] = ("label",), rows: int = CHUNK) -> Iterator[pd.DataFrame]:
    """The table in a file or folder, `rows` rows at a time.

    Raises:
        DataError: one line on why it cannot be read.
    """
    if is_folder(path):
        yield from in_folder(path, folders, rows)
        return
    if not is_file(path):
        got = "a pipe or a device" if present(path) else "none"
        raise DataError(
            f"expected a file or folder at {clipped(str(path))}, got {got}: its path is relative to the card."
        )
    if path.suffix.lower() not in READERS:
        known = ", ".join(READERS)
        raise DataError(f"expected a folder or a file that ends in {known}, got {path}: convert it.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            yield from READERS[path.suffix.lower()](path, rows)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"expected a header and rows in {path}, got an empty file.") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"expected UTF-8 in {path}, got the byte 0x{byte:02x}: save it as UTF-8.") from error
    except (*FAULTS, pd.errors.ParserWarning) as error:
        why = " ".join(str(error).split())[:150]
        raise DataError(f"expected a table in {path}, got {type(error).__name__}: {why}: mend the file.") from error


def separated(separator: str) -> Callable[[Path, int], Iterator[pd.DataFrame]]:
    """A reader of separated values; "NA", "null" and "None" are words, since prompts may be."""

    def read(path: Path, rows: int) -> Iterator[pd.DataFrame]:
        options: dict[str, Any] = {"dtype": str, "na_filter": False, "index_col": False, "encoding": "utf-8-sig"}
        with opened(path, FILE_BYTES) as file:
            source = io.BufferedReader(Lines(file), LINE_BYTES)
            with pd.read_csv(source, sep=separator, chunksize=rows, **options) as parts:
                yield from parts

    return read


class Lines(io.RawIOBase):
    """A file that refuses to be one endless line."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.since = file, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes.

        Raises:
            ValueError: more than LINE_BYTES have passed without a line end.
        """
        part = self.file.read(min(len(buffer), LINE_BYTES))
        buffer[: len(part)] = part
        ends = [at for at in (part.find(b"\n"), part.find(b"\r")) if at >= 0]
        if self.since + min(ends, default=len(part)) > LINE_BYTES:
            raise ValueError(f"a line of more than {LINE_BYTES:,} bytes")
        last = max(part.rfind(b"\n"), part.rfind(b"\r"))
        self.since = len(part) - last - 1 if ends else self.since + len(part)
        return len(part)


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file."""
    with opened(path, FILE_BYTES) as file:
        yield from io.TextIOWrapper(io.BufferedReader(Lines(file), LINE_BYTES), encoding="utf-8-sig")


def portions(lines: Iterator[str], rows: int) -> Iterator[list[str]]:
    """Lines in lists of `rows`, or fewer where they are long."""
    part, size = list[str](), 0
    for line in lines:
        part.append(line)
        size += len(line)
        if len(part) >= rows or size >= CHUNK_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def json_lines(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    """One object a line."""
    for part in portions(text_lines(path), rows):
        yield frame([json.loads(line) for line in part if line.strip()])


def whole_json(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    """A list of objects or of texts, columns as lists, or COCO's own file with its `annotations`."""
    found = json.loads(contents(path, JSON_BYTES).decode("utf-8-sig"))
    if isinstance(found, dict):
        found = found.get("annotations", found)
    if isinstance(found, dict):
        found = [dict(zip(found, cells, strict=True)) for cells in zip(*found.values(), strict=True)]
    for start in range(0, len(found), rows):
        part = found[start : start + rows]
        yield frame([{"text": row} if isinstance(row, str) else row for row in part])


def lines(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    """One prompt a line, without a header."""
    for part in portions(text_lines(path), rows):
        yield frame([{"text": line} for line in part])


def parquet(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    """The flat columns: images and other nested ones stay on the disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(path, FILE_BYTES) as handle, pq.ParquetFile(handle) as file:
        schema = file.schema_arrow
        flat = [f.name for f in schema if not (pa.types.is_nested(f.type) or pa.types.is_binary(f.type))]
        part, size = list[dict[str, Any]](), 0
        for batch in file.iter_batches(min(rows, CHUNK_BYTES // LINE_BYTES), columns=flat):
            if batch.nbytes > CHUNK_BYTES * 0.5:  # a dictionary makes few bytes of the file many
                raise ValueError(f"{batch.num_rows} rows of {batch.nbytes:,} bytes, more than {LINE_BYTES // 2:,} each")
            part += batch.to_pylist()
            size += batch.nbytes
            if len(part) >= rows or size >= CHUNK_BYTES:
                yield frame(part)
                part, size = [], 0
        if part:
            yield frame(part)


READERS: dict[str, Callable[[Path, int], Iterator[pd.DataFrame]]] = {
    ".csv": separated(","),
    ".tsv": separated("\t"),
    ".json": whole_json,
    ".jsonl": json_lines,
    ".parquet": parquet,
    ".txt": lines,
}


def in_folder(path: Path, folders: Sequence[str], rows: int) -> Iterator[pd.DataFrame]:
    """A folder's metadata file; without one, its images, with the names of the folders around each."""
    table = next((path / name for name in METADATA if is_file(path / name)), None)
    if table:
        yield from chunks(table, folders, rows)
        return
    files = sorted(path.rglob("*"))
    shown = [file for file in files if file.suffix.lower() in IMAGES]
    if unread := [file for file in files if file.suffix.lower() in UNREAD]:
        raise DataError(
            f"expected images that end in {', '.join(IMAGES)} in {path}, got {len(unread)} that are not read, "
            f"{unread[0].name} among them: convert or remove them."
        )
    if not shown:
        raise DataError(f"expected {', '.join(METADATA)} or images in {path}, got neither: name one file of it.")
    beside = captions(shown)
    names = [file.relative_to(path) for file in shown]
    found = [{"file_name": name.as_posix(), **around(name.parts[:-1], folders)} for name in names]
    if beside:
        found = [row | {"text": text} for row, text in zip(found, beside, strict=True)]
    for start in range(0, len(found), rows):
        yield frame(found[start : start + rows])


def captions(images: Sequence[Path]) -> list[str]:
    """The text in the file beside each image; empty if no image has one.

    Raises:
        DataError: some have one and some have none, or one cannot be read.
    """
    files = [next(filter(is_file, map(image.with_suffix, CAPTIONS)), None) for image in images]
    if not any(files):
        return []
    if None in files:
        lone = images[files.index(None)]
        raise DataError(f"expected a text beside each image, as others have it, got none beside {lone}: write it.")
    try:
        return [" ".join(contents(file, CAPTION_BYTES).decode("utf-8-sig").split()) for file in files if file]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected captions in UTF-8 beside the images of {images[0].parent}, got: {error}.") from error


def present(path: Path) -> bool:
    """Whether anything has this name."""
    with suppress(OSError, ValueError):
        return path.exists()
    return False


def around(parts: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """The innermost folders by what they say."""
    count = min(len(parts), len(folders))
    return dict(zip(folders[len(folders) - count :], parts[len(parts) - count :], strict=True))


def on_hub(rows: Listed, size: int = CHUNK) -> Iterator[pd.DataFrame]:
    """A data set of the hub, through the `datasets` library and its cache; no stored access token is used.

    Raises:
        DataError: the library is missing, or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"expected the package `datasets` to read {rows.hub!r}, got none: pip install 'titer[hub]', "
            "or give a local file with `file:`."
        ) from error
    try:
        found = datasets.load_dataset(rows.hub, rows.subset, split=rows.split, revision=rows.revision, token=False)
    except Exception as error:  # of a dozen kinds, of three libraries: absent, gated, unreachable, a script
        raise DataError(refused(rows.hub or "", error)) from error
    names = {
        name: getattr(feature, "names", None)
        for name, feature in found.features.items()
        if isinstance(feature, datasets.Value | datasets.ClassLabel)
    }
    for part in found.select_columns(list(names)).iter(batch_size=size):
        columns = {name: named(part[name], names[name]) for name in names}
        yield frame([dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)])


def named(cells: Sequence[Any], classes: Sequence[str] | None) -> Sequence[Any]:
    """Class numbers as their names."""
    return [None if cell is None else classes[cell] for cell in cells] if classes else cells


def refused(hub: str, error: Exception) -> str:
    """Why the hub gives no data, and what to do."""
    told = " ".join(str(error).split())
    if "gated" in told.lower() or "gated" in type(error.__cause__).__name__.lower():
        return (
            f"expected a data set that everyone may read, got the gated {hub!r}: ask for access at {HUB}/{hub}, "
            "download it and write `file:`."
        )
    advice = "check the name and the network, or download it and write `file:`"
    if "script" in told:
        advice = "try `revision: refs/convert/parquet`, or download it and write `file:`"
    return f"expected the data set {hub!r} from the hub, got {type(error).__name__} ({told[:150]}): {advice}."


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Objects as a frame of strings, with the columns of all of them.

    Raises:
        ValueError: one is no object.
    """
    for row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"expected an object for each row, got {type(row).__name__}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame({name: [cell(row.get(name)) for row in rows] for name in names}, columns=names, dtype=str)


def cell(value: Any) -> str:
    """A value as a table would have it; the exact digits of a number, and a list as words with commas."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(cell(part) for part in value)
    return value if isinstance(value, str) else str(value)
