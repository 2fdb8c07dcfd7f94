"""Train IDInvert's domain-guided encoder (Zhu et al. 2020, arXiv 2004.00049).

On real pictures x, through the frozen generator: E(x) should make the picture again, in pixels and features, and a
discriminator of pictures, which learns in the loop, should take G(E(x)) for real. That keeps codes where the generator
makes good pictures. Codes are absolute, not relative to the mean latent.

``python -m fastinv.training.idinvert --data faces --out runs/idinvert`` (also ``fastinv train idinvert``).
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from fastinv.checkpoints import BUNDLED, load_discriminator, save_network
from fastinv.errors import UsageError
from fastinv.losses import mean_per_picture
from fastinv.models.discriminator import Discriminator
from fastinv.models.encoders import IDInvertEncoder
from fastinv.training.encoder_options import FULL_SIZE, EncoderParser, check_run, counts
from fastinv.training.latent_discriminator import logistic, r1_penalty
from fastinv.training.loop import run_training
from fastinv.training.options import check_range, run_as_command
from fastinv.training.picture_losses import PictureLosses
from fastinv.training.psp import EncoderTraining

BETAS = (0.9, 0.99)
# For small generators: feature maps at the full size and after each halving, and at 4x4, where most weights are.
SMALL_CHANNELS, SMALL_LAST = (32, 64, 128, 128, 128), 48
FALL = 0.8  # of the learning rate in each quarter of the steps


class IDInvertTraining(EncoderTraining):
    """IDInvert; see the module."""

    measures = ("loss", *PictureLosses.TERMS, "synthetic", "adversarial", "d_loss", "real", "fake", "r1")
    largest = None  # the discriminator sees whole pictures
    least_generated = 2  # batch normalisation over vectors needs two

    def __init__(self, options, accelerator):
        super().__init__(options, accelerator)
        G = self.G
        channels = counts(options.channels, "--channels")
        resolution = options.input_resolution or G.resolution
        if channels is None and G.resolution < FULL_SIZE:
            channels = (*SMALL_CHANNELS[: resolution.bit_length() - 3], SMALL_LAST)
        encoder = IDInvertEncoder(resolution, G.num_ws, G.w_dim, channels)
        self.encoder = self.add(
            "encoder", encoder, lambda p: torch.optim.Adam(p, options.lr, betas=BETAS), options.average
        )
        self.D = self.add(
            "discriminator", self._discriminator(), lambda p: torch.optim.Adam(p, options.d_lr, betas=BETAS),
            mixed=False,
        )  # fmt: skip

    def _discriminator(self) -> Discriminator:
        options = self.options
        bundled = BUNDLED.get(options.generator)
        own = options.generator if bundled and "discriminator" in bundled.kinds else ""
        name = options.discriminator or own
        if not name:
            return Discriminator(self.G.resolution, channels=self.G.config.get("channels"))
        D = load_discriminator(name)
        if D.resolution != self.G.resolution or D.c_dim:
            kind = "conditional" if D.c_dim else f"for {D.resolution} pixels, not {self.G.resolution}"
            raise UsageError(f"the discriminator {name} does not fit the generator: it is {kind}")
        return D

    def learning_rate_factor(self, step):
        """The warm-up, and the paper's steady exponential fall."""
        return super().learning_rate_factor(step) * FALL ** (4 * step / self.options.steps)

    def iterate(self, images, step):
        options = self.options
        images, shown, codes = self.shown(images, step)
        real = len(images)
        w_plus = self.encoder.encode(shown)
        loss, values = 0.0, {}
        if real:
            made = self.synthesise(w_plus[:real])
            terms = self.losses(made, images)
            loss = self.losses.total(terms).mean()
            values = {name: value.mean() for name, value in terms.items()}
            if options.adversarial > 0:
                self.D.requires_grad_(False)
                values["adversarial"] = F.softplus(-self.D(made, dtype=self.dtype)).mean()
                self.D.requires_grad_(True)
                loss = loss + options.adversarial * values["adversarial"]
        if codes is not None:
            values["synthetic"] = mean_per_picture((w_plus[real:] - codes).square()).mean()
            loss = loss + options.synthetic * values["synthetic"]
        loss.backward()
        self.step_optimizer("encoder")
        if real and options.adversarial > 0:
            values |= self.discriminator_step(images, made.detach(), step)
        return {"loss": loss} | values

    def discriminator_step(self, images: torch.Tensor, made: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """Tell pictures from reconstructions; the gradient penalty, every ``--r1-interval`` steps, is in float32."""
        options = self.options
        real, fake = self.D(images, dtype=self.dtype), self.D(made, dtype=self.dtype)
        loss = logistic(real, fake)
        loss.backward()
        values = {"d_loss": loss, "real": real.mean(), "fake": fake.mean()}
        if options.r1_gamma > 0 and step % options.r1_interval == 0:
            values["r1"] = r1_penalty(self.D, images)
            (values["r1"] * (options.r1_gamma / 2 * options.r1_interval)).backward()
        self.step_optimizer("discriminator")
        return values

    def save(self, folder, prefix, facts):
        super().save(folder, prefix, facts)
        save_network(self.D, folder / f"{prefix}discriminator.safetensors", torch.float16, facts)


def parser() -> EncoderParser:
    """The command's options."""
    p = EncoderParser("idinvert", "Train IDInvert's domain-guided encoder for a generator.")
    p.add_run(steps=100_000, batch=16, lr=1e-4)
    p.add_losses(pixel=1.0, perceptual=0.8, identity=0.0)
    p.number("--adversarial", float, 0.08, "weight of the discriminator in the encoder's loss; 0 for none")
    p.add_argument("--discriminator", default="", metavar="NAME", help="what it starts from, a bundled name or a file "
                   "(default: a bundled generator's own, else a new one)")  # fmt: skip
    p.number("--d-lr", float, 1e-4, "learning rate of the discriminator")
    p.number("--r1-gamma", float, 10.0, "weight of its gradient penalty")
    p.number("--r1-interval", int, 1, "steps between two penalties, each weighted up by so much")
    p.number("--input-resolution", int, 0, "size at which the encoder looks at pictures; 0 is the generator's")
    p.add_argument("--channels", default="", metavar="N,N,...", help="feature maps at the full size and after each "
                   f"halving down to 4 (default: 64, 128, ... up to 1024, or small for generators below "
                   f"{FULL_SIZE})")  # fmt: skip
    return p


def main(argv: list[str] | None = None) -> Path:
    """Parse ``argv`` and train; returns the folder of the run."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    options.arguments = argv
    check_run(options)
    check_range(options, "adversarial r1_gamma", 0, 1e12)
    check_range(options, "d_lr", 0, 1e3, above=True)
    check_range(options, "r1_interval", 1, 2**20)
    check_range(options, "batch", 2)  # batch norm
    check_range(options, "input_resolution", 0, 2**14)
    return run_training("idinvert", IDInvertTraining, options)


if __name__ == "__main__":
    run_as_command(main)
