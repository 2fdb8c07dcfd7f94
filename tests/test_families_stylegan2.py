"""The StyleGAN2 families: files against the numbers of the public code that made them, and everything odd in a file."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fastinv
from fastinv.checkpoints.families import ada, rosinality, tensorflow
from fastinv.checkpoints.network import CheckpointWarning, build
from fastinv.checkpoints.pickles import Record
from fastinv.errors import CheckpointError, UsageError
from fastinv.models.discriminator import Discriminator
from fastinv.models.layers import channel_table
from fastinv.models.stylegan2 import Generator

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = (ada, tensorflow, rosinality)
# file -> (the expected numbers, how close: rosinality's code puts the demodulation's epsilon elsewhere)
FILES = {
    "tiny_ada.pkl": ("tiny_ada", 1e-10),
    "tiny_ada_cond.pkl": ("tiny_ada_cond", 1e-10),
    "tiny_ada_hostile_source.pkl": ("tiny_ada", 1e-10),
    "tiny_pti.pt": ("tiny_ada", 1e-10),
    "tiny_tf.pkl": ("tiny_ada", 1e-10),
    "tiny_rosinality.pt": ("tiny_rosinality", 1e-6),
}
CHANNELS = {4: 5, 8: 4, 16: 3}
CONFIG = {
    "resolution": 16, "z_dim": 6, "w_dim": 6, "c_dim": 0, "channels": CHANNELS, "mapping_layers": 3,
    "mapping_lr_multiplier": 0.01, "architecture": "skip", "resample_filter": [1, 3, 3, 1], "conv_clamp": None,
}  # fmt: skip
D_CONFIG = {
    "resolution": 16, "c_dim": 0, "channels": CHANNELS, "architecture": "resnet", "mapping_layers": 8, "group_size": 4,
    "resample_filter": [1, 3, 3, 1], "conv_clamp": None, "progressive": False,
}  # fmt: skip


def relative_error(found, expected):
    return float((found - expected).detach().abs().max() / expected.abs().max())


def randomized(network):
    """Random values in all tensors but the filters; multiples of 1/64, so that adding or subtracting 1 is exact."""
    for name, tensor in network.state_dict().items():
        if not name.endswith("resample_filter"):
            tensor.copy_(torch.randn(tensor.shape).mul(64).round().div(64))
    return network


def make_generator(**options):
    torch.manual_seed(0)
    return randomized(Generator(**CONFIG | options))


def make_discriminator(**options):
    torch.manual_seed(0)
    return randomized(Discriminator(**D_CONFIG | options))


def read(family, value, kind="generator"):
    """(our network, built as every file's is; what the reader gave)."""
    assert family.recognises(value)
    found = family.networks(value)[kind]()
    assert found.kind == kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # the tests look at the notes themselves
        return build(found, "it"), found


def assert_same(found, expected):
    assert found.config == expected.config
    tensors = found.state_dict()
    assert set(tensors) == set(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


# Numbers of the public implementations.


@pytest.fixture(params=FILES)
def golden(request, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTINV_MARKER", str(tmp_path / "marker"))
    expected, tolerance = FILES[request.param]
    G = fastinv.load_generator(GOLDEN / request.param, dtype=torch.float64)
    assert not (tmp_path / "marker").exists()
    return G, load_file(GOLDEN / f"{expected}.expected.safetensors"), tolerance


def noise_maps(G, expected, prefix):
    """Maps under our layers' names; rosinality's are numbered in the same order."""
    names = G.synthesis.noise_layers()
    numbered = f"{prefix}.noise_0" in expected
    return {name: expected[f"{prefix}.{f'noise_{i}' if numbered else name}"] for i, name in enumerate(names)}


def test_golden_mapping(golden):
    G, expected, tolerance = golden
    c = expected.get("c")
    assert relative_error(G.mapping(expected["z"], c)[:, 0], expected["w"]) < tolerance
    assert relative_error(G.mapping(expected["z"], c), expected["w_plus"]) < tolerance
    assert relative_error(G.mapping(expected["z"], c, truncation_psi=0.7), expected["w_plus_psi0.7"]) < tolerance
    assert relative_error(G.w_avg, expected["w_avg"]) < tolerance


def test_golden_pictures(golden):
    G, expected, tolerance = golden
    own = noise_maps(G, expected, "noise_own")
    with torch.no_grad():
        pictures = {
            "image_const": G.synthesis(expected["w_plus"]),
            "image_none": G.synthesis(expected["w_plus"], noise="none"),
            "image_psi0.7_const": G.synthesis(expected["w_plus_psi0.7"]),
            "image_mixed_const": G.synthesis(expected["w_plus_mixed"]),
            "image_mixed_own_noise": G.synthesis(expected["w_plus_mixed"], noise=own),
        }
    for name, picture in pictures.items():
        assert relative_error(picture, expected[name]) < tolerance, name


def test_golden_gradients(golden):
    G, expected, tolerance = golden
    w_plus = expected["w_plus_mixed"].clone().requires_grad_(True)
    stored = noise_maps(G, expected, "noise_const")
    for name, noise in stored.items():
        layer = G.get_submodule(f"synthesis.{name}")
        assert torch.equal(layer.noise_const, noise.reshape(layer.noise_const.shape)), name
    maps = {name: noise.clone().requires_grad_(True) for name, noise in stored.items()}
    image = G.synthesis(w_plus, noise=maps)
    gradients = torch.autograd.grad((image * expected["cotangent"]).sum(), [w_plus, *maps.values()])
    assert relative_error(gradients[0], expected["grad.w_plus_mixed"]) < tolerance
    wanted = noise_maps(G, expected, "grad.noise_const")
    for name, gradient in zip(maps, gradients[1:], strict=True):
        assert relative_error(gradient, wanted[name]) < tolerance, name


@pytest.mark.parametrize("file", ["tiny_ada.pkl", "tiny_ada_cond.pkl", "tiny_tf.pkl"])
def test_golden_discriminator(file):
    D = fastinv.load_discriminator(GOLDEN / file, dtype=torch.float64)
    expected = load_file(GOLDEN / f"{FILES[file][0]}.expected.safetensors")
    image = expected["d_image"].clone().requires_grad_(True)
    logits = D(image, expected.get("d_c"))
    assert relative_error(logits, expected["d_logits"]) < 1e-10
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    assert relative_error(gradient, expected["grad.d_image"]) < 1e-10


def test_a_plain_state_dict_with_what_it_does_not_say():
    with pytest.warns(CheckpointWarning, match="plain state dict does not say everything"):
        G = fastinv.load_generator(GOLDEN / "tiny_ada.G_ema.state.safetensors")
    with pytest.warns(CheckpointWarning, match="plain state dict does not say everything"):
        D = fastinv.load_discriminator(GOLDEN / "tiny_ada.D.state.safetensors")
    assert_same(G, fastinv.load_generator(GOLDEN / "tiny_ada.pkl"))
    assert_same(D, fastinv.load_discriminator(GOLDEN / "tiny_ada.pkl"))


# Names and shapes of the public networks at full size, written out by rule.


def full_size_rows(resolution=1024):
    """The generator's: (our name, our shape, rosinality's (name, shape), TensorFlow's); None: not in its files."""
    width = channel_table(resolution, None, 32768, 512)
    rows = [("synthesis.b4.const", (512, 4, 4), ("input.input", (1, 512, 4, 4)), ("4x4/Const/const", (1, 512, 4, 4)))]
    number, r, above = 0, 4, 512
    while r <= resolution:
        c, block, step = width[r], f"synthesis.b{r}", r.bit_length() - 4  # step: 0 at 8x8
        if r == 4:
            rows.append((f"{block}.resample_filter", (4, 4), None, None))
            layers = [("conv1", "conv1", "Conv", 512)]
            to_rgb = "to_rgb1"
        else:
            rows.append((f"{block}.resample_filter", (4, 4), (f"to_rgbs.{step}.upsample.kernel", (4, 4)), None))
            layers = [("conv0", f"convs.{2 * step}", "Conv0_up", above), ("conv1", f"convs.{2 * step + 1}", "Conv1", c)]
            to_rgb = f"to_rgbs.{step}"
        for layer, theirs, scope, i in layers:
            ours, tf = f"{block}.{layer}", f"{r}x{r}/{scope}"
            blur = (f"{theirs}.conv.blur.kernel", (4, 4)) if layer == "conv0" else None
            noise = (f"noises.noise_{number}", (1, 1, r, r)), (f"noise{number}", (1, 1, r, r))
            weight = (f"{theirs}.conv.weight", (1, c, i, 3, 3)), (f"{tf}/weight", (3, 3, i, c))
            rows += [
                (f"{ours}.weight", (c, i, 3, 3), *weight),
                (f"{ours}.noise_strength", (), (f"{theirs}.noise.weight", (1,)), (f"{tf}/noise_strength", ())),
                (f"{ours}.bias", (c,), (f"{theirs}.activate.bias", (c,)), (f"{tf}/bias", (c,))),
                (f"{ours}.resample_filter", (4, 4), blur, None),
                (f"{ours}.noise_const", (r, r), *noise),
                *modulation_rows(ours, theirs, tf, i),
            ]
            number += 1
        ours, tf = f"{block}.torgb", f"{r}x{r}/ToRGB"
        weight = (f"{to_rgb}.conv.weight", (1, 3, c, 1, 1)), (f"{tf}/weight", (1, 1, c, 3))
        rows += [
            (f"{ours}.weight", (3, c, 1, 1), *weight),
            (f"{ours}.bias", (3,), (f"{to_rgb}.bias", (1, 3, 1, 1)), (f"{tf}/bias", (3,))),
            *modulation_rows(ours, to_rgb, tf, c),
        ]
        r, above = 2 * r, c
    for i in range(8):
        for part, shape in (("weight", (512, 512)), ("bias", (512,))):
            rows.append((f"mapping.fc{i}.{part}", shape, (f"style.{i + 1}.{part}", shape), (f"Dense{i}/{part}", shape)))
    return rows


def modulation_rows(ours, theirs, tf, i):
    weight, bias = f"{theirs}.conv.modulation.weight", f"{theirs}.conv.modulation.bias"
    return [
        (f"{ours}.affine.weight", (i, 512), (weight, (i, 512)), (f"{tf}/mod_weight", (512, i))),
        (f"{ours}.affine.bias", (i,), (bias, (i,)), (f"{tf}/mod_bias", (i,))),
    ]


def full_size_discriminator_rows(resolution=1024):
    """The same for the discriminator: name, shape, rosinality's name, TensorFlow's; resample filters left out."""
    width = channel_table(resolution, None, 32768, 512)
    top, tf = width[resolution], f"{resolution}x{resolution}/FromRGB"
    rows = [
        (f"b{resolution}.fromrgb.weight", (top, 3, 1, 1), "convs.0.0.weight", f"{tf}/weight"),
        (f"b{resolution}.fromrgb.bias", (top,), "convs.0.1.bias", f"{tf}/bias"),
    ]
    r, i = resolution, 1
    while r > 4:
        c, below, ours, theirs, tf = width[r], width[r // 2], f"b{r}", f"convs.{i}", f"{r}x{r}"
        rows += [
            (f"{ours}.conv0.weight", (c, c, 3, 3), f"{theirs}.conv1.0.weight", f"{tf}/Conv0/weight"),
            (f"{ours}.conv0.bias", (c,), f"{theirs}.conv1.1.bias", f"{tf}/Conv0/bias"),
            (f"{ours}.conv1.weight", (below, c, 3, 3), f"{theirs}.conv2.1.weight", f"{tf}/Conv1_down/weight"),
            (f"{ours}.conv1.bias", (below,), f"{theirs}.conv2.2.bias", f"{tf}/Conv1_down/bias"),
            (f"{ours}.skip.weight", (below, c, 1, 1), f"{theirs}.skip.1.weight", f"{tf}/Skip/weight"),
        ]
        r, i = r // 2, i + 1
    return rows + [
        ("b4.conv.weight", (512, 513, 3, 3), "final_conv.0.weight", "4x4/Conv/weight"),
        ("b4.conv.bias", (512,), "final_conv.1.bias", "4x4/Conv/bias"),
        ("b4.fc.weight", (512, 8192), "final_linear.0.weight", "4x4/Dense0/weight"),
        ("b4.fc.bias", (512,), "final_linear.0.bias", "4x4/Dense0/bias"),
        ("b4.out.weight", (1, 512), "final_linear.1.weight", "Output/weight"),
        ("b4.out.bias", (1,), "final_linear.1.bias", "Output/bias"),
    ]


def empty(shape):
    """Zeros of this shape that take no memory."""
    return torch.zeros(()).expand(shape)


def blank(name, shape):
    """What a file of that name holds: filters as they are, and zeros."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    gain = 4 if name.startswith(("to_rgbs", "convs")) else 1
    return gain * torch.outer(row, row) if name.endswith(("kernel", "filter")) else empty(shape)


def tf_network(variables, components=(), **options):
    state = {
        "version": 4, "name": "Gs", "static_kwargs": options, "components": dict(components),
        "build_module_src": "", "build_func_name": "G_main", "variables": list(variables.items()),
    }  # fmt: skip
    return Record("dnnlib.tflib.network", "Network", state)


def tf_generator(variables, **options):
    """Variables by their full names, spread over the network and its two components."""
    parts = {"mapping": {}, "synthesis": {}, "": {}}
    for name, value in variables.items():
        part = "mapping" if name.startswith(("Dense", "Label")) else "synthesis" if name[0] in "123456789nT" else ""
        parts[part][name] = value
    components = {part: tf_network(parts[part], **options) for part in ("mapping", "synthesis")}
    return tf_network(parts[""], components, **options)


def full_size_value(family):
    rows = full_size_rows()
    if family is ada:
        return {name: blank(name, shape) for name, shape, _, _ in rows} | {"mapping.w_avg": empty([512])}
    if family is rosinality:
        tensors = {theirs[0]: blank(*theirs) for _, _, theirs, _ in rows if theirs}
        return {"g_ema": tensors, "latent_avg": empty([512])}
    variables = {tf[0]: empty(tf[1]) for _, _, _, tf in rows if tf}
    return (None, None, tf_generator(variables | {"dlatent_avg": empty([512]), "lod": 0.0}))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.NAME)
def test_full_size_names(family):
    rows = full_size_rows()
    assert len(rows) == 181  # and w_avg
    found = family.networks(full_size_value(family))["generator"]()
    shapes = {name: tuple(shape) for name, shape, _, _ in rows} | {"mapping.w_avg": (512,)}
    assert {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} == shapes
    assert found.extra == ()
    with torch.device("meta"):
        ours = Generator(1024)
    assert {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()} == shapes
    assert found.config == ours.config


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.NAME)
def test_full_size_names_of_the_discriminator(family):
    rows = full_size_discriminator_rows()
    assert len(rows) == 48
    if family is ada:
        value = {name: empty(shape) for name, shape, _, _ in rows}
    elif family is rosinality:
        value = {"d": {theirs: empty(shape) for _, shape, theirs, _ in rows}}
        for i in range(1, 9):
            kernels = (f"convs.{i}.conv2.0.kernel", f"convs.{i}.skip.0.kernel")
            value["d"] |= {name: blank("filter", (4, 4)) for name in kernels}
    else:
        turned = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
        variables = {name: empty([shape[i] for i in turned[len(shape)]]) for _, shape, _, name in rows}
        value = (None, tf_network(variables, mbstd_group_size=4), full_size_value(tensorflow)[2])
    found = family.networks(value)["discriminator"]()
    with torch.device("meta"):
        ours = Discriminator(1024)
    assert found.config == ours.config
    assert found.extra == ()
    shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    assert {name: shapes[name] for name, _, _, _ in rows} == {name: shape for name, shape, _, _ in rows}


# StyleGAN2-ADA: what tensors say, what records say.

ADA_CLASSES = {"FullyConnected": "FullyConnectedLayer", "Conv2d": "Conv2dLayer", "LabelMapping": "MappingNetwork"}


def saved(network):
    """A network of ours as StyleGAN2-ADA's code would have saved it."""
    config = network.config

    def record(module, path):
        kind = type(module).__name__
        children = {name: record(child, f"{path}.{name}") for name, child in module.named_children()}
        state = {
            "training": False,
            "_parameters": dict(module.named_parameters(recurse=False)) | {"unused": None},
            "_buffers": {k: v for k, v in module.named_buffers(recurse=False) if k in network_names(module)},
            "_modules": children | {"none": None},
            "_init_args": (),
            "_init_kwargs": {},
        }
        if hasattr(module, "activation"):
            state["activation"] = module.activation
        if hasattr(module, "conv_clamp"):
            state["conv_clamp"] = module.conv_clamp
        if ".mapping.fc" in path:
            state["_init_kwargs"] = {"activation": "lrelu", "lr_multiplier": config.get("mapping_lr_multiplier", 0.01)}
        if kind == "DiscriminatorEpilogue":
            options = {"group_size": config["group_size"], "num_channels": 1}
            empty_layer = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_init_kwargs": options}
            children["mbstd"] = Record("torch_utils.persistence", "MinibatchStdLayer", empty_layer)
            state["_modules"] = children
        return Record("torch_utils.persistence", ADA_CLASSES.get(kind, kind), state)

    return record(network, "")


def network_names(module):
    return {name for name in module.state_dict() if "." not in name}


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_ada_architectures_and_options(architecture):
    options = {
        "architecture": architecture, "c_dim": 2, "z_dim": 7, "conv_clamp": 3.0, "mapping_lr_multiplier": 0.5,
        "resample_filter": [1.0, 2.0, 1.0],
    }  # fmt: skip
    G = make_generator(**options)
    options = {"architecture": architecture, "c_dim": 2, "conv_clamp": 2.0, "group_size": 2, "mapping_layers": 1}
    D = make_discriminator(**options)
    value = {"G": saved(make_generator()), "D": saved(D), "G_ema": saved(G), "augment_pipe": None}
    found, read_as = read(ada, value)
    assert read_as.notes == ()
    assert found.config | {"resample_filter": None} == G.config | {"resample_filter": None}
    assert found.config["resample_filter"] == [0.25, 0.5, 0.25]  # the same filter, normalized
    w_plus = torch.randn(2, G.num_ws, 6)
    assert torch.equal(found.synthesis(w_plus), G.synthesis(w_plus))
    label = torch.eye(2)
    assert torch.equal(found.mapping(torch.ones(2, 7), label), G.mapping(torch.ones(2, 7), label))
    assert_same(read(ada, value, "discriminator")[0], D)
    assert_same(read(ada, saved(D), "discriminator")[0], D)


def test_ada_without_noise():
    G = make_generator()
    tensors = {name: tensor for name, tensor in G.state_dict().items() if ".noise_" not in name}
    found, _ = read(ada, tensors)
    w_plus = torch.randn(2, G.num_ws, 6)
    for noise in ("const", "random", "none"):
        assert torch.equal(found.synthesis(w_plus, noise=noise), G.synthesis(w_plus, noise="none"))


def test_ada_takes_the_averaged_generator_or_says_so():
    G, other = saved(make_generator()), saved(make_generator(w_dim=4))
    assert read(ada, {"G": other, "D": None, "G_ema": G})[1].notes == ()
    found, read_as = read(ada, {"G": G, "D": None, "G_ema": None})
    assert_same(found, make_generator())
    assert "G_ema" in read_as.notes[0]
    assert set(ada.networks({"G": G})) == {"generator"}
    assert set(ada.networks({"G": None, "G_ema": None, "D": saved(make_discriminator())})) == {"discriminator"}
    # state dicts in the places of networks
    states = {"G_ema": make_generator().state_dict(), "D": make_discriminator().state_dict()}
    assert_same(read(ada, states)[0], make_generator())
    assert_same(read(ada, states, "discriminator")[0], make_discriminator())


def changed(network, path, **state):
    """The saved network with other attributes in the layer of this path."""
    value = saved(network)
    layer = value
    for name in path.split(".") if path else ():
        layer = layer.state["_modules"][name]
    layer.state.update(state)
    return value


def bomb():
    """Records that hold the one before twice: 2^40 layers when walked naively."""
    layer = Record("torch_utils.persistence", "FullyConnectedLayer", {"_modules": {}})
    for _ in range(40):
        layer = Record("torch_utils.persistence", "SynthesisBlock", {"_modules": {"a": layer, "b": layer}})
    return Record("torch_utils.persistence", "Generator", layer.state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda G, D: changed(G, "mapping.fc0", _init_kwargs={"lr_multiplier": "0.01"}), "lr_multiplier must be a num"),
        (lambda G, D: changed(G, "mapping.fc0", _init_kwargs={"lr_multiplier": True}), "lr_multiplier.*not True"),
        (lambda G, D: changed(G, "mapping.fc0", _init_kwargs={"lr_multiplier": float("nan")}), "lr_multiplier.*nan"),
        (lambda G, D: changed(G, "mapping.fc0", _init_kwargs={"lr_multiplier": 10**400}), "lr_multiplier.*not int"),
        (lambda G, D: changed(G, "synthesis.b8.conv1", conv_clamp="256"), r"conv_clamp of synthesis\.b8\.conv1.*str"),
        (lambda G, D: changed(G, "synthesis.b8.conv1", conv_clamp=-1), "conv_clamp.*between 0 and.*not -1"),
        (lambda G, D: changed(G, "synthesis.b8.torgb", conv_clamp=256), "different conv_clamp: (None|256)"),
        (lambda G, D: changed(G, "synthesis.b8.conv1", activation="swish"), "'swish', not 'lrelu'"),
        (lambda G, D: changed(G, "synthesis.b8.conv1.affine", activation=[[]]), "'list', not 'linear'"),
        (lambda G, D: changed(G, "synthesis", _modules={"b4": 3}), "class 'int'"),
        (lambda G, D: changed(G, "synthesis", _modules=[]), "no list of layers"),
        (lambda G, D: changed(G, "synthesis", _modules={"b4": Record("torch_utils.persistence", "Sun", {})}), "'Sun'"),
        (lambda G, D: changed(G, "synthesis", _modules={"input": saved(G)}), "StyleGAN3 .* not supported"),
        (lambda G, D: changed(G, "mapping", _buffers={"w_avg": [0.0]}), "mapping.w_avg is a list"),
        (lambda G, D: changed(G, "mapping", _modules={}), "mapping.fc0.weight is missing"),
        (lambda G, D: changed(D, "b4.mbstd", _init_kwargs={"group_size": 0}), "group size.*between 1.*not 0"),
        (lambda G, D: changed(D, "b4.mbstd", _init_kwargs={"group_size": 2.5}), "whole number.*not 2.5"),
        (lambda G, D: changed(D, "b4.mbstd", _init_kwargs={"group_size": None}), "whole number.*not NoneType"),
        (lambda G, D: changed(D, "b16", _modules={}), r"blocks for the resolutions \[8\]|fromrgb.weight is missing"),
        (lambda G, D: Record("torch_utils.persistence", "TriPlaneGenerator", {}), "class 'TriPlaneGenerator'"),
        (lambda G, D: bomb(), "deeper nested"),
        (lambda G, D: {"G_ema": {"synthesis.input.weight": torch.zeros(1)}}, "StyleGAN3 .* not supported"),
    ],
)  # fmt: skip
def test_ada_refuses(value, message):
    value = value(make_generator(), make_discriminator())
    assert ada.recognises(value)
    for reader in ada.networks(value).values():
        with pytest.raises(CheckpointError, match=message) as caught:
            reader()
        assert "\n" not in str(caught.value)


def test_the_unknown_class_of_the_hostile_file(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTINV_MARKER", str(tmp_path / "marker"))
    for load in (fastinv.load_generator, fastinv.load_discriminator):
        with pytest.raises(CheckpointError) as caught:
            load(GOLDEN / "hostile" / "persistence_src_unknown_class.pkl")
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="unknown class 'Payload'"):
        fastinv.load_generator(GOLDEN / "hostile" / "persistence_src_unknown_class.pkl")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("synthesis.b8.conv1.weight"), r"resolutions \[4, 16\]"),
        (lambda t: [t.pop(f"synthesis.b{r}.conv1.weight") for r in (4, 8, 16)], r"resolutions \[\]"),
        (lambda t: t.update({"synthesis.b4.conv1.weight": torch.zeros(3)}), r"b4.conv1.weight has shape \[3\]"),
        (lambda t: t.update({"synthesis.b16.torgb.weight": torch.zeros(4, 3, 1, 1)}), "4 channels; only RGB"),
        (lambda t: t.update({"synthesis.b4.resample_filter": torch.randn(4, 4)}), "no product of two equal rows"),
        (lambda t: t.update({"synthesis.b4.resample_filter": torch.zeros(4, 4)}), "no product of two equal rows"),
        (lambda t: t.pop("synthesis.b8.conv1.bias"), r"synthesis\.b8\.conv1\.bias is missing"),
    ],
)
def test_ada_state_dicts_that_do_not_fit(edit, message):
    tensors = dict(make_generator().state_dict())
    edit(tensors)
    with pytest.raises(CheckpointError, match=message):
        read(ada, tensors)


