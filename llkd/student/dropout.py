"""Dropout whose random numbers cost little on a CPU.

torch draws a number of 53 random bits for each element, one after another: on two cores a sixth of
a training step of a small encoder. Here one draw of 64 bits serves eight elements.
"""

import torch

LEVELS = 256


class ByteDropout(torch.nn.Dropout):
    """Dropout by a random byte an element: the probability is rounded to a 256th, and what is
    kept is scaled by what that leaves, so that the expectation is exact."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` with some elements zero, of the same shape; as it is outside of training."""
        dropped = round(self.p * LEVELS)
        if not self.training or dropped == 0:
            return input
        count = input.numel()
        draws = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.uint8)[:count].view(input.shape) >= dropped
        return input * kept * (LEVELS / (LEVELS - dropped))


def use_byte_dropout(model: torch.nn.Module) -> None:
    """Put `ByteDropout` in the place of every `torch.nn.Dropout` of a model on a CPU."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Dropout and round(child.p * LEVELS) < LEVELS:
                setattr(module, name, ByteDropout(child.p))
