"""Published models by name: `owner/name`, or `owner/name@revision` for a branch, a tag or a commit.

A path that exists always comes first. A name is fetched by the `huggingface_hub` library, an extra of this project that
is imported only here and only then: it knows where the models are, keeps what it fetched, and answers from there when
there is no network. What is fetched is what a reader here could open, by file name; the optimizer states and training
logs that lie beside published weights are not.
"""

import re
from pathlib import Path
from types import ModuleType

from pixelcore.errors import UserError

_NAME = re.compile(r"(?P<owner>[A-Za-z0-9][\w.-]*)/(?P<model>[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
FILES = (
    "config.json",
    "manifest.json",
    "model.safetensors",
    "pytorch_model.bin",
    "text_renderer_config.json",
    "tokenizer.model",
    "*.ttf",
    "*.otf",
)


def is_hub_name(text: str) -> bool:
    """Whether a path that does not exist may be the name of a published model: two parts, and no folder of that name
    here that the first part could mean."""
    found = _NAME.fullmatch(text)
    return found is not None and not Path(found["owner"]).is_dir()


def fetch(name: str) -> Path:
    """The folder of a published model on this machine, fetched unless it is there already.

    Raises UserError where the library is not installed, or the model does not exist, is closed to this user, or cannot
    be reached.
    """
    library = _library(name)
    found = _NAME.fullmatch(name)
    assert found is not None, name
    repository, revision = f"{found['owner']}/{found['model']}", found["revision"]
    errors = library.errors
    try:
        return Path(library.snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    # the order matters: the first is a kind of the second, and the first three of the last
    except errors.GatedRepoError as cause:
        raise UserError(f"{name}: its owner asks for an agreement: accept it on the model's page, log in") from cause
    except errors.RepositoryNotFoundError as cause:
        raise UserError(
            f"{name}: no such file or folder, and no published model of that name, or a private one: correct the name, "
            "or log in"
        ) from cause
    except errors.RevisionNotFoundError as cause:
        raise UserError(f"{name}: the model has no branch, tag or commit {revision}: correct it") from cause
    except (errors.HFValidationError, errors.HTTPError, OSError) as cause:  # no network, or half an answer
        raise UserError(
            f"{name}: no such file or folder, and a published model of that name cannot be fetched "
            f"({type(cause).__name__}): correct the path, or try again with a network"
        ) from cause


def _library(name: str) -> ModuleType:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports] - an extra
        import huggingface_hub.errors  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as cause:
        raise UserError(
            f"{name}: no such file or folder; a published model is fetched by its name after "
            "pip install 'pixelcore[hf]'"
        ) from cause
    return huggingface_hub
