"""The options of ``fastinv train generator``."""

import argparse
import math

from fastinv.errors import UsageError
from fastinv.models.layers import block_resolutions
from fastinv.training.options import Parser, check_range
from fastinv.training.sources import EXPRESSION


def parser() -> Parser:
    """The command's options."""
    p = Parser("fastinv train generator", "Train a StyleGAN2 generator. It can be stopped at any time; --resume goes "
               "on from the last checkpoint.")  # fmt: skip

    def number(name, kind, default, help):
        p.add_argument(name, type=kind, default=default, metavar="N" if kind is int else "X", help=help)

    p.add_argument("--data", required=True, help="the word faces (procedural, endless) or a folder of pictures")
    p.add_argument("--out", required=True, metavar="DIR", help="folder for state, networks, samples and log")
    p.add_argument("--resume", action="store_true", help="continue from DIR/state.pt, to the same bits on the CPU")
    number("--kimg", float, 1000, "thousands of pictures to train on")
    number("--minutes", float, math.inf, "stop (and save) after so many minutes")
    number("--checkpoint", float, 5, "minutes between checkpoints")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")
    p.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
                   help="arithmetic of the feature maps; weights, R1 and path length are float32")  # fmt: skip
    number("--seed", int, 0, "of everything random; the same seed gives the same networks on the CPU")
    number("--resolution", int, 64, "side of the pictures, a power of two")
    number("--z-dim", int, 64, "width of the latent z")
    number("--w-dim", int, 256, "width of the latent w")
    p.add_argument("--channels", default="256,256,128,96,64", metavar="N,N,...",
                   help="feature maps at 4, 8, ... up to the resolution")  # fmt: skip
    p.add_argument("--d-channels", default="", metavar="N,N,...", help="the same for the discriminator, if different")
    number("--mapping-layers", int, 4, "depth of the mapping network")
    number("--mapping-lr-multiplier", float, 0.1, "its learning rate as a part of --g-lr")
    number("--batch", int, 32, "pictures per step")
    p.add_argument("--progressive", default="", metavar="SIDE:KIMG[:BATCH],...",
                   help="smaller pictures first, each until so many thousands: 16:60:64,32:150")  # fmt: skip
    number("--g-lr", float, 0.003, "learning rate of the generator")
    number("--g-beta1", float, 0.0, "Adam's beta1 for the generator; 0.9 suits --paired-only")
    number("--d-lr", float, 0.003, "learning rate of the discriminator")
    number("--decay", float, 0.0, "share of the run, at its end, with falling learning rates")
    number("--r1-gamma", float, 0.5, "weight of the gradient penalty of the discriminator")
    number("--path-length", float, 2.0, "weight of the path length term; 0 for none")
    number("--path-length-interval", int, 4, "steps between two path length terms")
    number("--style-mixing", float, 0.5, "share of pictures with two latents")
    number("--ema-kimg", float, 5.0, "half life of the moving average of the weights, thousands of pictures")
    number("--paired", float, 0.0, "weight of the paired term (faces only)")
    number("--paired-details", float, 0.0, "extra weight of details (eyes and mouth) in the paired term")
    p.add_argument("--details", default=",".join(EXPRESSION), help="attributes whose pixels --paired-details weighs up")
    number("--paired-only", float, 0.0, "thousands of pictures at the start with the paired term alone")
    p.add_argument("--mirror", action="store_true", help="also train on mirrored pictures of the folder")
    return p


def check_options(options: argparse.Namespace):
    """Refuse bad numbers before any work."""
    check_range(options, "kimg minutes checkpoint", 0, above=True)
    check_range(options, "batch z_dim w_dim mapping_layers path_length_interval", 1, 100_000)
    check_range(options, "g_lr d_lr mapping_lr_multiplier ema_kimg", 0, 1e30, above=True)
    check_range(options, "paired paired_details paired_only r1_gamma path_length", 0, 1e30)
    check_range(options, "style_mixing decay", 0, 1)
    check_range(options, "g_beta1", 0, 0.9999)
    check_range(options, "seed", 0, 2**62)
    if options.paired_only > 0 and options.paired == 0:
        raise UsageError("--paired-only needs --paired above 0")


def parse_schedule(text: str, final: int, batch: int) -> list[tuple[float, int, int]]:
    """``"16:60:64,32:150"`` (side:until_kimg[:batch]) -> [(until_kimg, side, batch)], the final side for the rest."""
    phases = []
    try:
        for part in filter(None, text.split(",")):
            resolution, until, *rest = part.split(":")
            (count,) = rest or [batch]
            phases.append((float(until), int(resolution), int(count)))
    except ValueError as error:
        raise UsageError(
            f"--progressive must look like 16:60:64,32:150 (side:until_kimg:batch), not {text!r}"
        ) from error
    if not all(r in block_resolutions(final)[1:-1] for _, r, _ in phases):
        raise UsageError(f"--progressive: sides must be powers of two from 8 to below {final}, in {text!r}")
    if not all(count > 0 for *_, count in phases):
        raise UsageError(f"--progressive: batches must be at least 1, in {text!r}")
    ends = [0.0, *(until for until, *_ in phases)]
    if not all(before < after < math.inf for before, after in zip(ends, ends[1:], strict=False)):
        raise UsageError(f"--progressive: the kimg of each phase must be above the one before, in {text!r}")
    return [*phases, (math.inf, final, batch)]


def parse_channels(text: str, resolution: int) -> dict[int, int]:
    """``"256,256,128,64,32"`` -> {4: 256, 8: 256, 16: 128, 32: 64, 64: 32}."""
    resolutions = block_resolutions(resolution)
    try:
        counts = [int(part) for part in text.split(",")]
        return dict(zip(resolutions, counts, strict=True))
    except ValueError as error:
        raise UsageError(f"channels must be {len(resolutions)} counts, for {resolutions}, not {text!r}") from error
