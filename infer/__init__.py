"""Using trained models: loading any checkpoint, writing text with it, measuring, inspecting and exporting it.

`load` and `generate` are what the command line calls; `python -m infer --help` shows the rest.
"""

from infer.generate_tokens import Generation, generate
from infer.load import Loaded, load
from infer.sampling import SamplingConfig

__all__ = ["Generation", "Loaded", "SamplingConfig", "generate", "load"]
