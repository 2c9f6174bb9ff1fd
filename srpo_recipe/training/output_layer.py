"""What follows the last hidden states in a causal language model: the output layer, and what the model does to its logits.

Models differ here: a bias (Phi), a division (Granite), a soft cap (Gemma 2), a scale (Cohere). The self-teacher's logits at the
student's ids are made from kept hidden states, so they have to take the same way.
"""

from copy import copy

import torch
from torch import Tensor, nn


class AfterHead:
    """A model's own code after its output layer, as a function of the logits: [..., W] -> [..., W], element by element.

    It runs the `forward` of a shallow copy of the model whose decoder computes nothing and whose output layer returns the
    given logits. It holds no weights and needs no gathering, so it works beside a sharded model.
    """

    def __init__(self, model: nn.Module):
        """model: a Hugging Face causal language model, before it is sharded. Raises NotImplementedError for another layout."""
        head = model.get_output_embeddings()
        names = {name: child for name, child in model.named_children()}
        places = [name for name, child in names.items() if child is head]
        if not places or model.base_model_prefix not in names:
            raise NotImplementedError(
                f"{type(model).__name__} keeps its decoder or its output layer elsewhere than a causal language model does, so "
                "the self-teacher cannot be scored; method=grpo needs no self-teacher"
            )
        self.name = type(model).__name__
        self.given = _Given()
        self.model = copy(model)
        self.model._modules = {model.base_model_prefix: _NoDecoder(), places[0]: self.given}

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> Tensor:
        self.given.logits = logits.flatten(0, -2).unsqueeze(0)
        try:
            ids_1N = torch.zeros(self.given.logits.shape[:2], dtype=torch.long, device=logits.device)
            return self.model.forward(input_ids=ids_1N, use_cache=False).logits.reshape(logits.shape)
        finally:
            self.given.logits = None


class _Given(nn.Module):
    """An output layer that returns what it was told."""

    logits: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor:
        assert self.logits is not None
        return self.logits.clone()  # models scale and cap in place


class _Outputs:
    """The decoder's outputs: one hidden number for each token, and None for anything else that a model may read."""

    def __init__(self, last_hidden_state: Tensor):
        self.last_hidden_state = last_hidden_state

    def __getitem__(self, place: int) -> Tensor:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, _: str) -> None:
        return None


class _NoDecoder(nn.Module):
    def forward(self, input_ids: Tensor, **_) -> _Outputs:
        return _Outputs(input_ids.unsqueeze(-1).float())
