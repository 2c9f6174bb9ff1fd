"""Whether a run can use its rows, looked at before anything starts: each file as verl's own loader reads it, row by row.

The doctor and the start of a run ask the same functions. A file on another machine, and one that a loader of the user's reads,
are not looked at.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from srpo_recipe.data.lengths import Sampled
from srpo_recipe.data.rendered import check_rendered
from srpo_recipe.method.chat import CHAT, is_chat
from srpo_recipe.method.demonstrations import REFERENCE
from srpo_recipe.records.training_rows import SUFFIXES, require_index
from srpo_recipe.settings import agents
from srpo_recipe.settings.wire import limited, wire, wired
from srpo_recipe.verify import VERIFIERS, resolve
from srpo_recipe.verify.functions import function_at
from srpo_recipe.verify.rewards import RewardPool

FILES = ("train_files", "val_files")
# All rows of a file up to so many, and of a larger one about as many, spread over it.
MOST_ROWS = 20_000
# Of those about so many are rendered and counted in tokens.
MOST_COUNTED = 1_000
BATCH = 500
# What verl stores of a rollout, under names that a column of the data would take.
OF_ROLLOUTS = frozenset(
    "prompts responses response_mask loss_mask input_ids position_ids attention_mask rm_scores rollout_log_probs old_log_probs "
    "ref_log_prob advantages returns num_turns metrics extra_fields multi_modal_inputs routed_experts uid session_id "
    "global_steps".split()
)
_LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}


class Example(NamedTuple):
    chat: list[dict[str, str]]
    truth: Any
    extra: dict[str, Any]


@dataclass(frozen=True)
class Usable:
    """Rows by data.train_files and data.val_files, an example of each data_source (chat, ground truth and extra_info), and chats
    to be counted in tokens.
    """

    rows: dict[str, int]
    examples: dict[str, Example]
    chats: dict[str, list[tuple[str, list[dict[str, str]]]]]

    def sampled(self) -> dict[str, Sampled]:
        """The chats by data.train_files and data.val_files, where there are any."""
        return {
            key: Sampled([place for place, _ in chats], [chat for _, chat in chats], self.rows[key])
            for key, chats in self.chats.items()
            if chats
        }


def files(data: DictConfig, key: str) -> list[str]:
    value = data[key] or []
    return [value] if isinstance(value, str) else list(value)


def look(config: DictConfig) -> Usable:
    """Look at all files of a run. Raises ValueError with file, row (from 0) and key of the first row that cannot be used."""
    data = config.data
    found: dict[str, int] = dict.fromkeys(FILES, 0)
    examples: dict[str, Example] = {}
    counted: dict[str, list] = {key: [] for key in FILES}
    solved = not shows_reference(config)
    loops, tools, by_row = agents.loops(config), agents.has_tools(config), False
    for key in FILES:
        for file in files(data, key):
            if "://" in file:
                by_row = True  # perhaps
                continue
            try:
                table = load(file)
            except ValueError as error:
                raise ValueError(f"{error}; correct data.{key}") from None
            if taken := sorted(OF_ROLLOUTS & set(table.column_names)):
                raise ValueError(
                    f"{file} has a column {taken[0]}, which is a rollout's own and would be written over it: rename the column"
                )
            require_index(file)
            by_row |= agents.COLUMN in table.column_names
            found[key] += len(table)
            every = max(1, len(table) // MOST_COUNTED)
            for number, row in _rows(table):
                try:
                    source, example = checked(row, config)
                    agents.check_row(row, loops, tools)
                except ValueError as error:
                    raise ValueError(f"{file} row {number}: {error}") from None
                examples.setdefault(source, example)
                solved |= key == "train_files" and bool(example.extra.get(REFERENCE))
                if number % every == 0:
                    counted[key].append((f"{file} row {number}", example.chat))
    if not by_row:
        agents.check_used(config)
    if found["train_files"] and not solved:
        raise ValueError(
            f"srpo.teacher.demonstration={REFERENCE} shows the data's own solutions, and no row of data.train_files has a text "
            f"in extra_info.{REFERENCE}: prepare the data with --map reference=COLUMN, or show a sibling"
        )
    return Usable(found, examples, counted)


def shows_reference(config: DictConfig) -> bool:
    """Whether the teacher of a run is shown the data's own solutions."""
    return config.srpo.teacher.demonstration == REFERENCE


def load(file: str) -> Any:
    """The rows of a file through `datasets`, as verl's loader takes them. Raises ValueError where it could not."""
    import datasets

    path = Path(file)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{file}: verl reads rows from files that end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{file} is not there")
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(_LOADERS[path.suffix], data_files=str(path), split="train")
    except Exception as error:  # of pyarrow, of datasets, StopIteration for an empty file
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} cannot be read: {reason}") from error
    if not len(table):
        raise ValueError(f"{file} holds no row")
    return table


