"""The method's own settings: every default once, every wrong value refused with its fix.

The dataclasses are registered with Hydra as the schema of the `srpo` section, so an unknown key or a wrong type is refused
while the command line is parsed; `rules.check` refuses what a type cannot say, and what contradicts verl's own settings.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from srpo_recipe.settings import run as _run  # noqa: F401  (registers the schema of the section run)
from srpo_recipe.settings.kinds import is_count
from srpo_recipe.verify.settings import VerifierConfig, require

TEACHER_TEMPLATE = "{prompt}\nCorrect solution:\n\n{demonstration}\n\nCorrectly solve the original question."
TEACHER_KINDS = ("ema", "frozen", "current")
FEEDBACK_TEMPLATE = "{prompt}\nFeedback on an earlier attempt:\n\n{feedback}\n\nCorrectly solve the original question."


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


@dataclass
class TeacherConfig:
    """The self-teacher (paper, section 3.2)."""

    # ema follows the student by ema_rate; frozen stays as the run begins (with LoRA the base model); current is the policy
    # itself (the paper's equation; its table and we use the EMA).
    kind: str = "ema"
    # teacher <- (1 - ema_rate) teacher + ema_rate student after every optimiser step.
    ema_rate: float = 0.05
    # What is shown, an option of method/options.py or module:function: a correct sibling (random, first, shortest, longest), a
    # correct rollout of another question (other), or the data's own solution (reference).
    demonstration: str = "random"
    # The teacher's user turn, with the fields {prompt} and {demonstration}.
    template: str = TEACHER_TEMPLATE
    # Budget of the teacher's prompt in tokens; what to do when it is exceeded: shorten the demonstration or reroute to GRPO.
    max_prompt_tokens: int = 10240
    overflow: str = "shorten"
    # Text feedback of the verifier (its "feedback" entry): off, append (after the demonstration), replace (instead of it).
    # When on, feedback also makes a teacher available to rows without a correct sibling.
    feedback: str = "off"
    feedback_template: str = FEEDBACK_TEMPLATE

    def __post_init__(self) -> None:
        require(0.0 <= self.ema_rate <= 1.0, f"srpo.teacher.ema_rate={self.ema_rate} must lie in [0, 1]")
        _one_of("srpo.teacher.kind", self.kind, TEACHER_KINDS)
        _one_of("srpo.teacher.overflow", self.overflow, ("shorten", "reroute"))
        _one_of("srpo.teacher.feedback", self.feedback, ("off", "append", "replace"))
        require(self.max_prompt_tokens > 0, "srpo.teacher.max_prompt_tokens must be positive")
        for name, template, wanted in (
            ("template", self.template, ("{prompt}", "{demonstration}")),
            ("feedback_template", self.feedback_template, ("{prompt}", "{feedback}")),
        ):
            missing = [part for part in wanted if part not in template]
            require(not missing, f"srpo.teacher.{name} lacks {' and '.join(missing)}")

    @property
    def rate(self) -> float:
        """The share of the student that the teacher takes after an optimiser step."""
        return {"ema": self.ema_rate, "frozen": 0.0, "current": 1.0}[self.kind]


@dataclass
class SRPOConfig:
    """Routing, weighting and distillation (paper, sections 3.1 to 3.3)."""

    # Row of the routing table, an option of method/options.py or module:function: grpo, sdpo, srpo, advantage_mix,
    # sdpo_incorrect_only, sdpo_correct_only, group.
    route: str = "srpo"
    # A rollout is correct when its reward reaches this.
    correct_threshold: float = 0.5
    # lambda of advantage_mix: weight of the policy-gradient part in every row.
    mix: float = 0.9
    # w~ = exp(-beta H) with the teacher's entropy H, divided by its mean over the mini-batch; 0 weighs all alike (plain SDPO).
    beta: float = 1.0
    # Token weight, row weight, the distillation's target and the GRPO part's advantage: options of method/options.py or
    # module:function, and the numbers that they take besides.
    weight: str = "confidence"
    weight_options: dict[str, float] = field(default_factory=dict)
    row_weight: str = "alike"
    row_weight_options: dict[str, float] = field(default_factory=dict)
    target: str = "teacher"
    target_options: dict[str, float] = field(default_factory=dict)
    advantage: str = "group_mean"
    advantage_options: dict[str, float] = field(default_factory=dict)
    # Divergence: 0.5 Jensen-Shannon, 0 forward KL(T||S), 1 reverse KL(S||T), between them the skewed mixtures.
    alpha: float = 0.5
    # Ids of the student that get a bin of their own; the rest of the mass shares one tail bin.
    top_k: int = 100
    # Mean of the loss over the tokens of the mini-batch, or over its sequences (each first averaged over its own tokens).
    average: str = "token"
    # Where the old policy's log-probs come from: the update's own forward pass, which can give them when a batch has one
    # optimiser step, or a pass before the update. auto takes the update where it can.
    old_policy: str = "auto"
    # Prepended to chats that have no system turn, for student and teacher alike. The paper lists one for Tool Use; none is used.
    system_prompt: str | None = None
    # Seeds the sibling's choice and, with the prompt's index, the step and the rollout's number, every rollout's sampling.
    seed: int = 42
    # Tokens whose logits exist at a time, in the update and in the teacher's pass; null: those of a whole micro-batch.
    logits_rows: int | None = 1024
    # MiB of a buffer of fp32 logits; two of them are all that the loss holds of the vocabulary beside the model's own logits.
    chunk_megabytes: float = 40.0
    # How often the trainer asks whether rollouts have arrived. verl's own is 2 s, longer than a step of a small model.
    poll_seconds: float = 0.5
    # A rollout engine that does not answer for this long ends the run with an error instead of waiting for ever.
    stall_seconds: float = 90.0
    # A run ends where the rollout engine's probabilities of the sampled tokens differ from the actor's by more than this on the
    # mean: its weights do not follow. null never ends it.
    sync_gap: float | None = 0.1
    # Warn when the mean response length falls under this share of what it was in the first steps.
    collapse_ratio: float = 0.3
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)

    def __post_init__(self) -> None:
        _one_of("srpo.old_policy", self.old_policy, ("auto", "update", "pass"))
        _one_of("srpo.average", self.average, ("token", "sequence"))
        require(0.0 <= self.mix <= 1.0, f"srpo.mix={self.mix} must lie in [0, 1]")
        require(
            0.0 <= self.beta < math.inf,
            f"srpo.beta={self.beta} must not be negative (it would favour unsure teachers) or infinite",
        )
        require(
            math.isfinite(self.correct_threshold), f"srpo.correct_threshold={self.correct_threshold} must be finite"
        )
        require(self.seed >= 0, f"srpo.seed={self.seed} must not be negative")
        require(0.0 <= self.alpha <= 1.0, f"srpo.alpha={self.alpha} must lie in [0, 1]")
        for name in ("top_k", "chunk_megabytes", "poll_seconds", "stall_seconds"):
            require(getattr(self, name) > 0, f"srpo.{name}={getattr(self, name)} must be positive")
        rows = self.logits_rows
        require(rows is None or rows > 0, f"srpo.logits_rows={rows}: set it to a number of tokens, or null for all")
        gap = self.sync_gap
        require(
            gap is None or 0.0 < gap <= 1.0,
            f"srpo.sync_gap={gap}: set it to a difference of probabilities in (0, 1], or null",
        )
        require(0.0 <= self.collapse_ratio < 1.0, f"srpo.collapse_ratio={self.collapse_ratio} must lie in [0, 1)")

    @property
    def needs_teacher(self) -> bool:
        """Whether anything asks the self-teacher; GRPO as it is builds no second model."""
        from srpo_recipe.settings.options import asks_gap  # which reads this schema

        return self.distils or asks_gap(self)

    @property
    def distils(self) -> bool:
        """Whether any row can take the distillation part."""
        return self.route != "grpo"


ConfigStore.instance().store(group="srpo", name="schema", node=SRPOConfig)


def _divide(dividend: Any, divisor: Any) -> int:
    for key, value in (("data.train_batch_size", dividend), ("method.optimizer_steps", divisor)):
        require(is_count(value), f"{key}={value}: set it to a whole number of at least 1")
    quotient, rest = divmod(dividend, divisor)
    require(rest == 0, f"data.train_batch_size={dividend} must be a multiple of method.optimizer_steps={divisor}")
    return quotient


def _load_format(rank: int, merge: bool) -> str:
    """vLLM reads the base itself where it is given adapters alone; otherwise it is given all weights before the first rollout."""
    return "auto" if rank and not merge else "dummy"


OmegaConf.register_new_resolver("srpo_divide", _divide, replace=True)
OmegaConf.register_new_resolver("srpo_package", lambda name: str(Path(__file__).parents[1] / name), replace=True)
OmegaConf.register_new_resolver("srpo_load_format", _load_format, replace=True)
