"""IDInvert (Zhu, Shen, Zhao, Zhou 2020, arXiv 2004.00049): optimise an encoder's guess in its domain."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from fastinv.errors import UsageError
from fastinv.inversion.feed_forward import IDInvertPass
from fastinv.inversion.method import Method, changed
from fastinv.inversion.objective import own_encoder
from fastinv.inversion.start import start_codes
from fastinv.inversion.task import Task


@dataclass(frozen=True)
class IDInvert(Method):
    """``min_w mean (G(w) - I)^2 + 0.17 ||F(G(w)) - F(I)||^2 / n + 2 mean (w - E(G(w)))^2`` from ``E(I)``, by Adam.

    E is the option ``encoder``: a module with ``encode(images) -> w_plus``, a bundled name or a file; else the bundled
    one of idinvert-encoder for the generator. The last term keeps the code where the encoder would find it again, and
    so in the domain of the pictures that it was trained on.

    As in the original: Adam with 0.9, 0.999 and a constant 0.01 over 100 steps. There F is VGG-16's conv4_3 of pictures
    in 0..255, with a weight of 5e-5; ours gets them divided by ImageNet's deviation, 0.226 * 255, whose square turns
    5e-5 into 0.17 (``trunk="vgg16", layers=("conv4_3",)``). The default are the trunk's own layers, and the same weight
    for the attribute network, whose features then count about twice as much as the pixels. Masks are multiplied with
    the pictures that F sees, as there, and not with its feature maps.
    """

    name: ClassVar[str] = "idinvert"
    mask_features: ClassVar[bool] = False
    spaces: ClassVar[tuple[str, ...]] = ("w+", "w")

    steps: int = changed("steps", 100)
    learning_rate: float = changed("learning_rate", 0.01)
    ramp_up: float = changed("ramp_up", 0.0)
    ramp_down: float = changed("ramp_down", 0.0)
    perceptual_weight: float = changed("perceptual_weight", 0.17)
    domain_weight: float = changed("domain_weight", 2.0)

    def fitted(self, G, masked: bool = False, started: bool = False) -> "IDInvert":
        encoder = own_encoder(G, IDInvertPass.name) if self.encoder is None else self.encoder
        if encoder is None:
            raise UsageError(
                "idinvert starts from an encoder's code and stays near it: give encoder=, a module with "
                "encode(images) -> w_plus, a name or a file (see `fastinv models`)"
            )
        return super(IDInvert, dataclasses.replace(self, encoder=encoder)).fitted(G, masked, started)

    def start_codes(self, task: Task) -> torch.Tensor:
        if task.start is not None:
            return super().start_codes(task)
        codes, facts = start_codes(self.encoder, task.G, task.target)
        task.facts |= facts
        return codes["w_plus"]
