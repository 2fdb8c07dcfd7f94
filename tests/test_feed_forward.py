"""Codes by an encoder alone: against the encoder called by hand, in float64 on tiny networks, and what `invert` adds;
encoders as the start of the methods that optimise.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from test_cli import picture, refused, run
from test_methods import SIDE, LinearEncoder, generator

import fastinv
from fastinv.checkpoints import BUNDLED, BundledModel, CheckpointWarning, network_hash, registry, save_network
from fastinv.errors import UsageError
from fastinv.inversion import METHODS, InversionResult, NonFiniteLossError, invert
from fastinv.inversion.feed_forward import FEED_FORWARD
from fastinv.inversion.method import Method
from fastinv.inversion.objective import bundled_hash, find_encoder
from fastinv.models import encoders

SIZES = {"num_ws": 6, "w_dim": 8, "input_resolution": SIDE}
BODY = SIZES | {"units": (1, 1), "channels": (4, 6)}
CONFIGS = {
    "psp": BODY | {"pyramid": False}, "e4e": BODY | {"pyramid": False}, "w_encoder": BODY, "w_plus_encoder": BODY,
    "restyle_psp": BODY, "restyle_e4e": BODY, "idinvert": SIZES | {"channels": [4, 4, 6]},
    "alae": SIZES | {"channels": [4, 4, 6, 6]},
}  # fmt: skip
METHOD_OF = {
    "psp": "psp", "w_encoder": "psp", "w_plus_encoder": "psp", "restyle_psp": "psp", "e4e": "e4e",
    "restyle_e4e": "e4e", "idinvert": "idinvert-encoder", "alae": "alae",
}  # fmt: skip
QUICK = {"steps": 0, "progress": False}
PIXELS = QUICK | {"pixel_weight": 1.0, "perceptual_weight": 0.0, "lpips_weight": 0.0, "ms_ssim_weight": 0.0}


def encoder(model, dtype=torch.float64):
    torch.manual_seed(3)
    E = encoders.ENCODERS[model](**CONFIGS[model])
    if model not in ("idinvert", "alae"):  # those predict the latent itself
        E.latent_avg.normal_(std=0.1)
    return E.to(dtype)


@pytest.fixture(scope="module")
def G():
    return generator()


@pytest.fixture(scope="module")
def images(G):
    """Three pictures that the generator can make, up to the clamp."""
    with torch.no_grad():
        z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double()
        return G.synthesis(G.mapping(z)).clamp(-1, 1)


@pytest.fixture(scope="module")
def faces64():
    return fastinv.load_generator("faces64")


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A function that ships a network as part of a bundled model of that name."""
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    bundled_hash.cache_clear()

    def ship(name, networks, of=None, method=None, **facts):
        for kind, network in networks.items():
            save_network(network, tmp_path / f"{name}.{kind}.safetensors", training=facts)
        monkeypatch.setitem(BUNDLED, name, BundledModel(name, "tiny", SIDE, "none", tuple(networks), of, method))

    yield ship
    bundled_hash.cache_clear()


def test_every_encoder_has_one_method():
    classes = [cls for method in FEED_FORWARD for cls in method.encoders]
    assert sorted(classes, key=str) == sorted(encoders.ENCODERS.values(), key=str)
    assert all(encoders.ENCODERS[model] in METHODS[name].encoders for model, name in METHOD_OF.items())


