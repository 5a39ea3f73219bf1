"""Sources on the hub: what is fetched of a page, and under which address it is noted. The hub is a folder here."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub
from safetensors.torch import load_file

from benchmark.diffusion import Model
from benchmark.errors import DataError
from benchmark.imports.look import look
from benchmark.imports.sources import find
from tests import checkpoints as c
from tests import releases

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Page:
    """`snapshot_download` of one page, into a cache, as its patterns ask."""

    def __init__(self, page: Path, cache: Path) -> None:
        self.page, self.cache = page, cache / "snapshots" / COMMIT

    def __call__(self, place: str, **options: Any) -> str:
        if place != "some/page":
            raise hub.LocalEntryNotFoundError("offline")
        self.cache.mkdir(parents=True, exist_ok=True)
        for file in self.page.rglob("*"):
            name = str(file.relative_to(self.page))
            wanted = any(fnmatch(name, pattern) for pattern in options["allow_patterns"])
            if file.is_file() and wanted and not any(fnmatch(name, p) for p in options["ignore_patterns"] or ()):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.cache / name)
        return str(self.cache)

    @property
    def fetched(self) -> set[str]:
        return {str(file.relative_to(self.cache)) for file in self.cache.rglob("*") if file.is_file()}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    found = Page(tmp_path / "page", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    return found


def test_a_file_of_a_page(loaded: Model, page: Page, tiny_folder: Path) -> None:
    releases.full(loaded, page.page / "weights" / "nudity_ep2.pt", tiny_folder)
    releases.full(loaded, page.page / "weights" / "other.pt", tiny_folder)

    source = find("some/page/weights/nudity_ep2.pt@main")
    found = look(source, loaded)

    assert source.address == f"some/page/weights/nudity_ep2.pt@{COMMIT}"
    assert page.fetched == {"weights/nudity_ep2.pt"}
    assert found.components == ["unet"] and list(source.hashes) == ["nudity_ep2.pt"]


def test_a_part_in_a_subfolder_of_a_page(loaded: Model, page: Page, tiny_folder: Path) -> None:
    releases.text_folder(loaded, page.page / "vangogh_unlearned", tiny_folder)
    releases.text_folder(loaded, page.page / "church_unlearned", tiny_folder)

    source = find("some/page/vangogh_unlearned")

    assert source.address == f"some/page/vangogh_unlearned@{COMMIT}"
    assert page.fetched == {"vangogh_unlearned/config.json", "vangogh_unlearned/model.safetensors"}
    assert look(source, loaded).components == ["text_encoder"]


@pytest.mark.parametrize("files", ["safetensors", "fp16", "bin"])
def test_a_pipelines_page_with_what_it_has(loaded: Model, page: Page, tiny_folder: Path, files: str) -> None:
    """Plain safetensors before a variant's, those before pickles; nothing is fetched twice."""
    releases.pipeline(loaded, page.page, tiny_folder)
    unet = page.page / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(unet, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    if files != "safetensors":
        for file in page.page.rglob("*model.safetensors"):
            tensors = {name: value.clone() for name, value in load_file(file).items()}
            file.unlink()
            c.saved(tensors, file.with_suffix(".fp16.safetensors" if files == "fp16" else ".bin"))
    if files == "bin":
        unet.with_suffix(".fp16.safetensors").unlink()

    found = look(find("some/page"), loaded)

    assert set(found.dense) == {f"unet.{n}" for n in c.only(c.weights(loaded))}
    assert len([name for name in page.fetched if name.startswith("unet/diff")]) == 1
    assert set(found.components) == {"unet", "vae", "text_encoder"}


def test_a_page_that_does_not_say_which_file_is_the_model(page: Page) -> None:
    for name in ("a.pt", "b.pt"):
        page.page.mkdir(exist_ok=True)
        (page.page / name).touch()

    with pytest.raises(DataError, match="got no settings of any: name a file"):
        find("some/page")
    with pytest.raises(DataError, match=r"expected the file c.pt in some/page, got none"):
        find("some/page/c.pt")
    with pytest.raises(DataError, match="in the cache or a connection to the hub, got neither"):
        find("other/page/c.pt")
