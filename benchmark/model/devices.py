"""Where to compute: a name that exists, of a device that is here. Importing this loads no torch."""

import re

from benchmark.errors import ConfigError

NAMES = re.compile(r"auto|cpu|(cuda|mps)(:\d+)?")
ON_RAY = re.compile(r"auto|cpu|cuda")  # which of its GPUs a worker gets is Ray's to say


def check_name(device: str, *, on_ray: bool = False) -> None:
    """Refuse what is no device's name; whether there is such a one is not looked at.

    Raises:
        ConfigError: it is none.
    """
    if not (ON_RAY if on_ray else NAMES).fullmatch(device):
        known = "auto, cpu or cuda" + (" on Ray" if on_ray else ", or one of several such as cuda:1")
        raise ConfigError(f"expected the device {known}, got {device!r}: change --device.")


def present(device: str) -> str:
    """The device of a name, if it is here; for `auto` the GPU, or else the processor.

    Raises:
        ConfigError: it is not here, or is no device's name.
    """
    check_name(device)
    import torch

    here = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0}
    here["mps"] = int(torch.backends.mps.is_available())
    if device == "auto":
        return "cuda" if here["cuda"] else "cpu"
    kind, _, number = device.partition(":")
    if here[kind] <= int(number or 0):
        found = ", ".join(f"{name}:{n}" if n else name for name, count in here.items() for n in range(count))
        raise ConfigError(
            f"expected a device of this machine ({found}), got {device!r}: change --device, or give none."
        )
    return device