@pytest.mark.parametrize("model", CONFIGS)
def test_the_code_is_the_encoders(G, images, model):
    E = encoder(model).train()
    result = invert(G, images, METHOD_OF[model], encoder=E, progress=False)
    assert E.training and all(parameter.requires_grad for parameter in E.parameters())
    with torch.no_grad():
        if "restyle" in model:  # the recursion of the paper
            w = E.eval().latent_avg.expand(3, -1, -1)
            for _ in range(5):
                w = w + E(torch.cat([images, G.synthesis(w)], dim=1))
        else:
            w = E.eval().encode(images)
        made = G.synthesis(w)
    torch.testing.assert_close(result.w_plus, w)
    torch.testing.assert_close(result.images, made)
    error = (made - images).square().mean((1, 2, 3))
    assert result.losses.keys() == {"total", "pixel"}
    torch.testing.assert_close(result.losses["total"], error[None])
    torch.testing.assert_close(torch.tensor(result.metrics["loss_pixel"], dtype=torch.float64), error)
    assert result.metrics["steps"] == result.metrics["best_step"] == [0, 0, 0] and len(result.metrics["psnr"]) == 3
    assert result.settings["space"] == ("w" if model == "alae" else "w+") and result.settings["steps_done"] == 0
    assert result.settings["encoder"] == {"name": type(E).__name__, "sha256": network_hash(E)}
    assert result.settings["options"]["encoder"] == type(E).__name__
    json.dumps(result.settings, allow_nan=False)
    torch.testing.assert_close(result.render(G), result.images)
    if METHOD_OF[model] == "alae":
        assert torch.equal(result.w_plus, result.w_plus[:, :1].expand_as(result.w_plus))


@pytest.mark.parametrize("model", ["psp", "restyle_e4e", "idinvert", "alae"])
def test_a_picture_has_the_bits_that_it_has_alone(G, images, model):
    """Only one is worked on at a time, so that memory does not grow with the batch."""
    E, sizes = encoder(model), []
    E.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    together, again = (invert(G, images, METHOD_OF[model], encoder=E, progress=False) for _ in range(2))
    alone = invert(G, images[1], METHOD_OF[model], encoder=E, progress=False)
    for one, two in ((together, again), (together[1], alone)):
        assert torch.equal(one.w_plus, two.w_plus) and torch.equal(one.images, two.images)
        assert torch.equal(one.losses["total"], two.losses["total"])
    assert set(sizes) == {1}


def test_the_passes_of_restyle(G, images):
    E = encoder("restyle_psp").eval()
    for passes in (1, 3):
        with torch.no_grad():
            expected = E.encode(images, G, passes)
        torch.testing.assert_close(invert(G, images, "psp", encoder=E, passes=passes, progress=False).w_plus, expected)
    with pytest.raises(UsageError, match="passes must be at least 1, not 0"):
        invert(G, images, "psp", encoder=E, passes=0)
    with pytest.raises(UsageError, match="passes are for ReStyle encoders; a GradualStyleEncoder has one"):
        invert(G, images, "psp", encoder=encoder("psp"), passes=2)
    with pytest.raises(UsageError, match="unknown option 'passes' for alae"):
        invert(G, images, "alae", encoder=encoder("alae"), passes=2)


def test_an_encoder_in_float32_stays_so(G, images):
    E = encoder("psp", torch.float32)
    result = invert(G, images, "psp", encoder=E, progress=False)
    assert result.w_plus.dtype == torch.float64 and E.latent_avg.dtype == torch.float32
    torch.testing.assert_close(result.w_plus, encoder("psp").eval().encode(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "model", "options", "says"),
    [
        ("psp", "e4e", {}, "psp does not take a Encoder4Editing: use the method e4e"),
        ("e4e", "restyle_psp", {}, "use the method psp"),
        ("alae", "idinvert", {}, "use the method idinvert-encoder"),
        ("psp", "psp", {"steps": 2}, r"without steps \(0, not 2\); .* init \(--init\), .*stylegan-encoder or idinvert"),
        ("psp", "psp", {"masks": torch.ones(SIDE, SIDE)}, "psp reads the whole picture, without masks"),
        ("psp", "psp", {"init": torch.zeros(6, 8)}, "init is where an optimisation starts"),
        ("psp", "psp", {"space": "w"}, "does not work for psp; it works in w+"),
        ("psp", "psp", {"learning_rate": 0.1}, "unknown option 'learning_rate' for psp"),
        ("e4e", None, {}, r"e4e: no encoder for this generator comes with fastinv; give encoder= \(--set"),
        ("psp", None, {}, "; faces64-psp is for the generator faces64$"),
    ],
)
def test_what_is_refused(G, images, method, model, options, says):
    given = {} if model is None else {"encoder": encoder(model)}
    with pytest.raises(UsageError, match=says):
        invert(G, images, method, **given, **options)


