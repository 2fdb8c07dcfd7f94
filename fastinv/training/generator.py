"""Train a StyleGAN2 generator and discriminator (Karras et al. 2020, arXiv 1912.04958).

Non-saturating logistic loss, lazy R1, lazy path length regularisation, style mixing, moving average of the weights,
optional progressive resolution, bfloat16 feature maps with float32 weights. Where the data come with their latents
(the procedural faces), an optional paired term pulls G(z) towards the picture that z stands for; it teaches a small
network small things, such as eyes, many times sooner than the adversarial loss alone.

``python -m fastinv.training.generator --data faces --out runs/faces`` (also ``fastinv train generator``).
"""

import argparse
import copy
import json
import math
import pickle
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from fastinv.checkpoints import save_network
from fastinv.data.grid import grid
from fastinv.data.pictures import save_picture
from fastinv.devices import named_device, named_dtype
from fastinv.errors import FastinvError, UsageError
from fastinv.files import atomic_file, shown
from fastinv.models.discriminator import Discriminator
from fastinv.models.stylegan2 import Generator
from fastinv.training.generator_options import check_options, parse_channels, parse_schedule, parser
from fastinv.training.options import run_as_command
from fastinv.training.sources import FacesSource, FolderSource

R1_INTERVAL = 16  # steps between two R1 penalties
WARM_UP = 200  # steps in which the learning rates rise


