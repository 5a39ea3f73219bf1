"""How a model with a noise schedule is drawn by another solver than DDIM: by diffusers' schedulers.

    pndm    PLMS, as Stable Diffusion 1.x ships it (Liu et al. 2022): two predictions for the first step
    lms     linear multistep of order 4 (k-diffusion), with which UnlearnDiffAtk draws
    euler   Euler in k-diffusion's latents, without churn
    dpmpp   DPM-Solver++ 2M (Lu et al. 2022)

Each has the times that its class has on Stable Diffusion's schedule: pndm DDIM's, the others evenly spaced ones up to
the last, 999, which need not be whole. Latents are those of the forward process, z_t = sqrt(ab_t) z_0 +
sqrt(1 - ab_t) eps; k-diffusion's are sqrt(1 + sigma^2) z_t, with sigma = sqrt((1 - ab_t) / ab_t). All are
deterministic. Predictions are noise: of a model that predicts v, PLMS combines noises where diffusers combines v. What
begins in the middle of a trajectory has no steps behind it: the solver begins at its lowest order.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from benchmark.types import Solver

if TYPE_CHECKING:  # planning counts predictions, and needs no torch
    from torch import Tensor

CLASSES = {
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
}
IN_SIGMAS = ("lms", "euler")  # whose latents are k-diffusion's
ORDER = 4  # of LMS
PLMS = {"skip_prk_steps": True, "set_alpha_to_one": False}
SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "trained_betas")


class Walk(Protocol):
    """One trajectory, from the step at which it begins."""

    def begin(self, z: "Tensor") -> "Tensor":
        """What the trajectory begins with, of noise or of latents in its middle, `(B, C, h, w)`."""

    def times(self, i: int) -> "tuple[Tensor, ...]":
        """The times `()` at which step i asks for predictions, one after the other."""

    def step(self, z: "Tensor", predicted: "Tensor", t: "Tensor") -> "Tensor":
        """z after the prediction at t, which is the next of all steps' times."""


def predictions(solver: Solver, steps: int) -> int:
    """How many predictions a whole trajectory takes."""
    return steps + (solver == "pndm" and steps > 1)


def by_diffusers(solver: Solver, config: Mapping[str, Any], steps: int) -> Any:
    """A scheduler of diffusers on a model's own schedule, for so many steps of predictions of the noise."""
    import diffusers

    kept = {name: config[name] for name in SCHEDULE} | (PLMS if solver == "pndm" else {})
    found = getattr(diffusers, CLASSES[solver])(**kept, steps_offset=1, prediction_type="epsilon")
    found.set_timesteps(steps)
    return found


class Solved:
    """A walk by a scheduler of diffusers over the times `(S + 1,)` of a trajectory, from step `start`."""

    def __init__(self, solver: Solver, config: Mapping[str, Any], times: "Tensor", start: int) -> None:
        self.solver, self.all, self.start, self.done = solver, times[:-1], start, 0
        self.scheduler = by_diffusers(solver, config, len(self.all))
        self.scheduler.is_scale_input_called = True  # latents are scaled here
        if solver != "pndm":
            self.scheduler.set_begin_index(start)

    def begin(self, z: "Tensor") -> "Tensor":
        """k-diffusion's noise has the largest sigma, where the forward process has a trace of the image beside it."""
        if self.solver not in IN_SIGMAS or self.start:
            return z
        return z * self.scheduler.init_noise_sigma / self.size(0)

    def times(self, i: int) -> "tuple[Tensor, ...]":
        """The step's own time; PLMS corrects its first step by a second look, from that step's end."""
        return tuple(self.all[i : i + (2 if self.solver == "pndm" and i == self.start else 1)])

    def step(self, z: "Tensor", predicted: "Tensor", t: "Tensor") -> "Tensor":
        """By the scheduler, in its own latents."""
        told = {"order": min(self.done + 1, ORDER)} if self.solver == "lms" else {}
        time: Any = int(t) if self.solver == "pndm" else t.float()
        now, then = self.size(self.done), self.size(self.done + 1)
        found: Tensor = self.scheduler.step(predicted, time, z * now, **told).prev_sample
        self.done += 1
        return found / then

    def size(self, done: int) -> Any:
        """How much larger the scheduler's latents are after so many steps."""
        if self.solver not in IN_SIGMAS:
            return 1.0
        return (1 + self.scheduler.sigmas[self.start + done] ** 2).sqrt()
