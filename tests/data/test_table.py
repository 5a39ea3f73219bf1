"""Every published set is read by its own column names; a table that cannot be used is one line.

The headers are those of the published files. The rows are invented and harmless.
"""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from benchmark.data import read, table
from benchmark.data.sets import SETS, Listed
from benchmark.errors import DataError

I2P = (
    "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,"
    "prompt_toxicity,lexica_url,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
)
I2P_ROWS = (
    '"a marble statue, baroque","sexual, shocking",1,80.0,60.0,10.0,5.0,0.1,u,4294967299,7,512,512,SD\n'
    '"a red door","violence",0,20.0,0.0,10.0,5.0,0.1,u,12,0,512,512,SD\n'
    '"two chairs","sexual",0,20.0,50.0,10.0,5.0,0.1,u,13,11.5,512,512,SD\n'
)


def rows(tmp_path: Path, name: str, content: str, kind: str = "nsfw", **given: Any) -> pd.DataFrame:
    """The canonical table of a file with this text."""
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return table.prompts(Listed(file=Path(name), **given), tmp_path, kind, lambda _: True)


def column(found: pd.DataFrame, name: str) -> list[Any]:
    """Python's values, None for a missing number."""
    return [None if value is pd.NA else value for value in found[name].tolist()]


def test_i2p_keeps_seeds_beyond_32_bits_and_reads_guidance_0_as_none(tmp_path: Path) -> None:
    found = rows(tmp_path, "i2p_benchmark.csv", I2P + I2P_ROWS, set="i2p")

    assert list(found.columns) == ["text", "id", "seed", "guidance", "label", "file", "source"]
    assert column(found, "text") == ["a marble statue, baroque", "a red door", "two chairs"]
    assert column(found, "seed") == [4294967299, 12, 13]
    assert column(found, "guidance") == [7.0, 1.0, 11.5]
    assert set(found["source"]) == {"i2p"}


@pytest.mark.parametrize(
    ("where", "texts"),
    [
        ({"categories": "sexual"}, ["a marble statue, baroque", "two chairs"]),
        ({"categories": "shocking"}, ["a marble statue, baroque"]),  # after ", ": a split without strip misses it
        ({"nudity_percentage": ">50"}, ["a marble statue, baroque"]),
        ({"nudity_percentage": ">=50"}, ["a marble statue, baroque", "two chairs"]),
        ({"nudity_percentage": "< 50", "hard": 0}, ["a red door"]),
        ({"hard": 1}, ["a marble statue, baroque"]),
        ({"categories": ["violence", "shocking"]}, ["a marble statue, baroque", "a red door"]),
        ({"categories": "!=sexual"}, ["a red door"]),
        ({"seed": 13}, ["two chairs"]),  # our name for sd_seed
    ],
)
def test_where_takes_the_rows_that_meet_every_condition(
    tmp_path: Path, where: dict[str, Any], texts: list[str]
) -> None:
    assert column(rows(tmp_path, "i2p.csv", I2P + I2P_ROWS, set="i2p", where=where), "text") == texts


def test_the_copy_of_i2p_with_evaluation_columns(tmp_path: Path) -> None:
    header = ",prompt,categories,nudity_percentage,evaluation_seed,evaluation_guidance,case_number\n"

    found = rows(tmp_path, "unsafe-prompts4703.csv", f'{header}0,a door,"sexual",51.0,7,7.5,90\n', set="i2p")

    assert (column(found, "id"), column(found, "seed"), column(found, "guidance")) == (["90"], [7], [7.5])


def test_unlearndiffatk(tmp_path: Path) -> None:
    text = (
        "case_number,prompt,evaluation_seed,evaluation_guidance\n0,A church by a lake.,69922,7.5\n1,A church.,36416,7\n"
    )

    found = rows(tmp_path, "church.csv", text, "object", set="unlearndiffatk")

    assert (column(found, "seed"), column(found, "guidance")) == ([69922, 36416], [7.5, 7.0])


