"""Judges answer as the libraries they come from do; who judges is in the score's key, where the weights lie is not."""

import io
import json
import re
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import transformers
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights, get_model_weights, squeezenet1_1
from torchvision.transforms.v2.functional import to_pil_image
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import config
from benchmark.data import load_concept
from benchmark.errors import ConfigError, DataError
from benchmark.mini import WEIGHTS
from benchmark.model import places, towers
from benchmark.model.places import digest, place_identity
from benchmark.model.towers import load_tower, tower_identity
from benchmark.plan import Plan, build
from benchmark.types import ELSE, Concept, Prompt
from metrics import judges
from metrics.binary import Q16, prompts
from metrics.classifiers import matching, torchvision_network
from metrics.embedders import check_embedder
from metrics.judge import Judge, Seen, one_label, rates
from metrics.judges import find
from metrics.presence import Presence
from tests.runs import CARD, tiny_config, write_config

pytestmark = pytest.mark.filterwarnings("ignore")
CLIP_SCORE = {"use": "clip_score", "model": "mini:judge"}  # a config without one is warned

IMAGENETTE = {
    "tench": 0,
    "English springer": 217,
    "cassette player": 482,
    "chain saw": 491,
    "church": 497,
    "French horn": 566,
    "garbage truck": 569,
    "gas pump": 571,
    "golf ball": 574,
    "parachute": 701,
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Eight-bit pictures, as the store holds them; two of a side, two wide."""
    return torch.randint(0, 256, (4, 3, 72, 96), generator=torch.Generator().manual_seed(0)).float() / 255


def card(**changes: Any) -> Concept:
    labels = {"church": "a church", "tench": "a tench", ELSE: ELSE}
    prompts = (Prompt(text="a church", split="concept", label="church"),)
    return Concept(
        **{"name": "church", "phrase": "church", "kind": "object", "prompts": prompts, "labels": labels} | changes
    )


def asked(*labels: str) -> list[Prompt]:
    return [Prompt(text=label, split="concept", label=label) for label in labels]


@pytest.fixture
def squeeze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a judge: a random SqueezeNet in torch's cache, under the hash that it has."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        network = squeezenet1_1()
    torch.save(network.state_dict(), folder / "new")
    url = f"https://example.invalid/squeezenet1_1-{digest(folder / 'new')[:8]}.pth"
    (folder / "new").rename(folder / url.rpartition("/")[2])
    monkeypatch.setattr(SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", url)
    torchvision_network.cache_clear()
    return "torchvision:squeezenet1_1"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random classifier of transformers, with classes named as microsoft/resnet-50 names them."""
    return save_resnet(tmp_path_factory.mktemp("resnet") / "model")


def save_resnet(folder: Path, **changes: Any) -> Path:
    names = ["tench, Tinca tinca", "church, church building", "crane", "crane"]
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        settings = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4, **changes
        )
        settings.id2label = dict(enumerate(names))
        network = transformers.ResNetForImageClassification(settings)
    network.save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return folder


def test_torchvisions_judge_is_torchvisions_own_pipeline(squeeze: str, images: Tensor) -> None:
    entry = SqueezeNet1_1_Weights.IMAGENET1K_V1
    network = squeezenet1_1(weights=entry).eval()
    prepare = entry.transforms()
    with torch.no_grad():
        expected = network(torch.stack([prepare(to_pil_image(x)) for x in images])).softmax(1)
    before = torch.get_rng_state()

    seen = find(squeeze).see(images, card())

    torch.testing.assert_close(seen.p[:, 0], expected[:, 497])
    torch.testing.assert_close(seen.p[:, 1], expected[:, 0])
    torch.testing.assert_close(seen.p.sum(1), torch.ones(4))
    assert seen.rank[:, 0].tolist() == [int((row > row[497]).sum()) for row in expected]
    assert torch.equal(before, torch.get_rng_state())


