"""Encoders against plain references that are written from the formulas and only take the state dict, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastinv.checkpoints import load_encoder, save_network
from fastinv.errors import UsageError
from fastinv.models.encoders import (
    ENCODERS,
    ALAEEncoder,
    Encoder4Editing,
    GradualStyleEncoder,
    IDInvertEncoder,
    ReStyleE4E,
    ReStylePSP,
    WEncoder,
    WPlusEncoder,
)
from fastinv.models.stylegan2 import Generator

BODY = {"num_ws": 8, "w_dim": 5, "input_resolution": 32, "units": (1, 2, 1), "channels": (4, 6, 8)}
BODIES = {"ir_se": {}, "resnet": {"body": "resnet"}, "wide": {"channels": (4, 4, 40)}}


def randomised(encoder):
    """The encoder in float64 and eval mode, with no tensor left at 0 or 1 (batch statistics, biases ...)."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in encoder.double().state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, dtype=torch.float64, generator=random) + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, dtype=torch.float64, generator=random) / 2)
            if tensor.ndim == 4:
                tensor.mul_(2 / math.sqrt(tensor[0].numel()))
    return encoder.eval()


def pictures(count=2, size=32, channels=3):
    return torch.randn(count, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max()) < 1e-10


# References


def norm(x, t, name):
    return F.batch_norm(x, *(t[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


def ir_se_maps(x, t, units):
    x = norm(F.conv2d(x, t["input_layer.0.weight"], padding=1), t, "input_layer.1")
    x = F.prelu(x, t["input_layer.2.weight"])
    starts = [sum(units[:i]) for i in range(len(units))]
    maps = []
    for u in range(sum(units)):
        name, stride = f"body.{u}", 2 if u in starts else 1
        y = F.conv2d(norm(x, t, f"{name}.res_layer.0"), t[f"{name}.res_layer.1.weight"], padding=1)
        y = F.prelu(y, t[f"{name}.res_layer.2.weight"])
        y = norm(F.conv2d(y, t[f"{name}.res_layer.3.weight"], stride=stride, padding=1), t, f"{name}.res_layer.4")
        scale = F.relu(F.conv2d(F.adaptive_avg_pool2d(y, 1), t[f"{name}.res_layer.5.fc1.weight"]))
        y = y * torch.sigmoid(F.conv2d(scale, t[f"{name}.res_layer.5.fc2.weight"]))
        if f"{name}.shortcut_layer.0.weight" in t:
            x = norm(F.conv2d(x, t[f"{name}.shortcut_layer.0.weight"], stride=stride), t, f"{name}.shortcut_layer.1")
        else:
            x = F.max_pool2d(x, 1, stride)
        x = x + y
        maps.append(x)
    return [maps[i - 1] for i in [*starts[1:], len(maps)]]


def resnet_maps(x, t, units):
    x = F.prelu(norm(F.conv2d(x, t["conv1.weight"], stride=2, padding=3), t, "bn1"), t["relu.weight"])
    starts = [sum(units[:i]) for i in range(len(units))]
    maps = []
    for u in range(sum(units)):
        name, stride = f"body.{u}", 2 if u in starts[1:] else 1
        y = norm(F.conv2d(x, t[f"{name}.conv1.weight"], stride=stride, padding=1), t, f"{name}.bn1")
        y = norm(F.conv2d(F.relu(y), t[f"{name}.conv2.weight"], padding=1), t, f"{name}.bn2")
        if f"{name}.downsample.0.weight" in t:
            x = norm(F.conv2d(x, t[f"{name}.downsample.0.weight"], stride=stride), t, f"{name}.downsample.1")
        x = F.relu(x + y)
        maps.append(x)
    return [maps[i - 1] for i in [*starts[1:], len(maps)]]


def heads(x, t, units, pyramid=True):
    """Output of every head, [N, num_ws, w_dim]."""
    maps = (ir_se_maps if "input_layer.0.weight" in t else resnet_maps)(x, t, units)
    c3 = maps[-1]
    p2 = p1 = c3
    if pyramid:
        c1, c2 = maps[-3:-1]
        up = {"mode": "bilinear", "align_corners": True}
        p2 = F.interpolate(c3, c2.shape[2:], **up) + F.conv2d(c2, t["latlayer1.weight"], t["latlayer1.bias"])
        p1 = F.interpolate(p2, c1.shape[2:], **up) + F.conv2d(c1, t["latlayer2.weight"], t["latlayer2.bias"])
    found = []
    for j in range(sum(name.endswith("linear.weight") for name in t)):
        y = c3 if j < 3 else p2 if j < 7 else p1
        for k in range(round(math.log2(y.shape[-1]))):
            y = F.conv2d(y, t[f"styles.{j}.convs.{2 * k}.weight"], t[f"styles.{j}.convs.{2 * k}.bias"], 2, 1)
            y = F.leaky_relu(y, 0.01)
        assert y.shape[2:] == (1, 1)
        weight = t[f"styles.{j}.linear.weight"]
        found.append(F.linear(y[:, :, 0, 0], weight / math.sqrt(weight.shape[1]), t[f"styles.{j}.linear.bias"]))
    return torch.stack(found, dim=1)


def offsets(codes, stage):
    """e4e's codes from the heads' outputs."""
    active = (torch.arange(codes.shape[1]) <= stage).to(codes).view(1, -1, 1)
    active[:, 0] = 0
    return codes[:, :1] + codes * active


def idinvert(x, t):
    def conv(x, name, bias=None):
        weight = t[f"{name}.weight"]
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2) * math.sqrt(2 / weight[0].numel()) + (
            0 if bias is None else t[bias].view(1, -1, 1, 1)
        )

    x = F.leaky_relu(norm(conv(x, "block0.conv"), t, "block0.bn"), 0.2)
    block = 1
    while f"block{block}.conv1.weight" in t:
        b = f"block{block}"
        x = F.avg_pool2d(x, 2)
        y = F.leaky_relu(norm(conv(x, f"{b}.conv1", f"{b}.wscale1.bias"), t, f"{b}.bn1"), 0.2)
        y = F.leaky_relu(norm(conv(y, f"{b}.conv2", f"{b}.wscale2.bias"), t, f"{b}.bn2"), 0.2)
        if f"{b}.conv.weight" in t:
            x = F.leaky_relu(norm(conv(x, f"{b}.conv"), t, f"{b}.bn"), 0.2)
        x, block = x + y, block + 1
    weight = t[f"block{block}.fc.weight"]
    x = norm(F.linear(x.flatten(1), weight) / math.sqrt(weight.shape[1]), t, f"block{block}.bn")
    return x.view(len(x), 2 * block, -1)


def alae(x, t, level=0):
    def scaled(name):
        weight = t[f"{name}.weight"]
        return weight / math.sqrt(weight[0].numel())

    def statistics(x):
        flat = x.flatten(2)
        return torch.cat([flat.mean(2), flat.std(2, correction=0)], dim=1)

    name = f"from_rgb.{level}.from_rgb"
    x = F.leaky_relu(F.conv2d(x, scaled(name), t[f"{name}.bias"]), 0.2)
    total = 0
    while f"encode_block.{level}.conv_1.weight" in t:
        b = f"encode_block.{level}"
        x = F.leaky_relu(F.conv2d(x, scaled(f"{b}.conv_1"), padding=1) + t[f"{b}.bias_1"], 0.2)
        total = total + F.linear(statistics(x), scaled(f"{b}.style_1"), t[f"{b}.style_1.bias"])
        x = F.instance_norm(x)
        blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=x.dtype).div(16).expand(x.shape[1], 1, 3, 3)
        x = F.conv2d(F.conv2d(x, blur, padding=1, groups=x.shape[1]), scaled(f"{b}.conv_2"), padding=1)
        x = F.leaky_relu(F.avg_pool2d(x, 2) + t[f"{b}.bias_2"], 0.2)
        total = total + F.linear(statistics(x), scaled(f"{b}.style_2"), t[f"{b}.style_2.bias"])
        x, level = F.instance_norm(x), level + 1
    return total.unsqueeze(1)


def same_codes_and_gradients(encoder, reference, x, **options):
    x = x.requires_grad_()
    found, expected = encoder.encode(x, **options), reference(x, encoder.state_dict()) + encoder.latent_avg
    assert found.shape == (len(x), encoder.num_ws, encoder.w_dim)
    assert close(found, expected)
    cotangent = torch.randn(found.shape, dtype=found.dtype)
    gradients = [torch.autograd.grad((y * cotangent).sum(), x)[0] for y in (found, expected.expand_as(found))]
    assert close(*gradients)


@pytest.mark.parametrize("options", BODIES.values(), ids=BODIES)
def test_psp_and_e4e(options):
    options = BODY | options
    x = pictures()
    same_codes_and_gradients(
        randomised(GradualStyleEncoder(**options)), lambda x, t: heads(x, t, options["units"]), x
    )
    for stage in (None, 0, 4, 7):
        expected = 7 if stage is None else stage
        same_codes_and_gradients(
            randomised(Encoder4Editing(**options)),
            lambda x, t, stage=expected: offsets(heads(x, t, options["units"]), stage),
            x,
            stage=stage,
        )


@pytest.mark.parametrize("channels", (1, 6, 19))
def test_other_inputs(channels):
    encoder = randomised(GradualStyleEncoder(**BODY, input_nc=channels))
    same_codes_and_gradients(encoder, lambda x, t: heads(x, t, BODY["units"]), pictures(channels=channels))


@pytest.mark.parametrize("body", ("ir_se", "resnet"))
def test_backbone_baselines(body):
    def into_w(x, t):
        maps = (ir_se_maps if body == "ir_se" else resnet_maps)(x, t, BODY["units"])
        y = F.adaptive_avg_pool2d(maps[-1], 1).flatten(1)
        return (y @ t["linear.weight"].t() / math.sqrt(8) + t["linear.bias"]).unsqueeze(1)

    def into_w_plus(x, t):
        maps = (ir_se_maps if body == "ir_se" else resnet_maps)(x, t, BODY["units"])
        y = F.adaptive_avg_pool2d(norm(maps[-1], t, "output_layer_2.0"), 7).flatten(1)
        y = F.linear(y, t["output_layer_2.3.weight"], t["output_layer_2.3.bias"])
        return (y @ t["linear.weight"].t() / math.sqrt(5) + t["linear.bias"]).reshape(-1, 8, 5)

    same_codes_and_gradients(randomised(WEncoder(**BODY, body=body)), into_w, pictures())
    same_codes_and_gradients(randomised(WPlusEncoder(**BODY, body=body)), into_w_plus, pictures())


def test_idinvert():
    for options in ({"channels": (4, 6, 6, 8)}, {"channels": (6, 4, 4, 4), "num_ws": 8, "input_nc": 1}):
        encoder = randomised(IDInvertEncoder(32, w_dim=5, **options))
        same_codes_and_gradients(encoder, idinvert, pictures(channels=encoder.input_nc))


def test_alae():
    encoder = randomised(ALAEEncoder(32, w_dim=5, channels=(4, 6, 8, 8, 7)))
    same_codes_and_gradients(encoder, alae, pictures())
    small = pictures(size=8)
    assert close(encoder(small, level=2), alae(small, encoder.state_dict(), level=2).expand(-1, 8, -1))


def test_alae_has_finite_gradients_on_constant_pictures():
    encoder = ALAEEncoder(8, w_dim=4, channels=(2, 3, 4))
    images = torch.zeros(1, 3, 8, 8, requires_grad=True)
    encoder.encode(images).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.encode_block.parameters())


