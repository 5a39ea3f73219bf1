"""Each metric agrees with somebody else's implementation on the same model and images."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torchmetrics.functional.image.lpips as torchmetrics_lpips
import torchvision
from PIL import Image
from torch.nn import functional as F
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchmetrics.functional.multimodal import clip_score
from torchvision.models import squeezenet1_1

from benchmark.data import load_concept
from benchmark.mini import WEIGHTS
from benchmark.model.perceptual import features
from benchmark.model.towers import Tower, load_tower, needs_quick_gelu, tower_identity
from benchmark.types import Prompt
from metrics import lpips
from metrics.clip_score import CLIPScore
from metrics.lpips import LPIPS
from metrics.presence import Presence

PLACE = f"local-dir:{WEIGHTS / 'judge'}"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Eight-bit pictures, as the store holds them."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 64, 64), generator=g).float() / 255


def library(images: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """open_clip's own forward pass, picture by picture."""
    model, _, preprocess = open_clip.create_model_and_transforms(PLACE, precision="fp32")
    model.eval()
    pictures = [Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy()) for x in images]
    with torch.no_grad():
        image, text, scale = model(
            torch.stack([preprocess(p) for p in pictures]), open_clip.get_tokenizer(PLACE)(texts)
        )[:3]
    return image, text, float(scale)


def test_clip_score_is_a_hundred_cosines(images: torch.Tensor) -> None:
    texts = ["an emoji of a cat", "a key", "something else"]
    image, text, _ = library(images, texts)
    prompts = [Prompt(text=t, split="safe") for t in texts]

    ours = CLIPScore(model="mini:judge").score(images, prompts, None)["value"]

    torch.testing.assert_close(ours, 100 * (image * text).sum(-1), atol=1e-3, rtol=0)


def test_clip_score_equals_torchmetrics_on_the_same_model(images: torch.Tensor) -> None:
    """torchmetrics takes any model with these two methods; that way its own code runs with our towers' weights."""
    texts = ["an emoji of a cat", "a key", "something else"]
    model, _, preprocess = open_clip.create_model_and_transforms(PLACE, precision="fp32")
    tokenizer = open_clip.get_tokenizer(PLACE)

    class Towers(torch.nn.Module):
        config = None

        def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return model.encode_image(pixel_values)

        def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return model.encode_text(input_ids)

    def processor(*, text: Any = None, images: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        if text is not None:
            ids = tokenizer(text)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images]
        return {"pixel_values": torch.stack([preprocess(p) for p in pictures])}

    def theirs(x: torch.Tensor, text: str) -> float:
        with torch.no_grad():
            return float(clip_score((x * 255).round().byte(), text, lambda: (Towers(), processor)))

    model.eval()
    expected = [theirs(x, text) for x, text in zip(images, texts, strict=True)]
    ours = CLIPScore(model="mini:judge").score(images, [Prompt(text=t, split="safe") for t in texts], None)["value"]

    clamped = ours.clamp(min=0).tolist()  # theirs ends at 0, ours does not
    assert clamped == pytest.approx(expected, abs=1e-3)
    assert max(expected) > 1


def test_presence_is_zero_shot_classification(images: torch.Tensor) -> None:
    card = load_concept("cat")
    image, text, scale = library(images, list(card.labels.values()))
    expected = (scale * image @ text.T).softmax(-1)
    prompts = [Prompt(text="x", split="concept", label=label) for label in ("cat", "dog", "key")]
    method = Presence(model="mini:judge")

    torch.testing.assert_close(method.probabilities(images, card), expected, atol=1e-4, rtol=1e-3)
    scored = method.score(images, prompts, card)
    names = list(card.labels)
    columns = [names.index(n) for n in ("cat", "dog", "key")]
    torch.testing.assert_close(scored["p"], expected[range(3), columns], atol=1e-4, rtol=1e-3)
    assert torch.equal(scored["value"], (scored["p"] >= 0.5).float())


@pytest.mark.parametrize("place", [PLACE, "ViT-B-32", "ViT-L-14-336"])
def test_a_long_prompt_keeps_its_end_token(place: str) -> None:
    """Cut prompts must still end: losing the end token halves CLIP scores (torchmetrics #2883)."""
    tokenizer = open_clip.get_tokenizer(place)
    short, long = tokenizer(["a cat", "a cat and a dog " * 40])

    assert len(long) == (32 if place == PLACE else 77)
    assert long[-1] == short.max() == long.max()


def test_the_score_of_a_long_prompt_is_that_of_its_beginning_with_an_end(images: torch.Tensor) -> None:
    method, text = CLIPScore(model="mini:judge"), "a cat and a dog " * 40
    long, other = (text, text + "and a key"), tower(method).tokenizer(text)[0]

    scored = [method.score(images, [Prompt(text=t, split="safe")] * 3, None)["value"] for t in long]

    model, end = tower(method).model, int(other[-1])
    image = tower(method).embed_images(images)
    with torch.no_grad():
        ended, endless = (F.normalize(model.encode_text(ids[None]), dim=-1) for ids in (other, without(other, end)))
    torch.testing.assert_close(scored[0], scored[1])
    torch.testing.assert_close(scored[0], 100 * (image @ ended.T)[:, 0], atol=1e-3, rtol=0)
    assert not torch.allclose(scored[0], 100 * (image @ endless.T)[:, 0], atol=0.1)


def tower(method: CLIPScore) -> Tower:
    return load_tower(method.model, method.pretrained)


