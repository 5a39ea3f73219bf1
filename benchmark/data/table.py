"""Any table of prompts -> one canonical table: text, id, seed, guidance, label, file, source.

The rows are read twice: once to see which there are, of which only hashes are kept, and once to take those that are
wanted. So a few of a million rows cost the memory of a few.
"""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmark.data.read import chunks, on_hub
from benchmark.data.sets import Column, Listed, Pictures, Rows, Wanted, column, guard
from benchmark.errors import DataError, shown, unknown
from benchmark.given.words import places

COLUMNS: tuple[Column, ...] = ("text", "id", "seed", "guidance", "label", "file")
MOST_GUIDANCE = 1000
NOTHING = {"", "nan", "none", "null", "na", "<na>"}
Frames = Callable[[], Iterator[pd.DataFrame]]


class Seen(NamedTuple):
    """Hashes of rows: of what makes each a row of its own, of its id (0: none), of its text."""

    whole: np.ndarray
    id: np.ndarray
    text: np.ndarray


def prompts(rows: Listed, base: Path, kind: str, keep: Callable[[str], bool]) -> pd.DataFrame:
    """The rows that a card wants of a table; paths are relative to `base`, the card's folder.

    Args:
        rows: what the card says of the table.
        base: the card's folder.
        kind: the concept's kind; unsafe sets are for nsfw alone.
        keep: texts that may be used; the others do not count toward the limit.

    Raises:
        DataError: one line on what is wrong with the table or with what the card says of it.
    """

    def parts() -> Iterator[pd.DataFrame]:
        read = chunks((base / rows.file.expanduser()), rows.known.folders) if rows.file else on_hub(rows)
        return canonical(read, rows, kind, keep, rows.text)

    return finished(chosen(parts, rows, ["text", "seed", "guidance"]), rows)


def captions(rows: Pictures, base: Path, kind: str, keep: Callable[[str], bool]) -> pd.DataFrame:
    """The captioned images that a card wants of a folder; column `file` has their absolute paths.

    Captions are a table in the folder or beside the card, or a text, or, with neither, the folder's metadata file.

    Raises:
        DataError: as `prompts`; or a row names no image.
    """
    folder = base / rows.images.expanduser()
    table, text = folder, rows.captions
    if text and re.fullmatch(r"\S+\.(csv|tsv|json|jsonl|parquet)", text):
        table, text = (folder / text if (folder / text).is_file() else base / text), None
    if not folder.is_dir():
        raise DataError(f"expected a folder of images at {folder}, got none: its path is relative to the card.")

    def parts() -> Iterator[pd.DataFrame]:
        return canonical(chunks(table, rows.known.folders), rows, kind, keep, text)

    found = finished(chosen(parts, rows, ["text", "file"]), rows)
    if (found["file"] == "").any():
        names = ", ".join(rows.known.file)
        raise DataError(f"expected the image of each row of {table} ({names}), got rows without: add the column.")
    if (away := found.loc[found["file"].map(leaves), "file"]).size:
        got = shown(str(away.iloc[0]))
        raise DataError(f"expected images inside {folder}, got {got} in {table}: a table names what lies beside it.")
    return found.assign(file=[str(folder / name) for name in found["file"]])


def leaves(name: str) -> bool:
    """Whether a relative path leads out of its folder, here or on Windows."""
    path = PureWindowsPath(name)
    return bool(path.anchor) or ".." in path.parts


def canonical(
    read: Iterator[pd.DataFrame], rows: Rows, kind: str, keep: Callable[[str], bool], template: str | None
) -> Iterator[pd.DataFrame]:
    """Chunks with our columns, as strings, of the rows that `where` and `keep` let through; a blank text is no row."""
    name = rows.name
    for part in read:
        headers = [str(header) for header in part.columns]
        guard(rows, name, headers, kind)
        named = {what: column(rows, what, headers, name) for what in COLUMNS}
        blank = pd.Series("", index=part.index)
        found = pd.DataFrame({what: part[at] if at is not None else blank for what, at in named.items()})
        found["text"] = texts(part, rows, named["text"], template)
        found = found[selected(part, rows, named)]
        found["text"] = found["text"].str.strip()
        good = np.array([text != "" and keep(text) for text in found["text"].tolist()], dtype=bool)
        kept = found[good].reset_index(drop=True)
        kept.attrs["left_out"] = int(len(good) - good.sum())
        yield kept


