"""Writes checkpoints of every public family from networks of ours, of any size, and measures what loading them takes.

Names and layouts are the public ones, by the inverse of what the readers do. Python's own pickle and torch.save write
the files; the classes that the public code pickles exist here as empty shells for as long as that takes.
"""

import argparse
import contextlib
import json
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import test_families_encoders as encoders
import test_families_stylegan1 as stylegan1
import test_families_stylegan2 as stylegan2
import torch

from fastinv.checkpoints.families import rosinality
from fastinv.checkpoints.pickles import Record
from fastinv.models.discriminator import Discriminator
from fastinv.models.encoders import ALAEEncoder, Encoder4Editing, IDInvertEncoder
from fastinv.models.stylegan1 import StyleGAN1Generator
from fastinv.models.stylegan2 import Generator

ROOT = Path(__file__).parent.parent
MODULES = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util", "dnnlib.tflib", "dnnlib.tflib.network")


@contextlib.contextmanager
def public_classes():
    """The modules that public pickles name, with what is needed to write one; gives an object -> picklable function."""
    modules = {name: types.ModuleType(name) for name in MODULES}

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("these files are written here, not read")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    Network = type("Network", (), {"__module__": "dnnlib.tflib.network"})
    modules["dnnlib.util"].EasyDict, modules["dnnlib.tflib.network"].Network = EasyDict, Network

    class Persistent:
        def __init__(self, meta):
            self.meta = meta

        def __reduce__(self):
            return _reconstruct_persistent_obj, (self.meta,)

    def picklable(value):
        if isinstance(value, Record) and value.name == "Network":
            made = Network()
            made.__dict__.update({name: picklable(item) for name, item in value.state.items()})
            return made
        if isinstance(value, Record):
            modules = {name: picklable(child) for name, child in value.state["_modules"].items()}
            meta = {"type": "class", "version": 6, "module_src": "# none", "class_name": value.name}
            return Persistent(EasyDict(meta, state=value.state | {"_modules": modules}))
        if isinstance(value, torch.Tensor):
            return value.detach().numpy()
        if isinstance(value, (list, tuple)):
            return type(value)(picklable(item) for item in value)
        return {name: picklable(item) for name, item in value.items()} if isinstance(value, dict) else value

    kept = {name: sys.modules.get(name) for name in MODULES}
    sys.modules.update(modules)
    try:
        yield picklable
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


# One writer for each family: (path, networks).


def ada(path, **networks):
    """A training pickle of StyleGAN2-ADA: G, D, G_ema."""
    with public_classes() as picklable, open(path, "wb") as file:
        networks = {name: picklable(stylegan2.saved(network)) for name, network in networks.items()}
        pickle.dump({"training_set_kwargs": {"resolution": 8}, **networks, "augment_pipe": None}, file)


def pti(path, G):
    """A tuned generator, saved whole with torch.save."""
    with public_classes() as picklable:
        torch.save(picklable(stylegan2.saved(G)), path)


def pti_old(path, G):
    """The same in the stream that torch.save wrote before its zip files."""
    with public_classes() as picklable:
        torch.save(picklable(stylegan2.saved(G)), path, _use_new_zipfile_serialization=False)


def rosinality_pt(path, G, D=None):
    torch.save(rosinality.checkpoint(G, D), path)


def tensorflow(path, G, protocol=4):
    """StyleGAN2's tuple (G, D, Gs); G and D are left out."""
    state = G.state_dict()
    variables = {"dlatent_avg": state["mapping.w_avg"], "lod": 0.0}
    for name, _, _, theirs in stylegan2.full_size_rows(G.resolution):
        if theirs is None or name not in state:
            continue
        value = state[name]
        if name.endswith((".const", ".noise_const")):
            value = value[None] if name.endswith(".const") else value[None, None]
        elif value.ndim == 4:
            value = (value.flip(2, 3) if name.endswith("conv0.weight") else value).permute(2, 3, 1, 0).contiguous()
        elif name.endswith(".affine.bias"):
            value = value - 1
        variables[theirs[0]] = value.t().contiguous() if value.ndim == 2 else value
    with public_classes() as picklable, open(path, "wb") as file:
        pickle.dump((None, None, picklable(stylegan2.tf_generator(variables))), file, protocol)


def tensorflow_stylegan1(path, G, protocol=4):
    with public_classes() as picklable, open(path, "wb") as file:
        pickle.dump((None, None, picklable(stylegan1.tensorflow_network(G))), file, protocol)