@pytest.mark.parametrize("cls", (ReStylePSP, ReStyleE4E))
@pytest.mark.parametrize("options", ({}, {"body": "resnet"}, {"pyramid": True}), ids=("ir_se", "resnet", "pyramid"))
def test_restyle(cls, options):
    torch.manual_seed(0)
    G = Generator(32, 5, 5, channels=dict.fromkeys((4, 8, 16, 32), 4), mapping_layers=1).double().eval()
    encoder = randomised(cls(**BODY, **options))
    assert encoder.pyramid == ("pyramid" in options)
    x = pictures(size=64)
    looked_at = F.avg_pool2d(x, 2)
    w = encoder.latent_avg.expand(2, -1, -1)
    expected = []
    for _ in range(3):
        both = torch.cat([looked_at, G.synthesis(w)], dim=1)
        codes = heads(both, encoder.state_dict(), BODY["units"], pyramid=encoder.pyramid)
        w = w + (codes if cls is ReStylePSP else offsets(codes, 7))
        expected.append(w)
    found = list(encoder.iterate(x, G, steps=3))
    assert len(found) == 3
    assert all(close(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(encoder.encode(x, G, steps=3), found[-1])
    assert torch.equal(encoder.encode(x, G), list(encoder.iterate(x, G, steps=5))[-1])


def test_restyle_keeps_the_last_steps_graph_only():
    G = Generator(32, 5, 5, channels=dict.fromkeys((4, 8, 16, 32), 4), mapping_layers=1).double()
    encoder = randomised(ReStyleE4E(**BODY))
    *_, before, after = encoder.iterate(pictures(), G, steps=3)
    weight = encoder.styles[0].linear.bias  # added to all styles by every step
    (gradient,) = torch.autograd.grad(after.sum(), weight)
    assert torch.allclose(gradient, torch.full_like(gradient, 2 * 8))  # two pictures, eight styles, one step
    codes = encoder(torch.cat([pictures(), G.synthesis(before)], dim=1))
    assert close(after, before + codes)
    assert all(p.grad is None for p in G.parameters())
    only_w = encoder.encode(pictures(), G, steps=1, stage=0) - encoder.latent_avg
    assert close(only_w, only_w[:, :1].expand(-1, 8, -1))


@pytest.mark.parametrize("name", ENCODERS)
def test_batches_sizes_and_types(name):
    """Pictures do not see each other, none is fine too, other sizes are resized, other types are converted."""
    iterative = name.startswith("restyle")
    G = Generator(32, 5, 5, channels=dict.fromkeys((4, 8, 16, 32), 4), mapping_layers=1).double()
    options = {"input_resolution": 32, "w_dim": 5, "channels": (4, 6, 8)}
    if name in ("idinvert", "alae"):
        options["channels"] = (4, 6, 8, 8) if name == "idinvert" else (4, 6, 8, 8, 8)
    else:
        options |= {"num_ws": 8, "units": (1, 2, 1)}
    encoder = randomised(ENCODERS[name](**options))
    arguments = (G, 2) if iterative else ()
    x = pictures(3)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with torch.no_grad():
        codes = encoder.encode(x, *arguments)
        assert codes.shape == (3, 8, 5)
        assert encoder.num_ws == 8 and encoder.w_dim == 5 and encoder.input_resolution == 32
        assert close(codes[1:2], encoder.encode(x[1:2], *arguments))
        assert encoder.encode(x[:0], *arguments).shape == (0, 8, 5)
        assert encoder.encode(x[:0, :, :7, :7], *arguments).shape == (0, 8, 5)
        assert torch.equal(encoder.encode(x.bfloat16(), *arguments), encoder.encode(x.bfloat16().double(), *arguments))
        large, odd = pictures(size=96), pictures(size=21)
        assert close(encoder.encode(large, *arguments), encoder.encode(F.avg_pool2d(large, 3), *arguments))
        enlarged = F.interpolate(odd, (32, 32), mode="bilinear", align_corners=False)
        assert close(encoder.encode(odd, *arguments), encoder.encode(enlarged, *arguments))
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    with torch.device("meta"):
        twin = ENCODERS[name](**encoder.config)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert twin.config == encoder.config
    twin.load_state_dict(before, assign=True)
    assert torch.equal(twin.eval().encode(x, *arguments), encoder.encode(x, *arguments))
    for bad in (x[:, :2], x[0], x[:, :, :20], x[:, :, :0, :0], [1.0], torch.zeros(1, 4, 32, 32)):
        with pytest.raises(UsageError, match=r"images must have shape \[N, 3, R, R\], not"):
            encoder.encode(bad, *arguments)
    with pytest.raises(UsageError, match="images must be floating point"):
        encoder.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), *arguments)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_learns(name):
    options = {"input_resolution": 16, "w_dim": 4, "channels": (4, 4, 6)}
    if name == "alae":
        options["channels"] = (4, 4, 6, 6)
    elif name != "idinvert":
        options |= {"num_ws": 8, "units": (1, 1, 1)}
    encoder = ENCODERS[name](**options).train()
    encoder(torch.randn(2, encoder.input_nc, 16, 16)).square().sum().backward()
    unused = {key for key, parameter in encoder.named_parameters() if parameter.grad is None}
    assert unused == {key for key in unused if key.startswith(("from_rgb.1", "from_rgb.2"))}