def test_what_is_no_encoder_of_a_method(G, images):
    with pytest.raises(UsageError, match="psp takes a GradualStyleEncoder, .* not a LinearEncoder; with init="):
        invert(G, images, "psp", encoder=LinearEncoder(G))

    class Own(encoders.Encoder4Editing):
        pass

    E = Own(**CONFIGS["e4e"]).double()  # derives from pSp's class, too
    assert invert(G, images, "e4e", encoder=E, progress=False).settings["encoder"]["name"] == "Own"
    with pytest.raises(UsageError, match="use the method e4e"):
        invert(G, images, "psp", encoder=E)
    with pytest.raises(UsageError, match=r"the encoder makes codes of \[8, 8\], the generator takes \[6, 8\]"):
        invert(G, images, "psp", encoder=encoders.GradualStyleEncoder(**CONFIGS["psp"] | {"num_ws": 8}))


def test_callback_and_progress(G, images, capfd):
    seen = []
    result = invert(G, images, "psp", encoder=encoder("psp"), callback=lambda *values: seen.append(values))
    ((step, losses, pictures),) = seen
    assert step == 0 and torch.equal(pictures, result.images)
    assert torch.equal(losses["total"], result.losses["total"][0]) and losses.keys() == {"total", "pixel"}
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["psp", f"{done}/3"] for done in (1, 2, 3)]
    assert f"PSNR {result.metrics['psnr'][2]:.2f} dB" in lines[2]


def test_a_picture_whose_code_is_not_finite(G, images):
    E = encoder("psp").eval()
    E.register_forward_hook(lambda _, inputs, out: out * (float("nan") if inputs[0][0, 0, 0, 0] == 0.5 else 1))
    targets = images.clone()
    targets[1, 0, 0, 0] = 0.5
    with pytest.raises(NonFiniteLossError) as caught:
        invert(G, targets, "psp", encoder=E, progress=False)
    assert caught.value.failed == {1: 0}
    assert caught.value.result.losses["total"][0].isfinite().tolist() == [True, False, True]


def test_an_encoder_of_another_generator_is_told(G, images, tmp_path):
    for sha256, told in ((network_hash(G), False), ("0" * 64, True), (None, False)):
        save_network(encoder("psp"), tmp_path / "e.safetensors", training={"generator_sha256": sha256})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            invert(G, images, "psp", encoder=tmp_path / "e.safetensors", progress=False)
            invert(G, images, "image2stylegan", init=tmp_path / "e.safetensors", **PIXELS)
        texts = [str(warning.message) for warning in caught if warning.category is CheckpointWarning]
        assert len(texts) == 2 * told and all("e.safetensors was trained for another generator" in t for t in texts)


def test_a_pivot_of_pti(G, images):
    E = encoder("e4e").eval()
    options = {"pivot": "e4e", "pivot_options": {"encoder": E}, "lpips_weight": 0.0, "progress": False}
    result = invert(G, images[:1], "pti", "w+", 3, **options)
    torch.testing.assert_close(result.w_plus, E.encode(images[:1]))
    assert result.settings["pivot"] == {"method": "e4e", "steps": 0} and len(result.losses["total"]) == 1 + 4
    with pytest.raises(UsageError, match="without masks"):
        invert(G, images[:1], "pti", "w+", 3, masks=torch.ones(SIDE, SIDE), **options)


# Encoders as a start


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if issubclass(method, Method)])
def test_a_bundled_encoder_is_a_start_by_name(faces64, name):
    image = fastinv.data.faces.sample(1, seed=5, split="heldout")[0]
    own = {"idinvert": {"encoder": "faces64-psp"}}.get(name, {})
    result = invert(faces64, image, name, "w+", init="faces64-psp", **PIXELS, **own)
    with torch.no_grad():
        code = fastinv.load_encoder("faces64-psp").encode(image)
    torch.testing.assert_close(result.w_plus, code, rtol=1e-4, atol=1e-5)
    assert result.settings["init"]["encoder"] == "GradualStyleEncoder"