def texts(part: pd.DataFrame, rows: Rows, at: str | None, template: str | None) -> pd.Series:
    """The prompts: a template's words in each row's, or the column.

    Raises:
        DataError: there is neither, or the template names a column that the table lacks.
    """
    headers = [str(header) for header in part.columns]
    template = template or (rows.known.template if at is None else "")
    if not template:
        if at is None:
            names, got = ", ".join(rows.known.text), ", ".join(headers)
            raise DataError(
                f"expected a column of prompts in {rows.name} ({names}), got the columns {got}: "
                "name it with `columns: {text: ...}`, or end the name of a file with one prompt a line in .txt."
            )
        return part[at]
    try:
        wanted = places(template)
    except ValueError as error:
        raise DataError(f"expected a text with {{column}} in it for {rows.name}, got a fault: {error}.") from error
    for field in wanted:
        if field not in headers:
            raise DataError(f"the text {shown(template)} for {rows.name}: {unknown('column', field, headers)}")
    if not wanted:
        return pd.Series(template, index=part.index)
    words = [part[field].str.replace("_", " ").tolist() for field in wanted]  # Van_Gogh is how a folder says it
    made = [
        template.format_map(dict(zip(wanted, row, strict=True))) if all(map(str.strip, row)) else ""
        for row in zip(*words, strict=True)
    ]
    return pd.Series(made, index=part.index)


def selected(part: pd.DataFrame, rows: Rows, named: dict[Column, str | None]) -> pd.Series:
    """Which rows meet every condition of `where`.

    Raises:
        DataError: a condition is on a column that the table lacks.
    """
    mask = pd.Series(True, index=part.index)
    for at, wanted in rows.where.items():
        header = at if at in part.columns else named.get(at)  # type: ignore[call-overload]
        if header is None:
            raise DataError(f"`where` of {rows.name}: {unknown('column', at, map(str, part.columns))}")
        options = wanted if isinstance(wanted, list) else [wanted]
        mask &= pd.concat([meets(part[header], option) for option in options], axis=1).any(axis=1)
    return mask


def meets(cells: pd.Series, wanted: Wanted) -> pd.Series:
    """Whether each cell is the value, has it among words with commas between, or stands in the relation: ">50"."""
    text = str(wanted).strip()
    relation = re.fullmatch(r"(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)", text)
    numbers = pd.to_numeric(cells, errors="coerce")
    if relation:
        limit = float(relation[2])
        return {">": numbers > limit, ">=": numbers >= limit, "<": numbers < limit, "<=": numbers <= limit}[relation[1]]
    if text.startswith("!="):
        return ~meets(cells, text.removeprefix("!=").strip())
    has = cells.map(lambda cell: text == cell.strip() or text in [word.strip() for word in cell.split(",")])
    number = pd.to_numeric(pd.Series([wanted]), errors="coerce")[0]
    return has.astype(bool) | (numbers == number)


