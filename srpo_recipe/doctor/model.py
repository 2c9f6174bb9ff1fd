"""The model: where it comes from, whether its files are whole, whether its chat template renders what the run sends."""

import json
import os
from pathlib import Path
from typing import Any

from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, NotChecked, ok
from srpo_recipe.method.chat import with_system_prompt
from srpo_recipe.settings.local_model import check, local_folder


def _path(case: Case) -> str:
    return case.config.actor_rollout_ref.model.path


def hub(case: Case) -> Answer:
    """A hub name is in the cache, or the hub answers."""
    path = _path(case)
    if Path(path).expanduser().is_dir():
        return ok("not needed: the model is a folder")
    if local_folder(path) is not None:
        return ok(f"{path} is in the cache")
    fix = f"on a machine with a network: huggingface-cli download {path}; share the cache by HF_HOME, or give a folder"
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        return FAIL, f"{path} is neither a folder nor OWNER/NAME", "correct actor_rollout_ref.model.path"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return FAIL, f"{path} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it", fix
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(path, timeout=10)
    except Exception as error:  # noqa: BLE001  (whatever the network raises)
        return FAIL, f"{path} is not in the cache, and the hub does not give it: {type(error).__name__}", fix
    return (
        WARN,
        f"{path} is not in the cache; the hub has it",
        "fetch it before the job: huggingface-cli download " + path,
    )


def _folder(case: Case) -> Path:
    folder = local_folder(_path(case))
    if folder is None:
        raise NotChecked(f"{_path(case)} on this machine")
    return folder


def _config(case: Case, folder: Path) -> Any:
    from transformers import AutoConfig

    model = case.config.actor_rollout_ref.model
    return AutoConfig.from_pretrained(model.hf_config_path or folder, trust_remote_code=model.trust_remote_code)


def _tokenizer(case: Case, folder: Path) -> Any:
    """That of the run, with the run's chat template."""
    from transformers import AutoTokenizer

    model = case.config.actor_rollout_ref.model
    found = AutoTokenizer.from_pretrained(model.tokenizer_path or folder, trust_remote_code=model.trust_remote_code)
    if model.custom_chat_template is not None:
        found.chat_template = model.custom_chat_template
    return found


def model_files(case: Case) -> Answer:
    """config.json, tokenizer, every shard of the weights to its last byte, and that the run's settings fit the model."""
    folder = _folder(case)
    fix = f"copy or download the whole model again into {folder}"
    for what, reader in (("config.json", _config), ("the tokenizer", _tokenizer)):
        try:
            reader(case, folder)
        except Exception as error:  # noqa: BLE001  (transformers raises anything)
            return FAIL, f"{what} in {folder} cannot be read: {str(error).splitlines()[0]}", fix
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    elif single.is_file():
        files = [single]
    elif list(folder.glob("*.bin")):
        return WARN, f"{folder} has weights in an old format that is not checked", "save the model as safetensors"
    else:
        return FAIL, f"{folder} has no weights", fix
    for file in files:
        broken = incomplete(file)
        if broken:
            return FAIL, f"{file.name}: {broken}", fix
    try:
        check(case.config)
    except ValueError as error:
        return FAIL, str(error), "set the key that it names as it says, or take another model"
    return ok(f"{folder}: config, tokenizer, {len(files)} file(s) of weights")


def incomplete(file: Path) -> str | None:
    """Why a safetensors file is not whole; None when it is. Reads its header alone."""
    if not file.is_file():
        return "missing"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 + length:
            return f"cut off in its header ({size} bytes)"
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return "no safetensors file"
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    return None if size == 8 + length + end else f"{size} bytes instead of {8 + length + end}"


def chat_template(case: Case) -> Answer:
    """The template renders a user's turn, and the system prompt where one is set."""
    folder = _folder(case)
    try:
        tokenizer = _tokenizer(case, folder)
    except Exception:  # noqa: BLE001  (transformers raises anything)
        raise NotChecked(f"a tokenizer in {folder}") from None
    if not tokenizer.chat_template:
        fix = "take the instruct version of the model, or put chat_template.jinja beside its tokenizer"
        return FAIL, "the tokenizer has no chat template", fix
    options = dict(case.config.data.get("apply_chat_template_kwargs") or {})
    system = case.config.srpo.system_prompt
    turns = with_system_prompt([{"role": "user", "content": "What is 2 + 3?"}], system)
    try:
        shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # noqa: BLE001  (templates raise jinja's errors)
        fix = "unset srpo.system_prompt" if system else "correct data.apply_chat_template_kwargs or the template"
        return FAIL, f"the chat template fails: {error}", fix
    lost = [turn["role"] for turn in turns if turn["content"].strip() not in shown]
    if lost:
        return (
            FAIL,
            f"the chat template drops the {lost[0]} turn",
            "unset srpo.system_prompt, or take a template with that turn",
        )
    return ok("renders a user turn" + (" and the system prompt" if system else ""))
