"""The font of this project: drawn for it, kept as text, the default where no font is named."""

from render.font.pixel import PixelFont

__all__ = ["PixelFont"]
