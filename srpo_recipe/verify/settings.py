"""The settings of the verifiers, section srpo.verifier: every default once, every wrong value refused with its fix."""

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from srpo_recipe.verify import MODES, PERCENT


def require(holds: bool, message: str) -> None:
    """Raise ValueError with `message`, which has the fix, unless a condition holds."""
    if not holds:
        raise ValueError(message)


@dataclass
class ShapingConfig:
    """Terms on top of the verifier's reward, against length collapse; shaping.py has the formula."""

    # No reward without a reasoning part: <reasoning>, <think>, or "Thought:" before the first action.
    require_reasoning: bool = False
    # No reward for a response of fewer characters.
    min_characters: int = 0
    # Taken from the reward of a response that was cut at its token limit, right or wrong.
    truncation_penalty: float = 0.0

    def __post_init__(self) -> None:
        require(self.min_characters >= 0, "srpo.verifier.shaping.min_characters must not be negative")
        require(
            0.0 <= self.truncation_penalty <= 1.0,
            f"srpo.verifier.shaping.truncation_penalty={self.truncation_penalty} must lie in [0, 1]",
        )


@dataclass
class VerifierConfig:
    """From a response to a reward."""

    # choice, tool_use, math, or a function of your own: package.module:function or path/to/file.py:function. None for
    # a task that brings its own reward function.
    name: str | None = None
    # strict, or published: the rule behind the published numbers.
    mode: str = "strict"
    # Seconds of wall clock after which a verification is ended, its reward 0.
    time_limit: float = 5.0
    # Verifications at a time in each of verl's reward workers (reward.num_workers).
    processes: int = 2
    # What a verification may take on top of the address space that its process starts with; 0 for no limit.
    memory_mb: int = 2048
    # Whether a reward function of your own (reward.custom_reward_function) has these limits, too. A verifier always has.
    limits: bool = True
    # Whether 28 answers 28% and 28% answers 28 (optional), or 28% is 0.28 alone (value). Of math, strict.
    percent: str = PERCENT[0]
    shaping: ShapingConfig = field(default_factory=ShapingConfig)

    def __post_init__(self) -> None:
        require(
            self.percent in PERCENT,
            f"srpo.verifier.percent={self.percent!r} is unknown; choose one of {', '.join(PERCENT)}",
        )
        require(self.mode in MODES, f"srpo.verifier.mode={self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        require(
            0.0 < self.time_limit < math.inf,
            f"srpo.verifier.time_limit={self.time_limit} must be positive and finite: hostile answers need a limit",
        )
        require(self.processes > 0, f"srpo.verifier.processes={self.processes} must be positive")
        require(self.memory_mb >= 0, f"srpo.verifier.memory_mb={self.memory_mb} must be positive, or 0 for no limit")


def from_plain(section: Any) -> VerifierConfig:
    """The settings from a copy that lost its type on the way to a reward worker."""
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VerifierConfig), section))
    assert isinstance(settings, VerifierConfig)
    return settings
