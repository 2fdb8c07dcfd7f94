"""Readers of StyleGAN generators (TensorFlow, genforce, IDInvert, ALAE) and of genforce's StyleGAN2.

Public names and layouts are made from our own generator by the inverse of what the readers do, written here.
"""

import math
import pickle
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from fastinv.checkpoints.containers import read_file
from fastinv.checkpoints.families import alae, genforce, rosinality, stylegan1, tensorflow
from fastinv.checkpoints.pickles import Record
from fastinv.errors import CheckpointError
from fastinv.models.stylegan1 import StyleGAN1Generator, SynthesisLayer
from fastinv.models.stylegan2 import Generator

CLASSES = {"stylegan1": StyleGAN1Generator, "stylegan2": Generator}
CHANNELS = {4: 6, 8: 5, 16: 4, 32: 3, 64: 3, 128: 2}


def randomized(G):
    """Without zeros or equal values among its tensors."""
    with torch.no_grad():
        for name, tensor in G.state_dict().items():
            if not name.endswith("resample_filter"):
                tensor.add_(0.3 * torch.randn_like(tensor))
    return G.eval()


def generator(**options):
    torch.manual_seed(0)
    options = {"resolution": 128, "z_dim": 5, "w_dim": 4, "channels": CHANNELS, "mapping_layers": 2} | options
    return randomized(StyleGAN1Generator(**options))


def load(family, value):
    """The generator in a value, built as `fastinv.checkpoints.network.build` does, and what its reader gave."""
    assert family.recognises(value)
    found = family.networks(value)["generator"]()
    assert found.kind == "generator"
    G = CLASSES[found.model](**found.config)
    G.load_state_dict(found.tensors)
    return G.eval(), found


