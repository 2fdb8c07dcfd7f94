"""Training of the attribute network on portraits rendered as it goes.

``python -m fastinv.training.attributes --seed 0 --steps 5000 --out fastinv/weights/attributes.safetensors`` made the
shipped weights; its output is docs/training/attributes.log.
"""

import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinv.data import faces
from fastinv.devices import named_device
from fastinv.errors import UsageError
from fastinv.files import check_writable, save_tensors
from fastinv.models.attributes import CHANNELS, KIND, AttributeNetwork
from fastinv.training.options import Parser, check_range, run_as_command


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """What generated pictures differ by from renders: each picture slightly blurred, resampled, noisy or left alone.

    images [n, 3, R, R] in [-1, 1]; a picture is mixed with its blurred and its shrunk-and-enlarged version by random
    shares (often zero), then gets white noise of a random standard deviation up to 0.06 (often zero).
    """
    n, resolution = len(images), images.shape[-1]

    def share(low: float) -> Tensor:  # below zero (no change) for low / (low + 1) of the pictures
        u = torch.rand(n, 1, 1, 1, generator=generator)
        return (u * (1 + low) - low).clamp(min=0).to(images.device)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images.lerp(blurred, share(1.0))
    size = int(torch.randint(resolution // 2, resolution, (1,), generator=generator))
    small = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    resampled = F.interpolate(small, (resolution, resolution), mode="bilinear", align_corners=False)
    images = images.lerp(resampled, share(1.0))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return images + noise * (0.06 * share(1.0))


@torch.no_grad()
def evaluate(network: AttributeNetwork, n: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Per attribute on n held-out renders: (R^2, mean |predicted - true| / standard deviation of the distribution)."""
    true = faces.sample_attributes(n, seed, "heldout")
    truth = torch.stack([true[name] for name in faces.NAMES], 1)
    predicted = []
    for first in range(0, n, 50):
        part = {name: value[first : first + 50].to(network.means.device) for name, value in true.items()}
        predicted.append(torch.stack(list(network(faces.render(part)).values()), 1).cpu())
    error = torch.cat(predicted) - truth
    r_squared = 1 - error.square().mean(0) / truth.var(0, correction=0)
    mean_error = error.abs().mean(0) / network.stds.cpu()
    return {name: (r_squared[i].item(), mean_error[i].item()) for i, name in enumerate(faces.NAMES)}


def train(
    steps: int,
    seed: int = 0,
    batch: int = 32,
    channels: tuple[int, ...] = CHANNELS,
    learning_rate: float = 2e-3,
    device: torch.device | str = "cpu",
    log=print,
) -> AttributeNetwork:
    """Train on steps * batch fresh train-split renders; the network returned is folded, rounded to half precision.

    Loss: Huber on standardised attributes; AdamW: the learning rate rises for 1/25 of the steps, then falls (cosine).
    Arithmetic: bfloat16 autocast.
    """
    if steps < 1 or batch < 1:
        raise UsageError(f"steps is {steps} and batch is {batch}; both must be at least 1")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = AttributeNetwork(channels, batch_norm=True)
    values = faces.sample_attributes(100_000, seed=seed + 1_000_000)
    network.means.copy_(torch.stack([values[name].mean() for name in faces.NAMES]))
    network.stds.copy_(torch.stack([values[name].std() for name in faces.NAMES]))
    network.to(device=device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    attributes = faces.sample_attributes(steps * batch, seed)
    start, running = time.time(), None
    for step in range(steps):
        warm = min(1.0, (step + 1) * 25 / steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows = slice(step * batch, (step + 1) * batch)
        true = {name: value[rows].to(device) for name, value in attributes.items()}
        target = (torch.stack(list(true.values()), 1) - network.means) / network.stds
        images = augment(faces.render(true), generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            predicted = network.standardised(images)
        loss = F.smooth_l1_loss(predicted.float(), target, beta=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            speed = (step + 1) * batch / (time.time() - start)
            left = (steps - step - 1) * batch / speed
            log(f"step {step + 1}/{steps}  loss {running:.4f}  {speed:.0f} images/s  {left / 60:.1f} minutes left")
    plain = network.fold().to("cpu", memory_format=torch.contiguous_format)
    plain.load_state_dict({name: value.half().float() for name, value in plain.state_dict().items()})
    return plain


def save(network: AttributeNetwork, path: str | Path, training: dict) -> None:
    """Write a folded network as half-precision safetensors; the file appears whole or not at all."""
    state = {name: value.half() for name, value in network.state_dict().items()}
    save_tensors(path, state, KIND, {"config": network.config, "names": faces.NAMES, "training": training})


def main(argv: list[str] | None = None) -> None:
    parser = Parser("fastinv train attributes", __doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="safetensors file of the network")
    parser.add_argument("--steps", type=int, default=5000, metavar="N", help="training steps")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="portraits per step")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")
    parser.add_argument(
        "--channels", type=int, nargs=5, default=CHANNELS, metavar="N", help="feature maps at 64, 32, ... 4 pixels"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")
    arguments = parser.parse_args(argv)
    check_range(arguments, "steps batch", 1)
    check_range(arguments, "seed", 0, 2**61)
    if min(arguments.channels) < 1:
        raise UsageError(f"--channels must be at least 1 each, not {' '.join(map(str, arguments.channels))}")
    device = named_device(arguments.device)
    check_writable(arguments.out.parent)  # not only after the training
    facts = {key: value for key, value in vars(arguments).items() if key not in ("out", "device")}
    facts["torch"] = torch.__version__
    print(json.dumps(facts), flush=True)

    network = train(
        arguments.steps,
        arguments.seed,
        arguments.batch,
        tuple(arguments.channels),
        device=device,
        log=lambda line: print(line, flush=True),
    )
    scores = evaluate(network)
    print("on 1000 held-out renders: R^2, mean |predicted - true| / standard deviation")
    for name, (r_squared, error) in scores.items():
        print(f"  {name:12s} {r_squared:.4f}  {error:.4f}")
    mean_error = sum(error for _, error in scores.values()) / len(scores)
    print(f"  mean error   {mean_error:.4f}")
    save(network, arguments.out, facts | {"heldout_mean_error": round(mean_error, 4)})
    print(f"wrote {arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_as_command(main)
