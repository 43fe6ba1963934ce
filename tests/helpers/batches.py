"""Random batches: logits and a target that fits them."""

from __future__ import annotations

import torch

SHAPES = {2: (9, 7), 3: (5, 6, 4)}
IGNORE = 9


def make_batch(
    *, regions=False, ignore=False, dims=2, batch=2, channels=3, dtype=torch.float64, seed=0
):
    """Logits (batch, channels, *S) and an imbalanced target, with ignored voxels if asked for."""
    generator = torch.Generator().manual_seed(seed)
    space = SHAPES[dims]
    logits = 2 * torch.randn(batch, channels, *space, generator=generator, dtype=torch.float64)
    ignored = torch.rand(batch, 1, *space, generator=generator) < 0.3
    if regions:
        target = torch.rand(batch, channels, *space, generator=generator) < 0.2
        target = torch.cat([target, ignored], 1) if ignore else target
    else:
        shares = torch.tensor([0.7] + [0.3 / (channels - 1)] * (channels - 1))
        draws = torch.multinomial(
            shares, batch * ignored[0].numel(), replacement=True, generator=generator
        )
        target = draws.reshape(batch, 1, *space).float()
        target = target.masked_fill(ignored, IGNORE) if ignore else target
    return logits.to(dtype).requires_grad_(), target


def options(*, regions=False, ignore=False, **others):
    """Constructor arguments that fit make_batch with the same arguments."""
    return {"regions": regions, "ignore_label": IGNORE if ignore else None, **others}
