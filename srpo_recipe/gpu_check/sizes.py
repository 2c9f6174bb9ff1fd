"""How large the checks are: on a GPU the shapes of published models with random weights, on a CPU small ones."""

from dataclasses import dataclass
from typing import Any

QWEN3 = {
    "head_dim": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 28,
    "vocab_size": 151_936,
}


@dataclass(frozen=True)
class Model:
    """A Qwen3 with random weights.

    shape: keys of transformers' configuration. For the parts `memory` and `step`: rows: rollouts of an optimiser step; pass_rows:
    of a micro-batch; lengths: prompt, response and what the self-teacher's prompt has more, in tokens; checkpointing: of layers.
    """

    name: str
    shape: dict[str, Any]
    rows: int
    pass_rows: int
    lengths: tuple[int, int, int]
    checkpointing: bool

    @property
    def vocabulary(self) -> int:
        return self.shape["vocab_size"]


@dataclass(frozen=True)
class Sizes:
    """Of one run of the command. tokens: of the loss; agree_tokens: of those that float64 looks at; repeats: of what is timed;
    verdicts: whether times and ratios are judged, which a machine with other work or a small model cannot be.
    """

    models: tuple[Model, ...]
    vocabulary: int
    tokens: int
    agree_tokens: int
    repeats: int
    verdicts: bool


SMALL = Model(
    "qwen3-0.6b",
    {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "tie_word_embeddings": True},
    32, 8, (256, 768, 256), False,
)  # fmt: skip
LARGE = Model(
    "qwen3-1.7b",
    {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "tie_word_embeddings": True},
    32, 8, (256, 768, 256), True,
)  # fmt: skip
ON_CPU = {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
    "intermediate_size": 768, "vocab_size": 16_384, "tie_word_embeddings": False,
}  # fmt: skip
TINY = Model("tiny", ON_CPU, 4, 2, (32, 160, 32), False)
WIDER = Model("small", {**ON_CPU, "num_hidden_layers": 8, "head_dim": 64}, 16, 4, (64, 192, 64), False)


def sizes(device: str, quick: bool) -> Sizes:
    """device: cuda or cpu; quick: the same checks, smaller."""
    if device == "cpu":
        return Sizes((TINY,), 4096, 64, 16, 1, False) if quick else Sizes((WIDER,), 32_768, 512, 64, 3, False)
    return Sizes((SMALL,), 151_936, 4096, 128, 3, True) if quick else Sizes((SMALL, LARGE), 151_936, 8192, 256, 5, True)
