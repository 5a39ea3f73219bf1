"""Guards: defenses that act while a model draws, and change no weight.

    text   = guard.read(model, prompts)                         what is read of a prompt
    z, f   = guard.course(model, text, null, w)(z, t, done)     what takes the place of a guided prediction
    images = guard.finish(images)                               what is shown

Whoever draws with a guarded model, searches prompts on it, or starts its trajectories elsewhere goes through the guard:
it is part of what `encode_text`, `course`, `guided`, `predict` and `decode` answer, so that no attack file knows of it.
A guarded prediction for a text is the one that a plain model would have to make for the same step,

    f_g(z, t, c) = f(z, t, null) + (guided_g(z, t, c) - f(z, t, null)) / w

which is f(z, t, c) where the guard does nothing. It costs the guard's passes and one more.
Who may change weights can leave a guard out: a weight attack trains the model under it. So are extra
layers with something inside that no change of weights does: they stand beside the model, and a guard puts them on.
"""

from abc import ABCMeta
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from benchmark.diffusion import Course, Model

STEPS = 50  # of the trajectory on which the time of a prediction outside of one is looked up


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A frozen dataclass of JSON values, which are kept as the defense's result. It holds nothing between batches.

    Each part has a default that does nothing, and a guard replaces at least one.
    """

    def fitted(self, modules: Mapping[str, Tensor]) -> "Guard":
        """The guard as it acts, with the tensors of the extra layers that its defense trained, by name.

        Raises:
            ValueError: there are some, and it has no place for them.
        """
        if modules:
            raise ValueError(f"expected no extra layers for {type(self).__name__}, got {len(modules)} tensors.")
        return self

    def read(self, model: Model, texts: Sequence[str]) -> Tensor:
        """The encoding of texts, `(B, N, D)`: what `course` is given."""
        return model.encode_text(texts)

    def read_words(self, model: Model, words: Tensor) -> Tensor:
        """The same of texts given as word vectors `(B, L, D)`; gradients reach them."""
        return model.encode_words(words)

    def course(self, model: Model, text: Tensor, null: Tensor, scale: float) -> Course:
        """What is predicted along one trajectory, of texts that `read` has encoded."""
        return model.course(text, null, scale)

    def finish(self, images: Tensor) -> Tensor:
        """What is shown in place of images `(B, 3, H, W)` in [0, 1]."""
        return images


@dataclass(frozen=True, kw_only=True)
class Guarded(Model):
    """Mixed into a family: a model behind a guard.

    Attributes:
        guard: what acts.
        scale: the guidance with which it draws, for whoever asks for a prediction alone.
    """

    family: ClassVar[type[Model]]

    guard: Guard
    scale: float

    @property
    def plain(self) -> Model:
        """The model under the guard."""
        return self.family(**{f.name: getattr(self, f.name) for f in fields(self.family) if f.init})

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """What the guard lets the model read."""
        return self.guard.read(self.plain, texts)

    def encode_words(self, words: Tensor) -> Tensor:
        """What the guard lets the model read."""
        return self.guard.read_words(self.plain, words)

    def course(self, text: Tensor, null: Tensor, scale: float) -> Course:
        """What the guard predicts."""
        return self.guard.course(self.plain, text, null, scale)

    def guided(self, z_t: Tensor, t: Tensor, text: Tensor, null: Tensor, scale: float) -> Tensor:
        """What the guard predicts at a time, as if it were met on a trajectory that begins there."""
        return self.course(text, null, scale)(z_t, t, self.done(t))[1]

    def predict(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """f_g; see above."""
        null = self.encode_text([""]).expand_as(text)
        guided, plain = self.guided(z_t, t, text, null, self.scale), self.plain
        if plain.guided_passes(self.scale) == 1:  # nothing is extrapolated
            return guided
        of_null = plain.predict(z_t, t, plain.encode_text([""]).expand(len(z_t), -1, -1))
        return of_null + (guided - of_null) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """What the guard shows of the images of latents."""
        return self.guard.finish(self.plain.decode(z))

    def done(self, t: Tensor) -> Tensor:
        """The share of a trajectory that lies behind times `(B,)` or `()`."""
        times = self.trajectory(STEPS)[:-1].to(t.device)
        return (times > t.reshape(-1, 1)).sum(1).reshape(t.shape) / STEPS


@cache
def behind_guard(family: type[Model]) -> type[Any]:
    """A family, behind a guard."""
    mixed: type[Any] = ABCMeta(f"Guarded{family.__name__}", (Guarded, family), {"family": family})
    return dataclass(frozen=True, kw_only=True)(mixed)


def guarded(model: Model, guard: Guard, scale: float) -> Model:
    """A model behind a guard, which draws with guidance `scale`; a guard that it has gives way."""
    if isinstance(model, Guarded):
        model = model.plain
    own = {f.name: getattr(model, f.name) for f in fields(model) if f.init}
    found: Model = behind_guard(type(model))(**own, guard=guard, scale=scale)
    return found