def test_the_names_of_imagenette_are_torchvisions_numbers() -> None:
    categories = get_model_weights("resnet50").DEFAULT.meta["categories"]

    assert {name: matching(name, categories) for name in IMAGENETTE} == {n: [i] for n, i in IMAGENETTE.items()}
    assert matching("TENCH", categories) == [0] and matching("cassette", categories) == [481]


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_transformers_judge_is_the_librarys_pipeline(problem: str, images: Tensor, tmp_path: Path) -> None:
    folder = save_resnet(tmp_path / "model", problem_type=problem)
    pipe = transformers.pipeline("image-classification", str(folder), device="cpu")
    theirs = pipe([to_pil_image(x) for x in images], top_k=None)
    expected = [{each["label"]: each["score"] for each in row} for row in theirs]

    seen = find(f"transformers:{folder}").see(images, card())

    for row, p in zip(expected, seen.p, strict=True):
        assert p[0].item() == pytest.approx(row["church, church building"], abs=1e-5)
        assert p[1].item() == pytest.approx(row["tench, Tinca tinca"], abs=1e-5)


def test_classes_of_the_card_add_up(resnet: Path, images: Tensor) -> None:
    judge = find(f"transformers:{resnet}")
    every = judge.predict(images)  # type: ignore[attr-defined]

    both = judge.see(images, card(classes={"church": (1, "tench, Tinca tinca"), "tench": (3,)}))

    torch.testing.assert_close(both.p[:, 0], every[:, [0, 1]].sum(1))
    torch.testing.assert_close(both.p[:, 1], every[:, 3])
    best = every[:, [0, 1]].amax(1, keepdim=True)
    assert both.rank[:, 0].tolist() == (every > best).sum(1).tolist()


@pytest.mark.parametrize(
    ("classes", "labels", "said"),
    [
        ({}, ["church", "whale"], "expected a class of .* for the label 'whale' of 'church', got none: list it"),
        ({"church": (9,)}, ["church"], r"expected one class for 9 of the card's `classes`, got \[\]"),
        ({"church": ("crane",)}, ["church"], r"expected one class for 'crane' .* got \[2, 3\]: give its number"),
    ],
)
def test_a_label_that_is_no_class_is_refused(resnet: Path, classes: Any, labels: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        find(f"transformers:{resnet}").check(card(classes=classes), labels)


def test_two_classes_of_one_name_are_refused(resnet: Path) -> None:
    labels = {"crane": "a crane", ELSE: ELSE}
    with pytest.raises(ValueError, match=r"expected one class named 'crane', got \[2, 3\]: list their numbers"):
        find(f"transformers:{resnet}").check(card(name="crane", labels=labels), ["crane"])


def test_a_label_that_a_classifier_does_not_know_is_missing_and_never_absent(resnet: Path, images: Tensor) -> None:
    concept = card(labels={"church": "a church", "whale": "a whale", ELSE: ELSE})

    found = Presence(model=f"transformers:{resnet}").score(images[:2], asked("church", "whale"), concept)

    assert found["value"].isnan().tolist() == [False, True]


def q16_file(folder: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    g = torch.Generator().manual_seed(2)
    save_file(tensors or {"prompts": torch.randn(2, 128, generator=g).half()}, folder / "q16.safetensors")
    return folder / "q16.safetensors"


def test_q16_is_a_softmax_over_two_learned_prompts(tmp_path: Path, images: Tensor) -> None:
    file = q16_file(tmp_path)
    concept = card(name="shocking", kind="nsfw", labels={"shocking": "x", ELSE: ELSE})
    v = prompts(file).double().numpy()
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    e = load_tower("mini:judge", "").embed_images(images).double().numpy()
    logits = 100 * e @ v.T
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))

    seen = Q16(str(file), "mini:judge").see(images, concept)

    np.testing.assert_allclose(seen.p[:, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(seen.p.sum(1), 1, rtol=1e-6)
    assert Q16(str(file)).rule() == 0.5  # the likelier of two


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"a": torch.zeros(2, 4), "b": torch.zeros(2, 4)},
            r"expected one tensor \(2, 768\) in .*, got \[\(2, 4\), \(2, 4\)\]",
        ),
        ({"a": torch.zeros(3, 4)}, r"expected one tensor \(2, 768\) in .*, got \[\(3, 4\)\]"),
        (None, "expected a safetensors file, got"),
    ],
)
def test_another_file_than_q16s_is_refused(tensors: Any, said: str, tmp_path: Path) -> None:
    file = q16_file(tmp_path, tensors)
    if tensors is None:
        file.write_bytes(b"pickled")
    with pytest.raises(ValueError, match=said):
        find(f"q16:{file}").check(card(), ["church"])