def test_ada_writes_its_own_names():
    for network, kind in ((make_generator(c_dim=2), "generator"), (make_discriminator(c_dim=2), "discriminator")):
        written = ada.state_dict(network)
        assert not any(tensor.requires_grad for tensor in written.values())
        assert_same(read(ada, written, kind)[0], network)
    G = fastinv.load_generator(GOLDEN / "tiny_ada_cond.pkl")
    public = load_file(GOLDEN / "tiny_ada_cond.G_ema.state.safetensors")
    written = ada.state_dict(G)
    assert set(written) == set(public)
    assert all(torch.equal(written[name], public[name]) for name in public)
    for network, message in (
        (make_discriminator(progressive=True), "progressive"),
        (make_discriminator(group_size=2), "group_size is 2"),
        (make_generator(mapping_lr_multiplier=1.0), "mapping_lr_multiplier is 1.0"),
        (torch.nn.Linear(1, 1), "not a Linear"),
    ):
        with pytest.raises(UsageError, match=message):
            ada.state_dict(network)


# TensorFlow: our own inverse of the conversion, written down once more.


def tf_name(name):
    layers = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB", "skip": "Skip", "embed": "LabelEmbed"}
    parts = {"affine.weight": "mod_weight", "affine.bias": "mod_bias"}
    if name.startswith("mapping."):
        _, layer, part = name.split(".")
        return f"{layers.get(layer, layer.replace('fc', 'Dense'))}/{part}"
    _, block, layer, part = name.split(".", 3)
    layer = "Conv" if (block, layer) == ("b4", "conv1") else layers[layer]
    return f"{block[1:]}x{block[1:]}/{layer}/{parts.get(part, part)}"


