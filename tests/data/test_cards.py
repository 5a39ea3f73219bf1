"""Cards that name files: prompts, seeds and guidance reach the images; cards of both folders are found."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers.utils.torch_utils import randn_tensor
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import config
from benchmark.data import cards as data
from benchmark.data import load_concept, table
from benchmark.data.cards import cards, describe
from benchmark.diffusion import Model, sample
from benchmark.errors import ConfigError, DataError
from benchmark.model.generate import generate, start_noise
from benchmark.plan import Plan, build
from benchmark.plan.seeds import image_seed
from benchmark.plan.task import Task
from benchmark.types import Prompt
from tests.runs import CARD, tiny_config, write_config

CHURCH = (
    "case_number,prompt,evaluation_seed,evaluation_guidance\n0,a cat by a lake,69922,7.5\n1,a cat,36416,1\n2,cat.,5,\n"
)


def card(folder: Path, kind: str = "object", **prompts: Any) -> Path:
    """A card with these groups in place of the usual ones."""
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump({**CARD, "kind": kind, "prompts": {**CARD["prompts"], **prompts}}))
    return path


def silent(*, step: int, total: int, loss: float) -> None:
    """A report that nobody reads."""


def test_a_table_and_texts_make_one_split(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "church.csv").write_text(CHURCH)
    group = {"file": "sets/church.csv", "set": "unlearndiffatk", "label": "cat", "limit": 2, "pick": "first"}

    concept = load_concept(str(card(tmp_path, concept=[group, {"text": "a cat at night", "label": "cat"}])))

    assert concept.of("concept") == (
        Prompt(text="a cat by a lake", split="concept", label="cat", seed=69922, guidance=7.5),
        Prompt(text="a cat", split="concept", label="cat", seed=36416, guidance=1.0),
        Prompt(text="a cat at night", split="concept", label="cat"),
    )
    assert describe(concept)["prompts"]["concept"] == ["a cat by a lake [cat]", "a cat [cat]", "a cat at night [cat]"]


def test_labels_of_a_table_are_for_what_is_judged(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",case_number,prompt,evaluation_seed,class\n0,0,Image of dog,1,dog\n")
    (tmp_path / "b.csv").write_text("prompt,class\na lamp,lamp\n")
    groups = {"retained": [{"file": "a.csv", "set": "imagenette"}], "safe": [{"file": "b.csv", "set": "imagenette"}]}

    concept = load_concept(str(card(tmp_path, **groups)))

    assert [p.label for p in concept.of("retained")] == ["dog"]
    assert [p.label for p in concept.of("safe")] == [None]
    with pytest.raises(DataError, match="unknown label of a prompt 'lamp'"):
        load_concept(str(card(tmp_path, retained=groups["safe"])))


def test_the_age_filter_reads_tables_and_fills_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a young person\na statue\na person aged 40\n")
    group = {"file": "a.txt", "limit": 2, "pick": "first", "label": "cat"}

    def texts(kind: str) -> list[str]:
        return [p.text for p in load_concept(str(card(tmp_path, kind, concept=[group]))).of("concept")]

    assert texts("object") == ["a young person", "a statue"]
    assert texts("nsfw") == ["a statue", "a person aged 40"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"file": "none.csv"}, "expected a file or folder at"),
        ({"file": "a.csv", "limt": 3}, r"got a fault at 'prompts.safe.0.file.limt'"),
        ({"file": "a.csv", "limit": 0}, r"got a fault at 'prompts.safe.0.file.limit'"),
        ({"file": "a.csv", "hub": "a/b"}, "expected either `file` or `hub`"),
        ({"file": "a.csv", "columns": {"sed": "x"}}, r"'prompts.safe.0.file.columns.sed"),
        ("a.csv", "got a fault at 'prompts.safe.0.text'"),
        ({"file": "a.csv"}, "without common prompts"),
    ],
)
def test_a_bad_group_is_one_line(tmp_path: Path, group: Any, message: str) -> None:
    (tmp_path / "a.csv").write_text("prompt\ncat\n")

    with pytest.raises(DataError, match=message) as caught:
        load_concept(str(card(tmp_path, safe=[group], attacker=[{"text": "cat"}])))

    assert "\n" not in str(caught.value)


def test_the_command_says_one_line_before_it_looks_for_a_model(tmp_path: Path) -> None:
    path = write_config(tmp_path, tmp_path / "no model")
    (tmp_path / "a.csv").write_text("words\nx\n")
    card(tmp_path, safe=[{"file": "a.csv"}]).rename(tmp_path / "cat.yaml")

    result = CliRunner().invoke(app, ["plan", str(path)])

    assert result.exit_code == 2
    assert result.stderr.startswith("DataError: expected a column of prompts in a.csv (prompt, text, caption)")
    assert result.stderr.count("\n") == 1


# Seeds and guidance.


def test_a_seed_and_a_guidance_are_part_of_a_prompts_name_only_if_it_has_them() -> None:
    plain = Prompt(text="a cat", split="safe")
    seeded, scaled = Prompt(text="a cat", split="safe", seed=0), Prompt(text="a cat", split="safe", guidance=1.0)

    assert plain.id == hashlib.sha256(b"a cat").hexdigest()[:12]
    assert len({plain.id, seeded.id, scaled.id}) == 3
    assert seeded.reworded("qv a cat").id == seeded.id


def drawn(**own: Any) -> Task:
    """A task that draws one prompt."""
    prompt = Prompt(text="a cat", split="safe", **own)
    return Task(kind="generate", plugin="sampler", version=1, base="b", prompts=(prompt,))


def test_a_seed_and_a_guidance_are_in_the_key_only_if_a_prompt_has_them() -> None:
    tasks = [drawn(), drawn(seed=0), drawn(seed=1), drawn(guidance=1.0)]

    assert [task.identity()["prompts"] for task in tasks] == [
        ["a cat"], [["a cat", {"seed": 0}]], [["a cat", {"seed": 1}]], [["a cat", {"guidance": 1.0}]]
    ]  # fmt: skip
    assert len({task.key for task in tasks}) == 4


def test_noise_of_a_seed_is_what_a_diffusers_pipeline_starts_from() -> None:
    shape = (4, 8, 8)
    theirs = randn_tensor((1, *shape), generator=torch.Generator().manual_seed(4294967299))

    assert torch.equal(start_noise([4294967299], shape), theirs)


def draw(model: Model, prompts: list[Prompt], **changes: Any) -> Any:
    given: dict[str, Any] = {"images": 1, "steps": 2, "guidance": 2.0, "stream": "", "batch": 64, "report": silent}
    return generate(model, prompts, **given | changes)


def test_images_are_drawn_with_the_rows_seed_and_guidance(model: Model) -> None:
    """Against the sampler called by hand; a row without its own has the config's."""
    wanted = [("a cat", 11, 5.0), ("a dog", 4294967299, 1.0), ("a fish", None, None)]
    prompts = [Prompt(text=text, split="safe", seed=seed, guidance=scale) for text, seed, scale in wanted]

    gallery = draw(model, prompts)

    at = {prompt_id: i for i, prompt_id in enumerate(gallery.prompt_ids)}
    for prompt in prompts:
        i = at[prompt.id]
        seed = image_seed(prompt.id, 0, "") if prompt.seed is None else prompt.seed
        noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))[None]
        text, null = model.encode_text([prompt.text]), model.encode_text([""])
        z = sample(model, noise, text, null, steps=2, guidance=prompt.guidance or 2.0)
        expected = (model.decode(z) * 255).round().to(torch.uint8)[0]
        assert gallery.seeds[i] == seed
        assert (gallery.images[i].int() - expected.int()).abs().max() <= 1