def psp(path, encoder, G, kind="Encoder4Editing"):
    """pSp's and e4e's dict, with ``opts`` as a Namespace."""
    options = argparse.Namespace(encoder_type=kind, start_from_latent_avg=True, output_size=G.resolution)
    value = encoders.pytorch_file(encoder, decoder=G, latent_avg=torch.ones(encoder.w_dim))
    torch.save(value | {"opts": options}, path)


def genforce(path, G):
    torch.save({"generator_smooth": stylegan1.genforce_stylegan2_state(G)}, path)


def idinvert_encoder(path, encoder):
    torch.save(encoders.wrapped(encoder), path)


def idinvert_generator(path, G):
    torch.save(stylegan1.genforce_state(G), path)


def alae(path, G, encoder):
    models = stylegan1.alae_models(G) | {"discriminator_s": encoders.scaled(encoder)}
    torch.save({"models": models, "optimizers": {}}, path)


def filled(cls, **options):
    """A network with random weights between 0.5 and 1.5, so that no page is all zeros; cheaper than its constructor."""
    with torch.device("meta"):
        network = cls(**options)
    network = network.to_empty(device="cpu").eval()
    for tensor in network.state_dict().values():
        tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else tensor.zero_()
    filters = [tensor for name, tensor in network.state_dict().items() if name.endswith("resample_filter")]
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for tensor in filters:
        tensor.copy_(torch.outer(row, row))
    return network


def _idinvert():
    return filled(StyleGAN1Generator, resolution=256, mapping_outputs="w+", final_tanh=True)


# name -> (file name, what is loaded from it, writer of a path): config-f at 1024, and 256 for IDInvert and ALAE
FULL_SIZE = {
    "ada": ("ffhq.pkl", ("generator", "discriminator"),
            lambda path: ada(path, G=filled(Generator, resolution=1024), D=filled(Discriminator, resolution=1024),
                             G_ema=filled(Generator, resolution=1024))),
    "pti": ("tuned.pt", ("generator",), lambda path: pti(path, filled(Generator, resolution=1024))),
    "rosinality": ("550000.pt", ("generator", "discriminator"),
                   lambda path: rosinality_pt(path, filled(Generator, resolution=1024),
                                              filled(Discriminator, resolution=1024))),
    "tensorflow": ("stylegan2-ffhq-config-f.pkl", ("generator",),
                   lambda path: tensorflow(path, filled(Generator, resolution=1024))),
    "tensorflow stylegan1": ("karras2019.pkl", ("generator",),
                             lambda path: tensorflow_stylegan1(path, filled(StyleGAN1Generator, resolution=1024))),
    "e4e": ("e4e_ffhq_encode.pt", ("encoder", "generator"),
            lambda path: psp(path, filled(Encoder4Editing), filled(Generator, resolution=1024))),
    "genforce": ("genforce.pth", ("generator",), lambda path: genforce(path, filled(Generator, resolution=1024))),
    "idinvert encoder": ("styleganinv_encoder.pth", ("encoder",),
                         lambda path: idinvert_encoder(path, filled(IDInvertEncoder))),
    "idinvert generator": ("styleganinv_generator.pth", ("generator",),
                           lambda path: idinvert_generator(path, _idinvert())),
    "alae": ("alae.pth", ("generator", "encoder"),
             lambda path: alae(path, filled(StyleGAN1Generator, resolution=256),
                               filled(ALAEEncoder, input_resolution=256))),
}  # fmt: skip

MEASURE = """
import json, sys, time, warnings
import fastinv.checkpoints as checkpoints
from fastinv.models import stylegan2
def memory(name):  # not getrusage's maximum, which a process inherits from the one that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) << 10
before, start = memory("VmRSS"), time.perf_counter()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    network = getattr(checkpoints, "load_" + sys.argv[2])(sys.argv[1])
seconds = time.perf_counter() - start
peak = memory("VmHWM") - before
parameters = sum(tensor.numel() for tensor in network.state_dict().values())
notes = [str(warning.message) for warning in caught]
json.dump({"seconds": seconds, "peak_bytes": peak, "tensors_bytes": 4 * parameters, "notes": notes}, sys.stdout)
"""


def measure(path, kind: str) -> dict:
    """Seconds, and bytes of memory at the worst moment beyond what imports took, to load from a file; in a new process.

    Raises:
        AssertionError: it cannot be loaded.
    """
    command = [sys.executable, "-c", MEASURE, str(path), kind]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=path.parent)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout) | {"kind": kind, "file_bytes": path.stat().st_size}
