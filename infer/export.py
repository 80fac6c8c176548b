"""A model in another program's format, or in ours without what only training needs.

Which formats there are depends on the kind of model: a decoder can become the original program's bundle or Llama's
layout; a model that reads strips the published PIXEL layout or, where nothing but the shape of the picture differs,
that of transformers' ViT-MAE; one that writes them the published PIXAR layout; every model our own weights-only export.

An export holds weights and what is needed to use them; AdamW's moments go along only into a bundle and on request.
Adapters stay adapters where the format knows them, unless merging is asked for; Llama's layout and PIXEL's have no
place for them, so there they are always folded into the weights.
"""

import logging
from pathlib import Path

from infer.load import read
from pixelcore.convert.bundle_writer import write_bundle
from pixelcore.convert.exported import write_export
from pixelcore.convert.llama import write_llama
from pixelcore.convert.merge import adapters_of, merge_lora
from pixelcore.convert.pixar import write_pixar
from pixelcore.convert.pixel import with_pooling, write_pixel
from pixelcore.convert.vitmae import write_vitmae
from pixelcore.errors import UserError

# format -> the kinds of model that it can hold
FORMATS: dict[str, tuple[str, ...]] = {
    "bundle": ("decoder",),
    "hf": ("decoder",),
    "pixel": ("vit_mae", "vit_task"),
    "vitmae": ("vit_mae",),
    "pixar": ("pixar",),
    "safetensors": ("decoder", "vit_mae", "vit_task", "token_mlm", "token_task", "pixar", "pixar_task", "decoder_task"),
}

_log = logging.getLogger(__name__)


def export(
    path: str | Path | None,
    to: str,
    out: str | Path,
    *,
    with_optimizer: bool = False,
    merge: bool = False,
    tokenizer: str | Path | None = None,
    pooling: str | None = None,
) -> Path:
    """Write the model at `path` into the new folder `out`; returns it. to: one of `FORMATS`. pooling: of a published
    classifier whose files do not say it.

    Raises UserError, before anything is written, where the folder is taken or the request does not fit the model.
    """
    out = Path(out)
    if to not in FORMATS:
        raise UserError(f"--to {to}: unknown format; choose {', '.join(FORMATS)}")
    if with_optimizer and to != "bundle":
        raise UserError(f"--with-optimizer: a {to} export holds weights alone; use --to bundle, or leave it out")
    if with_optimizer and merge:
        raise UserError("--with-optimizer --merge: the moments belong to the adapters that merging removes; choose one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; an export is written to a new or empty folder")
    stored = read(path, tokenizer=tokenizer, with_optimizer=with_optimizer)
    if with_optimizer and stored.optimizer is None:
        raise UserError(f"--with-optimizer: {stored.path} holds no optimizer state; leave it out")
    kind = stored.config.kind
    if kind not in FORMATS[to]:
        fitting = [name for name, kinds in FORMATS.items() if kind in kinds]
        raise UserError(f"--to {to}: {stored.path} is a {kind} model; choose {' or '.join(fitting)}")
    if pooling is not None:
        stored = with_pooling(stored, pooling)
    lora = adapters_of(stored.config)
    if merge and lora is None:
        raise UserError(f"--merge: {stored.path} has no adapters to merge; leave it out")
    if lora is not None and (merge or to in ("hf", "pixel")):
        _log.info("folding the adapters into the weights")
        stored = merge_lora(stored)
    if to == "bundle":
        write_bundle(out, stored, with_optimizer=with_optimizer)
    elif to == "safetensors":
        write_export(out, stored)
    elif to == "pixel":
        write_pixel(out, stored)
    elif to == "pixar":
        write_pixar(out, stored)
    elif to == "vitmae":
        write_vitmae(out, stored)
    else:
        write_llama(out, stored)
    return out