def test_nudenet_judges_by_its_presets(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    scores = {"value": torch.zeros(4), "score": torch.tensor([0.1, 0.44, 0.45, 0.9])}
    monkeypatch.setattr("metrics.nudenet.NudeNet.score", lambda *_: scores)
    concept = card(name="nudity", kind="nsfw", labels={"nudity": "x", ELSE: ELSE})

    found = {
        p: Presence(model=f"nudenet:{p}").score(images, asked(*["nudity"] * 4), concept)
        for p in ("strict5", "compat_342")
    }

    assert found["strict5"]["value"].tolist() == [0, 0, 1, 1]
    assert found["compat_342"]["value"].tolist() == [0, 1, 1, 1]  # what the package answers from 0.25 on
    assert found["strict5"]["p[something else]"].tolist() == pytest.approx([0.9, 0.56, 0.55, 0.1])
    assert len({Presence(model=f"nudenet:{p}").identity() for p in ("strict5", "lenient9", "compat_342")}) == 3


@pytest.mark.parametrize("name", ["nudenet:strict5", "q16:x.safetensors"])
def test_a_judge_of_one_thing_scores_the_concepts_images_alone(name: str) -> None:
    method, concept = Presence(model=name), card()

    assert method.takes("concept", concept) and not method.takes("retained", concept)
    assert Presence(model="mini:judge").takes("retained", concept)
    with pytest.raises(ValueError, match=r"expected prompts of 'church' alone for \w+, got 'tench'"):
        find(name).check(concept, ["church", "tench"])


class Shade(Judge):
    """Another package's: the darker, the more of the concept."""

    binary = True

    def __init__(self, rest: str) -> None:
        self.rest = rest

    def identity(self) -> str:
        return f"shade:{self.rest}"

    def see(self, images: Tensor, concept: Concept) -> Seen:
        return one_label(1 - images.flatten(1).mean(1), concept)

    def check(self, concept: Concept, labels: Any) -> None:
        if self.rest != "known":
            raise FileNotFoundError(f"expected the shade known, got {self.rest}: name it.")


@pytest.fixture
def shade(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint(name="shade", value="tests.metrics.test_judges:Shade", group=judges.GROUP)
    monkeypatch.setattr(judges, "entry_points", lambda group: [point] * (group == judges.GROUP))
    find.cache_clear()


@pytest.mark.usefixtures("shade")
def test_another_packages_judge_is_found_by_its_entry_point() -> None:
    found = Presence(model="shade:known").score(
        torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 4, 4), asked("church", "church"), card()
    )

    assert found["value"].tolist() == [1, 0] and found["p"].tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize(
    "name", ["shadow:x", "torchvision:", "torchvision:resnet5", "torchvision:resnet50/V9", "nudenet:strict"]
)
def test_an_unknown_judge_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^expected "):
        find(name)


def test_the_entry_decides_before_the_card_and_the_card_before_the_default() -> None:
    plain = card()
    named = card(judges={"primary": "mini:judge", "second": "torchvision:resnet50/IMAGENET1K_V1"})
    identities = [
        Presence().for_card(plain).identity(),
        Presence().for_card(named).identity(),
        Presence(model="mini:second").for_card(named).identity(),
        Presence(model="card:second").for_card(named).identity(),
        Presence(model="card:second", threshold="top3").for_card(named).identity(),
    ]

    assert identities == [
        "p>=0.5@ViT-B-32-quickgelu/openai",
        f"p>=0.5@{tower_identity('mini:judge', '')}",
        f"p>=0.5@{tower_identity('mini:second', '')}",
        "top1@torchvision:resnet50/IMAGENET1K_V1/0676ba61",
        "top3@torchvision:resnet50/IMAGENET1K_V1/0676ba61",
    ]
    with pytest.raises(ValueError, match="expected the judge 'second' in the card 'church', got none"):
        Presence(model="card:second").for_card(plain)


def test_every_rule_comes_from_one_run(resnet: Path, images: Tensor) -> None:
    """A new threshold needs the stored numbers alone."""
    concept, who = card(), asked(*["church"] * 4)
    stored = Presence(model=f"transformers:{resnet}").score(images, who, concept)
    ranks = stored["rank"].tolist()
    assert len(set(ranks)) > 1 or ranks[0] > 0

    for rule in ("top1", "top3", 0.2, 0.4):
        method = Presence(model=f"transformers:{resnet}", threshold=rule)
        again = method.rethreshold({k: v for k, v in stored.items() if k != "value"}, concept)
        hits = (
            [r < int(rule[3:]) for r in ranks] if isinstance(rule, str) else [p >= rule for p in stored["p"].tolist()]
        )
        assert again["value"].tolist() == method.score(images, who, concept)["value"].tolist() == hits
    assert "threshold" in Presence.thresholds


def test_weights_trained_with_quick_gelu_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip only warns; without it CLIP's embeddings are others."""
    given: dict[str, bool] = {}

    def create(name: str, *, pretrained: str, force_quick_gelu: bool, **_: Any) -> Any:
        given[f"{name}/{pretrained}"] = force_quick_gelu
        return SimpleNamespace(eval=lambda: SimpleNamespace(requires_grad_=lambda _: None)), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: None)
    for name, tag in (("ViT-B-32", "openai"), ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-L-14", "openai")):
        load_tower.__wrapped__(name, tag)

    assert given == {"ViT-B-32/openai": True, "ViT-B-32/laion2b_s34b_b79k": False, "ViT-L-14/openai": True}
    assert tower_identity("ViT-B-32", "openai") == tower_identity("ViT-B-32-quickgelu", "openai")
    assert tower_identity("ViT-B-32", "laion2b_s34b_b79k") == "ViT-B-32/laion2b_s34b_b79k"


def test_a_folder_of_open_clips_is_a_judge(tmp_path: Path, images: Tensor) -> None:
    folder = tmp_path / "mine"
    folder.symlink_to(towers.WEIGHTS / "judge")
    ours, mini = find(f"open_clip:{folder}"), find("mini:judge")

    torch.testing.assert_close(ours.see(images, card()).p, mini.see(images, card()).p)
    assert ours.identity().partition("/")[2] == mini.identity().partition("/")[2]
    assert find("open_clip:ViT-B-32/openai").identity() == find("ViT-B-32", "openai").identity()
    find(f"open_clip:{folder}").check(card(), ["church"])


# Identity: weights by their hash, without loading any, wherever they are.


def test_a_hub_id_is_told_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_identity("microsoft/resnet-50") == "microsoft/resnet-50@main"
    assert place_identity("microsoft/resnet-50@abc123") == "microsoft/resnet-50@abc123"
    (tmp_path / "microsoft" / "resnet-50").mkdir(parents=True)
    assert place_identity("microsoft/resnet-50") == place_identity("./nowhere") == places.ABSENT


def test_identities_need_no_weights_and_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr(open_clip, "download_pretrained", fetch)
    monkeypatch.setattr("metrics.detector.importlib.util.find_spec", lambda _: None)
    names = ["torchvision:resnet50", "transformers:microsoft/resnet-50", "transformers:/nowhere", "q16:/nowhere"]
    identities = [
        Presence(model=name).for_card(card()).identity() for name in [*names, "open_clip:/nowhere", "ViT-L-14"]
    ]

    assert identities == [
        "top1@torchvision:resnet50/IMAGENET1K_V2/11ad3fa6",
        "top1@transformers:microsoft/resnet-50@main",
        "top1@transformers:absent",
        "p>=0.5@q16:absent@ViT-L-14-quickgelu/openai",
        "p>=0.5@open_clip/absent",
        "p>=0.5@ViT-L-14-quickgelu/openai",
    ]


def test_other_weights_are_another_identity_and_another_place_is_not(resnet: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in resnet.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    before = place_identity(str(copy))
    assert before == place_identity(str(resnet)) and before.startswith("resnet/")

    other = save_resnet(tmp_path / "other", problem_type="multi_label_classification")
    assert place_identity(str(other)) != before
    (copy / "calibration.json").write_text("{}")
    assert place_identity(str(copy)) == before


def planned(folder: Path, **changes: Any) -> Plan:
    raw = config.parse(tiny_config(folder, Path("model"), **{"defenses": ["none"], "attacks": ["none"]} | changes))
    return build(raw, "base", [load_concept(name) for name in raw.raw.concepts])


def scores(plan: Plan) -> set[str]:
    return {key for key, task in plan.tasks.items() if task.kind == "score" and task.plugin == "presence"}


def test_a_judges_path_is_not_in_the_scores_key(resnet: Path, tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(resnet)
    plans = [
        planned(tmp_path, metrics=[{"use": "presence", "model": f"transformers:{p}"}]) for p in (resnet, tmp_path / "b")
    ]

    assert scores(plans[0]) == scores(plans[1])
    task = plans[1].tasks[next(iter(scores(plans[1])))]
    assert str(resnet) not in json.dumps(task.identity()) and task.places == {
        "model": f"transformers:{resnet.resolve()}"
    }


def test_the_cards_classes_are_in_the_key_of_its_scores_alone(tmp_path: Path) -> None:
    metrics = [{"use": "presence", "model": "torchvision:resnet50"}]
    plain = planned(tmp_path, metrics=metrics, defenses=["none", "esd"])
    path = tmp_path / "classes.yaml"
    path.write_text(yaml.safe_dump(CARD | {"classes": {"cat": [281, 282], "dog": ["golden retriever"]}}))
    classed = planned(tmp_path, metrics=metrics, defenses=["none", "esd"], concepts=[str(path)])

    assert not scores(plain) & scores(classed)
    assert {k for k, t in plain.tasks.items() if t.kind != "score"} == {
        k for k, t in classed.tasks.items() if t.kind != "score"
    }


def test_the_keys_of_zero_shot_scores_are_what_they_were(tmp_path: Path) -> None:
    """Golden, from before judges were a family: the embedded judges' scores are not computed again."""
    start = "score/presence-cat-identity=p_=0.5_mini_jud-model=mini_judge-pretrained=openai-"

    assert scores(planned(tmp_path)) == {
        f"{start}b6a0e397e93b2e6106f3da3a5249643d",
        f"{start}7f33f1c2eb6d1d3359fc4554ffcd900e",
    }


# Before anything is computed.


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("q16:nowhere.safetensors", "expected Q16's prompts, got no file .*nowhere.safetensors"),
        ("transformers:./nowhere", r"expected config.json and \*.safetensors of .*nowhere, got no"),
        ("torchvision:resnet50", "expected the weights resnet50-11ad3fa6.pth, got no file"),
        ("card:second", "expected the judge 'second' in the card 'cat', got none"),
        ("torchvision:resnet5", "expected a classifier and weights of torchvision, got resnet5"),
    ],
)
def test_missing_weights_are_one_line_and_two_before_anything_runs(
    model: str, said: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path, tiny_folder, metrics=[{"use": "presence", "model": model}, CLIP_SCORE])
    (tmp_path / "cat.yaml").write_text(yaml.safe_dump(CARD | {"classes": {"cat": [281], "dog": [207]}}))

    found = CliRunner().invoke(app, ["run", str(path), "--store", str(tmp_path / "store"), "--device", "cpu"])

    lines = [line for line in found.output.splitlines() if line.strip()]
    assert found.exit_code == 2 and len(lines) == 1
    assert re.search(said, lines[0])
    assert not list((tmp_path / "store").rglob("*.parquet"))


def test_a_plan_needs_no_weights(tmp_path: Path, tiny_folder: Path) -> None:
    models = ["q16:nowhere.safetensors", "torchvision:resnet50", "transformers:microsoft/resnet-50", "nudenet:lenient9"]
    metrics = [{"use": "presence", "as": f"presence_{i}", "model": model} for i, model in enumerate(models)]
    path = write_config(tmp_path, tiny_folder, metrics=metrics)
    (tmp_path / "cat.yaml").write_text(yaml.safe_dump(CARD | {"kind": "nsfw"}))  # as a judge of sexual concepts wants

    assert CliRunner().invoke(app, ["plan", str(path), "--store", str(tmp_path / "store")]).exit_code == 0


def test_weights_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    for name, said in (
        ("transformers:microsoft/resnet-50", "expected the weights of 'microsoft/resnet-50', got neither a folder nor"),
        ("open_clip:ViT-L-14/openai", "expected the weights ViT-L-14/openai, got OSError: fetch them"),
        ("open_clip:ViT-L-14/mine", "expected weights of open_clip's ViT-L-14, got 'mine': choose one of openai"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=said) as error:
            find(name).check(card(), ["church"])
        assert "\n" not in str(error.value)


# Calibration.


def test_the_embedded_judges_are_calibrated_for_the_rule_that_they_were_measured_with() -> None:
    concept = load_concept("cigarette")
    measured = json.loads((towers.WEIGHTS / "judge" / "calibration.json").read_text())["concepts"]["cigarette"]
    rates_of = {k: [v for n, v in measured.items() if n.startswith(k)] for k in ("true_positive", "false_positive")}

    found = Presence(model="mini:judge").calibration(concept)

    assert found == (min(rates_of["true_positive"]), max(rates_of["false_positive"]))
    assert Presence(model="mini:judge", threshold=0.6).calibration(concept) is None
    assert Presence(model="torchvision:resnet50").calibration(concept) is None


def test_a_card_of_other_weights_says_nothing(resnet: Path, tmp_path: Path) -> None:
    judge, folder = find(f"transformers:{resnet}"), resnet
    (folder / "calibration.json").write_text(
        json.dumps({"identity": "mine", "concepts": {"church": {"true_positive": 0.9, "false_positive": 0.1}}})
    )

    assert rates(judge, "mine", "church") == (0.9, 0.1)
    assert rates(judge, "other", "church") is None and rates(judge, "mine", "tench") is None


def labelled(folder: Path) -> Path:
    """Three dark and two bright pictures, and one of nothing known; one of the dark ones is not dark."""
    for label, shades in {"dark": (10, 20, 200), "bright": (250, 240), ELSE: (90,)}.items():
        (folder / label).mkdir(parents=True)
        for i, shade in enumerate(shades):
            Image.new("RGB", (9, 7), (shade,) * 3).save(folder / label / f"{i}.png")
    return folder


class Dark(Shade):
    """Shade, which may be asked for anything."""

    binary = False

    def check(self, concept: Concept, labels: Any) -> None:
        return

    def see(self, images: Tensor, concept: Concept) -> Seen:
        p = 1 - images.flatten(1).mean(1)
        every = torch.stack([p if label == "dark" else 1 - p for label in concept.labels], dim=1)
        return Seen(every, torch.full_like(every, torch.nan))


def test_a_folder_of_labelled_pictures_gives_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint(name="dark", value="tests.metrics.test_judges:Dark", group=judges.GROUP)
    monkeypatch.setattr(judges, "entry_points", lambda group: [point])
    asked = ["doctor", "--judge", "dark:x", "--images", str(labelled(tmp_path / "pictures"))]

    found = CliRunner().invoke(app, asked)

    card = json.loads(found.output)
    assert card["identity"] == "p>=0.5@shade:x" and set(card["concepts"]) == {"dark", "bright"}
    assert card["concepts"]["dark"] == {
        "true_positive": pytest.approx(2 / 3, abs=1e-4),
        "false_positive": pytest.approx(1 / 3, abs=1e-4),
        "positives": 3,
        "negatives": 3,
    }


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        (["dark"], [], "expected two subfolders or more in .*, got 1 of them"),
        (["dark", "bright"], [], "got no picture in 'bright'"),
        (["dark", "cat"], ["--concept", "cigarette"], "unknown label 'dark'"),
        (["dark", "cat"], ["--judge", "shadow:x"], "expected a judge of the kinds mini"),
    ],
)
def test_a_folder_that_calibrates_nothing_is_one_line(
    labels: list[str], more: list[str], said: str, tmp_path: Path
) -> None:
    for label in labels:
        (tmp_path / label).mkdir()
    for label in labels[: 2 if more else 1]:
        Image.new("RGB", (8, 8)).save(tmp_path / label / "0.png")

    found = CliRunner().invoke(app, ["doctor", "--judge", "mini:judge", "--images", str(tmp_path), *more])

    assert found.exit_code == 2 and re.search(said, found.output) and len(found.output.strip().splitlines()) == 1


