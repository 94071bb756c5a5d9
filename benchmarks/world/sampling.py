"""Pictures from prompts, for looking at a model while it trains: DDIM (Song et al. 2021) of a v-prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perfusion_core import Wiring

from .individuals import Individual
from .networks import LATENT, TextEncoder, shortened
from .pool import numbers_of

TIMESTEPS = 1000
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2, 0).float()


def encode(text: TextEncoder, prompts: Sequence[str], named: Sequence[tuple[Individual, ...]] = ()) -> Tensor:
    """(prompts, 77, d); ``named``: for each prompt whom its names mean."""
    named = named or [()] * len(prompts)
    attributes, class_rows = numbers_of(named, [[one.kind for one in ones] for ones in named], text.vocabulary)
    return text(text.vocabulary.rows(prompts), attributes, class_rows)


@torch.no_grad()
def paint(
    unet, positive: Tensor, negative: Tensor, seed: int, steps: int = 20, guidance: float = 3.5,
    wiring: Wiring | None = None, keys: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(n, 16, 12, 12), latents of mean 0 and std 1.

    wiring: an open one, which edits both prompts; keys: what its keys see instead of ``positive``, of as many tokens.
    """
    x = torch.randn(len(positive), *LATENT, generator=torch.Generator().manual_seed(seed))
    both, options = shortened(torch.cat([positive, negative]))
    if wiring is not None:
        wiring.prepare(both, None if keys is None else torch.cat([keys, negative])[:, : both.shape[1]])
    times = torch.linspace(TIMESTEPS - 1, 0, steps).round().long()
    for time, then in zip(times, [*times[1:], None], strict=True):
        doubled = torch.cat([x, x]).to(both.dtype)
        told, untold = unet(doubled, time.expand(len(doubled)), both, transformer_options=options).float().chunk(2)
        velocity = untold + guidance * (told - untold)
        alpha, next_alpha = ALPHAS[time], torch.ones(()) if then is None else ALPHAS[then]
        start = alpha.sqrt() * x - (1 - alpha).sqrt() * velocity
        noise = (1 - alpha).sqrt() * x + alpha.sqrt() * velocity
        x = next_alpha.sqrt() * start + (1 - next_alpha).sqrt() * noise
    return x
