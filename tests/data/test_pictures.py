"""Real images of the user's: looked at when the card is read, cut to the model's size, and part of a key by content."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmark.config import config
from benchmark.data import load_concept, pictures
from benchmark.data.pictures import look, squares
from benchmark.errors import DataError
from benchmark.model.bases import fingerprint
from benchmark.plan import Plan, build
from benchmark.plan.task import Task
from benchmark.runner import stages
from benchmark.runner.executors import local
from benchmark.runner.loop import Outcome, run
from benchmark.runner.stages import Bench
from benchmark.store import Store
from benchmark.store.artifacts import load_images
from tests.runs import CARD, tiny_config

RED, BLUE = (220, 20, 20), (10, 30, 200)


def paint(file: Path, size: tuple[int, int] = (40, 40), colour: Any = RED, mode: str = "RGB", **options: Any) -> Path:
    """An image file of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file, **options)
    return file


def card(folder: Path, **prompts: Any) -> str:
    """A card with these groups in place of the usual ones."""
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump({**CARD, "prompts": {**CARD["prompts"], **prompts}}))
    return str(path)


def read(folder: Path, **group: Any) -> list[tuple[str, str]]:
    """Name and caption of each image of an attacker's group."""
    concept = load_concept(card(folder, attacker=[group]))
    assert {p.text for p in concept.of("attacker")} == {p.caption for p in concept.pictured("attacker")}
    return [(Path(p.path).name, p.caption) for p in concept.pictured("attacker")]