# Two domains: UnlearnCanvas.


def crossed(folder: Path, **changes: Any) -> str:
    same = {"text": "a dog {n}", "each": {"n": ["one", "two"]}}
    values = CARD | {"cross_labels": {"noto": "a noto emoji", "fluent": "a fluent emoji", ELSE: ELSE}}
    values["prompts"] = CARD["prompts"] | {"cross": [same | {"label": "noto"}]}  # type: ignore[operator]
    path = folder / "crossed.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return str(path)


def test_images_of_the_other_domain_are_drawn_once_and_judged_by_its_labels(tmp_path: Path) -> None:
    plan = planned(tmp_path, concepts=[crossed(tmp_path)])
    (cell,) = plan.cells
    retained, cross = (plan.tasks[cell.scores["presence", split]] for split in ("retained", "cross"))

    assert cell.images["retained"] == cell.images["cross"]
    assert cross.concept is not None and set(cross.concept.labels) == {"noto", "fluent", ELSE}
    assert {p.label for p in cross.prompts} == {"noto"} and {p.label for p in retained.prompts} == {"dog"}
    assert ("clip_score", "cross") not in cell.scores


def test_a_prompt_of_the_other_domain_needs_one_of_its_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown label of a prompt 'noto'"):
        load_concept(crossed(tmp_path, cross_labels={"twemoji": "x"}))