def to_tensorflow(G):
    """Variables of a generator of ours as TensorFlow's code keeps them."""
    variables, maps = {"lod": 0.0}, 0
    for name, tensor in G.state_dict().items():
        if name == "mapping.w_avg":
            variables["dlatent_avg"] = tensor
        elif name == "synthesis.b4.const":
            variables["4x4/Const/const"] = tensor[None]
        elif name.endswith(".noise_const"):
            variables[f"noise{maps}"] = tensor[None, None]
            maps += 1
        elif name.endswith("resample_filter"):
            continue
        elif tensor.ndim == 4:
            flip = name.endswith(("conv0.weight", "skip.weight"))
            variables[tf_name(name)] = (tensor.flip((2, 3)) if flip else tensor).movedim((0, 1), (3, 2))
        elif tensor.ndim == 2:
            variables[tf_name(name)] = tensor.T
        elif name.endswith("affine.bias"):
            variables[tf_name(name)] = tensor - 1
        else:
            variables[tf_name(name)] = float(tensor) if tensor.ndim == 0 else tensor
    return variables


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_tensorflow_architectures_and_options(architecture):
    G = make_generator(
        architecture=architecture, z_dim=5, c_dim=2, mapping_lr_multiplier=0.5, conv_clamp=2.0,
        resample_filter=[1, 2, 1],
    )  # fmt: skip
    options = {"mapping_lrmul": 0.5, "conv_clamp": 2.0, "resample_kernel": [1, 2, 1], "nonlinearity": "lrelu"}
    network = tf_generator(to_tensorflow(G), **options)
    for value in ((None, None, network), network):
        found, read_as = read(tensorflow, value)
        assert_same(found, G)
        assert read_as.extra == ()


