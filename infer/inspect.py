"""What is in a model folder: format, step, configuration, parameter counts, what it reads with (a tokenizer, or how its
strips are drawn), files and their hashes.

Every file is read to its end and compared with the hash that the folder's manifest has for it, so `inspect` is also the
check that a copied checkpoint arrived whole. A foreign folder carries no hashes; its files get theirs printed. Of a
published PIXEL model the tensors are listed that its program stores and never reads.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from infer.load import read
from pixelcore.accounting import card_number, num_parameters
from pixelcore.config import DecoderConfig, DecoderTaskConfig, TokenEncoderConfig
from pixelcore.durable import sha256_of_file
from pixelcore.errors import UserError


def inspect(path: str | Path | None, *, tensors: bool = False) -> dict[str, object]:
    """The report on a model as plain values, ready for JSON. tensors: also name, shape and dtype of each tensor.

    Raises UserError for what cannot be read and for a file whose bytes are not those of its manifest.
    """
    stored = read(path)
    config, dead = stored.config, stored.details.get("dead", {})
    assert isinstance(dead, Mapping)
    folder = stored.path if stored.path.is_dir() else stored.path.parent
    report: dict[str, object] = {
        "path": str(stored.path),
        "format": stored.origin,
        "kind": config.kind,
        "name": stored.name,
        "step": stored.step,
        "config": dataclasses.asdict(config),
        "parameters": num_parameters(config),
        "tokenizer": None
        if stored.tokenizer is None
        else {"vocab_size": stored.tokenizer.vocab_size, "sha256": stored.tokenizer.sha256},
        "files": _files(folder, stored.details.get("files")),
    }
    if isinstance(config, DecoderConfig):
        report |= {"parameters_on_original_card": card_number(config), "adapters": config.lora is not None}
    elif not isinstance(config, TokenEncoderConfig | DecoderTaskConfig):
        report |= {
            "frozen": sum(tensor.numel() for tensor in stored.weights.values()) - num_parameters(config),
            "poolings": list(_strings(stored.details.get("poolings", ()))),
            "dead": [{"name": name, "shape": list(tensor.shape)} for name, tensor in dead.items()],
            "renderer": stored.renderer or stored.details.get("text_renderer"),
        }
    if tensors:
        report["tensors"] = [
            {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in stored.weights.items()
        ]
    return report


def _strings(values: object) -> tuple[str, ...]:
    assert isinstance(values, tuple)
    return values


def _files(folder: Path, recorded: object) -> list[dict[str, object]]:
    """Size, hash and state of each file: "ok" (as recorded) or "not recorded"."""
    expected = recorded if isinstance(recorded, Mapping) else {}
    missing = sorted(name for name in expected if not (folder / name).is_file())
    if missing:
        raise UserError(f"{folder / missing[0]}: missing from the checkpoint; copy it again or use another checkpoint")
    rows: list[dict[str, object]] = []
    for file in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        sha256 = sha256_of_file(file)
        if file.name in expected and expected[file.name] != sha256:
            raise UserError(
                f"{file}: damaged: SHA-256 differs from the manifest's; copy it again or use another checkpoint"
            )
        state = "ok" if file.name in expected else "not recorded"
        rows.append({"name": file.name, "bytes": file.stat().st_size, "sha256": sha256, "state": state})
    return rows


def as_text(report: Mapping[str, object]) -> str:
    """The report for people."""
    lines = [f"{key:<28}{report[key]}" for key in ("path", "format", "kind", "name", "step")]
    lines.append(f"{'parameters':<28}{report['parameters']:,}")
    lines += _about_strips(report) if "renderer" in report else _about_tokens(report)
    config = report["config"]
    assert isinstance(config, Mapping)
    lines += ["", "config", *(f"  {name:<26}{value}" for name, value in config.items())]
    renderer, dead = report.get("renderer"), report.get("dead", [])
    assert isinstance(dead, list)
    if isinstance(renderer, Mapping):
        table = renderer.get("config", renderer)  # ours, or the published one as it is
        lines += ["", "renderer", *(f"  {name:<26}{value}" for name, value in table.items() if name != "fonts_list")]
    if dead:
        lines += ["", "stored and never read", *(f"  {row['name']:<44}{row['shape']}" for row in dead)]
    files, tensors = report["files"], report.get("tensors", [])
    assert isinstance(files, list) and isinstance(tensors, list)
    lines += ["", "files"]
    lines += [f"  {row['name']:<30}{row['bytes']:>14,}  {row['sha256'][:16]}  {row['state']}" for row in files]
    if tensors:
        lines += ["", "tensors"]
        lines += [f"  {row['name']:<44}{row['dtype']:<10}{row['shape']}" for row in tensors]
    return "\n".join(lines)


def _about_tokens(report: Mapping[str, object]) -> list[str]:
    tokenizer = report["tokenizer"]
    found = "none"
    if isinstance(tokenizer, Mapping):
        found = f"{tokenizer['vocab_size']} pieces, sha256 {tokenizer['sha256']}"
    card = report.get("parameters_on_original_card")
    lines = [] if card is None else [f"{'parameters, original card':<28}{card:,}"]
    return [*lines, f"{'tokenizer':<28}{found}"]


def _about_strips(report: Mapping[str, object]) -> list[str]:
    renderer, poolings = report["renderer"], report["poolings"]
    assert isinstance(poolings, list)
    identity = renderer.get("identity") if isinstance(renderer, Mapping) else None
    known = "none" if renderer is None else "as published" if identity is None else "ours, with its identity"
    lines = [f"{'frozen positions':<28}{report['frozen']:,}"] if report["kind"] != "pixar" else []
    lines.append(f"{'renderer':<28}{known}")
    if poolings:
        lines.append(f"{'pooling':<28}not said: {' or '.join(poolings)}")
    return lines
