"""MIMA's merge: the smallest change of keys and values on captions that maps the concept's rows as was learned.

    W_n = W - lr grad L             (plain SGD, of the concept n; here there is one)
    d   = T (C^T C)^-1
    W'  = W + (V_T^T - W T^T)(d T^T)^-1 d,   V_T = T W_n^T

C are rows of captions, T rows of the concept's texts, one row a line; W' is the W' with W' T^T = V_T^T for which
|| (W' - W) C^T || is smallest: Custom Diffusion's (Kumari et al., 2023). The release needs as many independent caption
rows as the text is wide, and is unstable for many rows; here a ridge stands in for those that are missing, and sums are
float64. T are the rows of both texts that differ, without the first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmark.diffusion import Model, TextLayer
from benchmark.types import Concept
from defenses.data import captions

RIDGE = 1e-6  # of the mean of the diagonal of C^T C
TEXTS = {"style": ("{}", "painting in the style of {}")}
OTHERWISE = ("{}", "photo of a {}")
CAPTIONS = 200


@dataclass
class Merger:
    """Takes inner steps: keys and values by SGD and merge, all else by the optimizer given.

    Attributes:
        model: the base, which reads the texts.
        learner: whose layers are merged.
        concept: whose rows are mapped as was learned.
        texts: the captions on which little is to change.
    """

    model: Model
    learner: Model
    concept: Concept
    texts: Sequence[str]
    maps: list[tuple[nn.Parameter, Tensor, Tensor]] = field(init=False)  # W, T (n, D), d (n, D)

    def __post_init__(self) -> None:
        """Encode the texts, once."""
        named = [text.format(self.concept.phrase) for text in TEXTS.get(self.concept.kind, OTHERWISE)]
        layers = self.learner.text_layers()
        of: dict[str, tuple[Tensor, Tensor]] = {}
        for reads in {layer.reads for layer in layers}:
            C = rows(self.model, list(dict.fromkeys(self.texts))[:CAPTIONS], reads)
            T = rows(self.model, named, reads)
            of[reads] = T, T @ torch.linalg.inv(gram(C))
        self.maps = [(weight(self.learner, layer), *of[layer.reads]) for layer in layers]

    def others(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those that are not merged."""
        merged = {id(W) for W, _, _ in self.maps}
        return [p for p in parameters if id(p) not in merged]

    def step(self, loss: Tensor, optimizer: Optimizer, lr: float) -> None:
        """One step down `loss`; nothing is clipped, as in the release, whose clip comes before there are gradients."""
        others = optimizer.param_groups[0]["params"]
        gradients = torch.autograd.grad(loss, [*(W for W, _, _ in self.maps), *others], allow_unused=True)
        for (W, T, d), g in zip(self.maps, gradients, strict=False):
            if g is not None:
                W.data.copy_(merged(W.detach().double(), (W - lr * g).detach().double(), T, d))
        for p, g in zip(others, gradients[len(self.maps) :], strict=True):
            p.grad = g
        optimizer.step()


def merged(W: Tensor, W_n: Tensor, T: Tensor, d: Tensor) -> Tensor:
    """W' `(out, D)` of W, W_n `(out, D)`, and T, d `(n, D)`."""
    return W + (W_n - W) @ T.T @ torch.linalg.pinv(d @ T.T, hermitian=True) @ d


def gram(C: Tensor) -> Tensor:
    """C^T C `(D, D)` of rows `(n, D)`, with the ridge."""
    found = C.T @ C
    return found + RIDGE * found.diagonal().mean() * torch.eye(len(found), dtype=C.dtype, device=C.device)


@torch.no_grad()
def rows(model: Model, texts: Sequence[str], reads: str) -> Tensor:
    """Different rows `(n, D)` of texts, float64, without each text's first where there are several."""
    found = model.text_rows(captions(model, texts), reads).double()  # type: ignore[arg-type]
    found = found[:, 1:] if found.shape[1] > 1 else found
    return torch.unique(found.flatten(0, 1), dim=0)


def weight(model: Model, layer: TextLayer) -> nn.Parameter:
    """W of a layer."""
    return model.denoiser.get_parameter(f"{layer.name}.weight")
