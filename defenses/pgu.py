"""PGU: projected gradient unlearning after an eraser (Aladawi et al., 2026, after Hoang et al., WACV 2024).

Goes on erasing, but only in directions that retained inputs do not see:

    R      rows that a layer reads while the model predicts on retained data
    U_k    eigenvectors of R^T R with the largest eigenvalues, together at least `energy` of their sum
    G      <- G - G U_k U_k^T,  and so each step's change of W        (then (W' - W) r = 0 for all r in span U_k)
    loss   = || eps_th(z_t | c) - [eps_0(z_t | null) - eta (eps_0(z_t | c) - eps_0(z_t | null))] ||^2

It is made to be composed, `esd+pgu`: eps_0 is the erased model, and its erasure is deepened.

Paper     https://arxiv.org/abs/2604.21041, of which the abstract and one reader's account of Algorithm 1 were at hand;
          the projection: https://arxiv.org/abs/2312.04095
Code      none was found
Differs   unknown: every constant marked so is reconstructed, and so are the erasing loss (ESD's), its teacher, and that
          the change is projected beside the gradient, which Adam rescales; without the paper's ten levels. Only the
          weights of linear layers are trained: a bias changes what every input gives.
Symbols   W weight `(out, in)` of a layer; r its input; eps_0 erased model; eps_th trained model; z_t noisy latents.
Protects  against prompts that name the concept. The paper claims more, that fine-tuning does not bring it back; the
          projection holds in this step alone, and binds nobody who fine-tunes without it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion import Model, Scope, difference, normal
from benchmark.types import Concept, Delta, Examples, Report, Requirement
from defenses.base import Defense
from defenses.data import draw
from defenses.erasing import away, descend, student
from defenses.sampling import Sampler, mean_passes, needs, partial_sample


@dataclass(frozen=True, kw_only=True)
class PGU(Defense):
    """Erase further where retained inputs do not look."""

    steps: int = 200  # reconstructed: six minutes, the paper's figure, of ESD's steps
    lr: float = 1e-5  # reconstructed: ESD's
    batch: int = 1
    scope: Scope = "x"  # reconstructed: ESD's; of it the weights of linear layers
    eta: float = 1.0  # reconstructed: ESD's
    energy: float = 0.95  # reconstructed: the range of Hoang et al.
    looks: int = 32  # reconstructed: batches of retained data from which R is made
    start_guidance: float = 3.0
    ddim_steps: int = 50
    sampler: Sampler = "ddim"

    version = 1
    needs = frozenset({"safe"})
    fidelity = "reconstructed"
    matched = "the projection as in Hoang et al., its place as in the abstract; nothing else is published"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """Return the change of the linear layers in `scope`, orthogonal to what retained inputs span.

        Raises:
            ValueError: `scope` selects no linear layer of this model, or the loss is not finite.
        """
        layers = self.layers(model)
        U = self.spanned(model, data["safe"], layers, rng)
        edited, weights = student(model, {f"{name}.weight" for name in layers})
        theta = {name: edited.denoiser.get_parameter(f"{name}.weight") for name in layers}
        with torch.no_grad():
            c, null = model.encode_text([concept.phrase]), model.encode_text([""])

        def project_gradients() -> None:
            for name, W in theta.items():
                assert W.grad is not None
                W.grad = outside(W.grad, U[name])

        @torch.no_grad()
        def project_changes() -> None:
            for name, W in theta.items():
                start = layers[name].weight
                W.copy_(start + outside(W - start, U[name]))

        losses = (self.loss(edited, model, c, null, rng) for _ in range(self.steps))
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        descend(optimizer, losses, report, total=self.steps, before=project_gradients, after=project_changes)
        return difference(edited, model, names={f"{name}.weight" for name in layers})

    def layers(self, model: Model) -> dict[str, nn.Linear]:
        """The linear layers in `scope`, by name."""
        names = model.scope(self.scope)
        found = {n: m for n, m in model.denoiser.named_modules() if isinstance(m, nn.Linear) and f"{n}.weight" in names}
        if not found:
            raise ValueError(f"expected scope {self.scope!r} to select linear layers, got none: choose another.")
        return found

    def spanned(
        self, model: Model, safe: Examples, layers: Mapping[str, nn.Linear], rng: Generator
    ) -> dict[str, Tensor]:
        """U_k `(in, k)` of each layer."""
        draws = draw(model, safe, self.batch, rng=rng)
        with grams(layers) as found, torch.no_grad():
            for _ in range(self.looks):
                z_0, text = next(draws)
                t = model.times(len(z_0), rng=rng)
                z_t = model.noised(z_0, normal(z_0.shape, rng, like=z_0), t)
                model.predict(z_t, t.to(z_0.device), text)
        return {name: leading(gram, self.energy) for name, gram in found.items()}

    def loss(self, edited: Model, model: Model, c: Tensor, null: Tensor, rng: Generator) -> Tensor:
        """The erasing loss on z_t that the erased model draws, for c and null `(1, L, D)`."""
        settings = {"ddim_steps": self.ddim_steps, "guidance": self.start_guidance, "sampler": self.sampler}
        z_t, t = partial_sample(model, c, null, batch=self.batch, rng=rng, **settings)  # type: ignore[arg-type]
        c, null = c.expand(len(z_t), -1, -1), null.expand(len(z_t), -1, -1)
        return F.mse_loss(edited.predict(z_t, t, c), away(model, z_t, t, c, null, self.eta))

    def requires(self, concept: Concept) -> tuple[Requirement, ...]:
        """What its sampler and its scope need."""
        return needs(self.sampler, self.scope)

    def passes(self) -> int:
        """The looks, and for a step three predictions, a backward pass and the mean part of a guided trajectory."""
        drawn = mean_passes(self.sampler, self.ddim_steps, self.start_guidance)
        return round(self.batch * (self.looks + self.steps * (drawn + 5)))


@contextmanager
def grams(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """R^T R `(in, in)` of what each layer reads while the context lasts, float64."""
    found: dict[str, Tensor] = {}

    def keep(name: str, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2).double()
        found[name] = found.get(name, 0.0) + rows.T @ rows

    def hook(name: str) -> "torch.utils.hooks.RemovableHandle":
        return layers[name].register_forward_pre_hook(lambda _, inputs: keep(name, inputs))

    handles = [hook(name) for name in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def leading(gram: Tensor, energy: float) -> Tensor:
    """The fewest eigenvectors `(in, k)` of R^T R whose eigenvalues are at least `energy` of the sum."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    k = int((values.cumsum(0) < energy * values.sum()).sum()) + 1
    return vectors[:, :k]


def outside(G: Tensor, U: Tensor) -> Tensor:
    """G - G U U^T: rows `(out, in)` without what lies in the span of U `(in, k)`."""
    wide = G.double()
    return (wide - wide @ U @ U.T).to(G)
