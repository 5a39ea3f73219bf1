"""Which parameters of a U-Net a defense trains: the sets that ESD's two releases name, used by the methods after it.

x         all of attn2, the attention to the text (ESD-x)
x-strict  its to_k and to_v
u         Linear and Conv2d layers outside attn2 (ESD-u of the diffusers release)
u-old     all but attn2, the output layers and the time embedding (ESD-u of the CompVis release, `noxattn`)
selfattn  all of attn1
full      everything

Code      https://github.com/rohitgandikota/erasing
"""

from typing import Literal

from torch import nn

Scope = Literal["x", "x-strict", "u", "u-old", "selfattn", "full"]


def scope_names(unet: nn.Module, scope: Scope) -> set[str]:
    """The parameters of a U-Net that a scope trains, by name.

    Raises:
        ValueError: there is none.
    """
    layers = {n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    chosen = set()
    for name, _ in unet.named_parameters():
        cross, in_layer = ".attn2." in name, name.rpartition(".")[0] in layers
        kept_out = name.startswith(("conv_out", "conv_norm_out", "time_embedding"))
        wanted = {
            "x": cross,
            "x-strict": cross and (".to_k." in name or ".to_v." in name),
            "u": in_layer and not cross,
            "u-old": not cross and not kept_out,
            "selfattn": ".attn1." in name,
            "full": True,
        }[scope]
        if wanted:
            chosen.add(name)
    if not chosen:
        raise ValueError(f"expected scope {scope!r} to select parameters, got none: has this U-Net such layers?")
    return chosen