def test_tensorflow_without_noise_and_with_something_more():
    G = make_generator()
    variables = {name: value for name, value in to_tensorflow(G).items() if not name.endswith("noise_strength")}
    network = tf_generator(variables | {"16x16/Glow/weight": torch.zeros(1), "epoch": 3})
    found, read_as = read(tensorflow, (None, None, network))
    w_plus = torch.randn(1, G.num_ws, 6)
    assert torch.equal(found.synthesis(w_plus), G.synthesis(w_plus, noise="none"))
    assert sorted(read_as.extra) == ["epoch", "synthesis/16x16/Glow/weight"]


def test_tensorflow_leaves_version_1_to_others():
    variables = {name.replace("mod_", "StyleMod/"): value for name, value in to_tensorflow(make_generator()).items()}
    assert not tensorflow.recognises((None, None, tf_generator(variables)))


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"ToRGB_lod0/weight": torch.zeros(1, 1, 3, 3)}, {}, "configurations A to D"),
        ({"LabelConcat/weight": torch.zeros(2, 6)}, {}, "first StyleGAN2 release"),
        ({"8x8/Conv1/weight": "text"}, {}, "synthesis/8x8/Conv1/weight is a str"),
        ({}, {"mapping_nonlinearity": "relu"}, "mapping_nonlinearity is not 'lrelu'"),
        ({}, {"normalize_latents": False}, "not normalized"),
        ({}, {"mapping_lrmul": "0.01"}, "mapping_lrmul must be a number"),
        ({}, {"conv_clamp": [256]}, "conv_clamp must be a number.*not list"),
        ({}, {"resample_kernel": 4}, "resample_kernel must be a list"),
        ({}, {"resample_kernel": [1, "3"]}, "resample_kernel must be a number"),
    ],
)
def test_tensorflow_refuses(variables, options, message):
    value = (None, None, tf_generator(to_tensorflow(make_generator()) | variables, **options))
    with pytest.raises(CheckpointError, match=message):
        read(tensorflow, value)