def test_idinvert_takes_the_bundled_encoder_of_the_generator(G, images, bundle):
    G32 = fastinv.models.stylegan2.Generator(**G.config)
    G32.load_state_dict({name: value.float() for name, value in G.state_dict().items()})
    bundle("tiny", {"generator": G32})
    bundle("tiny-idinvert", {"encoder": encoder("idinvert")}, "tiny", "idinvert-encoder")
    result = invert(G32.eval(), images.float(), "idinvert", **PIXELS)
    code = encoder("idinvert", torch.float32).eval().encode(images.float())
    torch.testing.assert_close(result.w_plus, code, rtol=1e-4, atol=1e-5)
    assert result.settings["options"]["encoder"] == "tiny-idinvert"
    alone = invert(G32, images.float(), "idinvert-encoder", progress=False)
    torch.testing.assert_close(alone.w_plus, code, rtol=1e-4, atol=1e-5)
    assert alone.settings["options"] == {"steps": 0, "encoder": "tiny-idinvert"}


def test_a_restyle_encoder_can_be_found_again(G, images):
    """As on the command line, which finds it once before it is given to `invert`."""
    found = find_encoder(find_encoder(encoder("restyle_psp"), G), G)
    torch.testing.assert_close(found.encode(images), encoder("restyle_psp").eval().encode(images, G))


# The bundled encoder, and the command line


def test_faces64_psp(faces64):
    images = fastinv.data.faces.sample(4, seed=5, split="heldout")[0]
    result = invert(faces64, images, "psp", progress=False)
    assert sum(result.metrics["psnr"]) / 4 > 26  # the mean face has about 15
    assert result.settings["options"] == {"steps": 0, "encoder": "faces64-psp", "passes": None}


def test_faces64_alae(faces64):
    G, images = fastinv.load_generator("faces64-alae"), fastinv.data.faces.sample(4, seed=5, split="heldout")[0]
    result = invert(G, images, "alae", progress=False)
    assert sum(result.metrics["psnr"]) / 4 > 23
    assert result.settings["options"] == {"steps": 0, "encoder": "faces64-alae"}
    with pytest.raises(UsageError, match="faces64-alae is for the generator faces64-alae"):
        invert(faces64, images, "alae", progress=False)


def test_the_command_line_takes_the_generator_that_belongs_to_alae(tmp_path, monkeypatch, capsys, bundle, G):
    monkeypatch.chdir(tmp_path)
    paths = [picture(tmp_path / name) for name in ("a.png", "b.png")]
    own = fastinv.models.stylegan2.Generator(**G.config)
    other = fastinv.models.stylegan2.Generator(**G.config)
    bundle("faces64-alae", {"generator": own, "encoder": encoder("alae")}, None, "alae")
    bundle("other", {"generator": other})
    whole = ["invert", *paths, "--method", "alae", "--quiet", "--video", "gif"]
    status, out, err = run(capsys, *whole)
    assert (status, err) == (0, "") and len(out.splitlines()) == 2
    result = InversionResult.load("inverted/b")
    assert result.settings["generator"]["sha256"] == network_hash(own)
    assert result.settings["options"] == {"steps": 0, "encoder": "faces64-alae"} and result.settings["space"] == "w"
    assert Path("inverted/b/progress.gif").is_file()
    manifest = json.loads(Path("inverted/manifest.json").read_text())
    assert manifest["settings"]["options"] == {"steps": 0, "encoder": "faces64-alae"}
    assert run(capsys, *whole)[1].count("was there") == 2
    arguments = ["invert", paths[0], "--method", "alae", "--out", "more", "--generator", "other"]
    refused(capsys, arguments, "; faces64-alae is for the generator faces64-alae")
    refused(capsys, [*arguments[:6], "--mask", paths[0]], "alae reads the whole picture, without masks")
    refused(capsys, [*arguments[:6], "--init", "faces64-alae"], "init is where an optimisation starts")
    refused(capsys, [*arguments[:6], "--steps", "5"], "without steps (0, not 5)")
