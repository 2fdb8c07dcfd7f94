"""Public encoder checkpoints, as plain data with public names, read back; names and shapes of the reference by rule."""

import copy
import math
import re

import pytest
import torch

from fastinv.checkpoints.families import alae_encoder, idinvert_encoder, psp, rosinality
from fastinv.errors import CheckpointError
from fastinv.models.encoders import ENCODERS, ALAEEncoder, Encoder4Editing, GradualStyleEncoder, IDInvertEncoder
from fastinv.models.stylegan2 import Generator

SMALL = {"num_ws": 8, "w_dim": 5, "input_resolution": 32, "units": (1, 2, 1), "channels": (4, 6, 8)}
ENCODER_TYPES = {
    "psp": {"": "GradualStyleEncoder"},
    "e4e": {"": "Encoder4Editing"},
    "restyle_psp": {"ir_se": "BackboneEncoder", "resnet": "ResNetBackboneEncoder"},
    "restyle_e4e": {"ir_se": "ProgressiveBackboneEncoder", "resnet": "ResNetProgressiveBackboneEncoder"},
    "w_encoder": {"": "BackboneEncoderUsingLastLayerIntoW"},
    "w_plus_encoder": {"": "BackboneEncoderUsingLastLayerIntoWPlus"},
}
HEADS = [(name, body, kind) for name, kinds in ENCODER_TYPES.items() for body, kind in kinds.items()]


def randomised(encoder):
    """The encoder in eval mode with batch statistics, biases and a mean latent that are not 0 and 1."""
    for tensor in encoder.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim < 4:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return encoder.eval()


def generator(resolution=32, w_dim=5):
    channels = {2**i: 4 for i in range(2, resolution.bit_length())}
    return Generator(resolution, w_dim, w_dim, channels=channels, mapping_layers=2).eval()


def pytorch_file(encoder, options=None, decoder=None, latent_avg=None, **extra):
    """The content of a pSp-like file."""
    state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items() if name != "latent_avg"}
    if decoder is not None:
        state |= {f"decoder.{name}": tensor for name, tensor in rosinality.checkpoint(decoder)["g_ema"].items()}
    mean = encoder.latent_avg if latent_avg is None else latent_avg
    return {"state_dict": state, "latent_avg": mean, "opts": options or {}, **extra}


def built(network):
    """The model of what a reader found; strict about names and shapes."""
    with torch.device("meta"):
        encoder = ENCODERS[network.model](**network.config)
    encoder.load_state_dict(network.tensors, assign=True)
    return encoder.eval()


def read(family, value):
    assert family.recognises(value)
    return family.networks(value)["encoder"]()


def images(encoder, size=None):
    return torch.randn(2, 3, *[size or encoder.input_resolution] * 2)


@pytest.mark.parametrize(("name", "body", "kind"), HEADS, ids=[kind for _, _, kind in HEADS])
def test_pixel2style2pixel_round_trip(name, body, kind):
    torch.manual_seed(0)
    size = {"input_resolution": 256} if name.startswith("w_") else {}  # not seen in the tensors
    encoder = randomised(ENCODERS[name](**SMALL | size, **({"body": body} if body else {})))
    G = generator()
    value = pytorch_file(encoder, {"encoder_type": kind, "start_from_latent_avg": True}, G)
    assert sorted(psp.networks(value)) == ["encoder", "generator"]
    network = read(psp, value)
    assert (network.kind, network.model, network.notes, network.extra) == ("encoder", name, (), ())
    loaded = built(network)
    assert loaded.config == encoder.config
    x = images(encoder, 32)
    arguments = (G,) if "restyle" in name else ()
    assert torch.equal(loaded.encode(x, *arguments), encoder.encode(x, *arguments))


def test_the_file_is_not_copied_and_not_changed():
    encoder = randomised(Encoder4Editing(**SMALL))
    value = pytorch_file(encoder, {"encoder_type": "Encoder4Editing"})
    before = copy.deepcopy(value)
    tensors = read(psp, value).tensors
    assert tensors["body.1.res_layer.1.weight"] is value["state_dict"]["encoder.body.1.res_layer.1.weight"]
    assert value["state_dict"].keys() == before["state_dict"].keys()
    assert all(torch.equal(tensor, value["state_dict"][key]) for key, tensor in before["state_dict"].items())