def discriminator_to_tensorflow(D):
    layers = {
        "fromrgb": "FromRGB",
        "conv0": "Conv0",
        "conv1": "Conv1_down",
        "skip": "Skip",
        "conv": "Conv",
        "fc": "Dense0",
    }
    variables = {"lod": 0.0}
    for name, tensor in D.state_dict().items():
        if name.endswith("resample_filter"):
            continue
        *block, layer, part = name.split(".")
        if block == ["mapping"]:
            scope = "LabelEmbed" if layer == "embed" else layer.replace("fc", "Mapping")
        else:
            size = block[0][1:]
            scope = "Output" if layer == "out" else f"{size}x{size}/{layers[layer]}"
        turned = tensor.movedim((0, 1), (3, 2)) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor
        variables[f"{scope}/{part}"] = turned
    return variables


@pytest.mark.parametrize(("architecture", "c_dim"), [("skip", 0), ("resnet", 0), ("orig", 0), ("resnet", 2)])
def test_tensorflow_discriminator(architecture, c_dim):
    D = make_discriminator(architecture=architecture, c_dim=c_dim, group_size=2, conv_clamp=2.0)
    network = tf_network(discriminator_to_tensorflow(D), mbstd_group_size=2, conv_clamp=2.0)
    value = (None, network, tf_generator(to_tensorflow(make_generator())))
    found, read_as = read(tensorflow, value, "discriminator")
    assert_same(found, D)
    assert read_as.extra == ()