def test_ring_a_bell_as_a_table_and_as_lines(tmp_path: Path) -> None:
    violence = rows(tmp_path, "v.csv", "prompt,case_number,evaluation_seed\na door,3,11\n", set="ring_a_bell")
    lines = rows(tmp_path, "n.txt", "a door, red\n\n a chair \n", set="ring_a_bell")

    assert (column(violence, "id"), column(violence, "seed"), column(violence, "guidance")) == (["3"], [11], [None])
    assert column(lines, "text") == ["a door, red", "a chair"]


def test_p4d_has_the_columns_of_i2p(tmp_path: Path) -> None:
    assert column(rows(tmp_path, "p4d.csv", I2P + I2P_ROWS, set="p4d", limit=1, pick="first"), "seed") == [4294967299]


def test_mma_reads_the_adversarial_column_and_its_clean_twin_on_request(tmp_path: Path) -> None:
    text = "target_prompt,adv_prompt,clean_prompt\na target,qv door zx,a door\n"

    assert column(rows(tmp_path, "mma.csv", text, set="mma"), "text") == ["qv door zx"]
    assert column(rows(tmp_path, "mma.csv", text, set="mma", columns={"text": "clean_prompt"}), "text") == ["a door"]


def test_six_cd_general_and_specific(tmp_path: Path) -> None:
    general = rows(tmp_path, "Nudity.csv", "case_number,evaluation_seed,prompt\n5,6,a door\n", set="six_cd")
    names = "id,concept\n0,Vase\n1,Garden_Gnome\n"
    specific = rows(tmp_path, "c.csv", names, "object", set="six_cd", text="a photo of {concept}")

    assert (column(general, "seed"), column(general, "text")) == ([6], ["a door"])
    assert column(specific, "text") == ["a photo of Vase", "a photo of Garden Gnome"]
    assert column(specific, "label") == ["Vase", "Garden_Gnome"]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (",image_id,source,prompt,evaluation_seed", "0,7,coco_30k,a dog runs,99"),
        ("image_id,source,prompt,evaluation_seed", "7,coco_30k,a dog runs,99"),
        ("coco_id,image_id,case_number,source,prompt,evaluation_seed", "7,7,0,coco_30k,a dog runs,99"),
        ("case_number,prompt,evaluation_seed", "0,a dog runs,99"),
        ("image_id,text", "7,a dog runs"),
    ],
)
def test_coco(tmp_path: Path, header: str, row: str) -> None:
    found = rows(tmp_path, "coco_30k.csv", f"{header}\n{row}\n", "object", set="coco")

    assert column(found, "text") == ["a dog runs"]
    assert column(found, "seed") == [99 if "seed" in header else None]


def test_cocos_own_file_has_several_captions_of_an_image(tmp_path: Path) -> None:
    captions = [{"image_id": 1, "id": 10, "caption": "a dog"}, {"image_id": 1, "id": 11, "caption": "a brown dog"}]
    text = json.dumps({"images": [{"id": 1}], "annotations": captions})

    found = rows(tmp_path, "captions_val2014.json", text, "object", set="coco")

    assert (column(found, "text"), column(found, "id")) == (["a dog", "a brown dog"], ["10", "11"])


def test_imagenette_repeats_a_text_with_other_seeds(tmp_path: Path) -> None:
    text = ",case_number,prompt,evaluation_seed,class\n0,0,Image of church,1,church\n1,1,Image of church,2,church\n"

    found = rows(tmp_path, "imagenette.csv", text, "object", set="imagenette")

    assert (column(found, "seed"), column(found, "label")) == ([1, 2], ["church", "church"])


def test_artists(tmp_path: Path) -> None:
    mace = rows(
        tmp_path, "art.csv", "type,artist,prompt,evaluation_seed\nerase,A B,A vase by A B,3\n", "style", set="artists"
    )
    esd = rows(tmp_path, "big.csv", "case_number,prompt,evaluation_seed,artist\n0,Vase by C D,4,C D\n", set="artists")

    assert (column(mace, "label"), column(esd, "label")) == (["A B"], ["C D"])


