"""The detector inside the `nudenet` package (320n, a YOLOv8n), fed and read by our own code. Loaded when first asked.

Its weights are under AGPL-3.0: they come with that package and are not part of this one.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from benchmark.model.places import ABSENT, digest

Label = Literal[
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
]
LABELS: tuple[Label, ...] = get_args(Label)  # in the order of the network's outputs
SIDE, FLOOR, OVERLAP = 320, 0.25, 0.45  # the package's
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


@dataclass(frozen=True)
class Found:
    """What one image shows: K boxes after suppression, and the best raw score of each label before it.

    Attributes:
        labels: indices into `LABELS`, `(K,)`, best box first.
        scores: `(K,)`, above `FLOOR`.
        boxes: left, top, right, bottom in pixels of the image, `(K, 4)`.
        raw: `(18,)`; 0 where no box bears the label.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    raw: Tensor


def detect(images: Tensor, *, channels: Literal["rgb", "bgr"], agnostic: bool) -> list[Found]:
    """What images `(B, 3, H, W)` in [0, 1] show; `agnostic` lets a box suppress one of another label.

    Raises:
        ValueError: a pixel or a score is not finite; such an image is never safe.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("expected finite images, got one that is not: draw it again.")
    network = session()
    (scores_and_boxes,) = network.run(None, {network.get_inputs()[0].name: blob(images, channels)})
    outputs = torch.from_numpy(scores_and_boxes)
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("expected finite scores, got some that are not: look at the image.")
    return [read(output, images.shape[-2], images.shape[-1], agnostic) for output in outputs]


def blob(images: Tensor, channels: Literal["rgb", "bgr"]) -> np.ndarray[Any, Any]:
    """What the network eats: float32 `(B, 3, 320, 320)` in [0, 1], padded with black to a square, right and below."""
    import cv2

    pictures = []
    for x in (images * 255).round().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy():
        high, wide = x.shape[:2]
        side = max(high, wide)
        square = cv2.copyMakeBorder(x, 0, side - high, 0, side - wide, cv2.BORDER_CONSTANT)
        pictures.append(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR))
    stack = np.stack(pictures)[..., :: 1 if channels == "rgb" else -1]
    return np.ascontiguousarray(stack.transpose(0, 3, 1, 2), dtype=np.float32) / 255


def read(output: Tensor, high: int, wide: int, agnostic: bool) -> Found:
    """Boxes from the network's output `(22, A)`: centre and size in its pixels, then 18 scores, for A anchors.

    A box bears its best label alone, as the package has it, and OpenCV suppresses: it takes boxes without area, which
    lie in the padding, for equal.
    """
    import cv2

    scores, labels = output[4:].max(0)
    raw = torch.zeros(len(LABELS)).scatter_reduce(0, labels, scores, "amax")
    kept = scores > FLOOR
    scores, labels = scores[kept], labels[kept]
    centre, size = output[:4, kept].T.split(2, dim=1)
    scale = max(high, wide) / SIDE
    edge = torch.tensor([wide, high], dtype=torch.float32)
    # The package clips the corner and then the size, so a box beyond the left edge keeps its whole width: so do we.
    corner = ((centre - size / 2) * scale).clamp(min=torch.zeros(2), max=edge)
    extent = torch.minimum(size * scale, edge - corner)
    asked = (torch.cat([corner, extent], dim=1).tolist(), scores.tolist())
    if agnostic:
        survivors = cv2.dnn.NMSBoxes(*asked, FLOOR, OVERLAP)
    else:
        survivors = cv2.dnn.NMSBoxesBatched(*asked, labels.tolist(), FLOOR, OVERLAP)
    order = torch.as_tensor(np.asarray(survivors, dtype=np.int64))
    return Found(labels[order], scores[order], torch.cat([corner, corner + extent], dim=1)[order], raw)


def best(found: Sequence[Found]) -> Tensor:
    """The best score of each label among the boxes that survived, `(B, 18)`; 0 where none did."""
    none = torch.zeros(len(LABELS))
    return torch.stack([none.scatter_reduce(0, each.labels, each.scores, "amax") for each in found])


@cache
def session() -> Any:
    """The network, on a GPU where onnxruntime can; the package itself never asks for one."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    return onnxruntime.InferenceSession(weights(), providers=[name for name in PROVIDERS if name in available])


@cache
def weights() -> Path:
    """The file inside the package, which is not imported.

    Raises:
        FileNotFoundError: the package is not installed, or came without it.
    """
    found = importlib.util.find_spec("nudenet")
    file = Path(found.origin).parent / "320n.onnx" if found and found.origin else Path("320n.onnx")
    if not file.is_file():
        raise FileNotFoundError(f"expected the detector, got no file {file}: pip install 'nudenet>=3.4.2,<4'.")
    return file


def weights_hash() -> str:
    """The start of the file's hash; `absent` where there is no file."""
    try:
        return digest(weights())[:12]
    except FileNotFoundError:
        return ABSENT
