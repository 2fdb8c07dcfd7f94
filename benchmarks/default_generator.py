"""How good the embedded generator is: inversion of held-out renders in W+ and W, and its samples.

    python benchmarks/default_generator.py --count 500 --out benchmarks/results/faces64.json

Reports mean PSNR (dB, clamped pictures, range 2), the attribute error |predicted - true| / standard deviation through
the attribute network (and through further networks that the inversion has not seen, ``--also``), and the Fréchet
distance of samples to the held-out set in the attribute network's embedding.
"""

import argparse
import json
import time

import torch

import fastinv
from fastinv.data import faces
from fastinv.evaluation import frechet_distance
from fastinv.models.attributes import load_attribute_network
from fastinv.report import grid


def attribute_error(network, images, attributes) -> dict[str, float]:
    """Mean |predicted - true| / standard deviation, per attribute and over all ("mean")."""
    with torch.no_grad():
        predicted = network(images.clamp(-1, 1))
    errors = {
        name: float((predicted[name] - attributes[name]).abs().mean() / std)
        for name, std in zip(faces.NAMES, network.stds, strict=True)
    }
    return {"mean": sum(errors.values()) / len(errors), **errors}


def inversions(G, images, space, steps, batch):
    """Reconstructions [N, 3, R, R] and seconds."""
    start = time.perf_counter()
    parts = [
        fastinv.invert(G, part, space=space, steps=steps, trunk="attributes", progress=False).images
        for part in images.split(batch)
    ]
    return torch.cat(parts), time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--generator", default="faces64")
    p.add_argument("--count", type=int, default=500, help="held-out renders to invert")
    p.add_argument("--samples", type=int, default=5000, help="pictures per side of the Fréchet distance")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--batch", type=int, default=25)
    p.add_argument("--spaces", default="w+,w")
    p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="arithmetic of the inversion")
    p.add_argument("--also", nargs="*", default=[], help="files of further attribute networks to measure with")
    p.add_argument("--out", help="JSON file for the numbers")
    p.add_argument("--picture", help="PNG: samples on the left, held-out renders on the right")
    p.add_argument("--inversions", help="PNG: targets above their W+ reconstructions")
    options = p.parse_args()

    G = fastinv.load_generator(options.generator)
    inverted = fastinv.load_generator(options.generator, dtype=getattr(torch, options.dtype))
    networks = {"shipped": load_attribute_network()} | {path: load_attribute_network(path) for path in options.also}
    images, attributes = faces.sample(options.count, seed=0, split="heldout", resolution=G.resolution)
    report = {"generator": options.generator, "count": options.count, "steps": options.steps, "dtype": options.dtype}
    for name, network in networks.items():
        report[f"renders, attribute error ({name})"] = attribute_error(network, images, attributes)
    for space in options.spaces.split(","):
        found, seconds = inversions(inverted, images, space, options.steps, options.batch)
        psnr = 10 * torch.log10(4 / (found.clamp(-1, 1) - images).square().mean((1, 2, 3)))
        entry = {"psnr mean": float(psnr.mean()), "psnr min": float(psnr.min()), "psnr max": float(psnr.max())}
        entry["seconds per picture"] = seconds / options.count
        for name, network in networks.items():
            entry[f"attribute error ({name})"] = attribute_error(network, found, attributes)
        report[space] = entry
        print(space, json.dumps(entry, indent=1), flush=True)
        if options.inversions and space == "w+":
            rows = [pictures[:32].view(4, 8, *images.shape[1:]) for pictures in (images, found)]
            grid(torch.stack(rows, 1).flatten(0, 2), 8).save(options.inversions)
    if options.samples:
        z = torch.randn(options.samples, G.z_dim, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            fakes = torch.cat([G(part) for part in z.split(100)]).clamp(-1, 1)
            reals, _ = faces.sample(options.samples, seed=1, split="heldout", resolution=G.resolution)
            others, _ = faces.sample(options.samples, seed=2, split="heldout", resolution=G.resolution)
            fake, real, other = (
                torch.cat([networks["shipped"].embedding(part) for part in pictures.split(100)])
                for pictures in (fakes, reals, others)
            )
        report["frechet distance"] = {
            "samples to held-out renders": frechet_distance(fake, real),
            "held-out renders to others": frechet_distance(real, other),
            "total variance of the renders": float(real.var(0).sum()),
        }
        print(json.dumps(report["frechet distance"], indent=1))
        if options.picture:
            left, right = (pictures[:64].view(8, 8, *pictures.shape[1:]) for pictures in (fakes, reals))
            grid(torch.cat([left, right], 1).flatten(0, 1), 16).save(options.picture)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
