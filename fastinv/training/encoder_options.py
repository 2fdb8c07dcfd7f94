"""The options that the encoder trainers share."""

import argparse
import math

from fastinv.errors import UsageError
from fastinv.training.options import Parser, check_range

# Encoders of generators below FULL_SIZE are small by default; from there on they are the papers'.
FULL_SIZE = 256
SMALL_BODY = {"units": (1, 1, 1, 1), "channels": (24, 48, 96, 160), "head_channels": 64}


class EncoderParser(Parser):
    """Options of ``fastinv train NAME``: those of every encoder; ``number`` and ``add_argument`` add others."""

    def __init__(self, name: str, description: str):
        super().__init__(
            f"fastinv train {name}", f"{description} It can be stopped at any time; --resume goes on from the last "
            "checkpoint.",
        )  # fmt: skip

    def number(self, name: str, kind: type, default, help: str) -> None:
        """An option with one number."""
        self.add_argument(name, type=kind, default=default, metavar="N" if kind is int else "X", help=help)

    def add_run(self, steps: int, batch: int, lr: float, generator: bool = True) -> None:
        """Data, files, length, arithmetic and learning rate."""
        self.add_argument("--data", required=True, help="the word faces (procedural, endless) or a folder of pictures")
        self.add_argument("--out", required=True, metavar="DIR", help="folder for state, networks, samples and logs")
        if generator:
            self.add_argument(
                "--generator", default="faces64", help="what the encoder is for: a bundled name or a file"
            )
        self.add_argument("--resume", action="store_true", help="continue from DIR/state.pt, to the same bits on a CPU")
        self.number("--steps", int, steps, "length of the training")
        self.number("--minutes", float, math.inf, "stop (and save) after so many minutes")
        self.number("--batch", int, batch, "pictures per step, over all processes")
        self.number("--lr", float, lr, "learning rate")
        self.number("--warm-up", int, 0, "steps at the start in which the learning rate rises")
        self.number("--decay", float, 0.0, "share of the run, at its end, with falling learning rate")
        self.number("--checkpoint", float, 5, "minutes between checkpoints")
        self.number("--checkpoint-steps", int, 0, "steps between checkpoints besides; 0 for none")
        self.number("--log-every", int, 50, "steps between lines of the log")
        self.number("--validate-every", int, 500, "steps between validations")
        self.number("--validation", int, 128, "held-out pictures of a validation")
        self.number("--sample-every", int, 1000, "steps between sample grids")
        self.number("--average", float, 0.0, "half life of a moving average of the weights, in steps; 0 for none")
        self.add_argument(
            "--device", choices=("auto", "cpu"), default="auto", help="auto takes the GPUs that are there"
        )
        self.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
                          help="arithmetic of convolutions; weights are float32")  # fmt: skip
        self.number("--seed", int, 0, "of everything random; the same seed gives the same networks on a CPU")
        self.add_argument("--mirror", action="store_true", help="also train on mirrored pictures of the folder")
        self.number("--workers", int, 0, "processes that read pictures of a folder")

    def add_losses(self, pixel: float, perceptual: float, identity: float) -> None:
        """Weights of the distances between pictures and reconstructions."""
        self.number("--pixel", float, pixel, "weight of the mean squared error")
        self.number("--perceptual", float, perceptual, "weight of the perceptual distance")
        self.number("--identity", float, identity, "weight of 1 - cosine of the attribute network's embeddings")
        self.number("--crop-pixel", float, 0.0, "weight of the mean squared error on the face alone")
        self.number("--crop-perceptual", float, 0.0, "weight of the perceptual distance on the face alone")
        self.number("--synthetic", float, 0.0, "weight of the mean squared error of codes of generated pictures")
        self.number("--synthetic-only", int, 0, "steps at the start with the synthetic term alone")

    def add_body(self) -> None:
        """Size of a residual body with style heads."""
        self.number("--input-resolution", int, 0, "size at which the encoder looks at pictures; 0 is the generator's, "
                    f"{FULL_SIZE} at most")  # fmt: skip
        self.add_argument("--body", choices=("ir_se", "resnet"), default="ir_se", help="kind of the residual network")
        small = SMALL_BODY
        for name, what in (("units", "residual units"), ("channels", "feature maps")):
            default = ",".join(map(str, small[name]))
            self.add_argument(f"--{name}", default="", metavar="N,N,...", help=f"{what} of each stage (default: the "
                              f"paper's, or {default} for generators below {FULL_SIZE})")  # fmt: skip
        self.number("--head-channels", int, 0, "feature maps in the style heads; 0 is the width of w, or "
                    f"{small['head_channels']} for generators below {FULL_SIZE}")  # fmt: skip
        self.add_start()

    def add_start(self) -> None:
        """Another encoder to begin with."""
        self.add_argument("--start", default="", metavar="NAME", help="begin with the weights of another encoder, by "
                          "name or file, as far as names and shapes are the same")  # fmt: skip


def check_run(options: argparse.Namespace) -> None:
    """Refuse bad numbers of ``add_run`` and ``add_losses`` before any work."""
    check_range(options, "steps batch log_every validate_every validation sample_every", 1, 2**40)
    check_range(options, "warm_up checkpoint_steps workers", 0, 2**40)
    check_range(options, "minutes checkpoint", 0, above=True)
    check_range(options, "lr", 0, 1e3, above=True)
    check_range(options, "decay", 0, 1)
    check_range(options, "average", 0, 1e12)
    check_range(options, "seed", 0, 2**30)
    if hasattr(options, "pixel"):
        check_range(options, "pixel perceptual identity crop_pixel crop_perceptual synthetic", 0, 1e12)
        check_range(options, "synthetic_only", 0, 2**40)
        if options.synthetic_only > 0 and options.synthetic == 0:
            raise UsageError("--synthetic-only needs --synthetic above 0")
        if not any((options.pixel, options.perceptual, options.identity, options.crop_pixel, options.crop_perceptual)):
            raise UsageError("give at least one of --pixel, --perceptual and --identity a weight above 0")


def body_config(options: argparse.Namespace, generator_resolution: int) -> dict:
    """Constructor arguments of `fastinv.models.encoders.bodies.BodyEncoder` from the options of ``add_body``."""
    small = {} if generator_resolution >= FULL_SIZE else SMALL_BODY
    config = {
        "input_resolution": options.input_resolution or min(generator_resolution, FULL_SIZE),
        "body": options.body,
        "units": counts(options.units, "--units") or small.get("units"),
        "head_channels": options.head_channels or small.get("head_channels"),
    }
    channels = counts(options.channels, "--channels") or small.get("channels")
    return config | ({"channels": channels} if channels else {})


def counts(text: str, name: str) -> tuple[int, ...] | None:
    """``"24,48,96"`` -> (24, 48, 96); None for an empty text. UsageError: not whole numbers."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else None
    except ValueError as error:
        raise UsageError(f"{name} must be whole numbers with commas between them, not {text!r}") from error
