"""SGR: similarities to the attacker's images, fed rightly or as IMMA's released evaluation feeds them."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torchvision.transforms as classic
import transformers
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from benchmark.config import config
from benchmark.data import load_concept
from benchmark.kit.conformance import check_metric
from benchmark.model.perceptual import features
from benchmark.model.towers import WEIGHTS
from benchmark.plan import build
from benchmark.runner.stages.scoring import scored
from benchmark.types import Prompt
from metrics import sgr
from metrics.embedders import embed, embedder_identity
from metrics.lpips import LPIPS
from metrics.sgr import SGR
from tests.runs import tiny_config

PLACE = f"local-dir:{WEIGHTS / 'judge'}"
PROMPTS = [Prompt(text="a cat", split="concept")] * 3


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 96, 96), generator=torch.Generator().manual_seed(0)).float() / 255


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return torch.randint(0, 256, (5, 3, 80, 80), generator=torch.Generator().manual_seed(1)).float() / 255


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a small random vision transformer."""
    folder = tmp_path_factory.mktemp("dino")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(2)
        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        network = transformers.ViTModel(transformers.ViTConfig(image_size=224, patch_size=32, **size))
    network.save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    return f"dino:{folder}"


def mean_cosines(f: Tensor, g: Tensor) -> Tensor:
    f, g = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (f, g))
    return torch.stack([torch.stack([(x * y).sum() for y in g]).mean() for x in f])


@pytest.mark.parametrize("name", ["mini:judge", "dino"])
def test_a_score_is_the_mean_cosine_to_the_references(name: str, images: Tensor, reference: Tensor, dino: str) -> None:
    name = dino if name == "dino" else name

    ours = SGR(embedder=name).score(images, PROMPTS, reference)["value"]

    expected = mean_cosines(embed(name, images), embed(name, reference))
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_dino_is_the_class_token_after_its_own_preprocessing(images: Tensor, dino: str) -> None:
    folder = dino.removeprefix("dino:")
    network, processor = transformers.ViTModel.from_pretrained(folder).eval(), transformers.ViTImageProcessor()
    with torch.no_grad():
        pixels = processor([to_pil_image((x * 255).byte()) for x in images], return_tensors="pt")
        expected = F.normalize(network(**pixels).last_hidden_state[:, 0])

    torch.testing.assert_close(embed(dino, images), expected, rtol=1e-4, atol=1e-5)
    assert embedder_identity(dino).startswith("dino:vit/")


def test_with_lpips_a_score_is_one_less_the_mean_distance(images: Tensor, reference: Tensor) -> None:
    small = reference[..., :64, :64]
    ours = SGR(embedder="lpips:mini").score(images[..., :64, :64], PROMPTS, small)["value"]

    f, g = (F.normalize(features("mini")(x).double(), dim=-1) for x in (images[..., :64, :64], small))
    distances = [[(x - y).square().sum(-1).mean() for y in g] for x in f]
    torch.testing.assert_close(ours.double(), 1 - torch.tensor(distances).mean(1), rtol=1e-5, atol=1e-6)


def imma64(images: Tensor) -> Tensor:
    """The release's loader: Pillow's 64 x 64, then a tensor in [0, 1]."""
    load = classic.Compose([classic.Resize((64, 64), antialias=True), classic.ToTensor()])
    return torch.stack([load(to_pil_image((x * 255).byte())) for x in images])


def test_compat_feeds_clip_as_the_release_does(images: Tensor, reference: Tensor) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(PLACE, precision="fp32")
    resize, normalize = preprocess.transforms[0], preprocess.transforms[-1]
    shift = classic.Normalize(mean=[-1.0] * 3, std=[2.0] * 3)
    with torch.no_grad():
        f, g = (model.eval().encode_image(normalize(resize(shift(imma64(x))))) for x in (images, reference))

    ours = SGR(embedder="mini:judge", compat=True).score(images, PROMPTS, reference)["value"]

    torch.testing.assert_close(ours.double(), mean_cosines(f, g), rtol=1e-4, atol=1e-5)
    plain = SGR(embedder="mini:judge").score(images, PROMPTS, reference)["value"]
    assert not torch.allclose(ours, plain, atol=1e-4)