def chosen(parts: Frames, rows: Rows, own: list[str]) -> pd.DataFrame:
    """The rows that `limit` and `pick` ask for; of rows that agree in the columns `own`, the first.

    Raises:
        DataError: no row is left, or an id stands for two texts.
    """
    name = rows.name
    seen, blank = survey(parts(), own, rows.limit if rows.pick == "first" else None)
    first = np.sort(np.unique(seen.whole, return_index=True)[1])
    if not len(first):
        which = f" where {shown(rows.where)}" if rows.where else ""
        raise DataError(f"expected rows with a prompt in {name}{which}, got none that may be used: look into it.")
    if not rows.known.repeats:
        refuse_two_texts(parts, seen, name)
    n, count = len(first), min(rows.limit or len(first), len(first))
    at = first[:count] if rows.pick == "first" else first[(2 * np.arange(count) + 1) * n // (2 * count)]
    found, repeated = take(parts, at), len(seen.whole) - n
    if blank or repeated:
        found.attrs["left_out"] = f"{name}: {repeated} rows that repeat another, {blank} blank or not allowed"
    return found


def survey(parts: Iterator[pd.DataFrame], own: list[str], enough: int | None) -> tuple[Seen, int]:
    """Eight bytes of each row, id and text, and how many rows had no text that may be used.

    It stops once it has seen `enough` rows of their own.
    """
    found, blank = Seen(*(np.empty(0, np.uint64) for _ in range(3))), 0
    for part in parts:
        blank += part.attrs.get("left_out", 0)
        ids = hashes(part[["id"]]) * (part["id"] != "").to_numpy(np.uint64)
        more = Seen(hashes(part[own]), ids, hashes(part[["text"]]))
        found = Seen(*(np.concatenate(pair) for pair in zip(found, more, strict=True)))
        if enough and len(np.unique(found.whole)) >= enough:
            break
    return found, blank


def hashes(part: pd.DataFrame) -> np.ndarray:
    """Sixty-four bits of each row: the same in every process."""
    return pd.util.hash_pandas_object(part.astype(object), index=False).to_numpy(np.uint64)


def refuse_two_texts(parts: Frames, seen: Seen, name: str) -> None:
    """Raise a DataError if an id stands for two texts: then a result cannot say which it is of."""
    order = np.argsort(seen.id, kind="stable")
    ids, text = seen.id[order], seen.text[order]
    wrong = np.flatnonzero((ids[1:] == ids[:-1]) & (text[1:] != text[:-1]) & (ids[1:] != 0))
    if len(wrong):
        which = take(parts, order[wrong[:1]])["id"].iloc[0]
        raise DataError(
            f"expected one text for each id in {name}, got two for {shown(which)}: mend the file, "
            "or write `columns: {id: null}` if the column is no id."
        )


def take(parts: Frames, at: np.ndarray) -> pd.DataFrame:
    """The rows at rising positions; the rest of the file is not read."""
    found, start = [], 0
    for part in parts():
        here = at[(at >= start) & (at < start + len(part))] - start
        found.append(part.iloc[here])
        start += len(part)
        if len(at) and start > at[-1]:
            break
    for part in found:
        part.attrs = {}  # pandas compares what is known of each
    return pd.concat(found, ignore_index=True)


def finished(found: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """The chosen rows with numbers for seeds and guidance, and where they are from."""
    name = rows.name
    seeds = pd.array([seed_of(cell, name) for cell in found["seed"]], dtype="Int64")
    scales = pd.array([guidance_of(cell, name) for cell in found["guidance"]], dtype="Float64")
    labels = [rows.label if rows.label is not None else label.strip() for label in found["label"]]
    source = name if rows.set == "plain" else rows.set
    return found.assign(seed=seeds, guidance=scales, label=labels, source=source)


def seed_of(cell: str, name: str) -> int | None:
    """A seed to the last digit; "12.0" is what a program writes that has seen an empty cell in the column.

    Raises:
        DataError: it is no whole number in [0, 2^63).
    """
    if cell.strip().lower() in NOTHING:
        return None
    try:
        exact = Decimal(cell.strip())
        if exact == exact.to_integral_value() and 0 <= exact < 2**63:
            return int(exact)
    except InvalidOperation:
        pass
    raise DataError(f"expected whole numbers from 0 to 2^63 - 1 as seeds in {name}, got {shown(cell)}: mend the file.")


def guidance_of(cell: str, name: str) -> float | None:
    """A scale of classifier-free guidance; below 1 it means none, which is scale 1, as in diffusers.

    Raises:
        DataError: it is no number from 0 to 1000.
    """
    if cell.strip().lower() in NOTHING:
        return None
    try:
        scale = float(cell)
    except ValueError:
        scale = -1.0
    if not 0 <= scale <= MOST_GUIDANCE:  # NaN neither
        raise DataError(
            f"expected numbers from 0 to {MOST_GUIDANCE} as guidance in {name}, got {shown(cell)}: mend the file."
        )
    return max(scale, 1.0)
