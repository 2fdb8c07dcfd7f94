"""Train pSp (Richardson et al. 2021, arXiv 2008.00951), also as ReStyle (Alaluf et al. 2021, arXiv 2104.02699).

The encoder learns through the frozen generator: its code's picture should be the picture it looked at. Ranger with a
constant learning rate, codes relative to the mean latent. Optionally it is also shown generated pictures, whose codes
are known (as stylegan-encoder trains its ResNet); that alone, at the start, needs no gradient of the generator and
brings codes near in a fraction of the time.

With ``--task`` what the encoder sees and what it should make are two: see `fastinv.training.tasks`.

``python -m fastinv.training.psp --data faces --out runs/psp`` (also ``fastinv train psp``).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastinv.checkpoints import load_encoder, network_hash, save_network
from fastinv.errors import UsageError
from fastinv.latents import mean_latent
from fastinv.losses import mean_per_picture, psnr
from fastinv.models.encoders import GradualStyleEncoder, ReStylePSP
from fastinv.training.encoder_options import FULL_SIZE, EncoderParser, body_config, check_run
from fastinv.training.loop import Trainable, run_training
from fastinv.training.options import check_range, run_as_command
from fastinv.training.picture_losses import PictureLosses, code_norm
from fastinv.training.ranger import Ranger
from fastinv.training.tasks import CHANCES, TASKS, Pair, TaskBatches, as_pair, make_task


class EncoderTraining(Trainable):
    """What all encoders of a given generator share: the frozen generator, losses on pictures, the synthetic term.

    Pictures have the generator's resolution, but not more than ``largest``. A subclass sets ``networks["encoder"]`` up
    by ``add`` and implements ``iterate``.
    """

    largest: int | None = FULL_SIZE
    least_generated = 1  # pictures a step, where there are any

    def __init__(self, options, accelerator):
        super().__init__(options, accelerator)
        self.G = self.read_generator().requires_grad_(False)
        self.prepared = self.G.prepare(self.dtype)
        self.resolution = min(self.G.resolution, self.largest or self.G.resolution)
        self.mean = mean_latent(self.G)
        terms = {name: getattr(options, name) for name in PictureLosses.TERMS}
        self.losses = PictureLosses(terms, self.device, self.dtype)

    def synthesise(self, w_plus: torch.Tensor) -> torch.Tensor:
        """Codes [N, num_ws, w_dim] -> pictures [N, 3, R, R] at the training's resolution, with the stored noise."""
        images = self.prepared.synthesis(w_plus, noise="const").float()
        return F.adaptive_avg_pool2d(images, self.resolution) if images.shape[-1] > self.resolution else images

    def code(self, images: torch.Tensor) -> torch.Tensor:
        """The final encoder's codes."""
        return self.final("encoder").encode(images)

    def reconstruct(self, images):
        return self.synthesise(self.code(images))

    def measure(self, images):
        made, target = self.reconstruct(images), as_pair(images).target
        values = self.losses(made, target)
        return {"loss": self.losses.total(values), "psnr": psnr(made, target), **values}

    def save(self, folder, prefix, facts):
        facts = facts | {"generator_sha256": network_hash(self.G), "perceptual": self.losses.facts}
        save_network(self.final("encoder"), folder / f"{prefix}encoder.safetensors", torch.float16, facts)

    def shown(self, images: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What the encoder sees in a step: (the real pictures that take part, these and generated ones, codes w_plus of
        the generated ones or None where there are none).
        """
        options = self.options
        if step < options.synthetic_only:
            images = images[:0]
        if options.synthetic <= 0:
            return images, images, None
        share = options.batch // self.accelerator.num_processes
        generated, codes = self.generated(max(self.least_generated, share // 2 if len(images) else share))
        return images, torch.cat([images, generated]), codes

    @torch.no_grad()
    def generated(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(``count`` pictures of random latents, their codes w_plus); each process draws its own."""
        z = self.draw(count, self.G.z_dim)
        w_plus = self.G.mapping(z)
        return self.synthesise(w_plus), w_plus

    def draw(self, count: int, *shape: int) -> torch.Tensor:
        """Normal numbers [count, *shape], this process's rows of what one process would draw."""
        return self.own_rows(torch.randn(count * self.accelerator.num_processes, *shape))

    def own_rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """This process's share of numbers for all."""
        count = len(numbers) // self.accelerator.num_processes
        return numbers[self.accelerator.process_index * count :][:count].to(self.device)


class PSPTraining(EncoderTraining):
    """pSp; `fastinv.training.e4e` builds on it."""

    measures = ("loss", *PictureLosses.TERMS, "w_norm", "synthetic")
    encoders = {False: GradualStyleEncoder, True: ReStylePSP}  # by whether it is ReStyle

    def __init__(self, options, accelerator):
        self.task = make_task(options.task, options.data, options.source, options.labels)
        super().__init__(options, accelerator)
        self.encoder = self.add("encoder", self.new_encoder(), lambda p: make_optimizer(options, p), options.average)

    def new_encoder(self) -> nn.Module:
        """The encoder that training starts from."""
        config = body_config(self.options, self.G.resolution) | {"num_ws": self.G.num_ws, "w_dim": self.G.w_dim}
        if not self.options.restyle:
            config["input_nc"] = self.task.input_nc
        encoder = self.encoders[self.options.restyle > 0](**config)
        encoder.latent_avg.copy_(self.mean.expand(self.G.num_ws, -1))
        if self.options.start:
            self.take_over(encoder, load_encoder(self.options.start))
        return encoder

    def passes(self, encoder: nn.Module, images: torch.Tensor, **options) -> Iterator[torch.Tensor]:
        """Codes of pictures: one set, or with ReStyle one after each pass, none with a graph to the last."""
        if self.options.restyle:
            yield from encoder.iterate(images, self.prepared, self.options.restyle, **options)
        else:
            yield encoder.encode(images, **options)

    def code(self, images):
        *_, last = self.passes(self.final("encoder"), images)
        return last

    def open_batches(self):
        options = self.options
        if options.task == "invert":
            return super().open_batches()
        return TaskBatches(
            self.task, options.data, self.resolution, options.batch, options.seed, options.mirror, options.workers,
            self.device,
        )  # fmt: skip

    def generated(self, count):
        """What the encoder sees of them."""
        images, w_plus = super().generated(count)
        if self.task.random:
            chances = self.own_rows(torch.rand(count * self.accelerator.num_processes, CHANCES))
            images = self.task.pair(images, chances).source
        return images, w_plus

    def reconstruct(self, images):
        return super().reconstruct(as_pair(images).source)

    def sampled(self, images):
        made = self.reconstruct(images)
        return (self.task.shown(images.source), images.target, made) if isinstance(images, Pair) else (images, made)

    def save(self, folder, prefix, facts):
        super().save(folder, prefix, facts | {"task": self.task.facts()})

    def encoder_options(self, step: int) -> dict:
        """Arguments of the encoder in a step."""
        return {}

    def code_losses(self, w_plus: torch.Tensor, step: int) -> tuple[torch.Tensor | float, dict]:
        """(weighted sum, {name: number}) of terms on the codes [N, num_ws, w_dim] of real pictures."""
        if not self.options.w_norm:
            return 0.0, {}
        norm = code_norm(w_plus, self.encoder.latent_avg).mean()
        return self.options.w_norm * norm, {"w_norm": norm}

    def after_step(self, w_plus: torch.Tensor, step: int) -> dict:
        """More work of a step, on the codes of real pictures without graph -> {name: number}."""
        return {}

    def iterate(self, images, step):
        pair = as_pair(images)
        source, shown, codes = self.shown(pair.source, step)
        real, values = len(source), {}
        for w_plus in self.passes(self.encoder, shown, **self.encoder_options(step)):
            loss, values = self._loss(w_plus, pair.target[:real], codes, step)
            loss.backward()  # ReStyle: gradients of all passes add up
        self.step_optimizer("encoder")
        return values | (self.after_step(w_plus[:real].detach(), step) if real else {})

    def _loss(self, w_plus, target, codes, step) -> tuple[torch.Tensor, dict]:
        loss, values, real = 0.0, {}, len(target)
        if real:
            terms = self.losses(self.synthesise(w_plus[:real]), target)
            loss = self.losses.total(terms).mean()
            more, numbers = self.code_losses(w_plus[:real], step)
            loss = loss + more
            values = {name: value.mean() for name, value in terms.items()} | numbers
        if codes is not None:
            synthetic = mean_per_picture((w_plus[real:] - codes).square()).mean()
            loss = loss + self.options.synthetic * synthetic
            values["synthetic"] = synthetic
        return loss, {"loss": loss} | values


def make_optimizer(options, parameters) -> torch.optim.Optimizer:
    """The encoder's optimiser."""
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, options.lr, betas=(0.9, 0.99))
    return Ranger(parameters, options.lr)


