"""Train ALAE, an adversarial latent autoencoder (Pidhorskyi et al. 2020, arXiv 2004.04467): a generator of the first
StyleGAN's kind and an encoder, jointly.

Three steps on each batch, with the mapping F, synthesis G, encoder E and latent discriminator D:

1. E and D: D tells codes E(x) of pictures from codes E(G(F(z))) of generated ones; R1 with respect to the pixels of x.
2. F and G: generated pictures should have codes that D takes for those of real ones.
3. E and G: E(G(w)) should be w, for a w = F(z) that is constant (reciprocity).

The paper grows the networks from 4x4. Here a run is of one resolution, and ``--grow DIR`` begins it with the networks
of another run at half of it; the new layers, at the picture's side, fade in over ``--fade`` steps. ``--generator G``
begins with a generator that is there already, of any kind. In the first ``--encoder-first`` steps only E learns, by
reciprocity alone: while it knows nothing, the other steps would only spoil such a generator; ``--generator-rate`` holds
G and F back further. G's feature maps are in ``--dtype``, all else is in float32.

``python -m fastinv.training.alae --data faces --out runs/alae`` (also ``fastinv train alae``).
"""

import pickle
import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from fastinv.checkpoints import load_encoder, load_generator, network_hash, save_network
from fastinv.errors import UsageError
from fastinv.files import shown
from fastinv.losses import psnr
from fastinv.models.encoders import ALAEEncoder
from fastinv.models.layers import block_resolutions
from fastinv.models.stylegan1 import StyleGAN1Generator, ToRGBLayer
from fastinv.training.encoder_options import FULL_SIZE, EncoderParser, check_run, counts
from fastinv.training.generator_options import parse_channels
from fastinv.training.latent_discriminator import LinearDiscriminator, logistic, r1_penalty
from fastinv.training.loop import STATE, Trainable, run_training
from fastinv.training.options import check_range, run_as_command
from fastinv.training.picture_losses import PictureLosses

SMALL_CHANNELS = (32, 64, 96, 128, 128, 128, 128)  # of the encoder, at its resolution and after each halving
W_AVERAGE = 0.995  # kept of the tracked mean latent in a step
VALIDATION = {"pixel": 1.0, "perceptual": 0.8, "identity": 0.1}  # weights of what chooses the best checkpoint