def without(ids: torch.Tensor, end: int) -> torch.Tensor:
    """The bug: the tokens go on to the last place, and none of them ends the text."""
    return torch.where(ids == end, ids[1], ids)


def test_presence_needs_a_card(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected a concept card"):
        Presence(model="mini:judge").score(images, [Prompt(text="a", split="concept")] * 3, None)


def test_identity_names_the_weights_and_the_threshold() -> None:
    identities = {Presence(model=m, threshold=t).identity() for m in ("mini:judge", "mini:second") for t in (0.5, 0.6)}

    assert len(identities) == 4


PROMPTS = [Prompt(text="a key", split="safe")] * 3
RELU_ENDS = (1, 4, 7, 9, 10, 11, 12)  # layers of SqueezeNet 1.1 whose output LPIPS reads


@pytest.fixture
def squeeze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.nn.Module]:
    """A random SqueezeNet, as the file that torchvision reads from torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        network = squeezenet1_1().eval()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / lpips.URLS["squeeze"].rpartition("/")[2])
    monkeypatch.setattr(lpips, "cached_weights", lambda url: None)  # the hash in the name is that of the real ones
    lpips.lpips.cache_clear()
    yield network
    lpips.lpips.cache_clear()


def test_lpips_equals_torchmetrics_and_the_papers_sum(images: torch.Tensor, squeeze: torch.nn.Module) -> None:
    other = images.flip(0) * 0.5
    before = torch.get_rng_state()
    ours = LPIPS(backbone="squeeze").score(images, PROMPTS, other)["value"]
    assert torch.equal(before, torch.get_rng_state())

    theirs = learned_perceptual_image_patch_similarity(
        images, other, net_type="squeeze", reduction="none", normalize=True
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)

    heads = torch.load(Path(str(torchmetrics_lpips.__file__)).parent / "lpips_models" / "squeeze.pth", "cpu")
    total, layers = torch.zeros(3, dtype=torch.float64), squeeze.features.double()
    shift, scale = (torch.tensor(v).double()[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    x, y = ((2 * i.double() - 1 - shift) / scale for i in (images, other))
    for at, layer in enumerate(layers):
        x, y = layer(x), layer(y)
        if at in RELU_ENDS:
            w = heads[f"lin{RELU_ENDS.index(at)}.model.1.weight"].double()
            squares = ((x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)) ** 2).nan_to_num(0)
            total += (w * squares).sum(1).mean((1, 2))
    torch.testing.assert_close(ours.double(), total.detach(), rtol=1e-4, atol=1e-6)


def test_lpips_shrinks_large_images_alone(squeeze: torch.nn.Module) -> None:
    g = torch.Generator().manual_seed(1)
    large, other = torch.rand(2, 3, 3, 128, 128, generator=g)
    halves = [F.avg_pool2d(x, 2) for x in (large, other)]

    shrunk = LPIPS(backbone="squeeze", side=64).score(large, PROMPTS, other)["value"]
    small = LPIPS(backbone="squeeze").score(halves[0], PROMPTS, halves[1])["value"]
    whole = LPIPS(backbone="squeeze").score(large, PROMPTS, other)["value"]

    torch.testing.assert_close(shrunk, small, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(shrunk, whole, rtol=1e-2)


def test_the_minis_lpips_is_the_distance_of_unit_features(images: torch.Tensor) -> None:
    other = images.flip(0)
    f, g = (features("mini")(x).double() for x in (images, other))
    cosines = (f * g).sum(-1) / (f.norm(dim=-1) * g.norm(dim=-1))

    ours = LPIPS(backbone="mini").score(images, PROMPTS, other)["value"]

    torch.testing.assert_close(ours.double(), (2 - 2 * cosines).mean(-1), rtol=1e-4, atol=1e-6)
    assert ours[1] == 0 and ours[0] > 0.01  # the middle one is its own mirror image in the batch
    assert not ours.requires_grad


@pytest.mark.parametrize("backbone", ["alex", "vgg", "squeeze"])
def test_lpips_names_the_missing_weights(
    backbone: Any, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"expected the weights .*\.pth, got no file .*: download https"):
        LPIPS(backbone=backbone).score(images, PROMPTS, images)


def test_lpips_reads_the_files_that_torchvision_reads() -> None:
    named = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}

    assert {k: getattr(torchvision.models, name).DEFAULT.url for k, name in named.items()} == lpips.URLS


def test_lpips_says_which_it_is() -> None:
    methods = [LPIPS(backbone=b) for b in ("alex", "vgg", "squeeze", "mini")] + [LPIPS(side=64)]

    assert len({m.identity() for m in methods}) == 5
    assert "no-heads" in LPIPS(backbone="mini").identity() and "lpips" not in LPIPS(backbone="mini").identity()


def test_weights_given_as_a_file_are_named_by_their_hash_and_known_for_openais(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path names no weights, and OpenAI's need its approximation of GELU, wherever they lie."""
    import open_clip

    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    first.write_bytes(b"openai's"), second.write_bytes(b"others'")
    known = hashlib.sha256(b"openai's").hexdigest()
    addresses = {"openai": {"url": f"https://example.org/{known}/x.pt", "quick_gelu": True}}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: addresses.get(tag, {}))

    names = [tower_identity("ViT-B-32", str(file)) for file in (first, second)]

    assert names[0] == f"ViT-B-32-quickgelu/{known[:12]}"
    assert names[1] == f"ViT-B-32/{hashlib.sha256(second.read_bytes()).hexdigest()[:12]}"
    assert [needs_quick_gelu("ViT-B-32", str(file)) for file in (first, second)] == [True, False]
