"""Each metric agrees with somebody else's implementation on the same model and images."""

import open_clip
import pytest
import torch
from PIL import Image

from benchmark.data import load_concept
from benchmark.mini import WEIGHTS
from benchmark.types import Prompt
from metrics.clip_score import CLIPScore
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
    assert torch.equal(scored["value"], (scored["p"] >= method.threshold).float())


def test_a_long_prompt_keeps_its_end_token() -> None:
    """Cut prompts must still end: losing the end token halves CLIP scores (torchmetrics #2883)."""
    tokenizer = open_clip.get_tokenizer(PLACE)
    short, long = tokenizer(["a cat", "a cat and a dog " * 40])

    assert long[-1] == short.max() == long.max()


def test_presence_needs_a_card(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected a concept card"):
        Presence(model="mini:judge").score(images, [Prompt(text="a", split="concept")] * 3, None)


def test_identity_names_the_weights_and_the_threshold() -> None:
    identities = {Presence(model=m, threshold=t).identity() for m in ("mini:judge", "mini:second") for t in (0.5, 0.6)}

    assert len(identities) == 4
