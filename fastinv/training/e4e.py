"""Train e4e (Tov et al. 2021, arXiv 2102.02766), also as ReStyle: pSp's network and losses, and codes that edit well.

What keeps codes near those of the mapping network: style 0 is learned alone first, the offsets of the others are let in
one after the other (``--progressive-start``, ``--progressive-every``) and kept small, and a discriminator of single
styles tells the encoder's from mapped ones. The discriminator sees a random style of each picture, exchanged with a
pool of older ones. (In the public code it sees style 0 alone unless the pool is asked for.) It learns after the
encoder, from the codes that the encoder has just made.

``python -m fastinv.training.e4e --data faces --out runs/e4e`` (also ``fastinv train e4e``).
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastinv.models.encoders import Encoder4Editing, ReStyleE4E
from fastinv.training import psp
from fastinv.training.latent_discriminator import CodePool, LatentDiscriminator, logistic, r1_penalty
from fastinv.training.loop import run_training
from fastinv.training.options import check_range, run_as_command

R1_WEIGHT = 10.0
R1_INTERVAL = 16  # steps between two penalties


class E4ETraining(psp.PSPTraining):
    """e4e; see the module."""

    measures = (*psp.PSPTraining.measures, "stage", "delta", "adversarial", "d_loss", "r1")
    encoders = {False: Encoder4Editing, True: ReStyleE4E}

    def __init__(self, options, accelerator):
        super().__init__(options, accelerator)
        self.pool = CodePool(options.pool)
        self.D = self.add(
            "latent_discriminator", LatentDiscriminator(self.G.w_dim),
            lambda p: torch.optim.Adam(p, options.d_lr), mixed=False,
        )  # fmt: skip

    def new_encoder(self):
        encoder = super().new_encoder()
        if not self.options.start:
            self.without_offsets(encoder)
        return encoder

    def take_over(self, encoder, other):
        super().take_over(encoder, other)
        if not isinstance(other, (Encoder4Editing, ReStyleE4E)):  # its heads give styles, not offsets
            self.without_offsets(encoder)

    def without_offsets(self, encoder: nn.Module) -> None:
        """No offsets from heads that have not learned yet, in validation or in files."""
        for head in encoder.styles[1:]:
            nn.init.zeros_(head.linear.weight)
            nn.init.zeros_(head.linear.bias)

    def stage(self, step: int) -> int:
        """How many styles have their own offset in a step: 0 at first, all num_ws - 1 at the end."""
        first, every = self.options.progressive_start, self.options.progressive_every
        return 0 if step < first else min(self.G.num_ws - 1, 1 + (step - first) // every)

    def encoder_options(self, step):
        return {"stage": self.stage(step)}

    def code_losses(self, w_plus, step):
        loss, values = super().code_losses(w_plus, step)
        stage = self.stage(step)
        values["stage"] = torch.tensor(float(stage), device=w_plus.device)
        if self.options.delta > 0:
            offsets = w_plus[:, 1 : stage + 1] - w_plus[:, :1]
            # The gradient of the plain norm is not a number where an offset is exactly 0.
            delta = offsets.square().sum(2).clamp_min(1e-12).sqrt().mean(0).sum()
            loss, values["delta"] = loss + self.options.delta * delta, delta
        if self.options.adversarial > 0:
            self.D.requires_grad_(False)
            adversarial = F.softplus(-self.D(w_plus[:, : stage + 1])).mean()
            self.D.requires_grad_(True)
            loss, values["adversarial"] = loss + self.options.adversarial * adversarial, adversarial
        return loss, values

    def after_step(self, w_plus, step):
        if self.options.adversarial == 0:
            return {}
        with torch.no_grad():
            real = self.G.mapping(self.draw(len(w_plus), self.G.z_dim))[:, 0]
        style = torch.randint(self.stage(step) + 1, (len(w_plus),), device="cpu").to(w_plus.device)
        fake = self.pool.exchange(w_plus[torch.arange(len(w_plus), device=w_plus.device), style])
        loss = logistic(self.D(real), self.D(fake))
        loss.backward()
        values = {"d_loss": loss}
        if step % R1_INTERVAL == 0:
            values["r1"] = r1_penalty(self.D, real)
            (values["r1"] * (R1_WEIGHT / 2 * R1_INTERVAL)).backward()
        self.step_optimizer("latent_discriminator")
        return values

    def state(self):
        return super().state() | {"pool": self.pool.codes}

    def load_state(self, state):
        super().load_state(state)
        self.pool.codes = state["pool"].to(self.device)


def parser() -> psp.EncoderParser:
    """The command's options."""
    p = psp.parser("e4e", "Train an e4e encoder for a generator.")
    p.number("--progressive-start", int, 20_000, "step from which style 1 has an offset of its own")
    p.number("--progressive-every", int, 2000, "steps until the next style has one")
    p.number("--delta", float, 2e-4, "weight of the sum of the offsets' norms")
    p.number("--adversarial", float, 0.1, "weight of the latent discriminator in the encoder's loss; 0 for none")
    p.number("--d-lr", float, 2e-5, "learning rate of the latent discriminator")
    p.number("--pool", int, 50, "older codes that it also sees; 0 for none")
    return p


def main(argv: list[str] | None = None) -> Path:
    """Parse ``argv`` and train; returns the folder of the run."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    options.arguments = argv
    psp.check(options)
    check_range(options, "progressive_start pool", 0, 2**40)
    check_range(options, "progressive_every", 1, 2**40)
    check_range(options, "delta adversarial", 0, 1e12)
    check_range(options, "d_lr", 0, 1e3, above=True)
    return run_training("e4e", E4ETraining, options)


if __name__ == "__main__":
    run_as_command(main)