class PSPParser(EncoderParser):
    """Defaults of the losses' weights are those of the task."""

    def parse_args(self, args=None, namespace=None):
        task = super().parse_args(args).task
        self.set_defaults(**TASKS[task].weights)
        return super().parse_args(args, namespace)


def parser(name: str = "psp", description: str = "Train a pSp encoder for a generator.") -> EncoderParser:
    """The command's options."""
    p = PSPParser(name, description)
    p.add_argument("--task", choices=tuple(TASKS), default="invert", help="what the encoder sees and what it should "
                   "make; other tasks have other default weights, see docs/image-to-image.md")  # fmt: skip
    p.add_argument("--source", default="", metavar="DIR", help="sketches or label maps of the same names as the "
                   "pictures of a folder")  # fmt: skip
    p.number("--labels", int, 0, "different values in those label maps")
    p.add_run(steps=20_000, batch=8, lr=1e-4)
    p.add_losses(pixel=1.0, perceptual=0.8, identity=0.1)
    p.number("--w-norm", float, 0.0, "weight of the distance of codes from the mean latent")
    p.add_argument("--optimizer", choices=("ranger", "adam"), default="ranger",
                   help="adam (betas 0.9, 0.99) learns much sooner in short runs; ranger is the paper's")  # fmt: skip
    p.add_body()
    p.number("--restyle", int, 0, "train as ReStyle, with so many passes (the paper's 5); 0 for one-pass encoders")
    return p


def check(options: argparse.Namespace) -> None:
    """Refuse bad numbers before any work."""
    check_run(options)
    check_range(options, "w_norm", 0, 1e12)
    check_range(options, "restyle", 0, 100)
    if options.task != "invert" and options.restyle:
        raise UsageError("--restyle is for --task invert: it compares the picture with what was made of it")
    if options.synthetic > 0 and not TASKS[options.task].known_codes:
        names = " and ".join(name for name, task in TASKS.items() if task.known_codes)
        raise UsageError(f"--synthetic is for --task {names}: there are no sources of generated pictures for others")
    check_range(options, "input_resolution head_channels", 0, 2**14)


def main(argv: list[str] | None = None) -> Path:
    """Parse ``argv`` and train; returns the folder of the run."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    options.arguments = argv
    check(options)
    return run_training("psp", PSPTraining, options)


if __name__ == "__main__":
    run_as_command(main)
