"""ReStyle (Alaluf et al. 2021, arXiv 2104.02699): an encoder that looks at the picture and its own last result."""

import collections
from collections.abc import Iterator

import torch
from torch import Tensor

from fastinv.errors import UsageError
from fastinv.models.encoders.psp import Encoder4Editing, GradualStyleEncoder


class ReStyle:
    """What makes an encoder iterative: w_(t+1) = w_t + E(x, G(w_t)), from w_0 = latent_avg.

    ``encode`` and ``iterate`` take the generator (``synthesis``, ``num_ws`` and ``w_dim`` are used, so a prepared one
    serves as well), with its stored noise maps. Pictures have 3 channels, the network's input has 6.
    """

    def __init__(self, num_ws=18, w_dim=512, input_nc=6, *args, pyramid: bool = False, **options):
        if input_nc != 6:
            raise UsageError(f"a ReStyle encoder has 6 input channels, the picture and the last result, not {input_nc}")
        super().__init__(num_ws, w_dim, input_nc, *args, pyramid=pyramid, **options)

    def encode(self, images: Tensor, generator, steps: int = 5, **options) -> Tensor:
        """Latent codes w_plus [N, num_ws, w_dim] after the last step; arguments and errors as for ``iterate``."""
        return collections.deque(self.iterate(images, generator, steps, **options), maxlen=1).pop()

    def iterate(self, images: Tensor, generator, steps: int = 5, **options) -> Iterator[Tensor]:
        """Latent codes after each step.

        As in the paper's training, each step's result and its picture are constants for the next one: a gradient
        reaches the last step's network only, and nothing is kept of the generator's passes.

        Args:
            images: [N, 3, R, R] in [-1, 1], floating point; resized like the results to the encoder's size.
            generator: what the encoder was trained for.
            steps: at least 1; the paper's 5.
            options: of ``forward`` (``stage`` of `Encoder4Editing`).

        Returns:
            Iterator over w_plus [N, num_ws, w_dim].

        Raises:
            UsageError: wrong pictures or steps, or a generator with other latents.
        """
        if not isinstance(steps, int) or steps < 1:
            raise UsageError(f"steps must be a positive integer, not {steps!r}")
        theirs, ours = (generator.num_ws, generator.w_dim), (self.num_ws, self.w_dim)
        if theirs != ours:
            raise UsageError(f"the generator takes latents {list(theirs)}, this encoder makes {list(ours)}")
        return self._iterate(self.fit(images, channels=3), generator, steps, options)

    def _iterate(self, x: Tensor, generator, steps: int, options: dict) -> Iterator[Tensor]:
        w_plus = self.latent_avg.unsqueeze(0)
        for _ in range(steps):
            w_plus = w_plus.detach()
            with torch.no_grad():
                result = self.fit(generator.synthesis(w_plus, noise="const"), channels=3)
            w_plus = w_plus + self(torch.cat([x, result.expand_as(x)], dim=1), **options)
            yield w_plus


class ReStylePSP(ReStyle, GradualStyleEncoder):
    """ReStyle over pSp; arguments of `GradualStyleEncoder`, with 6 input channels and no pyramid by default."""


class ReStyleE4E(ReStyle, Encoder4Editing):
    """ReStyle over e4e; arguments of `Encoder4Editing`, with 6 input channels and no pyramid by default."""
