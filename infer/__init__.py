"""Using trained models: loading any checkpoint, writing and painting text, vectors of texts, measuring, inspecting,
exporting; reading strips.

What is listed here is what the command line calls; `python -m infer --help` shows the rest.
"""

from infer.continue_strip import Continuation, continue_strip
from infer.embed import Embeddings, embed
from infer.generate_tokens import Generation, generate
from infer.load import Loaded, load
from infer.pixels import LoadedPixels, load_pixels
from infer.read import ReadText, read
from infer.reconstruct import Reconstruction, reconstruct
from infer.sampling import SamplingConfig

__all__ = [
    "Continuation",
    "Embeddings",
    "Generation",
    "Loaded",
    "LoadedPixels",
    "ReadText",
    "Reconstruction",
    "SamplingConfig",
    "continue_strip",
    "embed",
    "generate",
    "load",
    "load_pixels",
    "read",
    "reconstruct",
]
