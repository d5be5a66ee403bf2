"""One optimiser step: forward, loss, backward, update.

On a GPU the steps after the first few replay a CUDA graph: at the paper's batch of 16 a step
is some two thousand small kernels, which a CPU launches at a fifth of the speed that an H100
runs them (docs/performance.md).

Shapes: n images, c classes, s input side in pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cvm_batch.model.precision import cpu_prefers_bf16
from cvm_batch.model.preprocessing import Preprocessing
from cvm_batch.training.detours import SlowInBf16
from cvm_batch.training.recipe import Recipe

#: Steps that run one by one before a graph is captured: cuDNN tries its algorithms, and the
#: optimiser makes its state.
_EAGER_STEPS = 3
_LOG = logging.getLogger(__name__)


class Stepper:
    """The network in training and its optimiser."""

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        class_weights: Tensor,
        device: torch.device,
        *,
        run: nn.Module | None = None,
    ) -> None:
        """``class_weights`` [c] of the loss. ``run`` is the network as it is called where
        that is something around it (DistributedDataParallel), which rules graphs out."""
        self.network = network
        faster_in_bf16 = device.type == "cuda" or cpu_prefers_bf16()
        self.autocasts = recipe.mixed_precision and faster_in_bf16
        detours = self.autocasts and device.type == "cpu"
        self._detours = SlowInBf16() if detours else nullcontext()
        self._run = run or network
        self._recipe = recipe
        self._device = device
        self._class_weights = class_weights.to(device)
        # On the device for good: a graph cannot copy from the CPU.
        self._scale, self._shift = (
            value.to(device) for value in recipe.preprocessing.scale_and_shift()
        )
        graphs = device.type == "cuda" and run is None and recipe.accumulate == 1
        self._rate = torch.zeros((), device=device) if graphs else None
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=recipe.learning_rate if self._rate is None else self._rate,
            weight_decay=recipe.weight_decay,
            fused=True,
            capturable=graphs,
        )
        self._replay = _Replay(self._update) if graphs else None

    def step(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Learn from uint8 images [n, 3, s, s] with labels int64 [n] at that learning rate.

        Returns the loss before the step, a number on the device.
        """
        if self._rate is not None:
            self._rate.fill_(rate)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        if self._replay is not None and len(images) == self._recipe.batch_size:
            return self._replay(images, labels)
        return self._update(images, labels)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an optimiser's state, from whichever device."""
        own = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, before in zip(self.optimizer.param_groups, own, strict=True):
            # The rate's place in memory is part of a graph.
            group |= {key: before[key] for key in ("lr", "fused", "capturable")}

    def autocast(self) -> torch.autocast:
        # The cache of casts would outlive a capture.
        return torch.autocast(
            self._device.type, torch.bfloat16, enabled=self.autocasts, cache_enabled=False
        )

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._recipe.accumulate
        total = torch.zeros((), device=self._device)
        for some, theirs in zip(
            images.tensor_split(parts), labels.tensor_split(parts), strict=True
        ):
            loss = self._loss(some, theirs) / parts
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self._recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._recipe.clip_norm)
        self.optimizer.step()
        return total

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        inputs = torch.addcmul(self._shift, images.float(), self._scale)
        with self.autocast(), self._detours:
            logits = self._run(inputs.contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(
            logits.float(),
            labels,
            self._class_weights,
            label_smoothing=self._recipe.label_smoothing,
        )


class _Replay:
    """``update`` as a CUDA graph, once it has been called a few times.

    One training a process: another's work on the same GPU would break a capture.
    """

    def __init__(self, update: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._update = update
        self._eager_left: float = _EAGER_STEPS
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        if self._graph is None and self._eager_left <= 0:
            self._capture(images, labels)
        if self._graph is None:
            self._eager_left -= 1
            return self._update(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._loss.clone()

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._loss = self._update(self._images, self._labels)
        except RuntimeError as error:
            # Some layer copies from the CPU or waits for the GPU. Nothing has been computed,
            # so the training goes on step by step, slower and otherwise the same.
            _LOG.warning("training goes on without a CUDA graph: %s", error)
            self._eager_left = math.inf
            return
        self._graph = graph


class RunningAverage:
    """An exponential average of a network's weights, and of its batch statistics, since they
    must fit the weights."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = deepcopy(network).requires_grad_(False)
        self._decay = decay
        self._steps = 0
        # Listed once: both networks' tensors change in place.
        now, averaged = network.state_dict(), self.network.state_dict()
        floats = [name for name, tensor in now.items() if tensor.is_floating_point()]
        others = [name for name in now if name not in set(floats)]
        self._floats, self._now = ([state[name] for name in floats] for state in (averaged, now))
        self._others, self._others_now = (
            [state[name] for name in others] for state in (averaged, now)
        )

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights in."""
        self._steps += 1
        # Early on the average is kept short, or it would drag the first weights along.
        keep = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._floats, self._now, 1 - keep)
        if self._others:
            torch._foreach_copy_(self._others, self._others_now)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._steps = int(state["steps"])


@torch.inference_mode()
def probabilities(
    network: nn.Module, images: Tensor, preprocessing: Preprocessing, *, batch: int = 256
) -> Tensor:
    """Class probabilities float32 [n, c] on the CPU of resized images uint8 [n, 3, s, s].

    Those go to the network's device a batch at a time, where they are elsewhere.
    """
    device = next(network.parameters(), images).device
    return torch.cat(
        [
            network(
                preprocessing.normalise(part.to(device), torch.float32).contiguous(
                    memory_format=torch.channels_last
                )
            )
            .float()
            .softmax(dim=1)
            for part in torch.split(images, batch)
        ]
    ).cpu()
