"""What every run on drawn text asks before its first step: with which renderer, and which rows are there?

Objectives differ in what they make of rows, not in where rows come from. Which sizes of a strip fit the model is theirs
to check, before this.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from infer.pixels import check_renderer
from pixelcore.errors import UserError
from pixelcore.stored import Stored
from render import Renderer, RenderError
from train.config import DrawnSettings, RenderTable
from train.data.corpus import find_sources
from train.data.strips.strip_corpus import StripCorpus, build_strip_corpus
from train.distributed import Ranks

_log = logging.getLogger(__name__)

AnySettings = TypeVar("AnySettings", bound=DrawnSettings)


def renderer_of_model(settings: DrawnSettings, stored: Stored, init: Path) -> RenderTable:
    """How a run that begins with a stored model draws: as the model has seen it, unless the user accepts a change."""
    render = settings.render
    if stored.renderer is None:
        _log.warning(
            "%s does not say how its strips were drawn in a form that can be compared: drawing them as [render] says",
            init,
        )
    elif not render.accept_changed:
        render = RenderTable(**{**stored.renderer["config"], "fonts": tuple(stored.renderer["config"]["fonts"])})
        render = replace(render, max_patches=settings.data.row_patches)  # its rows may be shorter or longer
    return render


def check_row_length(settings: DrawnSettings) -> None:
    """Raise UserError where [render] says of a strip's length what [data] says in training."""
    if settings.render.max_patches not in (settings.data.row_patches, RenderTable().max_patches):
        raise UserError(
            f"render.max_patches = {settings.render.max_patches} is said by data.row_patches = "
            f"{settings.data.row_patches} in training: leave it out"
        )


def find_rows(
    settings: AnySettings, ranks: Ranks, stored: Stored | None, own_text: Path | None
) -> tuple[StripCorpus, AnySettings]:
    """Rows to draw, and settings whose renderer draws rows of the length that is trained on.

    stored: the model that the run goes on from. own_text: the run's copy of the default text. Raises UserError for a
    font that is not there, and for a renderer that is not the model's.
    """
    settings = replace(settings, render=replace(settings.render, max_patches=settings.data.row_patches))
    try:
        renderer = Renderer(settings.render.plain)
    except RenderError as cause:  # a font that is not there, or no font
        raise UserError(f"[render]: {cause}") from cause
    if stored is not None and stored.renderer is not None:
        check_renderer(stored.renderer["identity"], renderer, settings.render.accept_changed, str(stored.path))
    if not ranks.is_first:
        ranks.wait()  # the first rank prepares; the others find everything in the cache
    sources, held_out = find_sources(settings.data, own_text)
    corpus = build_strip_corpus(sources, held_out, renderer, settings.data, settings.eval.max_rows)
    if ranks.is_first:
        ranks.wait()
        _log.info("%s", corpus.description)
    return corpus, settings