def test_tensorflow_discriminators_that_are_refused():
    G = tf_generator(to_tensorflow(make_generator()))
    variables = discriminator_to_tensorflow(make_discriminator())
    with pytest.raises(CheckpointError, match="mbstd_group_size must be a whole number.*not 0"):
        read(tensorflow, (None, tf_network(variables, mbstd_group_size=0), G), "discriminator")
    variables["Output/weight"] = torch.zeros(5, 8)
    with pytest.raises(CheckpointError, match="conditional discriminator of the first StyleGAN2 release"):
        read(tensorflow, (None, tf_network(variables), G), "discriminator")
    assert set(tensorflow.networks((None, None, G))) == {"generator"}


# rosinality.


def test_rosinality_writes_the_names_and_shapes_of_the_public_code():
    G = fastinv.load_generator(GOLDEN / "tiny_rosinality.pt")
    public = load_file(GOLDEN / "tiny_rosinality.g_ema.state.safetensors")
    written = rosinality.checkpoint(G)
    assert set(written) == {"g_ema", "latent_avg"}
    assert set(written["g_ema"]) == set(public)
    for name, tensor in public.items():
        assert written["g_ema"][name].shape == tensor.shape, name
        assert torch.equal(written["g_ema"][name], tensor), name


@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [0.25, 0.5, 0.25]])
def test_rosinality_round_trip(taps):
    G, D = make_generator(resample_filter=taps), make_discriminator(resample_filter=taps)
    value = rosinality.checkpoint(G, D)
    assert not any(tensor.requires_grad for part in ("g_ema", "d") for tensor in value[part].values())
    found, read_as = read(rosinality, value)
    assert_same(found, G)
    assert read_as.extra == read_as.notes == ()
    assert_same(read(rosinality, value, "discriminator")[0], D)
    kernel = value["d"]["convs.1.conv2.0.kernel"]
    assert kernel.sum() == 1 and value["g_ema"]["convs.0.conv.blur.kernel"].sum() == 4
    assert set(value["d"]) == set(rosinality.discriminator_names([4, 8, 16]).values())


