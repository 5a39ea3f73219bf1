"""PSNR and black are their definitions."""

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from benchmark.types import Prompt
from metrics.black import Black
from metrics.psnr import PSNR

PROMPTS = [Prompt(text=str(i), split="safe") for i in range(3)]


def test_psnr_is_torchmetrics() -> None:
    x, y = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    ours = PSNR().score(x, PROMPTS, y)["value"]

    theirs = torch.stack([peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(ours, theirs)


def test_psnr_of_equal_and_opposite_images_is_bounded() -> None:
    x = torch.zeros(3, 3, 8, 8)

    assert PSNR().score(x, PROMPTS, x)["value"].tolist() == pytest.approx([100.0] * 3)
    assert PSNR().score(x, PROMPTS, x + 1)["value"].tolist() == [0.0] * 3


def test_black_is_nearly_black() -> None:
    images = torch.stack([torch.full((3, 8, 8), v) for v in (0.0, 0.04, 0.3)])

    found = Black().score(images, PROMPTS, None)

    assert found["value"].tolist() == [1, 1, 0]
    torch.testing.assert_close(found["brightness"], torch.tensor([0.0, 0.04, 0.3]))
    again = Black(threshold=0.03).rethreshold(found, None)
    assert again["value"].tolist() == Black(threshold=0.03).score(images, PROMPTS, None)["value"].tolist() == [1, 0, 0]


def test_an_image_that_is_no_number_is_missing_and_not_bright() -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[1, 0, 0, 0] = torch.nan

    value = Black().score(images, PROMPTS[:2], None)["value"]

    assert value[0] == 1 and value[1].isnan()
