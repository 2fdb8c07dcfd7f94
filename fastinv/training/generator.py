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
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from fastinv.checkpoints import save_network
from fastinv.errors import FastinvError, UsageError
from fastinv.models.discriminator import Discriminator
from fastinv.models.stylegan2 import Generator
from fastinv.training.sources import FacesSource, FolderSource

R1_INTERVAL = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_schedule(text: str, final: int, batch: int) -> list[tuple[float, int, int]]:
    """Parse ``"16:60:64,32:150"`` (resolution:until_kimg[:batch]) and add the final resolution for the rest."""
    phases = []
    try:
        for part in filter(None, text.split(",")):
            resolution, until, *rest = part.split(":")
            phases.append((float(until), int(resolution), int(rest[0]) if rest else batch))
    except ValueError as error:
        raise UsageError(f"--progressive must look like 16:60:64,32:150 (side:until_kimg:batch), not {text!r}") from error
    if any(r >= final or r < 8 or r & (r - 1) for _, r, _ in phases):
        raise UsageError(f"--progressive: resolutions must be powers of two from 8 to below {final}, in {text!r}")
    return [*phases, (math.inf, final, batch)]


def paired_loss(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Per-picture distance [N]: absolute, squared and edge differences, at full and half resolution."""
    error = fake - real
    half = F.avg_pool2d(error, 2)
    edges = (error[..., 1:] - error[..., :-1]).abs().mean((1, 2, 3)) + (error[..., 1:, :] - error[..., :-1, :]).abs().mean(
        (1, 2, 3)
    )
    return error.abs().mean((1, 2, 3)) + error.square().mean((1, 2, 3)) + half.abs().mean((1, 2, 3)) + 0.5 * edges


def save_grid(images: torch.Tensor, path: Path, columns: int = 8):
    """Write pictures [N, 3, R, R] in [-1, 1], N a multiple of ``columns``, as one PNG."""
    n, _, r, _ = images.shape
    rows = images.view(n // columns, columns, 3, r, r).permute(0, 3, 1, 4, 2).reshape(n // columns * r, columns * r, 3)
    Image.fromarray(((rows + 1) * 127.5).round().clamp(0, 255).byte().numpy()).save(path)


class Trainer:
    """The whole state of one training run; ``options`` are the command's (see ``parser``)."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.out = options, Path(options.out)
        self.dtype = DTYPES[options.dtype]
        self.schedule = parse_schedule(options.progressive, options.resolution, options.batch)
        channels = parse_channels(options.channels, options.resolution)
        d_channels = parse_channels(options.d_channels or options.channels, options.resolution)
        torch.manual_seed(options.seed)
        if options.data == "faces":
            self.source = FacesSource(options.resolution, options.z_dim)
        else:
            self.source = FolderSource(options.data, options.resolution, options.z_dim, options.mirror)
        if options.paired > 0 and not self.source.paired:
            raise UsageError("--paired needs data whose latents are known: --data faces")
        self.G = Generator(
            options.resolution, options.z_dim, options.w_dim, channels=channels,
            mapping_layers=options.mapping_layers, mapping_lr_multiplier=options.mapping_lr_multiplier,
        ).train()  # fmt: skip
        progressive = len(self.schedule) > 1
        self.D = Discriminator(options.resolution, channels=d_channels, progressive=progressive).train()
        for network in (self.G, self.D):
            network.to(memory_format=torch.channels_last)
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        # Lazy R1 takes one step more in R1_INTERVAL; the moments are adjusted so that Adam sees the same horizon.
        ratio = R1_INTERVAL / (R1_INTERVAL + 1)
        self.g_optimizer = torch.optim.Adam(self.G.parameters(), options.g_lr, (options.g_beta1, 0.99), 1e-8, fused=True)
        self.d_optimizer = torch.optim.Adam(
            self.D.parameters(), options.d_lr * ratio, (0.0, 0.99**ratio), 1e-8, fused=True
        )
        self.step = self.images = 0
        self.seconds = 0.0
        self.path_length_mean = torch.zeros([])
        self.averages: dict[str, float] = {}
        self.sample_z = torch.randn(64, options.z_dim, generator=torch.Generator().manual_seed(99))

    # One iteration -------------------------------------------------------------------------------------------------

    def iterate(self):
        """One step of generator and discriminator on one batch."""
        options = self.options
        kimg = self.images / 1000
        _, resolution, batch = next(phase for phase in self.schedule if kimg < phase[0])
        self.set_learning_rates(kimg)
        real, z = self.source.batch(batch, resolution)
        w_plus, mixed = self.mix_styles(z)
        fake = self.G.synthesis(w_plus, noise="random", resolution=resolution, dtype=self.dtype)
        adversarial = kimg >= options.paired_only
        loss = 0.0
        if adversarial:
            self.discriminator_step(real, fake.detach())
            self.D.requires_grad_(False)
            loss = F.softplus(-self.D(fake, dtype=self.dtype)).mean()
            self.D.requires_grad_(True)
            self.average("g_loss", loss)
        if options.paired > 0:
            paired = (paired_loss(fake, real) * ~mixed).sum() / (~mixed).sum().clamp_min(1)
            weight = options.paired if adversarial else 1.0
            loss = loss + weight * paired
            self.average("paired", paired)
            with torch.no_grad():
                self.average("mse", ((fake - real).square().mean((1, 2, 3)) * ~mixed).sum() / (~mixed).sum().clamp_min(1))
        self.g_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.g_optimizer.step()
        if adversarial and options.path_length > 0 and self.step % options.path_length_interval == 0:
            self.path_length_step(batch, resolution)
        self.images += batch
        self.step += 1
        self.update_ema(batch)

    def mix_styles(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """w_plus [N, num_ws, w_dim] of z, a share of them with another latent from a random layer on; and which."""
        w_plus = self.G.mapping(z)
        self.G.w_avg.lerp_(w_plus[:, 0].detach().mean(0), 0.005)
        mixed = torch.rand(len(z)) < self.options.style_mixing
        if mixed.any():
            other = self.G.mapping(torch.randn_like(z))
            cut = torch.randint(1, self.G.num_ws, (len(z), 1)).masked_fill(~mixed[:, None], self.G.num_ws)
            later = torch.arange(self.G.num_ws)[None] >= cut
            w_plus = torch.where(later[..., None], other, w_plus)
        return w_plus, mixed

    def discriminator_step(self, real: torch.Tensor, fake: torch.Tensor):
        """Logistic loss; every R1_INTERVAL steps the gradient penalty on real pictures, weighted up accordingly."""
        real_logits, fake_logits = self.D(real, dtype=self.dtype), self.D(fake, dtype=self.dtype)
        loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        self.d_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.d_optimizer.step()
        for name, value in (("d_loss", loss), ("real", real_logits.mean()), ("fake", fake_logits.mean())):
            self.average(name, value)
        if self.step % R1_INTERVAL == 0:
            real = real.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.D(real).sum(), real, create_graph=True)
            penalty = gradient.square().sum((1, 2, 3)).mean()
            self.d_optimizer.zero_grad(set_to_none=True)
            (penalty * (self.options.r1_gamma / 2 * R1_INTERVAL)).backward()
            self.d_optimizer.step()
            self.average("r1", penalty)

    def path_length_step(self, batch: int, resolution: int):
        """Path length regularisation on half a batch: the image's Jacobian in w should keep its mean length."""
        w_plus = self.G.mapping(torch.randn(max(1, batch // 2), self.options.z_dim))
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
        self.average("path_length", lengths.mean())

    def set_learning_rates(self, kimg: float):
        """Linear warm-up over 200 steps; cosine decay to a tenth over the last ``--decay`` share of the run."""
        options = self.options
        start = options.kimg * (1 - options.decay)
        progress = min(1.0, max(0.0, (kimg - start) / (options.kimg - start))) if options.decay > 0 else 0.0
        factor = min(1.0, (self.step + 1) / 200) * (0.55 + 0.45 * math.cos(math.pi * progress))
        for group in self.g_optimizer.param_groups:
            group["lr"] = options.g_lr * factor
        for group in self.d_optimizer.param_groups:
            group["lr"] = options.d_lr * factor * R1_INTERVAL / (R1_INTERVAL + 1)

    def update_ema(self, batch: int):
        """Moving average with a half life of ``--ema-kimg``, shorter at the beginning."""
        half_life = max(1.0, min(self.options.ema_kimg * 1000, self.images * 0.05))
        keep = 0.5 ** (batch / half_life)
        with torch.no_grad():
            for average, value in zip(self.G_ema.parameters(), self.G.parameters(), strict=True):
                average.lerp_(value, 1 - keep)
            self.G_ema.w_avg.copy_(self.G.w_avg)

    def average(self, name: str, value: torch.Tensor):
        value = float(value.detach())
        if not math.isfinite(value):
            raise FastinvError(
                f"{name} became {value} at {self.images / 1000:.1f} kimg; lower the learning rates and run again with "
                f"--resume: {self.out / 'state.pt'} holds the last good state"
            )
        self.averages[name] = 0.98 * self.averages.get(name, value) + 0.02 * value

    # Files ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Everything a bit-identical continuation needs."""
        return {
            "G": self.G.state_dict(), "D": self.D.state_dict(), "G_ema": self.G_ema.state_dict(),
            "g_optimizer": self.g_optimizer.state_dict(), "d_optimizer": self.d_optimizer.state_dict(),
            "step": self.step, "images": self.images, "seconds": self.seconds, "averages": self.averages,
            "path_length_mean": self.path_length_mean, "random": torch.get_rng_state(),
        }  # fmt: skip

    def resume(self, path: Path):
        """Continue from ``state.pt``; the networks must have the same shape."""
        try:
            state = torch.load(path, weights_only=True)
            for name in ("G", "D", "G_ema", "g_optimizer", "d_optimizer"):
                getattr(self, name).load_state_dict(state[name])
        except FileNotFoundError as error:
            raise UsageError(f"nothing to resume: {path} does not exist") from error
        except (RuntimeError, KeyError, ValueError) as error:
            raise UsageError(f"{path} does not fit these options: {str(error).splitlines()[0]}") from error
        for name in ("step", "images", "seconds", "averages", "path_length_mean"):
            setattr(self, name, state[name])
        torch.set_rng_state(state["random"])
        for group in self.g_optimizer.param_groups:  # the options of this command hold, not those of the last
            group["betas"] = (self.options.g_beta1, 0.99)

    def checkpoint(self):
        """Write state.pt, both networks in half precision and a sample grid; each appears whole or not at all."""
        temporary = self.out / ".state.pt"
        torch.save(self.state(), temporary)
        os.replace(temporary, self.out / "state.pt")
        origin = {
            "command": "fastinv train generator " + " ".join(self.options.arguments),
            "seed": self.options.seed, "images": self.images, "seconds": round(self.seconds),
        }  # fmt: skip
        save_network(self.G_ema, self.out / "generator.safetensors", torch.float16, origin)
        save_network(self.D, self.out / "discriminator.safetensors", torch.float16, origin)
        _, resolution, _ = next(phase for phase in self.schedule if self.images / 1000 < phase[0])
        with torch.no_grad():
            w_plus = self.G_ema.mapping(self.sample_z)
            samples = self.G_ema.synthesis(w_plus, noise="const", resolution=resolution)
        save_grid(samples, self.out / f"samples_{self.images // 1000:06d}.png")

    def log(self, file, speed: float):
        """One JSON line to the log file, and the same for people."""
        _, resolution, batch = next(phase for phase in self.schedule if self.images / 1000 < phase[0])
        row = {
            "kimg": round(self.images / 1000, 1), "seconds": round(self.seconds), "images_per_second": round(speed, 1),
            "resolution": resolution, "batch": batch, **{k: round(v, 4) for k, v in self.averages.items()},
        }  # fmt: skip
        file.write(json.dumps(row) + "\n")
        file.flush()
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def run(self):
        """Train until ``--kimg`` or ``--minutes``; log every minute, checkpoint every ``--checkpoint`` minutes."""
        deadline = time.monotonic() + self.options.minutes * 60
        logged = saved = time.monotonic()
        logged_images = self.images
        with open(self.out / "log.jsonl", "a") as file:
            while self.images < self.options.kimg * 1000 and time.monotonic() < deadline:
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
            self.checkpoint()


def parse_channels(text: str, resolution: int) -> dict[int, int]:
    """``"256,256,128,64,32"`` -> {4: 256, 8: 256, 16: 128, 32: 64, 64: 32}."""
    from fastinv.models.layers import block_resolutions

    resolutions = block_resolutions(resolution)
    try:
        counts = [int(part) for part in text.split(",")]
        return dict(zip(resolutions, counts, strict=True))
    except ValueError as error:
        raise UsageError(f"channels must be {len(resolutions)} counts, for {resolutions}, not {text!r}") from error


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="fastinv train generator", description="Train a StyleGAN2 generator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    p.add_argument("--data", required=True, help="the word faces (procedural, endless) or a folder of pictures")
    p.add_argument("--out", required=True, help="folder for state, networks, samples and log")
    p.add_argument("--resume", action="store_true", help="continue from OUT/state.pt")
    p.add_argument("--kimg", type=float, default=1000, help="thousands of pictures to train on")
    p.add_argument("--minutes", type=float, default=math.inf, help="stop (and save) after so many minutes")
    p.add_argument("--resolution", type=int, default=64)
    p.add_argument("--z-dim", type=int, default=64)
    p.add_argument("--w-dim", type=int, default=256)
    p.add_argument("--channels", default="256,256,128,96,64", help="feature maps at 4, 8, ... up to the resolution")
    p.add_argument("--d-channels", default="", help="the same for the discriminator; empty: as the generator")
    p.add_argument("--mapping-layers", type=int, default=4)
    p.add_argument("--mapping-lr-multiplier", type=float, default=0.1)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--progressive", default="", help="smaller pictures first: side:until_kimg[:batch],...")
    p.add_argument("--g-lr", type=float, default=0.003)
    p.add_argument("--g-beta1", type=float, default=0.0, help="Adam's beta1 for the generator; 0.9 suits --paired-only")
    p.add_argument("--d-lr", type=float, default=0.003)
    p.add_argument("--decay", type=float, default=0.0, help="share of the run, at its end, with falling learning rates")
    p.add_argument("--r1-gamma", type=float, default=0.5)
    p.add_argument("--path-length", type=float, default=2.0, help="weight of the path length term; 0: none")
    p.add_argument("--path-length-interval", type=int, default=4)
    p.add_argument("--style-mixing", type=float, default=0.5, help="share of pictures with two latents")
    p.add_argument("--ema-kimg", type=float, default=5.0, help="half life of the moving average of the weights")
    p.add_argument("--paired", type=float, default=0.0, help="weight of the paired term (faces only)")
    p.add_argument("--paired-only", type=float, default=0.0, help="kimg at the start with the paired term alone")
    p.add_argument("--mirror", action="store_true", help="also train on mirrored pictures of the folder")
    p.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="arithmetic of the feature maps")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--checkpoint", type=float, default=5, help="minutes between checkpoints")
    return p


def check_options(options: argparse.Namespace):
    """Refuse bad numbers before any work."""
    for name in ("kimg", "minutes", "batch", "g_lr", "d_lr", "z_dim", "w_dim", "mapping_layers", "checkpoint",
                 "path_length_interval", "mapping_lr_multiplier", "ema_kimg"):  # fmt: skip
        if not getattr(options, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be positive, not {getattr(options, name)}")
    for name in ("paired", "paired_only", "r1_gamma", "path_length"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} must not be negative, not {getattr(options, name)}")
    for name in ("style_mixing", "decay", "g_beta1"):
        if not 0 <= getattr(options, name) <= 1:
            raise UsageError(f"--{name.replace('_', '-')} must be within 0 and 1, not {getattr(options, name)}")
    if options.paired_only > 0 and options.paired == 0:
        raise UsageError("--paired-only needs --paired above 0")


def main(argv: list[str] | None = None) -> Path:
    """Parse ``argv`` and train; returns the generator's file."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    options.arguments = argv
    check_options(options)
    out = Path(options.out)
    state = out / "state.pt"
    if state.exists() and not options.resume:
        raise UsageError(f"{out} already holds a training run; add --resume to continue it, or choose another folder")
    trainer = Trainer(options)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from error
    if options.resume:
        trainer.resume(state)
    parameters = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (trainer.G, trainer.D)]
    print(f"generator {parameters[0]:.2f} M parameters, discriminator {parameters[1]:.2f} M", flush=True)
    trainer.run()
    return out / "generator.safetensors"


if __name__ == "__main__":
    try:
        main()
    except FastinvError as error:
        sys.exit(f"error: {error}")
