"""How much each image token of a flow transformer attends to some words: read off its joint attention as it runs.

    a_l(x) = 1/heads sum_h sum_{y in words} softmax_k( q_h(x) k_h / sqrt(d) )_y        x an image token, l a block

q and k are those that the attention was called with, behind their norms and rotations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from benchmark.diffusion import Model


class Maps(TorchFunctionMode):
    """While it lasts, keeps a_l `(B, N)` of the first `blocks` joint attentions, with gradients.

    Args:
        model: whose attentions.
        rows: the words of each sample, as `Model.rows_of` has them.
        blocks: how many.
    """

    def __init__(self, model: Model, rows: Sequence[Sequence[int]], blocks: int) -> None:
        super().__init__()
        self.model, self.rows, self.blocks, self.found = model, rows, blocks, list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at every attention of torch."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(self.found) < self.blocks:
            q, k = (kwargs[name] if name in kwargs else args[place] for place, name in enumerate(("query", "key")))
            self.look(q, k)
        return func(*args, **kwargs)

    def look(self, q: Tensor, k: Tensor) -> None:
        """Keep the map of one attention; one of the image to itself has no words in it, and is passed by."""
        keys = k.shape[-2]
        image, text = self.model.joint(keys)
        if keys == image.stop - image.start:
            return
        chosen = torch.zeros(len(self.rows), keys, device=k.device, dtype=k.dtype)
        for sample, rows in enumerate(self.rows):
            chosen[sample, [text + row for row in rows]] = 1
        # Whole maps are as large as all else together: they are made again in the backward pass.
        self.found.append(checkpoint(attended, q[:, :, image], k, chosen, use_reentrant=False))


def attended(q: Tensor, k: Tensor, chosen: Tensor) -> Tensor:
    """The share `(B, N)` of attention to chosen keys `(B, K)`, of queries `(B, H, N, D)` and keys `(B, H, K, D)`."""
    weights = (q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ chosen.float()[:, None, :, None]).squeeze(-1).mean(1)