def test_rosinality_takes_a_progressive_discriminator_of_one_block():
    channels = {4: 5, 8: 4}
    D = make_discriminator(resolution=8, channels=channels, progressive=True)
    value = rosinality.checkpoint(make_generator(), D)
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(read(rosinality, value, "discriminator")[0](image), D(image))


@pytest.mark.parametrize(
    ("G", "D", "message"),
    [
        (lambda: make_generator(architecture="resnet"), None, "architecture 'skip', not 'resnet'"),
        (lambda: make_generator(c_dim=2), None, "c_dim 0, not 2"),
        (lambda: make_generator(z_dim=5), None, "z_dim 6, not 5"),
        (lambda: make_generator(mapping_lr_multiplier=1.0), None, "mapping_lr_multiplier 0.01, not 1.0"),
        (lambda: make_generator(resample_filter=[1] * 8), None, "no resample filters of 8 taps"),
        (lambda: torch.nn.Linear(1, 1), None, "takes a StyleGAN2 Generator, not a Linear"),
        (make_generator, lambda: make_discriminator(architecture="skip"), "architecture 'resnet', not 'skip'"),
        (make_generator, lambda: make_discriminator(c_dim=2), "c_dim 0, not 2"),
        (make_generator, lambda: make_discriminator(group_size=8), "group_size 4, not 8"),
        (make_generator, lambda: make_discriminator(progressive=True), "progressive False, not True"),
        (make_generator, make_generator, "takes a StyleGAN2 Discriminator, not a Generator"),
    ],
)
def test_rosinality_cannot_express(G, D, message):
    with pytest.raises(UsageError, match=message):
        rosinality.checkpoint(G(), D and D())


def test_rosinality_latent_avg():
    G = make_generator()
    tensors = rosinality.checkpoint(G)["g_ema"]
    w = torch.randn(6)
    for given in (w, w[None], w.expand(G.num_ws, 6)):
        found = rosinality.generator(tensors, given)
        assert torch.equal(found.tensors["mapping.w_avg"], w)
        assert found.notes == ()
    rows = torch.randn(G.num_ws, 6)
    found = rosinality.generator(tensors, rows)
    assert torch.equal(found.tensors["mapping.w_avg"], rows[0])
    assert "differs from layer to layer" in found.notes[0]
    for odd in (torch.zeros(5), torch.zeros(2, 5), torch.zeros(0, 6), torch.zeros(1, 1, 6), [0.0] * 6):
        with pytest.raises(CheckpointError, match=r"latent_avg must have shape \[6\] or \[n, 6\]"):
            rosinality.generator(tensors, odd)