@pytest.mark.parametrize("form", ("w", "1w", "nw"))
def test_latent_average(form):
    encoder = randomised(GradualStyleEncoder(**SMALL))
    mean = torch.randn(5)
    given = {"w": mean, "1w": mean[None], "nw": mean.repeat(8, 1)}[form]
    value = pytorch_file(encoder, {"encoder_type": "GradualStyleEncoder"}, latent_avg=given)
    assert torch.equal(built(read(psp, value)).latent_avg, mean.expand(8, 5))
    value["opts"]["start_from_latent_avg"] = False
    assert not built(read(psp, value)).latent_avg.any()
    del value["latent_avg"]
    assert not built(read(psp, value)).latent_avg.any()
    value["opts"]["start_from_latent_avg"] = True
    with pytest.raises(CheckpointError, match="latent_avg is missing"):
        read(psp, value)
    value["latent_avg"] = torch.zeros(7, 5)
    with pytest.raises(CheckpointError, match=r"latent_avg has shape \[7, 5\], not \[5\] or \[8, 5\]"):
        read(psp, value)


def test_restyle_starts_from_the_average_in_any_case():
    encoder = randomised(ENCODERS["restyle_psp"](**SMALL))
    value = pytorch_file(encoder, {"encoder_type": "BackboneEncoder", "start_from_latent_avg": False})
    assert torch.equal(built(read(psp, value)).latent_avg, encoder.latent_avg)


@pytest.mark.parametrize(
    ("options", "model", "note"),
    [
        ({}, "psp", "no encoder_type.*no opts of e4e's training, so pSp is assumed"),
        ({"progressive_start": 20000}, "e4e", "no encoder_type.*has opts of e4e's training, so e4e is assumed"),
        ({"encoder_type": "Mine", "delta_norm": 2}, "e4e", "the unknown encoder_type 'Mine'.*e4e is assumed"),
        ({"encoder_type": ["e4e"]}, "psp", "no encoder_type.*pSp is assumed"),
        (None, "psp", "pSp is assumed"),
    ],
)
def test_what_tensors_do_not_tell_is_said(options, model, note):
    value = pytorch_file(randomised(GradualStyleEncoder(**SMALL)))
    value["opts"] = options
    network = read(psp, value)
    assert network.model == model
    (found,) = network.notes
    assert re.search(note, found)


def test_cars_and_other_inputs():
    cars = GradualStyleEncoder(2, 5, 1, units=(1, 1, 1), channels=(2, 3, 4))
    options = {"encoder_type": "GradualStyleEncoder", "dataset_type": "cars_encode", "label_nc": 1}
    network = read(psp, pytorch_file(cars, options))
    assert network.config["rows"] == [32, 224] and network.config["input_nc"] == 1
    assert built(network).fit(torch.zeros(1, 1, 512, 512)).shape == (1, 1, 192, 256)
    options["dataset_type"] = "ffhq_encode"
    assert built(read(psp, pytorch_file(cars, options))).rows is None


def test_generator_of_the_file():
    G = generator()
    value = pytorch_file(randomised(GradualStyleEncoder(**SMALL)), decoder=G, latent_avg=torch.ones(8, 5))
    found = psp.networks(value)["generator"]()
    assert (found.kind, found.model, found.notes) == ("generator", "stylegan2", ())
    loaded = generator()
    loaded.load_state_dict(found.tensors)
    assert torch.equal(loaded.w_avg, torch.ones(5))
    w_plus = torch.randn(2, 8, 5)
    assert torch.equal(loaded.synthesis(w_plus), G.synthesis(w_plus))


def test_hyperstyle():
    value = pytorch_file(GradualStyleEncoder(**SMALL), decoder=generator(), latent_avg=torch.ones(5))
    state = {name: tensor for name, tensor in value["state_dict"].items() if name.startswith("decoder.")}
    value["state_dict"] = state | {"hypernet.conv1.weight": torch.zeros(2, 6, 7, 7)}
    assert psp.recognises(value)
    assert list(psp.networks(value)) == ["generator"]
    (note,) = psp.networks(value)["generator"]().notes
    assert "hypernetwork (hypernet.*) is not read" in note