def test_unlearncanvas_folders_say_style_and_object(tmp_path: Path) -> None:
    for place in ("Van_Gogh/Cats/1.jpg", "Crayon/Dogs/1.jpg"):
        file = tmp_path / "canvas" / place
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")

    spec = Listed(file=Path("canvas"), set="unlearncanvas", where={"object": "Cats"})
    found = table.prompts(spec, tmp_path, "style", lambda _: True)

    assert column(found, "text") == ["A Cats image in Van Gogh style."]
    assert column(found, "label") == ["Van_Gogh"]


def test_a_parquet_shard_is_read_without_its_images(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"x", "path": "p"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    shard = pa.table({"image": image, "style": ["Crayon"], "object": ["Dogs"], "seed": pa.array([2**53 + 1])})
    pq.write_table(shard, tmp_path / "s.parquet")

    found = table.prompts(Listed(file=Path("s.parquet"), set="unlearncanvas"), tmp_path, "style", lambda _: True)

    assert (column(found, "text"), column(found, "seed")) == (["A Dogs image in Crayon style."], [2**53 + 1])


FORMS = {
    "t.csv": "prompt,seed\na door,1\na chair,\n",
    "bom.csv": "\ufeffprompt,seed\na door,1\na chair,\n",
    "floats.csv": "Prompt , Seed\na door,1.0\na chair,nan\n",
    "t.tsv": "prompt\tseed\na door\t1\na chair\t\n",
    "t.json": json.dumps([{"prompt": "a door", "seed": 1}, {"prompt": "a chair"}]),
    "columns.json": json.dumps({"prompt": ["a door", "a chair"], "seed": [1, None]}),
    "t.jsonl": '{"prompt": "a door", "seed": 1}\n\n{"prompt": "a chair"}\n',
    "folder/metadata.csv": "file_name,prompt,seed\n1.png,a door,1\n2.png,a chair,\n",
    "lines/metadata.jsonl": '{"file_name": "1", "text": "a door", "seed": 1}\n{"file_name": "2", "text": "a chair"}\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    found = rows(tmp_path, name, FORMS[name], "object")

    assert (column(found, "text"), column(found, "seed")) == (["a door", "a chair"], [1, None])
    if "/" in name:
        in_folder = table.prompts(Listed(file=Path(name).parent), tmp_path, "object", lambda _: True)
        assert column(in_folder, "text") == ["a door", "a chair"]


def test_words_that_look_like_nothing_are_prompts(tmp_path: Path) -> None:
    assert column(rows(tmp_path, "a.csv", "prompt\nNA\nnull\nNone\n"), "text") == ["NA", "null", "None"]


def test_rows_that_say_the_same_are_one_and_a_blank_one_is_none(tmp_path: Path) -> None:
    text = "prompt,seed\na,1\n b ,2\na,1\n,3\na,2\n"

    assert column(rows(tmp_path, "a.csv", text), "text") == ["a", "b", "a"]
    assert column(rows(tmp_path, "a.csv", text, columns={"seed": None}), "text") == ["a", "b"]


def test_rows_that_are_left_out_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\none\n\n  \none\ntwo\none\nbad\n")

    found = table.prompts(Listed(file=Path("a.csv")), tmp_path, "object", lambda text: text != "bad")

    assert column(found, "text") == ["one", "two"]
    assert found.attrs["left_out"].startswith("a.csv: 2 rows that repeat another, ")


def test_the_filter_does_not_eat_into_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("bad 1\ngood 1\nbad 2\ngood 2\ngood 3\n")

    found = table.prompts(
        Listed(file=Path("a.txt"), limit=2, pick="first"), tmp_path, "object", lambda text: "bad" not in text
    )

    assert column(found, "text") == ["good 1", "good 2"]


# A file with a hundred thousand rows.


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("large") / "large.csv"
    with file.open("w") as handle:
        handle.write("case_number,prompt,evaluation_seed\n")
        handle.writelines(f"{i},a photo of thing number {i} on a table in a room,{i * 7}\n" for i in range(100_000))
    return file


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each chunk that was read, how many rows of chunks were in memory then."""
    counts, refs = list[int](), list[weakref.ref[pd.DataFrame]]()

    def chunks(*args: Any) -> Iterator[pd.DataFrame]:
        for part in read.chunks(*args):
            refs.append(weakref.ref(part))
            counts.append(sum(len(frame) for ref in refs if (frame := ref()) is not None))
            yield part

    monkeypatch.setattr(table, "chunks", chunks)
    return counts


def test_the_first_rows_of_a_large_file_cost_one_chunk(large: Path, alive: list[int]) -> None:
    found = table.prompts(Listed(file=large, limit=5, pick="first"), large.parent, "object", lambda _: True)

    assert column(found, "seed") == [0, 7, 14, 21, 28]
    assert alive == [read.CHUNK] * 2  # once to see, once to take


def test_evenly_spaced_rows_of_a_large_file_cost_two_chunks_of_memory(large: Path, alive: list[int]) -> None:
    found = table.prompts(Listed(file=large, limit=4), large.parent, "object", lambda _: True)

    assert column(found, "id") == ["12500", "37500", "62500", "87500"]
    assert len(alive) == 2 * 100_000 // read.CHUNK
    assert max(alive) <= 2 * read.CHUNK


@pytest.mark.slow
def test_a_million_rows_stream(tmp_path: Path, alive: list[int]) -> None:
    file = tmp_path / "m.jsonl"
    with file.open("w") as handle:
        handle.writelines(f'{{"prompt": "thing {i}", "seed": {i}}}\n' for i in range(1_000_000))

    found = table.prompts(Listed(file=file, limit=1000), tmp_path, "object", lambda _: True)

    assert (len(found), column(found, "seed")[-1]) == (1000, 999_500)
    assert max(alive) <= 2 * read.CHUNK


# What cannot be used.


def broken(tmp_path: Path, name: str, content: str | bytes, kind: str = "object", **given: Any) -> str:
    """The line about a table that cannot be used."""
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        table.prompts(Listed(file=Path(name), **given), tmp_path, kind, lambda _: True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "given", "message"),
    [
        (
            "a.csv",
            "words,seed\nx,1\n",
            {},
            "expected a column of prompts in a.csv (prompt, text, caption), got the col",
        ),
        ("a.csv", "prompt\nx\n", {"columns": {"seed": "sed"}}, "unknown column 'sed'"),
        ("a.csv", "prompt,kind\nx,1\n", {"where": {"kin": 1}}, "unknown column 'kin': did you mean 'kind'"),
        ("a.csv", "prompt,kind\nx,1\n", {"where": {"kind": 2}}, "got none that may be used"),
        ("a.csv", "name\nx\n", {"text": "a {nam}"}, "unknown column 'nam': did you mean 'name'"),
        ("a.csv", "name\nx\n", {"text": "a {"}, "expected a text with {column} in it"),
        ("a.csv", "", {}, "got an empty file"),
        ("a.csv", "prompt\n", {}, "expected rows with a prompt"),
        ("a.csv", b"prompt\ncaf\xe9\n", {}, "expected UTF-8 in"),
        ("a.jsonl", b'{"prompt": "caf\xe9"}\n', {}, "got the byte 0xe9: save it as UTF-8"),
        ("a.csv", "prompt,seed\nx,1\ny,2,3,4\n", {}, "mend the file"),
        ("a.csv", "prompt,seed\nx,1,9\ny,2,9\n", {}, "mend the file"),  # pandas would drop the third cell
        ("a.json", "[1, 2]", {}, "expected an object for each row, got int"),
        ("a.json", '{"prompt": "x"', {}, "JSONDecodeError"),
        ("a.jsonl", '{"prompt": "x"\n', {}, "JSONDecodeError"),
        ("a.parquet", "x", {}, "ArrowInvalid"),
        ("a.csv", "prompt,seed\nx,1.5\n", {}, "expected whole numbers from 0 to 2^63 - 1 as seeds in a.csv, got '1.5'"),
        ("a.csv", "prompt,seed\nx,-1\n", {}, "got '-1'"),
        ("a.csv", f"prompt,seed\nx,{2**63}\n", {}, f"got '{2**63}'"),
        ("a.csv", "prompt,guidance\nx,high\n", {}, "expected numbers from 0 to 1000 as guidance in a.csv, got 'high'"),
        ("a.csv", "prompt,id\nx,1\ny,2\nz,1\n", {}, "expected one text for each id in a.csv, got two for '1'"),
        ("a.xlsx", "x", {}, "expected a folder or a file that ends in .csv"),
        ("a.csv", "prompt\nx\n", {"set": "i2q"}, "unknown prompt set 'i2q': did you mean 'i2p'"),
    ],
)
def test_a_fault_is_one_line(tmp_path: Path, name: str, content: str | bytes, given: Any, message: str) -> None:
    assert message in broken(tmp_path, name, content, **given)


def test_an_id_may_repeat_with_its_text_or_if_it_is_declared_none(tmp_path: Path) -> None:
    assert len(rows(tmp_path, "a.csv", "prompt,id,seed\nx,1,1\nx,1,2\n")) == 2
    assert len(rows(tmp_path, "b.csv", "prompt,id\nx,1\ny,1\n", columns={"id": None})) == 2


def test_a_place_without_a_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("none.csv", "expected a file or folder at"), ("empty", "expected metadata.csv")):
        with pytest.raises(DataError, match=message):
            table.prompts(Listed(file=Path(name)), tmp_path, "object", lambda _: True)
    for given in ({}, {"file": "a.csv", "hub": "a/b"}):
        with pytest.raises(ValidationError, match="either `file` or `hub`"):
            Listed.model_validate(given)


@pytest.mark.parametrize("name", [name for name, known in SETS.items() if "" in known.unsafe])
def test_an_unsafe_set_needs_a_card_with_the_age_filter(tmp_path: Path, name: str) -> None:
    assert "expected `kind: nsfw`" in broken(tmp_path, "x.csv", "prompt\na door\n", set=name)


@pytest.mark.parametrize(
    ("file", "given", "header"),
    [
        ("nudity.csv", {"set": "unlearndiffatk"}, "prompt"),
        ("Harm.csv", {"set": "six_cd"}, "prompt"),
        ("mine.csv", {}, "prompt,nudity_percentage"),  # whatever the card calls it
    ],
)
def test_so_does_an_unsafe_file(tmp_path: Path, file: str, given: Any, header: str) -> None:
    text = f"{header}\n{','.join(['a door'] * len(header.split(',')))}\n"

    assert "expected `kind: nsfw`" in broken(tmp_path, file, text, **given)
    assert len(rows(tmp_path, file, text, "nsfw", **given)) == 1


# The hub.


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any, kind: str = "object", **given: Any) -> pd.DataFrame:
    """What a card reads of a hub that gives this answer."""
    asked = list[dict[str, Any]]()

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append({"args": args, **options})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    try:
        return table.prompts(Listed(hub="some/set", **given), Path(), kind, lambda _: True)
    finally:
        assert all(call["token"] is False for call in asked)  # nobody's stored access is used


def test_a_hub_id_is_read_with_class_names_and_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["tench", "dog"]),
        }
    )
    shard = datasets.Dataset.from_dict(
        {"image": [None, None], "text": ["a dog", "a tench"], "label": [1, 0]}, features=features
    )

    found = hub(monkeypatch, shard, set="imagenette", revision="abc")

    assert (column(found, "text"), column(found, "label")) == (["a dog", "a tench"], ["dog", "tench"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'some/set' is a gated dataset on the Hub."),
            "got the gated 'some/set': ask for access at https://huggingface.co/datasets/some/set, download it and",
        ),
        (ConnectionError("no route"), "check the name and the network, or download it and write `file:`"),
        (
            RuntimeError("Dataset scripts are no longer supported, but found x.py"),
            "try `revision: refs/convert/parquet`",
        ),
    ],
)
def test_a_hub_id_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        hub(monkeypatch, error)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unsafe_set_is_read_from_the_users_own_file_only(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = datasets.Dataset.from_dict({"prompt": ["a door"], "sd_seed": [1]})

    with pytest.raises(DataError, match=r"your own file .* get it at https://huggingface.co/datasets/AIML-TUDA/i2p"):
        hub(monkeypatch, shard, "nsfw", set="i2p")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'titer\[hub\]'"):
        list(read.on_hub(Listed(hub="a/b")))