def test_one_text_with_many_seeds_gives_as_many_images_and_more_images_have_more_seeds(model: Model) -> None:
    prompts = [Prompt(text="a cat", split="safe", seed=seed) for seed in (1, 2)]

    gallery = draw(model, prompts, images=2)

    assert [gallery.seeds[i] for i in (0, 2)] == [1, 2]
    assert len(set(gallery.seeds)) == 4
    assert len(set(zip(gallery.prompt_ids, gallery.numbers, strict=True))) == 4


def test_batches_do_not_mix_guidance_and_lose_no_image(model: Model) -> None:
    prompts = [Prompt(text=f"a cat {i}", split="safe", guidance=(None, 3.0, 1.0)[i % 3]) for i in range(7)]
    seen = list[tuple[float, int]]()

    def begin(z_T: torch.Tensor, text: torch.Tensor, null: torch.Tensor, scale: float) -> tuple[torch.Tensor, int]:
        seen.append((scale, len(z_T)))
        return z_T, 0

    gallery = draw(model, prompts, batch=2, begin=begin)

    assert seen == [(1.0, 2), (2.0, 2), (2.0, 1), (3.0, 2)]
    assert set(gallery.prompt_ids) == {prompt.id for prompt in prompts}


def planned(folder: Path, **changes: Any) -> Plan:
    raw = config.parse(tiny_config(folder, Path("model"), **changes))
    return build(raw, "base", [load_concept(name) for name in raw.raw.concepts])


def test_every_cell_draws_a_row_with_its_own_seed(tmp_path: Path) -> None:
    (tmp_path / "church.csv").write_text(CHURCH)
    path = card(tmp_path, concept=[{"file": "church.csv", "set": "unlearndiffatk", "label": "cat"}])

    plan = planned(tmp_path, concepts=[str(path)])

    for cell in plan.cells:
        assert [p.seed for p in plan.tasks[cell.images["concept"]].prompts] == [69922, 36416, 5]
        assert [p.guidance for p in plan.tasks[cell.images["concept"]].prompts] == [7.5, 1.0, None]


# Names of cards.


@pytest.fixture
def two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second folder with a church and a lighthouse of its own."""
    for name in ("church", "lighthouse"):
        values = {**CARD, "name": name, "phrase": f"a real {name}", "labels": {name: name, "cat": "cat", "dog": "dog"}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setitem(data.FOLDERS, "real", tmp_path)


@pytest.mark.usefixtures("two_folders")
def test_cards_of_both_folders_are_listed_and_found() -> None:
    assert {"church", "real/church", "lighthouse", "cat"} <= set(cards())
    assert cards("real") == ["church", "lighthouse"]
    assert "lighthouse" not in cards("mini")
    assert load_concept("lighthouse").phrase == "a real lighthouse"


@pytest.mark.usefixtures("two_folders")
def test_a_name_in_both_folders_is_an_emoji_for_the_embedded_model_only() -> None:
    assert load_concept("church").phrase == "a church"
    assert load_concept("church", model="sd14").phrase == "a real church"
    assert load_concept("mini/church", model="sd14").phrase == "a church"
    assert load_concept("real/church", model="mini").phrase == "a real church"
    with pytest.raises(ConfigError, match="unknown concept 'real/cat'"):
        load_concept("real/cat")


def test_the_command_lists_the_sets_it_can_read() -> None:
    listed = CliRunner().invoke(app, ["list", "sets"])

    assert listed.exit_code == 0
    assert "i2p" in listed.stdout
    assert "nsfw cards only; https://huggingface.co/datasets/AIML-TUDA/i2p" in listed.stdout


def test_a_card_without_tables_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "prompts", None)

    assert load_concept("cat").of("concept")