def _rows(table: Any) -> Iterator[tuple[int, Any]]:
    step = max(1, len(table) // MOST_ROWS)
    wanted = range(0, len(table), step)
    for start in range(0, len(wanted), BATCH):
        numbers = wanted[start : start + BATCH]
        yield from zip(numbers, table.select(numbers).to_list(), strict=True)


def checked(row: Any, config: DictConfig) -> tuple[str, Example]:
    """(data_source, the example that the row is). Raises ValueError with the key and what it must be."""
    data = config.data
    chat, source = row.get(data.prompt_key), row.get(data.reward_fn_key)
    if not is_chat(chat):
        raise ValueError(f"{data.prompt_key} must be {CHAT}, not {_shown(chat)}")
    if chat[-1]["role"] != "user" or not chat[-1]["content"].strip():
        raise ValueError(f"{data.prompt_key} must end in a user turn with a text, not in {_shown(chat[-1])}")
    if not isinstance(source, str) or not source:
        raise ValueError(f"{data.reward_fn_key} must be the name of the row's source, not {_shown(source)}")
    for kind in (data.image_key, data.video_key, data.audio_key):
        if row.get(kind):
            raise ValueError(f"{kind} holds something: only chats of texts can be trained on")
    model = row.get("reward_model")
    if not isinstance(model, dict) or "ground_truth" not in model:
        raise ValueError(f"reward_model must be an object with ground_truth, not {_shown(model)}")
    truth = model["ground_truth"]
    if truth is None:
        raise ValueError("reward_model.ground_truth is missing")
    extra = row.get("extra_info")
    if extra is not None and not isinstance(extra, dict):
        raise ValueError(f"extra_info must be an object, not {_shown(extra)}")
    reference = (extra or {}).get(REFERENCE)
    if shows_reference(config) and not isinstance(reference, str | None):
        raise ValueError(f"extra_info.{REFERENCE} must be a text or null, not {_shown(reference)}")
    _check_truth(truth, config)
    return source, Example(chat, truth, extra or {})


def _check_truth(truth: Any, config: DictConfig) -> None:
    """What the run's verifier cannot read would be a failed verification in every step."""
    verifier = config.srpo.verifier
    if verifier.name is None:
        return
    if not isinstance(truth, str) or not truth.strip():
        raise ValueError(f"reward_model.ground_truth must be a text, not {_shown(truth)}")
    if verifier.name in VERIFIERS:
        try:
            resolve(verifier.name, verifier.mode, verifier.percent)("", truth)
        except ValueError as error:
            raise ValueError(f"reward_model.ground_truth: {error}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_sources(found: Usable, config: DictConfig) -> None:
    """Raise ValueError for a data_source that neither the run nor verl has a reward for."""
    if config.srpo.verifier.name is not None or config.reward.custom_reward_function.path is not None:
        return
    score = function_at("verl.utils.reward_score:default_compute_score")
    for source, example in found.examples.items():
        try:
            score(source, "", example.truth)
        except NotImplementedError:
            raise ValueError(
                f"no reward is known for the data_source {source!r}: name a verifier (srpo.verifier.name=choice, tool_use, math "
                "or your own), or reward.custom_reward_function.path and .name"
            ) from None
        except Exception:  # of verl's own rule on an empty answer, which a step would count as a failed reward
            continue


def check_function(found: Usable, config: DictConfig) -> None:
    """Ask a reward function of the user's, under its limits, for an empty response and for one that is the ground truth. Raises
    ValueError where it does not give a number.
    """
    if not limited(config) or not config.srpo.verifier.limits:
        return
    if not wired(config):
        config = deepcopy(config)
        wire(config)
    given = OmegaConf.to_container(config.reward.custom_reward_function.reward_kwargs, resolve=True)
    assert isinstance(given, dict)
    with RewardPool(given["function"], given["fixed"], **given["limits"]) as pool:
        for source, (_, truth, extra) in found.examples.items():
            for response in ("", str(truth)):
                call = {"data_source": source, "solution_str": response, "ground_truth": truth, "extra_info": extra}
                answer = pool.submit(**call).result()
                if answer["failure"] is not None:
                    raise ValueError(
                        f"the reward function {given['function']} gives no number for the response {_shown(response)} to a row "
                        f"of {source!r} ({answer['failure']}): {answer['error']}"
                    )


def check(config: DictConfig) -> Usable:
    """All of it: rows, sources, and the chat template of a model that is a folder here. Raises ValueError."""
    found = look(config)
    check_sources(found, config)
    check_function(found, config)
    model = config.actor_rollout_ref.model
    if found.examples and Path(model.path).expanduser().is_dir():
        check_rendered(found.sampled(), [example.chat for example in found.examples.values()], config)
    return found