def test_a_judge_that_the_card_lacks_is_the_configs_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="metric 'presence': expected the judge 'second' in the card"):
        planned(tmp_path, metrics=[{"use": "presence", "model": "card:second"}])


@pytest.mark.slow
def test_a_run_tells_who_judged_how_far_judges_agree_and_what_the_attack_taught(
    resnet: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Two judges of two kinds, one from a folder; two domains; SGR: through the command to the leaderboard."""
    card = crossed(tmp_path, classes={"cat": [0], "dog": [1]}, judges={"primary": f"transformers:{resnet}"})
    styles = {"noto": "a noto emoji", "fluent": "a fluent emoji", ELSE: ELSE}
    values = yaml.safe_load(Path(card).read_text()) | {"cross_labels": styles}
    values["classes"] |= {"noto": [2]}
    Path(card).write_text(yaml.safe_dump(values))
    metrics = ["presence", {"use": "presence", "as": "presence_second", "model": "mini:judge", "threshold": "top1"}]
    metrics += [
        {"use": "sgr", "embedder": "mini:judge"},
        {"use": "sgr", "as": "sgr_imma64", "preset": "compat_imma64", "embedder": "mini:judge"},
    ]
    path = write_config(tmp_path, tiny_folder, concepts=[card], metrics=metrics, budgets=[1])
    folders = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]

    found = CliRunner().invoke(app, ["run", str(path), *folders, "--device", "cpu"])

    assert found.exit_code == 0, found.output
    board = pd.read_csv(tmp_path / "out" / "leaderboard.csv").set_index("defense")
    assert set(board["judge"]) == {f"top1@transformers:{place_identity(str(resnet))}"}
    assert set(board["second_judge"]) == {f"top1@{tower_identity('mini:judge', '')}"}
    assert board[["judge_disagreement", "ua", "ira", "cra", "sgr", "sgr_peak", "sgr_imma64"]].notna().all(axis=None)
    assert board["flags"].str.contains("judge uncalibrated").all()
    assert "sgr_similarity: mean-similarity@mini:judge" in board.loc["esd", "measured_with"]
    assert not [f for f in (tmp_path / "store").rglob("*.json") if str(resnet) in f.read_text()]


# What cannot be loaded is refused before anything is drawn


def spoilt(folder: Path, how: str) -> str:
    """A judge whose files are there and cannot be read; its name."""
    shutil.copytree(WEIGHTS / "judge", folder)
    if how == "config":
        (folder / "open_clip_config.json").write_text("[" * 100_000)
    else:
        (folder / towers.FILE).write_bytes(b"")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("how", ["config", "weights"])
def test_a_judge_that_cannot_be_loaded_stops_the_run_before_anything_is_drawn(
    tiny_folder: Path, tmp_path: Path, how: str
) -> None:
    judge = spoilt(tmp_path / "judge", how)
    presence = {"use": "presence", "model": judge, "threshold": 0.5}
    config = write_config(tmp_path, tiny_folder, metrics=[presence, CLIP_SCORE])
    words = ["run", config, "--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu"]

    result = CliRunner().invoke(app, list(map(str, words)))

    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "DataError" in result.stderr
    assert not list((tmp_path / "store").glob("*/*"))


def test_a_folder_that_brings_code_is_refused_and_nobody_is_asked(tmp_path: Path, monkeypatch: Any) -> None:
    """`y` on the terminal, or from a pipe, would run it."""
    folder, ran = tmp_path / "judge", tmp_path / "ran"
    folder.mkdir()
    code = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M", "AutoModel": "evil.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": code}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoImageProcessor": "evil.P"}}))
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').write('x')")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    monkeypatch.setattr("builtins.input", lambda *_: ran.write_text("asked") or "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))

    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        find(f"transformers:{folder}").check(card(), ["church"])
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        check_embedder(f"dino:{folder}")
    assert not ran.exists()