def test_rosinality_without_latent_avg_maps_samples():
    G = make_generator()
    value = {"g_ema": rosinality.checkpoint(G)["g_ema"], "g": {}, "d_optim": {}}
    found, read_as = read(rosinality, value)
    assert "no mean latent" in read_as.notes[0]
    assert torch.equal(found.w_avg, read(rosinality, value)[0].w_avg)
    x = torch.randn(200_000, 6, dtype=torch.float64)  # other samples, and the mapping written out
    x = x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
    for i in range(3):
        layer = G.mapping.get_submodule(f"fc{i}").double()
        x = x @ layer.weight.T * (0.01 / 6**0.5) + layer.bias * 0.01
        x = torch.where(x < 0, 0.2 * x, x) * 2**0.5
    error = 6 * x.std(dim=0) * (1 / 10_000 + 1 / 200_000) ** 0.5
    assert ((found.w_avg - x.mean(dim=0)).abs() < error).all()


def test_rosinality_early_versions_and_training_files():
    G, D = make_generator(), make_discriminator()
    value = rosinality.checkpoint(G, D)
    early = {}
    for name, tensor in value["g_ema"].items():
        if name.startswith("noises.") or name.endswith("kernel"):
            continue
        early[name] = tensor.reshape(1, -1, 1, 1) if name.endswith("activate.bias") else tensor
    found, read_as = read(rosinality, {"g": early, "latent_avg": value["latent_avg"]})
    assert len(read_as.notes) == 2 and "g_ema" in read_as.notes[0] and "noise maps" in read_as.notes[1]
    w_plus = torch.randn(1, G.num_ws, 6)
    assert torch.equal(found.synthesis(w_plus), G.synthesis(w_plus, noise="none"))
    assert torch.equal(found.synthesis.b8.conv1.noise_strength, G.synthesis.b8.conv1.noise_strength)
    bare, _ = read(rosinality, value["g_ema"])  # a bare state dict
    assert torch.equal(bare.synthesis(w_plus), G.synthesis(w_plus))
    assert set(rosinality.networks({"d": value["d"]})) == {"discriminator"}
    _, read_as = read(rosinality, value | {"g_ema": value["g_ema"] | {"glow.weight": torch.zeros(1)}})
    assert read_as.extra == ("glow.weight",)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("to_rgbs.0.conv.weight"), "to_rgbs.0.conv.weight is missing"),
        (lambda t: t.update({f"to_rgbs.{i}.conv.weight": torch.zeros(1) for i in range(5000)}), "5001 blocks; 11"),
        (lambda t: t.pop("style.1.weight"), "style.1.weight is missing"),
        (lambda t: t.update({"style.1.weight": torch.zeros(6, 5)}), "not square"),
        (lambda t: t.pop("convs.0.conv.weight"), r"synthesis\.b8\.conv0\.weight is missing"),
        (lambda t: t.update({"convs.0.conv.blur.kernel": torch.ones(4, 4)}), "no product of two equal rows"),
        (lambda t: t.update({"convs.1.activate.bias": torch.zeros(9)}), r"conv1\.bias has shape \[9\]"),
    ],
)
def test_rosinality_refuses(edit, message):
    value = rosinality.checkpoint(make_generator())
    edit(value["g_ema"])
    with pytest.raises(CheckpointError, match=message):
        read(rosinality, value)


# Every value belongs to one family, and whatever a file holds is looked at without harm.


def test_families_do_not_overlap():
    G, D = make_generator(), make_discriminator()
    values = {
        ada: [saved(G), {"G_ema": saved(G)}, {"D": saved(D)}, ada.state_dict(G), ada.state_dict(D)],
        tensorflow: [(None, None, tf_generator(to_tensorflow(G))), tf_generator(to_tensorflow(G))],
        rosinality: [rosinality.checkpoint(G, D), rosinality.checkpoint(G)["g_ema"]],
    }
    for family, own in values.items():
        for value in own:
            assert [other for other in FAMILIES if other.recognises(value)] == [family]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.NAME)
def test_recognising_never_raises(family):
    network = Record("dnnlib.tflib.network", "Network", {})
    odd = [
        None, 3, "text", b"bytes", (), [], {}, {1, 2}, torch.zeros(3), (None, None, None), [1, 2, 3], {"g_ema": 3},
        {"G_ema": "x", "D": []}, {"g_ema": []}, {3: 4, (1, 2): 5, None: 6}, Record("a", "b", {}), network,
        Record("fastinv", "generator", {"config": {}, "tensors": {}}), (network, network, network),
        Record("dnnlib.tflib.network", "Network", {"variables": 3, "components": 4}),
        Record("dnnlib.tflib.network", "Network", {"variables": [1, (2, 3), ("x",)], "components": {"synthesis": 1}}),
    ]  # fmt: skip
    assert [value for value in odd if family.recognises(value)] == []
