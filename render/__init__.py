"""Text to pixel patches and back: `Renderer(RenderConfig.named("default"))("text")`."""

from render.config import RenderConfig
from render.errors import RenderError
from render.reader import Reader, Reading
from render.renderer import Renderer
from render.strip import Strip

__all__ = ["Reader", "Reading", "RenderConfig", "RenderError", "Renderer", "Strip"]
