"""YAML -> a frozen Config of built methods.

In: presets and YAML files, plug-ins by name. Out: `Config`. All rooms below may import it; it loads no torch.
"""

from benchmark.config.config import Config

__all__ = ["Config"]