@pytest.mark.parametrize("stated", ("decoder", "latent_avg", "output_size", "stylegan_size", None))
def test_styles_of_an_encoder_into_w(stated):
    """One linear layer does not tell how many styles the generator takes."""
    encoder = randomised(ENCODERS["w_encoder"](**SMALL))
    mean = encoder.latent_avg[:1].expand(8, 5)
    options = {"output_size": 32} if stated == "output_size" else {}
    if stated == "stylegan_size":
        options = {"output_size": 33, "stylegan_size": 32}
    decoder = generator() if stated == "decoder" else None
    value = pytorch_file(encoder, options, decoder, mean if stated == "latent_avg" else mean[0])
    if stated is None:
        with pytest.raises(CheckpointError, match="nothing tells the size of its generator"):
            read(psp, value)
    else:
        assert built(read(psp, value)).num_ws == 8


def test_names_and_shapes_of_full_size_encoders():
    """The rules of the public e4e and pSp files, written out."""
    with torch.device("meta"):
        shapes = {name: list(t.shape) for name, t in GradualStyleEncoder().state_dict().items()}

    def norm(name, width):
        parts = {part: [width] for part in ("weight", "bias", "running_mean", "running_var")}
        return {f"{name}.{part}": shape for part, shape in (parts | {"num_batches_tracked": []}).items()}

    expected = {"latent_avg": [18, 512], "input_layer.0.weight": [64, 3, 3, 3], "input_layer.2.weight": [64]}
    expected |= norm("input_layer.1", 64)
    widths = [64] * 3 + [128] * 4 + [256] * 14 + [512] * 3
    for u, (width, out) in enumerate(zip([64, *widths[:-1]], widths, strict=True)):
        name = f"body.{u}.res_layer"
        expected |= norm(f"{name}.0", width) | norm(f"{name}.4", out)
        expected |= {f"{name}.1.weight": [out, width, 3, 3], f"{name}.3.weight": [out, out, 3, 3]}
        expected |= {f"{name}.2.weight": [out]}
        expected |= {f"{name}.5.fc1.weight": [out // 16, out, 1, 1], f"{name}.5.fc2.weight": [out, out // 16, 1, 1]}
        if u in (3, 7, 21):
            expected |= {f"body.{u}.shortcut_layer.0.weight": [out, width, 1, 1]}
            expected |= norm(f"body.{u}.shortcut_layer.1", out)
    for j in range(18):
        for k in range(0, 2 * (4 if j < 3 else 5 if j < 7 else 6), 2):
            expected |= {f"styles.{j}.convs.{k}.weight": [512, 512, 3, 3], f"styles.{j}.convs.{k}.bias": [512]}
        expected |= {f"styles.{j}.linear.weight": [512, 512], f"styles.{j}.linear.bias": [512]}
    expected |= {"latlayer1.weight": [512, 256, 1, 1], "latlayer1.bias": [512]}
    expected |= {"latlayer2.weight": [512, 128, 1, 1], "latlayer2.bias": [512]}
    assert shapes == expected
    assert len(shapes) == 622  # 621 in a file, and latent_avg beside them

    tensors = {f"encoder.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    tensors.pop("encoder.latent_avg")
    value = {"state_dict": tensors, "latent_avg": torch.zeros(18, 512), "opts": {"encoder_type": "Encoder4Editing"}}
    network = read(psp, value)
    with torch.device("meta"):
        assert built(network).config == Encoder4Editing().config
    # ReStyle of a 512 generator, ResNet-34 body: names of torchvision's blocks
    with torch.device("meta"):
        restyle = ENCODERS["restyle_e4e"](16, body="resnet").state_dict()
    assert restyle["conv1.weight"].shape == (64, 6, 7, 7) and restyle["relu.weight"].shape == (64,)
    assert restyle["body.3.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert restyle["body.15.conv2.weight"].shape == (512, 512, 3, 3)
    assert restyle["styles.15.convs.6.weight"].shape == (512, 512, 3, 3) and "styles.15.convs.8.weight" not in restyle


def wrapped(encoder):
    """IDInvert's public names: batch norm is wrapped once more; batches are not counted."""
    return {
        name.replace(part, f"{part}.bn"): tensor
        for name, tensor in encoder.state_dict().items()
        if name != "latent_avg" and not name.endswith("num_batches_tracked")
        for part in [next((f".{p}" for p in ("bn", "bn1", "bn2") if f".{p}." in name), "\0")]
    }


@pytest.mark.parametrize("form", ("wrapped", "plain", "under a key"))
def test_idinvert(form):
    torch.manual_seed(0)
    encoder = IDInvertEncoder(32, w_dim=5, channels=(4, 6, 6, 8))
    with torch.no_grad():
        encoder.train()(images(encoder))
    encoder = randomised(encoder)
    encoder.latent_avg.zero_()
    value = encoder.state_dict() if form == "plain" else wrapped(encoder)
    value.pop("latent_avg", None)
    assert form == "plain" or "block1.bn1.bn.running_var" in value
    network = read(idinvert_encoder, {"encoder": value} if form == "under a key" else value)
    assert (network.model, network.config) == ("idinvert", encoder.config)
    x = images(encoder)
    assert torch.equal(built(network).encode(x), encoder.encode(x))


def test_idinvert_names_and_shapes():
    with torch.device("meta"):
        value = wrapped(IDInvertEncoder())
    channels = [64, 128, 256, 512, 1024, 1024, 1024]
    expected = {"block0.conv.weight": [64, 3, 3, 3], "block7.fc.weight": [7168, 16384]}
    norms = {"block0.bn": 64, "block7.bn": 7168}
    for i, (width, out) in enumerate(zip(channels[:-1], channels[1:], strict=True), 1):
        if width != out:
            expected |= {f"block{i}.conv.weight": [out, width, 1, 1]}
            norms |= {f"block{i}.bn": out}
        expected |= {f"block{i}.conv1.weight": [width, width, 3, 3], f"block{i}.wscale1.bias": [width]}
        expected |= {f"block{i}.conv2.weight": [out, width, 3, 3], f"block{i}.wscale2.bias": [out]}
        norms |= {f"block{i}.bn1": width, f"block{i}.bn2": out}
    for name, width in norms.items():
        expected |= {f"{name}.bn.{part}": [width] for part in ("weight", "bias", "running_mean", "running_var")}
    assert {name: list(tensor.shape) for name, tensor in value.items()} == expected
    network = read(idinvert_encoder, value)
    assert network.config["input_resolution"] == 256 and network.config["num_ws"] == 14


def scaled(encoder):
    """ALAE's public form: weights scaled already."""
    return {
        name: tensor / math.sqrt(tensor[0].numel()) if name.endswith("weight") else tensor
        for name, tensor in encoder.state_dict().items()
        if name != "latent_avg"
    }


@pytest.mark.parametrize("key", ("encoder", "discriminator", "encoder_s", "discriminator_s"))
def test_alae(key):
    torch.manual_seed(0)
    encoder = randomised(ALAEEncoder(32, w_dim=5, channels=(4, 6, 8, 8, 7)))
    encoder.latent_avg.zero_()
    models = {"generator": {"decode_block.0.conv_1.weight": torch.zeros(1)}, "dlatent_avg": {"buff": torch.zeros(8, 5)}}
    models[key] = scaled(encoder) | {"encode_block.0.blur.weight": torch.ones(4, 1, 3, 3)}  # a constant
    if key.endswith("_s"):  # the average goes first
        models[key.removesuffix("_s")] = {"encode_block.0.conv_1.weight": torch.zeros(1, 1, 3, 3)}
    network = read(alae_encoder, {"models": models, "optimizers": {}})
    assert (network.model, network.config) == ("alae", encoder.config)
    assert "encode_block.0.blur.weight" not in network.tensors
    x = images(encoder)
    assert torch.allclose(built(network).encode(x), encoder.encode(x), rtol=1e-5, atol=1e-6)
    flat = {name: t.flatten() if name.endswith(("bias_1", "bias_2")) else t for name, t in scaled(encoder).items()}
    network = read(alae_encoder, {"models": {key: flat}})
    assert torch.allclose(built(network).encode(x), encoder.encode(x), rtol=1e-5, atol=1e-6)
    assert network.notes == (() if key.endswith("_s") else (f"averages over training are missing; {key} is used",))


@pytest.mark.parametrize("prefix", ("encoder.", "module.", "module.encoder."))
def test_alae_within_a_larger_module(prefix):
    torch.manual_seed(0)
    encoder = randomised(ALAEEncoder(16, w_dim=3, channels=(2, 3, 3, 3)))
    encoder.latent_avg.zero_()
    state = {prefix + name: tensor for name, tensor in scaled(encoder).items()}
    network = read(alae_encoder, {"models": {"discriminator_s": state}})
    x = images(encoder)
    assert torch.allclose(built(network).encode(x), encoder.encode(x), rtol=1e-5, atol=1e-6)


NOT_THESE = [
    None, 3, "x", [], {}, (1,), {1: 2}, {"state_dict": None}, {"state_dict": {1: 2}}, {"state_dict": {"module.x": 1}},
    {"models": 3}, {"models": {"discriminator": None}}, {"models": {"encoder": {"x": 1}}}, {"encoder": 3},
    {"encoder": {"block0.conv.weight": 1}}, {"input_layer.0.weight": torch.zeros(64, 3, 3, 3)}, torch.zeros(3),
]  # fmt: skip


@pytest.mark.parametrize("family", (psp, idinvert_encoder, alae_encoder), ids=lambda family: family.__name__)
def test_other_content_is_not_recognised(family):
    assert [value for value in NOT_THESE if family.recognises(value)] == []


WHAT_READERS_MAY_RAISE = (CheckpointError, KeyError, TypeError, ValueError, IndexError, AttributeError)


@pytest.mark.parametrize("family", (psp, idinvert_encoder, alae_encoder), ids=lambda family: family.__name__)
@pytest.mark.parametrize("bad", (None, 3, "text", [1], torch.zeros(()), torch.zeros(0, 3), torch.zeros(1, 1, 1, 1, 1)))
def test_an_odd_tensor_is_never_read(family, bad):
    """Each tensor in turn is something else: not recognised, a plain error, or a network that its class refuses."""
    if family is psp:
        value = pytorch_file(GradualStyleEncoder(2, 2, units=(1, 1, 1), channels=(2, 3, 4), input_resolution=16))
        state = value["state_dict"]
    elif family is idinvert_encoder:
        value = state = wrapped(IDInvertEncoder(16, w_dim=2, channels=(2, 3, 3)))
    else:
        state = scaled(ALAEEncoder(16, w_dim=2, channels=(2, 3, 3, 3)))
        value = {"models": {"encoder": state}}
    built(read(family, value))
    for holder, name in [(state, name) for name in state] + [(value, "latent_avg")] * (family is psp):
        if name.endswith("num_batches_tracked"):
            continue
        kept, holder[name] = holder[name], bad
        network = None
        if family.recognises(value):
            try:
                network = family.networks(value)["encoder"]()
            except WHAT_READERS_MAY_RAISE:
                pass
        if network is not None:
            with pytest.raises((*WHAT_READERS_MAY_RAISE, RuntimeError)):
                built(network)
        holder[name] = kept


@pytest.mark.parametrize("odd", (None, 3, "text", [1], {}, torch.zeros(2)))
def test_odd_options_are_ignored_or_refused(odd):
    encoder = ENCODERS["w_encoder"](**SMALL)
    stated = {"encoder_type": "BackboneEncoderUsingLastLayerIntoW", "output_size": 32}
    for key in ("encoder_type", "output_size", "stylegan_size", "start_from_latent_avg", "dataset_type"):
        value = pytorch_file(encoder, stated | {key: odd}, latent_avg=torch.ones(5))
        if key == "output_size":
            with pytest.raises(CheckpointError, match="nothing tells the size"):
                read(psp, value)
        else:
            assert torch.equal(built(read(psp, value)).latent_avg, torch.ones(8, 5))
    value["opts"] = odd
    with pytest.raises(CheckpointError, match="nothing tells the size"):
        read(psp, value)
