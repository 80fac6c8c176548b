"""A model in another program's format: the original decoder's bundle, our own weights-only export, or Llama's layout.

An export holds weights and what is needed to use them; AdamW's moments go along only into a bundle and on request.
Adapters stay adapters where the format knows them, unless merging is asked for; Llama's layout has no place for them,
so there they are always folded into the weights.
"""

import logging
from pathlib import Path

from infer.load import read
from pixelcore.convert.bundle_writer import write_bundle
from pixelcore.convert.exported import write_export
from pixelcore.convert.llama import write_llama
from pixelcore.convert.merge import merge_lora
from pixelcore.errors import UserError

FORMATS = ("bundle", "safetensors", "hf")

_log = logging.getLogger(__name__)


def export(
    path: str | Path | None,
    to: str,
    out: str | Path,
    *,
    with_optimizer: bool = False,
    merge: bool = False,
    tokenizer: str | Path | None = None,
) -> Path:
    """Write the model at `path` into the new folder `out`; returns it. to: one of `FORMATS`.

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
    if merge and stored.config.lora is None:
        raise UserError(f"--merge: {stored.path} has no adapters to merge; leave it out")
    if stored.config.lora is not None and (merge or to == "hf"):
        _log.info("folding the adapters into the weights")
        stored = merge_lora(stored)
    if to == "bundle":
        write_bundle(out, stored, with_optimizer=with_optimizer)
    elif to == "safetensors":
        write_export(out, stored)
    else:
        write_llama(out, stored)
    return out
