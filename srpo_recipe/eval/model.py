"""What is evaluated: a Hugging Face folder, a name on the hub, or a checkpoint that training wrote."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from srpo_recipe import export
from srpo_recipe.records import adapters
from srpo_recipe.records.files import sha256

# Of a repository on the hub: weights, configuration, tokenizer, chat template.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class Model:
    """folder: of Hugging Face's format, or with the shards of a checkpoint; weights: "student" or "teacher" of a checkpoint, None
    for a Hugging Face folder."""

    folder: Path
    weights: str | None

    def files(self) -> list[Path]:
        """The files that make up the model, in a fixed order."""
        if self.weights is None:
            return sorted(file for file in self.folder.iterdir() if file.is_file() and not file.name.startswith("."))
        return [*adapters.shards_of(self.folder), *sorted((self.folder / "huggingface").glob("*.*"))]

    def sha256(self) -> str:
        """One digest over the names and contents of the files."""
        digest = hashlib.sha256()
        files = self.files()
        for file in tqdm(files, desc="checksum of the model", unit="file", leave=False, disable=len(files) < 2):
            digest.update(f"{file.name} {sha256(file)}\n".encode())
        return digest.hexdigest()

    @contextmanager
    def hugging_face(self, scratch: Path) -> Iterator[Path]:
        """A folder that vLLM loads: the model's own, or the merged checkpoint in `scratch`, which is removed afterwards."""
        if self.weights is None:
            yield self.folder
            return
        shutil.rmtree(scratch, ignore_errors=True)  # of an evaluation that was killed
        try:
            yield export.export(self.folder, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def find(name: str, weights: str | None) -> Model:
    """The model that a user named. weights: of a checkpoint, None for the student.

    Raises ValueError or OSError with the fix when it is none of the three, or weights are asked of what has one set only.
    """
    path = Path(name)
    plain = (path / "config.json").is_file()
    if path.exists() and not plain:
        weights = weights or export.WEIGHTS[0]
        return Model(export.find_weights(path.resolve(), weights), weights)
    if weights is not None:
        raise ValueError(f"{name} holds one set of weights; --weights belongs to a checkpoint of training")
    if plain:
        return Model(path.resolve(), None)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(
            f"{name} does not exist: name a Hugging Face folder, a checkpoint, or OWNER/NAME on the hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Model(Path(snapshot_download(name, allow_patterns=_HUB_FILES)), None)
    except Exception as error:
        raise OSError(f"{name} is no folder here and cannot be had from the Hugging Face hub: {error}") from error
