"""LoRA: low-rank fine-tuning of the attention projections (Hu et al., ICLR 2022), as the ecosystem uses it.

    W x -> W x + (alpha / r) B A x,   A ~ N(0, 1/r^2), B = 0
    W   -> m V / || V ||,   V = W + (alpha / r) B A,  m = || W || at first      (`dora`; norms over each output channel)
    loss = L_DM on the attacker's captioned images

Paper     https://arxiv.org/abs/2106.09685; DoRA: Liu et al., ICML 2024, https://arxiv.org/abs/2402.09353; MemoRa:
          https://arxiv.org/abs/2510.03263; on more layers than the attention's: LyCORIS, ICLR 2024,
          https://arxiv.org/abs/2309.14859
Code      huggingface/diffusers examples/text_to_image/train_text_to_image_lora.py @ 58eb52c;
          amberyzheng/IMMA scripts/run_lora.sh @ 2f55041; Mustard-lord/Patronus diffusion_FT.py @ 5491b24 (`patronus`);
          examples/dreambooth/train_dreambooth_lora_sd3.py, _flux.py and _flux2.py @ 58eb52c (`flow`);
          examples/dreambooth/train_dreambooth_lora.py @ 58eb52c (layers of the text encoder); gmum/MemoRa @ f770e7f
          (`memora`: at 10 and at 500 steps); DoRA is peft's
Differs   no warm-up (the script's 500 steps would waste a short attack); fp32; no crops or flips. Patronus: gradients
          are clipped as in the script, and its rate does not decay, because that would depend on the last budget; nor
          does MemoRa's, and its few pictures are not multiplied by inversion and interpolation. With `text_encoder`
          one rate for both parts. What DoRA learned is no adapter file, but a change of whole weights.
          Layers whose weights are `frozen` get no adapter: see `attacks.restricted`.
Access    weights
Budget    optimizer steps; U-Net passes are counted by the runner.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator

from attacks.adapting import AdapterAttack
from attacks.restricted import Restricted
from benchmark.diffusion import Model
from benchmark.types import Concept, Examples, Report, Snapshot


@dataclass(frozen=True, kw_only=True)
class LoRA(Restricted, AdapterAttack):
    """Rank-r adapters on the U-Net's attention, trained on images of the concept. Defaults: IMMA's re-learning."""

    version = 1
    later = frozenset({"dora", "text_encoder", "frozen"})
    presets = {
        "memora": {"batch": 4},  # its 1, accumulated 4 times
        "all-layers": {"targets": ("all",)},
        "dora": {"dora": True},
        "text-encoder": {"text_encoder": True},
        "patronus": {"rank": 8, "alpha": 8, "batch": 30, "optimizer": "sgd"},
        "flow": {
            "batch": 4
        },  # of the READMEs for SD 3 and FLUX: 1, accumulated 4 times; on both sides of the attention
    }

    def finetune(
        self,
        model: Model,
        base: Model,
        concept: Concept,
        data: Mapping[str, Examples],
        *,
        budgets: Sequence[int],
        rng: Generator,
        report: Report,
    ) -> Iterator[Snapshot]:
        """Yield the adapters after each budget.

        Raises:
            ValueError: `targets` name no layer of this model, or the loss is not finite.
        """
        yield from self.adapted(model, data["concept"], budgets=budgets, rng=rng, report=report, frozen=self.frozen)
