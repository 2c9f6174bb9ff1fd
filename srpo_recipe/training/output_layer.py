"""What follows the last hidden states in a causal language model: the output layer, and what the model does to its logits.

Models differ here: a bias (Phi), a division (Granite), a soft cap (Gemma 2), a scale (Cohere). The self-teacher's logits at the
student's ids are made from kept hidden states, so they have to take the same way.
"""

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor, nn

from srpo_recipe.training.teacher_states import probed, same_logits


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
        with torch.no_grad():
            probe = torch.linspace(-100, 100, 101).unsqueeze(0)
            self.changes = not torch.equal(self(probe), probe)

    @property
    def function(self) -> "AfterHead | None":
        """Itself; None where it gives back the logits as they are."""
        return self if self.changes else None

    def __call__(self, logits: Tensor) -> Tensor:
        self.given.logits = logits.flatten(0, -2).unsqueeze(0)
        try:
            ids_1N = torch.zeros(self.given.logits.shape[:2], dtype=torch.long, device=logits.device)
            return self.model.forward(input_ids=ids_1N, use_cache=False).logits.reshape(logits.shape)
        finally:
            self.given.logits = None


def after_head_of(model: nn.Module, needed: bool) -> AfterHead | None:
    """Of a model; None for another layout, which raises NotImplementedError where it is needed."""
    try:
        return AfterHead(model)
    except NotImplementedError:
        if needed:
            raise
        return None


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


class HeadPass:
    """What takes the place of a model's output layer in a pass that needs its logits a block at a time.

    The model is given the logits of a few probed tokens alone, which it hands on as it would all of them; what the pass made
    takes their place in the model's output before FSDP looks at it, so that its backward hooks are those of a whole pass.
    """

    def __init__(self, module: nn.Module, after_head: AfterHead | None):
        """module: a sharded causal language model, whose output layer from now on asks `work` first; after_head: the model's."""
        self.after_head = after_head
        self.compared = False
        self.work: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None
        self.probed: tuple[Tensor, Tensor] | None = None  # hidden states and the model's own logits of the last pass
        self._hidden: Tensor | None = None
        self._made: Tensor | None = None
        self._logits: Tensor | None = None
        self._layer = module.get_output_embeddings()
        self._plain = self._layer.forward
        self._layer.forward = self._forward
        module.register_forward_hook(self._hand_out, prepend=True)

    def clear(self) -> None:
        """Forget the pass."""
        self.work = self.probed = self._hidden = self._made = self._logits = None

    def _forward(self, hidden: Tensor) -> Tensor:
        if self.work is None:
            return self._plain(hidden)
        hidden_NH, layer = hidden.flatten(0, -2), self._layer
        self._made = self.work(hidden_NH, layer.weight, getattr(layer, "bias", None))
        self._hidden = hidden_NH[probed(len(hidden_NH))].detach()
        with torch.no_grad():
            self._logits = self._plain(self._hidden.unsqueeze(0))
        return self._logits.clone()  # models scale and cap in place

    def _hand_out(self, _module, _inputs, output):
        if self._made is not None:
            assert self._hidden is not None
            self.probed = self._hidden, output.logits.detach().flatten(0, -2)
            self._compare(self.probed[1])
            output["logits"], self._made = self._made, None
        return output

    def _compare(self, own_NV: Tensor) -> None:
        """Once a run: raise RuntimeError where the model does something else to its logits than is known. own_NV: its own."""
        if self.compared or not len(own_NV):  # a rank whose part of the sequences has no response token
            return
        assert self.after_head is not None and self._logits is not None
        function = self.after_head.function
        logits_NV = self._logits.detach().flatten(0, -2)
        same_logits(self.after_head.name, own_NV, logits_NV if function is None else function(logits_NV))
        self.compared = True