def test_rows_leave_the_bars_of_car_pictures_out():
    encoder = randomised(GradualStyleEncoder(**BODY, rows=(4, 28)))
    x = pictures()
    codes = encoder.encode(x)
    assert close(codes, heads(x[:, :, 4:28], encoder.state_dict(), BODY["units"]) + encoder.latent_avg)
    x[:, :, :4] = x[:, :, 28:] = 7
    assert torch.equal(encoder.encode(x), codes)
    with pytest.raises(UsageError, match="rows must be"):
        GradualStyleEncoder(**BODY, rows=(4, 33))


def test_full_size():
    with torch.device("meta"):
        encoder, e4e = GradualStyleEncoder(), Encoder4Editing()
        restyle = ReStylePSP(body="resnet")
        into = WEncoder(), IDInvertEncoder(), ALAEEncoder()
    assert encoder.num_ws == 2 * math.log2(1024) - 2
    for model in (encoder, e4e):
        assert sum(parameter.numel() for parameter in model.parameters()) == 267_136_704
        assert len(model.state_dict()) == 621 + 1  # latent_avg
    assert [len(head.convs) // 2 for head in encoder.styles] == [4] * 3 + [5] * 4 + [6] * 11
    assert [len(head.convs) // 2 for head in restyle.styles] == [4] * 18
    assert len(restyle.body) == 16
    assert [model.num_ws for model in into] == [18, 14, 18]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GradualStyleEncoder(body="vgg"), "body must be one of ir_se, resnet"),
        (lambda: GradualStyleEncoder(units=(1, 2)), "units and channels must be positive"),
        (lambda: GradualStyleEncoder(units=(1, 2, 0, 1)), "units and channels must be positive"),
        (lambda: GradualStyleEncoder(input_resolution=100), "power of two"),
        (lambda: GradualStyleEncoder(input_resolution=16), "last map is 1 wide"),
        (lambda: GradualStyleEncoder(input_resolution=8), "4 stages are too many"),
        (lambda: GradualStyleEncoder(units=(1, 1), channels=(4, 4)), "pyramid needs three stages"),
        (lambda: GradualStyleEncoder(num_ws=0), "num_ws must be a positive integer, not 0"),
        (lambda: WEncoder(w_dim=0.5), "w_dim must be a positive integer, not 0.5"),
        (lambda: ReStylePSP(input_nc=3), "6 input channels"),
        (lambda: IDInvertEncoder(32, channels=(4, 4)), "channels must be 4 positive counts"),
        (lambda: ALAEEncoder(32, channels=(4, 4)), "channels must be 5 positive counts"),
        (lambda: Encoder4Editing(**BODY).eval().encode(torch.zeros(1, 3, 32, 32), stage=8), "stage must be an integer"),
        (lambda: Encoder4Editing(**BODY).eval().encode(torch.zeros(1, 3, 32, 32), stage=-1), "from 0 to 7"),
        (lambda: ReStylePSP(**BODY).iterate(torch.zeros(1, 3, 32, 32), Generator(32, 5, 5), 0), "steps must be"),
        (lambda: ReStylePSP(**BODY).iterate(torch.zeros(1, 6, 32, 32), Generator(32, 5, 5)), r"\[N, 3, R, R\]"),
        (lambda: ReStylePSP(**BODY).iterate(torch.zeros(1, 3, 32, 32), Generator(16, 5, 5)), r"latents \[6, 5\]"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_half_precision_files_keep_large_variances(tmp_path):
    """Of feature maps in training: 65504 is the largest number in half precision."""
    E = GradualStyleEncoder(6, 8, 3, 16, units=(1, 1, 1), channels=(4, 4, 6), head_channels=4).eval()
    name = next(name for name in E.state_dict() if name.endswith("running_var"))
    with torch.no_grad():
        E.state_dict()[name].fill_(72339.0)
    save_network(E, tmp_path / "e.safetensors", torch.float16)
    assert (load_encoder(tmp_path / "e.safetensors").state_dict()[name] == 72339).all()