def paired_loss(fake: torch.Tensor, real: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Distance of pictures, two [N, 3, R, R] -> [N]: absolute, squared, at half resolution, and of the edges.

    ``weight`` [N, 1, R, R] says how much each pixel counts.
    """
    error = fake - real
    half = F.avg_pool2d(error, 2).abs() * F.avg_pool2d(weight, 2)
    across = error.diff(dim=3).abs() * weight[..., 1:]
    down = error.diff(dim=2).abs() * weight[..., 1:, :]
    parts = [error.abs() * weight, error.square() * weight, half, 0.5 * across, 0.5 * down]
    return sum(part.mean((1, 2, 3)) for part in parts)


class Trainer:
    """The whole state of one training run; ``options`` are the command's (see ``parser``).

    Latents, labels of mixing and choices of pictures are drawn on the CPU, so they are the same on every device; noise
    maps are drawn where they are used.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.out = options, Path(options.out)
        self.device, self.dtype = named_device(options.device), named_dtype(options.dtype)
        self.schedule = parse_schedule(options.progressive, options.resolution, options.batch)
        channels = parse_channels(options.channels, options.resolution)
        d_channels = parse_channels(options.d_channels or options.channels, options.resolution)
        torch.manual_seed(options.seed)
        if options.data == "faces":
            details = [name for name in options.details.split(",") if name]
            self.source = FacesSource(options.resolution, options.z_dim, self.device, details)
        else:
            self.source = FolderSource(options.data, options.resolution, options.z_dim, options.mirror, self.device)
        if options.paired > 0 and not self.source.paired:
            raise UsageError("--paired needs data whose latents are known: --data faces")
        self.G = Generator(
            options.resolution, options.z_dim, options.w_dim, channels=channels,
            mapping_layers=options.mapping_layers, mapping_lr_multiplier=options.mapping_lr_multiplier,
        ).train()  # fmt: skip
        progressive = len(self.schedule) > 1
        self.D = Discriminator(options.resolution, channels=d_channels, progressive=progressive).train()
        for network in (self.G, self.D):
            network.to(self.device, memory_format=torch.channels_last)
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        # A lazy penalty is one more step of Adam per interval: rate and moments are adjusted so that their horizon,
        # counted in pictures, stays the same (Karras et al. 2020, appendix B).
        self.d_ratio = R1_INTERVAL / (R1_INTERVAL + 1)
        interval = options.path_length_interval
        self.g_ratio = interval / (interval + 1) if options.path_length > 0 else 1.0
        self.g_betas = (options.g_beta1**self.g_ratio, 0.99**self.g_ratio)
        self.g_optimizer = torch.optim.Adam(self.G.parameters(), options.g_lr, self.g_betas, 1e-8, fused=True)
        self.d_optimizer = torch.optim.Adam(
            self.D.parameters(), options.d_lr, (0.0, 0.99**self.d_ratio), 1e-8, fused=True
        )
        self.step = self.images = 0
        self.seconds = 0.0
        self.path_length_mean = torch.zeros([], device=self.device)
        self.averages: dict[str, float] = {}
        self.measured: dict[str, torch.Tensor] = {}
        self.sample_z = torch.randn(64, options.z_dim, generator=torch.Generator().manual_seed(99)).to(self.device)

    # One iteration -------------------------------------------------------------------------------------------------

    def phase(self) -> tuple[int, int]:
        """Side of the pictures and batch size at this point of the schedule."""
        return next((side, batch) for until, side, batch in self.schedule if self.images / 1000 < until)

    def iterate(self):
        """One step of generator and discriminator on one batch."""
        options = self.options
        kimg = self.images / 1000
        resolution, batch = self.phase()
        self.set_learning_rates(kimg)
        real, z, details = self.source.batch(batch, resolution, details=options.paired_details > 0)
        w_plus, mixed = self.mix_styles(z)
        fake = self.G.synthesis(w_plus, noise="random", resolution=resolution, dtype=self.dtype, once=True)
        adversarial = kimg >= options.paired_only
        loss = 0.0
        if adversarial:
            self.discriminator_step(real, fake.detach())
            self.D.requires_grad_(False)
            loss = F.softplus(-self.D(fake, dtype=self.dtype)).mean()
            self.D.requires_grad_(True)
            self.measure("g_loss", loss)
        if options.paired > 0:
            # A picture of two latents has no render of its own.
            share = ~mixed / (~mixed).sum().clamp_min(1)
            weight = torch.ones_like(real[:, :1]) if details is None else 1 + options.paired_details * details
            paired = (paired_loss(fake, real, weight) * share).sum()
            loss = loss + (options.paired if adversarial else 1.0) * paired
            self.measure("paired", paired)
            self.measure("mse", ((fake.detach() - real).square().mean((1, 2, 3)) * share).sum())
        self.g_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.g_optimizer.step()
        if adversarial and options.path_length > 0 and self.step % options.path_length_interval == 0:
            self.path_length_step(batch, resolution)
        self.update_averages()
        self.images += batch
        self.step += 1
        self.update_ema(batch)

    def mix_styles(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """w_plus [N, num_ws, w_dim] of z, a share of them with another latent from a random layer on; and which."""
        w_plus = self.G.mapping(z)
        self.G.w_avg.lerp_(w_plus[:, 0].detach().mean(0), 0.005)
        mixed = torch.rand(len(z)) < self.options.style_mixing
        if mixed.any():
            other = self.G.mapping(torch.randn(z.shape).to(self.device))
            cut = torch.randint(1, self.G.num_ws, (len(z), 1)).masked_fill(~mixed[:, None], self.G.num_ws)
            later = torch.arange(self.G.num_ws)[None] >= cut
            w_plus = torch.where(later[..., None].to(self.device), other, w_plus)
        return w_plus, mixed.to(self.device)

    def discriminator_step(self, real: torch.Tensor, fake: torch.Tensor):
        """Logistic loss; every R1_INTERVAL steps the gradient penalty on real pictures, weighted up accordingly.

        The penalty is always computed in float32: bfloat16's error is as large as the gradients near convergence.
        """
        real_logits, fake_logits = self.D(real, dtype=self.dtype), self.D(fake, dtype=self.dtype)
        loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        self.d_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.d_optimizer.step()
        for name, value in (("d_loss", loss), ("real", real_logits.mean()), ("fake", fake_logits.mean())):
            self.measure(name, value)
        if self.step % R1_INTERVAL == 0:
            real = real.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.D(real).sum(), real, create_graph=True)
            penalty = gradient.square().sum((1, 2, 3)).mean()
            self.d_optimizer.zero_grad(set_to_none=True)
            (penalty * (self.options.r1_gamma / 2 * R1_INTERVAL)).backward()
            self.d_optimizer.step()
            self.measure("r1", penalty)

    def path_length_step(self, batch: int, resolution: int):
        """Path length regularisation on half a batch, in float32: the image's Jacobian in w should keep its length."""
        w_plus = self.G.mapping(torch.randn(max(1, batch // 2), self.options.z_dim).to(self.device))
        images = self.G.synthesis(w_plus, noise="random", resolution=resolution)
        direction = torch.randn_like(images) / resolution
        (gradient,) = torch.autograd.grad((images * direction).sum(), w_plus, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        mean = self.path_length_mean.lerp(lengths.mean(), 0.01)
        self.path_length_mean = mean.detach()
        penalty = (lengths - mean).square().mean()
        self.g_optimizer.zero_grad(set_to_none=True)
        (penalty * self.options.path_length * self.options.path_length_interval).backward()
        self.g_optimizer.step()
        self.measure("path_length", lengths.mean())

    def set_learning_rates(self, kimg: float):
        """Linear warm-up over WARM_UP steps; cosine decay to a tenth over the last ``--decay`` share of the run."""
        options = self.options
        start = options.kimg * (1 - options.decay)
        progress = min(1.0, max(0.0, (kimg - start) / (options.kimg - start))) if options.decay > 0 else 0.0
        factor = min(1.0, (self.step + 1) / WARM_UP) * (0.55 + 0.45 * math.cos(math.pi * progress))
        for group in self.g_optimizer.param_groups:
            group["lr"] = options.g_lr * factor * self.g_ratio
        for group in self.d_optimizer.param_groups:
            group["lr"] = options.d_lr * factor * self.d_ratio

    def update_ema(self, batch: int):
        """Moving average with a half life of ``--ema-kimg``, shorter at the beginning."""
        half_life = max(1.0, min(self.options.ema_kimg * 1000, self.images * 0.05))
        keep = 0.5 ** (batch / half_life)
        with torch.no_grad():
            for average, value in zip(self.G_ema.parameters(), self.G.parameters(), strict=True):
                average.lerp_(value, 1 - keep)
            self.G_ema.w_avg.copy_(self.G.w_avg)

    def measure(self, name: str, value: torch.Tensor):
        """Note a number of this step; ``update_averages`` reads all at once: each look makes a GPU wait."""
        self.measured[name] = value.detach()

    def update_averages(self):
        """Running means of the step's numbers, for the log; one that is not finite ends the training."""
        values = torch.stack(list(self.measured.values())).tolist()
        for name, value in zip(self.measured, values, strict=True):
            if not math.isfinite(value):
                message = f"{name} became {value} at {self.images / 1000:.1f} kimg; lower the learning rates"
                state = self.out / "state.pt"
                if state.exists():
                    message += f" and run again with --resume: {shown(state)} holds the last good state"
                raise FastinvError(message)
            self.averages[name] = 0.98 * self.averages.get(name, value) + 0.02 * value
        self.measured.clear()

    # Files ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Everything a bit-identical continuation needs."""
        state = {
            "G": self.G.state_dict(), "D": self.D.state_dict(), "G_ema": self.G_ema.state_dict(),
            "g_optimizer": self.g_optimizer.state_dict(), "d_optimizer": self.d_optimizer.state_dict(),
            "step": self.step, "images": self.images, "seconds": self.seconds, "averages": self.averages,
            "path_length_mean": self.path_length_mean, "random": torch.get_rng_state(),
        }  # fmt: skip
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def resume(self, path: Path):
        """Continue from ``state.pt``, which may come from another device; the networks must have the same shape."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name in ("G", "D", "G_ema", "g_optimizer", "d_optimizer"):
                getattr(self, name).load_state_dict(state[name])
            for name in ("step", "images", "seconds", "averages"):
                setattr(self, name, state[name])
            self.path_length_mean = state["path_length_mean"].to(self.device)
            torch.set_rng_state(state["random"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError,
                pickle.UnpicklingError) as error:  # fmt: skip
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{shown(path)} is damaged or does not fit these options: {reason}") from error
        if self.device.type == "cuda":
            if "random_cuda" in state:
                torch.cuda.set_rng_state(state["random_cuda"], self.device)
            else:
                torch.cuda.manual_seed(self.options.seed + self.step)
        for group in self.g_optimizer.param_groups:  # the options of this command hold, not those of the last
            group["betas"] = self.g_betas

    def checkpoint(self):
        """Write state.pt, both networks in half precision and a sample grid; each appears whole or not at all."""
        with atomic_file(self.out / "state.pt") as temporary, open(temporary, "wb") as file:
            torch.save(self.state(), file)
        origin = {
            "command": shlex.join(["fastinv", "train", "generator", *self.options.arguments]),
            "seed": self.options.seed, "images": self.images, "seconds": round(self.seconds),
        }  # fmt: skip
        save_network(self.G_ema, self.out / "generator.safetensors", torch.float16, origin)
        save_network(self.D, self.out / "discriminator.safetensors", torch.float16, origin)
        with torch.no_grad():
            w_plus = self.G_ema.mapping(self.sample_z)
            samples = self.G_ema.synthesis(w_plus, noise="const", resolution=self.phase()[0])
        save_picture(grid(samples, columns=8), self.out / f"samples_{self.images // 1000:06d}.png")

    def log(self, file, speed: float):
        """One JSON line to the log file, and the same for people."""
        resolution, batch = self.phase()
        row = {
            "kimg": round(self.images / 1000, 3), "seconds": round(self.seconds), "images_per_second": round(speed, 1),
            "resolution": resolution, "batch": batch, **{k: round(v, 4) for k, v in self.averages.items()},
        }  # fmt: skip
        file.write(json.dumps(row) + "\n")
        file.flush()
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def run(self):
        """Train until ``--kimg`` or ``--minutes``; log every minute, checkpoint every ``--checkpoint`` minutes."""
        started = logged = saved = time.monotonic()
        logged_images = self.images
        with open(self.out / "log.jsonl", "a") as file:
            while self.images < self.options.kimg * 1000 and time.monotonic() - started < self.options.minutes * 60:
                start = time.monotonic()
                self.iterate()
                now = time.monotonic()
                self.seconds += now - start
                if now - logged > 60:
                    self.log(file, (self.images - logged_images) / (now - logged))
                    logged, logged_images = now, self.images
                if now - saved > self.options.checkpoint * 60:
                    self.checkpoint()
                    saved = time.monotonic()
            if self.images > logged_images:
                self.log(file, (self.images - logged_images) / (time.monotonic() - logged))
            self.checkpoint()


def main(argv: list[str] | None = None) -> Path:
    """Parse ``argv`` and train; returns the generator's file."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    options.arguments = argv
    check_options(options)
    out = Path(options.out)
    state = out / "state.pt"
    if state.exists() and not options.resume:
        raise UsageError(f"{shown(out)} already holds a training run; --resume continues it, or choose another folder")
    if options.resume and not state.exists():
        raise UsageError(f"nothing to resume: {shown(state)} does not exist")
    trainer = Trainer(options)
    if options.resume:
        trainer.resume(state)
    try:
        out.mkdir(parents=True, exist_ok=True)
        open(out / "log.jsonl", "a").close()
    except OSError as error:
        raise UsageError(f"cannot write to {shown(out)}: {error.strerror}") from error
    parameters = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (trainer.G, trainer.D)]
    print(
        f"generator {parameters[0]:.2f} M parameters, discriminator {parameters[1]:.2f} M, {options.dtype} on "
        f"{trainer.device}",
        flush=True,
    )
    trainer.run()
    return out / "generator.safetensors"


if __name__ == "__main__":
    run_as_command(main)
