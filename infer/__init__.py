"""Using trained models: loading any checkpoint, writing text with it, measuring, inspecting, exporting; reading strips.

`load`, `generate` and `read` are what the command line calls; `python -m infer --help` shows the rest.
"""

from infer.generate_tokens import Generation, generate
from infer.load import Loaded, load
from infer.read import ReadText, read
from infer.sampling import SamplingConfig

__all__ = ["Generation", "Loaded", "ReadText", "SamplingConfig", "generate", "load", "read"]