# Captions.


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images in two folders."""
    for name in ("photos/cats/1.png", "photos/cats/2.jpg", "photos/dogs/3.webp"):
        paint(tmp_path / name)
    return tmp_path


def test_one_text_for_all_images(photos: Path) -> None:
    assert read(photos, images="photos", captions="a sks cat") == [
        (f, "a sks cat") for f in ("1.png", "2.jpg", "3.webp")
    ]


def test_a_text_with_the_name_of_the_folder_and_a_choice(photos: Path) -> None:
    given: dict[str, Any] = {"images": "photos", "captions": "one of the {label}", "where": {"label": "cats"}}

    assert read(photos, **given) == [("1.png", "one of the cats"), ("2.jpg", "one of the cats")]
    assert read(photos, **given, limit=1, pick="first") == [("1.png", "one of the cats")]


@pytest.mark.parametrize(
    ("place", "header", "captions"),
    [
        ("photos/metadata.csv", "file_name,prompt", None),  # IMMA's
        ("photos/metadata.csv", "file_name,text", None),  # diffusers'
        ("photos/mine.csv", "file_name,caption", "mine.csv"),
        ("mine.csv", "file_name,caption", "mine.csv"),
    ],
)
def test_captions_of_a_table(photos: Path, place: str, header: str, captions: str | None) -> None:
    (photos / place).write_text(f"{header}\ncats/2.jpg,a big cat\ncats/1.png,a small cat\n")
    given = {"captions": captions} if captions else {}

    assert read(photos, images="photos", **given) == [("2.jpg", "a big cat"), ("1.png", "a small cat")]


def test_captions_of_metadata_jsonl(photos: Path) -> None:
    (photos / "photos" / "metadata.jsonl").write_text(json.dumps({"file_name": "cats/1.png", "text": "a cat!"}))

    assert read(photos, images="photos") == [("1.png", "a cat!")]


# Pixels.


@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_captions_beside_images(photos: Path, ending: str) -> None:
    for name in ("cats/1", "cats/2", "dogs/3"):
        (photos / "photos" / f"{name}{ending}").write_text(f"a picture,\n{name}\n")

    assert read(photos, images="photos") == [
        ("1.png", "a picture, cats/1"),
        ("2.jpg", "a picture, cats/2"),
        ("3.webp", "a picture, dogs/3"),
    ]

    (photos / "photos" / f"dogs/3{ending}").unlink()
    with pytest.raises(DataError, match=r"got none beside .*3\.webp"):
        read(photos, images="photos")


@pytest.mark.parametrize("ending", [".heic", ".HEIF", ".avif"])
def test_images_that_are_not_read_are_told(photos: Path, ending: str) -> None:
    (photos / "photos" / f"9{ending}").write_bytes(b"x")

    with pytest.raises(DataError, match=r"got 1 that are not read, 9\..* among them: convert or remove"):
        read(photos, images="photos", captions="a cat!")


def test_an_image_is_cut_to_the_middle_and_resized(tmp_path: Path) -> None:
    """A red middle between blue edges stays alone; size and order are as asked for."""
    pixels = np.full((30, 90, 3), BLUE, np.uint8)
    pixels[:, 30:60] = RED
    wide = tmp_path / "wide.png"
    Image.fromarray(pixels).save(wide)
    tall = tmp_path / "tall.png"
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tall)
    blue = paint(tmp_path / "b.png", (200, 200), BLUE)

    found = squares(names := [str(p) for p in (wide, tall, blue)], look(names), 16)

    assert (found.shape, found.dtype) == ((3, 16, 16, 3), np.uint8)
    assert (found[0] == RED).all()
    assert (found[1] == RED).all()
    assert (found[2] == BLUE).all()


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("L", 77, (77, 77, 77)),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), (255, 255, 255)),  # nothing is there but the page
        ("P", 0, (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("I;16", 0, (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: Any, seen: tuple[int, int, int]) -> None:
    name = str(paint(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), (20, 20), colour, mode))

    assert (squares([name], look([name]), 8) == seen).all()


def test_sixteen_bits_of_grey_stay_grey(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16)[None].repeat(16, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")

    (found,) = squares([str(tmp_path / "a.png")], look([str(tmp_path / "a.png")]), 16)

    assert found[0, :, 0].tolist() == list(range(0, 256, 17))


def test_a_turned_photo_is_set_upright(tmp_path: Path) -> None:
    pixels = np.full((40, 40, 3), BLUE, np.uint8)
    pixels[:20] = RED  # the top, as the camera was held
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    name = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(name, exif=exif)

    right_half = squares([name], look([name]), 40)[0][:, 25:]

    assert (right_half == RED).all()


# What cannot be used.


def jpeg(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def png(size: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.png", b"", "got an empty file"),
        ("1.png", b"not an image", "got UnidentifiedImageError"),
        ("1.jpg", jpeg(64)[:-300], "got OSError: image file is truncated"),
        ("1.png", png(64)[:-300], "expected an image at"),
    ],
)
def test_a_broken_image_stops_the_plan(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    paint(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / name).write_bytes(content)

    with pytest.raises(DataError) as caught:
        read(tmp_path, images="photos", captions="a cat!")

    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "photos" / "0.png", (40, 40))
    monkeypatch.setattr(pictures, "PIXELS", 100)

    with pytest.raises(DataError, match=r"at most 100 pixels at .*, got 40 x 40: make it smaller"):
        read(tmp_path, images="photos", captions="a cat!")


@pytest.mark.parametrize(
    ("metadata", "group", "message"),
    [
        ("", {"images": "fotos", "captions": "x"}, "expected a folder of images at"),
        ("", {"images": "empty", "captions": "x"}, "or images in"),
        ("", {"images": "photos"}, "expected a column of prompts in photos"),
        ("text\na cat!\n", {"images": "photos"}, "expected the image of each row of"),
        ("file_name,text\n9.png,a cat!\n", {"images": "photos"}, "9.png, got FileNotFoundError"),
        ("file_name,text\n../9.png,a cat!\n", {"images": "photos"}, "expected images inside"),
        ("file_name,text\n/etc/passwd,a cat!\n", {"images": "photos"}, "got '/etc/passwd' in"),
        ("file_name,text\ncats\\..\\..\\9.png,a cat!\n", {"images": "photos"}, "expected images inside"),
        ("", {"images": "photos", "captions": "none.csv"}, "expected a file or folder at"),
        ("", {"images": "photos", "captions": "a {size} cat"}, "unknown column 'size'"),
    ],
)
def test_a_bad_folder_is_one_line(photos: Path, metadata: str, group: Any, message: str) -> None:
    (photos / "empty").mkdir()
    if metadata:
        (photos / "photos" / "metadata.csv").write_text(metadata)

    with pytest.raises(DataError) as caught:
        read(photos, **group)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_judge_sees_is_drawn_and_a_split_is_not_mixed(photos: Path) -> None:
    group = {"images": "photos", "captions": "a cat!"}

    with pytest.raises(DataError, match="got images: the model draws what is judged"):
        load_concept(card(photos, concept=[group]))
    with pytest.raises(DataError, match="expected images or texts for the split 'attacker'"):
        load_concept(card(photos, attacker=[group, {"text": "cat, one"}]))
    with pytest.raises(DataError, match="without common prompts"):
        load_concept(card(photos, attacker=[group], concept=[{"text": "a cat!", "label": "cat"}]))


# In a run.


def planned(folder: Path, model: Path, path: str, **changes: Any) -> Plan:
    raw = config.parse(tiny_config(folder, model, concepts=[path], **changes))
    base = fingerprint(model) if model.is_dir() else "base"
    return build(raw, base, [load_concept(path)])


def folders(plan: Plan) -> list[Task]:
    """The tasks that read images."""
    return [task for task in plan.tasks.values() if task.plugin == "folder"]


def test_the_contents_and_the_captions_are_the_key_and_the_place_is_not(photos: Path) -> None:
    def key(place: str, captions: str = "a cat!") -> str:
        path = card(photos, attacker=[{"images": place, "captions": captions}])
        return next(t.key for t in folders(planned(photos, Path("model"), path)))

    first = key("photos")
    (photos / "photos").rename(photos / "moved")

    assert key("moved") == first
    assert key("moved", "one cat!") != first
    paint(photos / "moved" / "cats" / "1.png", colour=BLUE)
    assert key("moved") != first


def test_a_config_may_take_fewer_images(photos: Path) -> None:
    path = card(photos, attacker=[{"images": "photos", "captions": "a cat!"}])

    (task,) = folders(planned(photos, Path("model"), path, prompts={"attacker": 2}))

    assert len(task.pictures) == 2


class Silent:
    """Events that nobody watches."""

    def started(self, task: Task) -> None: ...

    def step(self, *, step: int, total: int, loss: float) -> None: ...

    def finished(self, task: Task, outcome: str) -> None: ...


def compute(plan: Plan, root: Path, model: Path) -> Outcome:
    return run(plan, Bench(model, Store(root).open()), Silent(), local.execute)


def test_an_attack_is_taught_with_real_images_and_distances_are_to_real_images(photos: Path, tiny_folder: Path) -> None:
    table = "file_name,text\ncats/1.png,a scene\ncats/2.jpg,a room\ndogs/3.webp,a room\n"
    (photos / "photos" / "metadata.csv").write_text(table)
    path = card(photos, safe=[{"images": "photos"}], attacker=[{"images": "photos", "captions": "a sks cat"}])
    changes: dict[str, Any] = {
        "metrics": [{"use": "kid", "embedder": "mini:judge"}],
        "defenses": ["none"],
        "budgets": [1],
    }
    plan = planned(photos, tiny_folder, path, **changes)

    outcome = compute(plan, photos / "store", tiny_folder)

    assert not outcome.failed, outcome.failed
    (attack,) = (task for task in plan.tasks.values() if task.kind == "attack")
    gallery = load_images(photos / "store" / attack.parents["concept"])
    assert gallery.prompts == ("a sks cat",) * 3
    assert abs(gallery.images[0].float().mean((1, 2)) - np.array(RED)).max() < 1
    scored = next(task for task in plan.tasks.values() if task.kind == "score")
    reference = plan.tasks[plan.tasks[scored.parents["reference"]].parents["images"]]
    assert (reference.plugin, len(reference.pictures)) == ("folder", 3)
    assert ", to real images " in scored.fields["identity"]
    assert "pairs" not in scored.fields["identity"] and scored.fields["pairs"] is False
    drawn = plan.tasks[plan.tasks[scored.parents["images"]].parents["images"]]
    assert [p.text for p in drawn.prompts] == ["a scene", "a room"]  # a caption once, an image each


def test_without_real_images_distances_are_to_the_base(tmp_path: Path) -> None:
    metrics = [{"use": "kid", "embedder": "mini:judge"}]
    plan = planned(tmp_path, Path("model"), card(tmp_path), metrics=metrics, attacks=["none"])

    assert not folders(plan)
    assert all("real" not in t.fields["identity"] for t in plan.tasks.values() if t.kind == "score")


def test_an_image_that_changed_since_the_plan_is_refused(photos: Path, tiny_folder: Path) -> None:
    path = card(photos, attacker=[{"images": "photos", "captions": "a cat!"}])
    (task,) = folders(planned(photos, tiny_folder, path))
    bench = Bench(tiny_folder, Store(photos / "store"))
    assert stages.run(task, bench, lambda **_: None)[1]["images"] == 3

    paint(photos / "photos" / "cats" / "1.png", colour=BLUE)

    with pytest.raises(DataError, match="expected the image that was there when the run was planned"):
        stages.run(task, bench, lambda **_: None)