def test_compat_feeds_dino_with_clips_preprocessing(images: Tensor, reference: Tensor, dino: str) -> None:
    network = transformers.ViTModel.from_pretrained(dino.removeprefix("dino:")).eval()
    shift = classic.Normalize(mean=[-1.0] * 3, std=[2.0] * 3)
    resize = classic.Resize(224, interpolation=classic.InterpolationMode.BICUBIC)
    normalize = classic.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.no_grad():
        pixels = [normalize(resize(shift(imma64(x)))) for x in (images, reference)]
        f, g = (network(pixel_values=x).last_hidden_state[:, 0] for x in pixels)

    ours = SGR(embedder=dino, compat=True).score(images, PROMPTS, reference)["value"]

    torch.testing.assert_close(ours.double(), mean_cosines(f, g), rtol=1e-4, atol=1e-5)


def test_compat_feeds_lpips_what_is_not_in_its_range(images: Tensor, reference: Tensor, monkeypatch: Any) -> None:
    """It expects [-1, 1], and gets [0, 1]."""
    fed: list[Tensor] = []

    def distance(f: Tensor, g: Tensor) -> Tensor:
        fed.extend([f * 2 - 1, g * 2 - 1])  # as the network sees them
        return torch.zeros(len(f))

    monkeypatch.setattr(sgr, "lpips", lambda name: distance)
    SGR(embedder="lpips:alex", compat=True).score(images, PROMPTS, reference[:1])

    torch.testing.assert_close(fed[0], imma64(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(fed[1][:1], imma64(reference[:1]), rtol=0, atol=1e-6)


def test_every_feed_and_embedder_is_its_own_identity(dino: str) -> None:
    methods = [
        SGR(embedder=e, compat=c) for e in ("mini:judge", "lpips:mini", "lpips:alex", dino) for c in (False, True)
    ]

    assert len({m.identity() for m in methods}) == len(methods)
    assert all(("imma64" in m.identity()) == m.compat for m in methods)
    lpips = SGR(embedder="lpips:mini", compat=True).identity()  # the release pairs image i with reference i, by LPIPS
    assert "imma64,all-pairs@" in lpips and "all-pairs" not in SGR(compat=True).identity()
    assert SGR(**SGR.presets["compat_imma64"]).compat and SGR().identity().endswith("ViT-B-32-quickgelu/openai")
    with pytest.raises(ValueError, match="expected lpips: and alex, vgg, squeeze or mini"):
        SGR(embedder="lpips:resnet").identity()


@pytest.mark.parametrize("embedder", ["mini:judge", "lpips:mini"])
def test_it_keeps_the_contract_of_metrics(embedder: str) -> None:
    check_metric(SGR, {"embedder": embedder})


def test_the_reference_is_what_the_attacker_is_taught_with(tmp_path: Path) -> None:
    raw = tiny_config(
        tmp_path,
        Path("model"),
        metrics=[{"use": "presence", "model": "mini:judge"}, {"use": "sgr", "embedder": "mini:judge"}],
    )
    plan = build(config.parse(raw), "base", [load_concept(raw["concepts"][0])])
    attacks = [task for task in plan.tasks.values() if task.kind == "attack"]
    scores = [task for task in plan.tasks.values() if task.plugin == "sgr"]

    assert {task.parents["reference"] for task in scores} == {task.parents["concept"] for task in attacks}
    assert len(scores) == 2 * 3  # two models, before and at two budgets


def test_an_image_that_cannot_be_scored_is_missing_beside_all_references(
    images: Tensor, reference: Tensor, monkeypatch: Any
) -> None:
    real, asked = SGR.features, list[int]()

    def features(self: SGR, x: Tensor) -> Tensor:
        asked.append(len(x))
        if bool((x.flatten(1).mean(1) < 0.01).any()):
            raise RuntimeError("too dark")
        return real(self, x)

    monkeypatch.setattr(SGR, "features", features)
    sgr.mean_feature.cache_clear()
    dark = torch.cat([images[:2], torch.zeros_like(images[:1])])
    faults: list[str] = []
    found = scored(SGR(embedder="mini:judge"), dark, PROMPTS, reference, faults)["value"]

    expected = SGR(embedder="mini:judge").score(images[:2], PROMPTS[:2], reference)["value"]
    assert found[:2] == pytest.approx(expected.tolist(), abs=1e-6) and found[2] != found[2]
    assert faults == ["RuntimeError('too dark')"] and asked.count(len(reference)) == 1  # embedded once


def test_missing_weights_are_named_before_anything_runs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for embedder in ("lpips:alex", "dino:./nowhere"):
        with pytest.raises(FileNotFoundError, match=r"^expected [^\n]*$"):
            SGR(embedder=embedder).check(None, PROMPTS)
    LPIPS(backbone="mini").check(None, PROMPTS)