def check_same(G, loaded, exact=True, noise="const"):
    for name, value in G.config.items():
        assert loaded.config[name] == value, name
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-4}
    z = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded.w_avg, G.w_avg)
        torch.testing.assert_close(loaded.mapping(z), G.mapping(z), **tolerance)
        w_plus = torch.randn(2, G.num_ws, 4, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(loaded.synthesis(w_plus, noise), G.synthesis(w_plus, noise), **tolerance)


def layers(G):
    """(number of its style input, name, resolution, whether it enlarges, its tensors), for every layer."""
    state = G.state_dict()
    for i, (name, r) in enumerate(G.synthesis.noise_layers().items()):
        prefix = f"synthesis.{name}."
        part = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        yield i, name, r, name.endswith("conv0") and r > 4, part


# The public formats, from a generator of ours


def genforce_state(G):
    state, top = G.state_dict(), G.resolution
    values = {"truncation.w_avg": state["mapping.w_avg"], "truncation.truncation": torch.ones(1, G.num_ws, 1)}
    values["synthesis.lod"] = torch.zeros(())
    values["synthesis.layer0.const"] = state["synthesis.b4.const"][None]
    for i in range(G.config["mapping_layers"]):
        values[f"mapping.dense{i}.fc.weight"] = state[f"mapping.fc{i}.weight"]
        values[f"mapping.dense{i}.wscale.bias"] = state[f"mapping.fc{i}.bias"]
    for i, _, r, up, part in layers(G):
        theirs = f"synthesis.layer{i}"
        if up and r >= 128:
            values[f"{theirs}.weight"] = part["weight"].flip(2, 3).permute(2, 3, 1, 0).contiguous()
        elif "weight" in part:
            values[f"{theirs}.conv.weight"] = part["weight"]
        if up:
            values[f"{theirs}.blur.kernel"] = torch.ones(len(part["bias"]), 1, 3, 3)
        values[f"{theirs}.epilogue.bias"] = part["bias"]
        values[f"{theirs}.epilogue.apply_noise.weight"] = part["noise_strength"]
        values[f"{theirs}.epilogue.apply_noise.noise"] = part["noise_const"][None, None]
        values[f"{theirs}.epilogue.style_mod.dense.fc.weight"] = part["affine.weight"]
        values[f"{theirs}.epilogue.style_mod.dense.wscale.bias"] = part["affine.bias"]
    for i, r in enumerate(G.synthesis.resolutions):
        values[f"synthesis.output{i}.conv.weight"] = torch.randn(3, G.config["channels"][r], 1, 1)
        values[f"synthesis.output{i}.bias"] = torch.randn(3)
    values[f"synthesis.output{i}.conv.weight"] = state[f"synthesis.b{top}.torgb.weight"]
    values[f"synthesis.output{i}.bias"] = state[f"synthesis.b{top}.torgb.bias"]
    return values


def genforce_stylegan2_state(G):
    state = G.state_dict()
    values = {"truncation.w_avg": state["mapping.w_avg"]}
    values["synthesis.early_layer.const"] = state["synthesis.b4.const"][None]
    for i in range(G.config["mapping_layers"]):
        for part in ("weight", "bias"):
            values[f"mapping.dense{i}.{part}"] = state[f"mapping.fc{i}.{part}"]
    names = {name: f"layer{i}" for i, name in enumerate(G.synthesis.noise_layers())}
    names |= {f"b{r}.torgb": f"output{i}" for i, r in enumerate(G.synthesis.resolutions)}
    for ours, theirs in names.items():
        weight = state[f"synthesis.{ours}.weight"]
        values[f"synthesis.{theirs}.weight"] = weight.flip(2, 3) if ours.endswith("conv0") else weight
        values[f"synthesis.{theirs}.bias"] = state[f"synthesis.{ours}.bias"]
        values[f"synthesis.{theirs}.style.weight"] = state[f"synthesis.{ours}.affine.weight"]
        values[f"synthesis.{theirs}.style.bias"] = state[f"synthesis.{ours}.affine.bias"] - 1
        if theirs.startswith("layer"):
            values[f"synthesis.{theirs}.noise"] = state[f"synthesis.{ours}.noise_const"][None, None]
            values[f"synthesis.{theirs}.noise_strength"] = state[f"synthesis.{ours}.noise_strength"]
    return values


def tensorflow_variables(G, fused_from=128):
    """The variables of (the network itself, its mapping, its synthesis)."""
    state, top = G.state_dict(), G.resolution
    mapping, synthesis = {}, {"lod": 0.0, "4x4/Const/const": state["synthesis.b4.const"][None]}
    for i in range(G.config["mapping_layers"]):
        mapping[f"Dense{i}/weight"] = state[f"mapping.fc{i}.weight"].t()
        mapping[f"Dense{i}/bias"] = state[f"mapping.fc{i}.bias"]
    for i, name, r, up, part in layers(G):
        layer = {"b4.conv0": "Const", "b4.conv1": "Conv"}.get(name, "Conv0_up" if up else "Conv1")
        if "weight" in part:
            weight = part["weight"].flip(2, 3) if up and r >= fused_from else part["weight"]
            synthesis[f"{r}x{r}/{layer}/weight"] = weight.permute(2, 3, 1, 0)
        synthesis[f"{r}x{r}/{layer}/Noise/weight"] = part["noise_strength"]
        synthesis[f"{r}x{r}/{layer}/bias"] = part["bias"]
        synthesis[f"{r}x{r}/{layer}/StyleMod/weight"] = part["affine.weight"].t()
        synthesis[f"{r}x{r}/{layer}/StyleMod/bias"] = part["affine.bias"]
        synthesis[f"noise{i}"] = part["noise_const"][None, None]
    for lod, r in enumerate(reversed(G.synthesis.resolutions)):
        synthesis[f"ToRGB_lod{lod}/weight"] = torch.randn(1, 1, G.config["channels"][r], 3)
        synthesis[f"ToRGB_lod{lod}/bias"] = torch.randn(3)
    synthesis["ToRGB_lod0/weight"] = state[f"synthesis.b{top}.torgb.weight"].permute(2, 3, 1, 0)
    synthesis["ToRGB_lod0/bias"] = state[f"synthesis.b{top}.torgb.bias"]
    return {"dlatent_avg": state["mapping.w_avg"]}, mapping, synthesis


def tensorflow_network(G, fused_from=128, version=3, **options):
    def network(variables, components=None):
        state = {"version": version, "static_kwargs": options, "variables": list(variables.items())}
        return Record("dnnlib.tflib.network", "Network", state | {"components": components or {}})

    own, mapping, synthesis = tensorflow_variables(G, fused_from)
    return network(own, {"mapping": network(mapping), "synthesis": network(synthesis)})


def alae_models(G, lr_multiplier=0.1):
    """Weights as they are applied; a transposed convolution's from 128x128 on."""
    state, top = G.state_dict(), G.resolution
    mapping, decoder = {}, {"const": state["synthesis.b4.const"][None]}
    for i in range(G.config["mapping_layers"]):
        weight = state[f"mapping.fc{i}.weight"]
        mapping[f"map_blocks.{i}.fc.weight"] = weight * lr_multiplier * math.sqrt(2 / weight.shape[1])
        mapping[f"map_blocks.{i}.fc.bias"] = state[f"mapping.fc{i}.bias"] * lr_multiplier
    for i, _, r, up, part in layers(G):
        block, number = f"decode_block.{i // 2}", i % 2 + 1
        if "weight" in part:
            weight = part["weight"] * math.sqrt(2 / (9 * part["weight"].shape[1]))
            weight = weight.flip(2, 3).transpose(0, 1) if up and r >= 128 else weight
            decoder[f"{block}.conv_{number}.weight"] = weight
        decoder[f"{block}.noise_weight_{number}"] = part["noise_strength"].view(1, -1, 1, 1)
        decoder[f"{block}.bias_{number}"] = part["bias"].view(1, -1, 1, 1)
        decoder[f"{block}.style_{number}.weight"] = part["affine.weight"] / 2  # sqrt(w_dim)
        decoder[f"{block}.style_{number}.bias"] = part["affine.bias"]
        decoder[f"{block}.blur.weight"] = torch.ones(1, 1, 3, 3)
    for i, width in enumerate(G.config["channels"].values()):
        decoder[f"to_rgb.{i}.to_rgb.weight"] = torch.randn(3, width, 1, 1)
        decoder[f"to_rgb.{i}.to_rgb.bias"] = torch.randn(3)
    decoder[f"to_rgb.{i}.to_rgb.weight"] = state[f"synthesis.b{top}.torgb.weight"] / math.sqrt(width)
    decoder[f"to_rgb.{i}.to_rgb.bias"] = state[f"synthesis.b{top}.torgb.bias"]
    return {
        "generator_s": decoder,
        "mapping_fl_s": mapping,
        "dlatent_avg": {"buff": state["mapping.w_avg"].repeat(G.num_ws, 1)},
    }


def no_noise(G):
    """ALAE stores no maps."""
    for name, buffer in G.named_buffers():
        if name.endswith("noise_const"):
            buffer.zero_()
    return G


# Round trips


@pytest.mark.parametrize("outputs", ["w", "w+"])
@pytest.mark.parametrize("container", ["", "generator_smooth", "generator"])
def test_genforce(outputs, container, tmp_path):
    G = generator(mapping_outputs=outputs, final_tanh=outputs == "w+")
    value = genforce_state(G)
    if container:
        other = {name: torch.zeros_like(tensor) for name, tensor in value.items()}
        value = {"discriminator": {"x": torch.zeros(1)}, "generator": other, container: value}
    torch.save(value, tmp_path / "g.pth")
    loaded, found = load(genforce, read_file(tmp_path / "g.pth").value)
    check_same(G, loaded)
    assert found.extra == () and len(found.notes) == (container == "generator")


def test_a_fused_kernel_of_genforce_in_its_own_transposed_convolution():
    stored = torch.randn(3, 3, 5, 2)  # [height, width, in, out]
    G = generator(channels=CHANNELS | {64: 5})
    _, found = load(genforce, genforce_state(G) | {"synthesis.layer10.weight": stored})
    layer = SynthesisLayer(5, 2, 4, 128, up=True)
    layer.weight_gain = 1
    layer.weight = torch.nn.Parameter(found.tensors["synthesis.b128.conv0.weight"])
    shifts = F.pad(stored.permute(2, 3, 0, 1), (1, 1, 1, 1))
    kernel = shifts[..., 1:, 1:] + shifts[..., 1:, :-1] + shifts[..., :-1, 1:] + shifts[..., :-1, :-1]
    x = torch.randn(1, 5, 64, 64)
    published = F.conv2d(
        F.conv_transpose2d(x, kernel, stride=2, padding=1),
        torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1])).expand(2, 1, 3, 3) / 16, padding=1, groups=2,
    )  # fmt: skip
    w = torch.zeros(1, 4)
    taps = torch.full((2, 2), 0.25), torch.tensor([0.25, 0.5, 0.25])
    expected = F.instance_norm(F.leaky_relu(published, 0.2), eps=1e-8)
    torch.testing.assert_close(layer(x, w, "none", *taps), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("container", [False, True])
def test_genforce_stylegan2(container):
    torch.manual_seed(0)
    G = randomized(Generator(32, 5, 4, channels={4: 5, 8: 6, 16: 4, 32: 3}, mapping_layers=2))
    value = genforce_stylegan2_state(G)
    if container:
        value["synthesis.layer3.noise_strength"] = value["synthesis.layer3.noise_strength"].view(1)
        value |= {"synthesis.layer1.filter.kernel": torch.ones(1, 1, 4, 4), "odd": torch.ones(1)}
        value = {"generator_smooth": value}
    loaded, found = load(genforce, value)
    check_same(G, loaded, exact=False)  # the 1 of style biases rounds
    assert found.extra == (("odd",) if container else ())


@pytest.mark.parametrize(("fused_scale", "fused_from"), [("auto", 128), (None, 128), (True, 8), (False, 1024)])
def test_tensorflow(fused_scale, fused_from):
    G = generator()
    options = {} if fused_scale is None else {"fused_scale": fused_scale}
    Gs = tensorflow_network(G, fused_from, resolution=1024, blur_filter=[1, 2, 1], **options)
    loaded, found = load(stylegan1, (None, None, Gs))
    check_same(G, loaded)
    assert found.extra == found.notes == ()


def test_tensorflow_idinvert_and_a_network_alone():
    G = generator(mapping_outputs="w+", final_tanh=True, mapping_lr_multiplier=0.02)
    Gs = tensorflow_network(G, mapping_lrmul=0.02)
    other = tensorflow_network(generator(z_dim=3))
    for value in ((None, other, None, Gs), Gs):
        check_same(G, load(stylegan1, value)[0])


def test_a_tensorflow_pickle(tmp_path, monkeypatch):
    """Written by Python's own pickle, with arrays, as the real files are."""
    module = types.ModuleType("dnnlib.tflib.network")
    module.Network = type("Network", (), {"__module__": module.__name__})
    for name in ("dnnlib", "dnnlib.tflib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def network(variables, components=()):
        made = module.Network()
        arrays = [(name, value if name == "lod" else value.numpy()) for name, value in variables.items()]
        made.__dict__.update(version=3, name="G", static_kwargs={}, variables=arrays, components=dict(components))
        return made

    G = generator()
    own, mapping, synthesis = tensorflow_variables(G)
    Gs = network(own, {"mapping": network(mapping), "synthesis": network(synthesis)})
    (tmp_path / "g.pkl").write_bytes(pickle.dumps((None, None, Gs)))
    check_same(G, load(stylegan1, read_file(tmp_path / "g.pkl").value)[0])


@pytest.mark.parametrize("channels", [CHANNELS, dict.fromkeys(CHANNELS, 3)])
def test_alae(channels, tmp_path):
    G = no_noise(generator(channels=channels, mapping_lr_multiplier=0.1))
    models = alae_models(G)
    for key in ("generator", "mapping_fl"):  # what training left, beside the averages
        models[key] = {name: torch.zeros_like(tensor) for name, tensor in models[f"{key}_s"].items()}
    value = {"models": models | {"discriminator": {}}, "optimizers": {}}
    torch.save(value, tmp_path / "model.pth")
    loaded, found = load(alae, read_file(tmp_path / "model.pth").value)
    check_same(G, loaded, exact=False)
    assert found.extra == () and found.notes == (alae.NO_NOISE,)


def test_alae_without_averages_and_with_outer_names():
    G = no_noise(generator(mapping_lr_multiplier=0.1))
    models = alae_models(G)
    models = {
        "generator": {f"module.decoder.{name}": tensor for name, tensor in models["generator_s"].items()},
        "mapping_fl": {f"mapping_f.{name}": tensor for name, tensor in models["mapping_fl_s"].items()},
        "dlatent_avg": G.w_avg,
    }
    loaded, found = load(alae, {"models": models})
    check_same(G, loaded, exact=False)
    assert "generator and mapping_fl are used" in found.notes[1]
    del models["dlatent_avg"]
    assert not load(alae, {"models": models})[0].w_avg.any()


# IDInvert's file, by the names and shapes that are published


def idinvert_shapes(resolution=256, z_dim=512, w_dim=512):
    """Every tensor of IDInvert's generator."""
    exponents = range(2, resolution.bit_length())
    num_ws = 2 * len(exponents)
    shapes = {"truncation.w_avg": [w_dim], "truncation.truncation": [1, num_ws, 1], "synthesis.lod": []}
    for i in range(8):
        out = num_ws * w_dim if i == 7 else w_dim
        shapes[f"mapping.dense{i}.fc.weight"] = [out, z_dim if i == 0 else w_dim]
        shapes[f"mapping.dense{i}.wscale.bias"] = [out]
    before = 512
    for k, exponent in enumerate(exponents):
        r = 2**exponent
        channels = min(512, 16384 // r)
        for index in (2 * k, 2 * k + 1):
            name = f"synthesis.layer{index}"
            if index == 0:
                shapes[f"{name}.const"] = [1, 512, 4, 4]
            elif index % 2 == 0 and r >= 128:
                shapes[f"{name}.weight"] = [3, 3, before, channels]
            else:
                shapes[f"{name}.conv.weight"] = [channels, channels if index % 2 else before, 3, 3]
            if index % 2 == 0 and index > 0:
                shapes[f"{name}.blur.kernel"] = [channels, 1, 3, 3]
            shapes |= {
                f"{name}.epilogue.bias": [channels],
                f"{name}.epilogue.apply_noise.weight": [channels],
                f"{name}.epilogue.apply_noise.noise": [1, 1, r, r],
                f"{name}.epilogue.style_mod.dense.fc.weight": [2 * channels, w_dim],
                f"{name}.epilogue.style_mod.dense.wscale.bias": [2 * channels],
            }
        shapes |= {f"synthesis.output{k}.bias": [3], f"synthesis.output{k}.conv.weight": [3, channels, 1, 1]}
        before = channels
    return shapes


def test_every_tensor_of_idinvert_has_its_place():
    shapes = idinvert_shapes()
    assert len(shapes) == 123
    assert shapes["synthesis.layer12.weight"] == [3, 3, 128, 64] and shapes["mapping.dense7.fc.weight"] == [7168, 512]
    value = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items() if "weight" in name}
    value |= {name: torch.zeros(shape) for name, shape in shapes.items() if "weight" not in name}
    found = genforce.networks(value)["generator"]()
    with torch.device("meta"):
        G = StyleGAN1Generator(**found.config)
    config = StyleGAN1Generator(16, channels={4: 1, 8: 1, 16: 1}).config | {"resolution": 256, "final_tanh": True}
    config |= {"mapping_outputs": "w+", "channels": {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64}}
    assert found.config == config and found.extra == ()
    assert {n: t.shape for n, t in found.tensors.items()} == {n: t.shape for n, t in G.state_dict().items()}
    grows = genforce.networks(value | {"synthesis.lod": torch.tensor(1.5)})["generator"]()
    assert "still grew (level of detail 1.5)" in grows.notes[0]


# What is refused, and what is not theirs


def without(value, name):
    return {key: tensor for key, tensor in value.items() if key != name}


def test_odd_files_are_one_clear_error():
    G = generator(resolution=16, channels={4: 3, 8: 2, 16: 2})
    state = genforce_state(G)
    stylegan2 = genforce_stylegan2_state(Generator(8, 5, 4, channels={4: 3, 8: 2}, mapping_layers=1))
    models = alae_models(G)
    many = {f"decode_block.{i}.conv_2.weight": torch.zeros(1, 1, 3, 3) for i in range(20)}
    conditional = tensorflow_network(G)
    conditional.state["components"]["mapping"].state["variables"].append(("LabelConcat/weight", torch.zeros(2, 5)))
    cases = [
        (genforce, without(state, "synthesis.layer3.epilogue.bias"), r"layers for the resolutions \[4, 16\]"),
        (genforce, without(state, "mapping.dense0.fc.weight"), "matrix mapping.fc0.weight is missing"),
        (genforce, state | {"mapping.dense0.fc.weight": torch.zeros(3)}, "matrix mapping.fc0.weight is missing"),
        (genforce, stylegan2 | {"mapping.embedding.weight": torch.zeros(1)}, "conditional generators"),
        (genforce, without(stylegan2, "synthesis.layer0.weight"), r"blocks for the resolutions \[8\]"),
        (stylegan1, conditional, "conditional"),
        (stylegan1, tensorflow_network(G, version=1), "network of version 1"),
        (stylegan1, tensorflow_network(G, version=[3]), "network of version list"),
        (stylegan1, tensorflow_network(G, nonlinearity="relu"), "its nonlinearity is not 'lrelu'"),
        (stylegan1, tensorflow_network(G, blur_filter=[1, 3, 3, 1]), "its blur_filter is not"),
        (stylegan1, tensorflow_network(G, blur_filter=torch.ones(3)), "its blur_filter is not"),
        (stylegan1, tensorflow_network(G, use_pixel_norm=True), "its use_pixel_norm is not False"),
        (stylegan1, tensorflow_network(G, fused_scale="maybe"), "its fused_scale is neither"),
        (stylegan1, tensorflow_network(G, mapping_lrmul="0.01"), "mapping_lrmul must be a number"),
        (alae, {"models": models | {"generator_s": models["generator_s"] | many}}, "it has 20 resolutions"),
    ]
    for family, value, message in cases:
        assert family.recognises(value), message
        with pytest.raises(CheckpointError, match=message) as caught:
            family.networks(value)["generator"]()
        assert "\n" not in str(caught.value)


def test_missing_tensors_are_left_to_the_comparison_with_our_class():
    G = generator(resolution=16, channels={4: 3, 8: 2, 16: 2})
    value = without(genforce_state(G), "synthesis.layer3.conv.weight") | {"synthesis.layer1.odd": torch.zeros(1)}
    found = genforce.networks(value)["generator"]()
    assert set(G.state_dict()) - set(found.tensors) == {"synthesis.b8.conv1.weight"}
    assert found.extra == ("synthesis.layer1.odd",)


def test_families_are_told_apart():
    G = generator(resolution=16, channels={4: 3, 8: 2, 16: 2})
    values = {
        genforce: [genforce_state(G), {"generator": genforce_state(G)}],
        stylegan1: [(None, None, tensorflow_network(G))],
        alae: [{"models": alae_models(G)}],
    }
    for owner, files in values.items():
        for value in files:
            recognising = [f for f in (genforce, stylegan1, alae, tensorflow, rosinality) if f.recognises(value)]
            assert recognising == [owner]
    nothing = [
        None, 3, "models", [], (), {}, (None, None, None), [{}], {1: 2}, {"models": None}, {"generator": None},
        {"models": {"generator": []}}, {"generator_smooth": {"x": 1}}, Record("dnnlib.tflib.network", "Network", {}),
        (1, 2, Record("dnnlib.tflib.network", "Network", {"variables": 3, "components": {"mapping": 4}})),
        {"models": {"generator": {3: 4}, "mapping_fl": {"map_blocks.0.fc.weight": 1}}},
        torch.zeros(3),
    ]  # fmt: skip
    for value in nothing:
        assert not any(family.recognises(value) for family in (genforce, stylegan1, alae))
