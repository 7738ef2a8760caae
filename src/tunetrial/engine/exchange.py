"""Another adapter in the place of one that is resident: one copy to the device, and one over its places.

exchange = Exchange(adapted(model))
kept = exchange.flat(load_file(folder / WEIGHTS))      # once; on the host
exchange.take_in(kept)                                 # within a copy's time
"""

from collections.abc import Mapping

import torch

from tunetrial.engine.adapters import LoraLinear, own_weights, places


class Exchange:
    """Takes adapters of one shape into a member of `adapted` layers. Nothing is multiplied anew: graphs that were
    recorded over the layers stay right."""

    def __init__(self, layers: Mapping[str, LoraLinear], *, member: int = 0):
        self.layers, self.member = layers, member
        self.places = places(layers, member)
        like = next(iter(self.places.values()))
        self.sizes = [place.numel() for place in self.places.values()]
        self.staged = torch.empty(sum(self.sizes), dtype=like.dtype, device=like.device)

    def flat(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A saved adapter's weights, by PEFT's names, end to end in the layers' dtype; where they were, and in memory
        that a CUDA device copies from by itself if that was the host's.

        Raises:
            ModelError: They are not of these layers, or of other shapes.
        """
        own = own_weights(self.layers, weights, member=self.member)
        made = torch.cat([weight.reshape(-1).to(self.staged.dtype) for weight in own])
        return made.pin_memory() if self.staged.is_cuda and not made.is_cuda else made

    def take_in(self, flat: torch.Tensor) -> None:
        """Put what `flat` made over the member's weights."""
        self.staged.copy_(flat, non_blocking=True)
        parts = zip(self.places.values(), self.staged.split(self.sizes), strict=True)
        torch._foreach_copy_(list(self.places.values()), [part.view(place.shape) for place, part in parts])