class ALAETraining(Trainable):
    """ALAE; see the module."""

    measures = ("d_loss", "real", "fake", "r1", "g_loss", "reciprocity")

    def __init__(self, options, accelerator):
        super().__init__(options, accelerator)
        if options.generator:
            G = self.read_generator()
        else:
            G = StyleGAN1Generator(
                options.resolution, options.z_dim, options.w_dim, parse_channels(options.channels, options.resolution),
                options.mapping_layers, mapping_lr_multiplier=0.1,
            )  # fmt: skip
        self.resolution = resolution = G.resolution
        # First derivatives of G are enough: a generator of StyleGAN2's kind has a faster form for that.
        self.once = {} if isinstance(G, StyleGAN1Generator) else {"once": True}
        channels = counts(options.encoder_channels, "--encoder-channels")
        if channels is None and resolution < FULL_SIZE:
            channels = SMALL_CHANNELS[: len(block_resolutions(resolution)) + 1]
        E = ALAEEncoder(resolution, G.num_ws, G.w_dim, channels)
        if options.generator:
            E.latent_avg.copy_(G.w_avg)
        if options.start:
            self.take_over(E, load_encoder(options.start))

        def optimizer(parameters, rate=1.0):
            return torch.optim.Adam(parameters, options.lr * rate, betas=(0.0, 0.99), eps=1e-8)

        self.G = self.add("generator", G, lambda p: optimizer(p, options.generator_rate), options.average, mixed=False)
        self.E = self.add("encoder", E, optimizer, options.average, mixed=False)
        self.D = self.add("latent_discriminator", LinearDiscriminator(G.w_dim), optimizer, mixed=False)
        self.losses = PictureLosses(VALIDATION, self.device)
        self.fade, self.resting = 1.0, False  # share of the new layers; whether only the encoder learns
        if options.grow:
            width = G.config["channels"][resolution // 2]
            self.add("half_rgb", ToRGBLayer(width, final_tanh=False), optimizer, options.average, mixed=False)
            if not options.resume:
                self.grow(Path(options.grow) / STATE)
        self.painters = [name for name in ("generator", "half_rgb") if name in self.networks]

    def grow(self, path: Path) -> None:
        """Begin with the networks of a run at half the resolution, its moving averages left alone.

        Raises:
            UsageError: the file cannot be read, or its networks are no halves of these.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            networks, last = state["networks"], f"synthesis.b{self.resolution // 2}.torgb."
            networks["half_rgb"] = {
                name.removeprefix(last): value for name, value in networks["generator"].items() if last in name
            }
            for name, network in self.networks.items():
                network.load_state_dict(network.state_dict() | grown(networks[name]))
                if name in self.averages:
                    self.averages[name].module.load_state_dict(network.state_dict())
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError,
                pickle.UnpicklingError) as error:  # fmt: skip
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"--grow: {shown(path)} holds no networks to grow these from: {reason}") from error

    def draw(self, count: int) -> torch.Tensor:
        """Latents z [count, z_dim], this process's rows of what one process would draw."""
        z = torch.randn(count * self.accelerator.num_processes, self.G.z_dim)
        return z[self.accelerator.process_index * count :][:count].to(self.device)

    def generate(self, count: int) -> torch.Tensor:
        """Pictures of random latents, of two latents each in the share ``--style-mixing``."""
        w, other = self.G.mapping(self.draw(count)), self.G.mapping(self.draw(count))
        self.G.mapping.w_avg.lerp_(w[:, 0].detach().mean(0), 1 - W_AVERAGE)
        cut = torch.randint(1, self.G.num_ws, (count, 1))
        cut = cut.masked_fill(torch.rand(count, 1) >= self.options.style_mixing, self.G.num_ws)
        later = torch.arange(self.G.num_ws)[None] >= cut
        return self._synthesise(torch.where(later[..., None].to(self.device), other, w))

    def _synthesise(self, w_plus: torch.Tensor, final: bool = False) -> torch.Tensor:
        """Pictures of codes by the networks in training, or by those of ``final`` with the stored noise maps."""
        G = self.final("generator") if final else self.G
        settings = {} if final else {"noise": "random", "dtype": self.dtype, **self.once}
        if self.fade == 1:
            return G.synthesis(w_plus, **settings)
        half = []
        keep = G.synthesis.get_submodule(f"b{self.resolution // 2}.conv1").register_forward_hook(
            lambda layer, arguments, x: half.append(x)
        )
        with keep:
            images = G.synthesis(w_plus, **settings)
        rgb = self.final("half_rgb") if final else self.networks["half_rgb"]
        return torch.lerp(F.interpolate(rgb(half[0]), scale_factor=2), images, self.fade)

    def _encode(self, images: torch.Tensor, final: bool = False) -> torch.Tensor:
        E = self.final("encoder") if final else self.E
        return E(E.fit(images), fade=self.fade) + E.latent_avg

    def judge(self, images: torch.Tensor) -> torch.Tensor:
        """D(E(x)): pictures [N, 3, R, R] -> logits [N]."""
        return self.D(self._encode(images)[:, 0])

    def begin_step(self, step):
        super().begin_step(step)
        if self.options.grow:
            self.fade = min(1.0, (step + 1) / max(1, self.options.fade))
        self.resting = step < self.options.encoder_first

    def iterate(self, images, step):
        values = {} if self.resting else self._compete(images, step)
        with torch.no_grad():
            w = self.G.mapping(self.draw(len(images)))
        with torch.set_grad_enabled(not self.resting):
            made = self._synthesise(w)
        values["reciprocity"] = (self._encode(made) - w)[:, 0].square().mean()
        values["reciprocity"].backward()
        self.step_optimizer("encoder", *([] if self.resting else self.painters))
        return values

    def _compete(self, images: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """The steps with the latent discriminator: its own and the encoder's, then the generator's."""
        with torch.no_grad():
            made = self.generate(len(images))
        real, fake = self.judge(images), self.judge(made)
        d_loss = logistic(real, fake)
        d_loss.backward()
        values = {"d_loss": d_loss, "real": real.mean(), "fake": fake.mean()}
        if self.options.r1_gamma > 0 and step % self.options.r1_interval == 0:
            values["r1"] = r1_penalty(self.judge, images)
            (values["r1"] * (self.options.r1_gamma / 2 * self.options.r1_interval)).backward()
        self.step_optimizer("encoder", "latent_discriminator")

        self._freeze(True)
        made = self.generate(len(images))
        values["g_loss"] = F.softplus(-self.judge(made)).mean()
        values["g_loss"].backward()
        self._freeze(False)
        self.step_optimizer(*self.painters)
        return values

    def _freeze(self, frozen: bool) -> None:
        self.E.requires_grad_(not frozen)
        self.D.requires_grad_(not frozen)

    def reconstruct(self, images):
        return self._synthesise(self._encode(images, final=True), final=True)

    def measure(self, images):
        made = self.reconstruct(images)
        values = self.losses(made, images)
        w = self.final("generator").mapping(torch.randn(len(images), self.G.z_dim).to(self.device))
        again = self._encode(self._synthesise(w, final=True), final=True)
        error = (again - w)[:, 0].square().mean(1)
        return {"loss": self.losses.total(values), "psnr": psnr(made, images), **values, "reciprocity": error}

    def save(self, folder, prefix, facts):
        generator = folder / f"{prefix}generator.safetensors"
        save_network(self.final("generator"), generator, torch.float16, facts)
        facts = facts | {"generator_sha256": network_hash(load_generator(generator))}  # as it is in the file
        save_network(self.final("encoder"), folder / f"{prefix}encoder.safetensors", torch.float16, facts)


def grown(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a network under the names that they have in one for twice the resolution.

    What is left out is of the picture's own resolution: the generator's last layer, and an encoder's latent average,
    one row for each layer.
    """
    old = {name: value for name, value in state.items() if ".torgb." not in name and name != "latent_avg"}
    numbered = re.compile(r"(encode_block|from_rgb)\.(\d+)")  # the encoder's levels count from the finest
    return {numbered.sub(lambda found: f"{found[1]}.{int(found[2]) + 1}", name): value for name, value in old.items()}


def parser() -> EncoderParser:
    """The command's options."""
    p = EncoderParser("alae", "Train ALAE, a generator and an encoder that learn together.")
    p.add_run(steps=100_000, batch=32, lr=2e-3, generator=False)
    p.add_argument("--generator", default="", metavar="NAME", help="begin with this generator, a bundled name or a "
                   "file; then --resolution, --channels and other sizes are its own")  # fmt: skip
    p.add_start()
    p.number("--generator-rate", float, 1.0, "the generator's share of the learning rate")
    p.number("--encoder-first", int, 0, "steps at the start in which only the encoder learns, by reciprocity")
    p.set_defaults(average=300.0)
    p.number("--resolution", int, 64, "side of the pictures, a power of two")
    p.number("--z-dim", int, 64, "width of the latent z")
    p.number("--w-dim", int, 256, "width of the latent w")
    p.add_argument("--channels", default="256,256,128,96,64", metavar="N,N,...",
                   help="feature maps of the generator at 4, 8, ... up to the resolution")  # fmt: skip
    p.add_argument("--encoder-channels", default="", metavar="N,N,...", help="those of the encoder at the resolution "
                   "and after each halving down to 2 (default: 16, 32, ... up to 512, or "
                   f"{','.join(map(str, SMALL_CHANNELS))} below {FULL_SIZE})")  # fmt: skip
    p.add_argument("--grow", default="", metavar="DIR", help="begin with the networks of a run at half the resolution "
                   "and of the same channels from there down")  # fmt: skip
    p.number("--fade", int, 1000, "steps in which the new layers of --grow fade in")
    p.number("--mapping-layers", int, 8, "depth of the mapping network")
    p.number("--style-mixing", float, 0.9, "share of generated pictures with two latents")
    p.number("--r1-gamma", float, 10.0, "weight of the gradient penalty")
    p.number("--r1-interval", int, 1, "steps between two penalties, each weighted up by so much")
    return p


def main(argv: list[str] | None = None) -> Path:
    """Parse ``argv`` and train; returns the folder of the run."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    options.arguments = argv
    check_run(options)
    check_range(options, "z_dim w_dim mapping_layers r1_interval", 1, 2**20)
    check_range(options, "style_mixing", 0, 1)
    check_range(options, "generator_rate", 0, 1e3, above=True)
    check_range(options, "r1_gamma", 0, 1e12)
    check_range(options, "fade encoder_first", 0, 2**40)
    if options.generator and options.grow:
        raise UsageError("--generator and --grow are two ways to begin; give one")
    return run_training("alae", ALAETraining, options)


if __name__ == "__main__":
    run_as_command(main)
