"""The encoder trainers: each step does what its paper says, runs continue to the same bits, two processes equal one."""

import copy
import csv
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fastinv.checkpoints import load_discriminator, load_encoder, load_generator, network_hash, save_network
from fastinv.cli import main as command_line
from fastinv.cli.training import TRAINERS
from fastinv.data import faces
from fastinv.errors import FastinvError, UsageError
from fastinv.latents import mean_latent
from fastinv.models.attributes import load_attribute_network
from fastinv.models.encoders import ALAEEncoder, Encoder4Editing, GradualStyleEncoder, ReStyleE4E
from fastinv.models.stylegan1 import StyleGAN1Generator
from fastinv.models.stylegan2 import Generator
from fastinv.training import alae, e4e, idinvert, loop, psp
from fastinv.training.batches import FaceBatches, FolderBatches
from fastinv.training.latent_discriminator import CodePool, LinearDiscriminator, logistic, r1_penalty
from fastinv.training.picture_losses import PictureLosses, code_norm
from fastinv.training.ranger import Ranger

ROOT = Path(__file__).parent.parent
BODY = ["--units", "1,1,1", "--channels", "4,4,6", "--head-channels", "5"]
RUN = [
    "--data", "faces", "--batch", "4", "--steps", "8", "--validation", "6", "--log-every", "2", "--validate-every", "4",
    "--sample-every", "4", "--device", "cpu", "--lr", "1e-3",
]  # fmt: skip
# One tiny run of each trainer; --decay so that the length matters.
TINY = {
    "psp": [*BODY, "--synthetic", "1", "--synthetic-only", "2", "--w-norm", "0.1", "--average", "3", "--decay", "0.5"],
    "restyle": [*BODY, "--restyle", "2", "--synthetic", "1", "--crop-pixel", "1", "--optimizer", "adam"],
    "e4e": [*BODY, "--progressive-start", "3", "--progressive-every", "2", "--pool", "3", "--d-lr", "1e-3"],
    "idinvert": ["--channels", "4,4,4", "--r1-interval", "3", "--warm-up", "3"],
    "alae": ["--resolution", "16", "--z-dim", "8", "--w-dim", "8", "--channels", "8,8,8",
             "--encoder-channels", "4,4,4,4", "--mapping-layers", "2", "--average", "4", "--r1-interval", "2"],
}  # fmt: skip
MODULES = {"psp": psp, "restyle": psp, "e4e": e4e, "idinvert": idinvert, "alae": alae}
TRAINABLES = {
    "psp": psp.PSPTraining, "restyle": psp.PSPTraining, "e4e": e4e.E4ETraining, "idinvert": idinvert.IDInvertTraining,
    "alae": alae.ALAETraining,
}  # fmt: skip


@pytest.fixture
def train(generator_file):
    """train(kind, out, *options) runs a tiny training and returns its folder."""

    def run(kind, out, *options):
        generator = [] if kind == "alae" else ["--generator", str(generator_file)]
        return MODULES[kind].main([*RUN, *generator, "--out", str(out), *TINY[kind], *options])

    return run


@pytest.fixture
def trainable(generator_file, tmp_path):
    """trainable(kind, *options): the Trainable that the command would train."""

    def make(kind, *options):
        generator = [] if kind == "alae" else ["--generator", str(generator_file)]
        arguments = [*RUN, *generator, "--out", str(tmp_path / "run"), *TINY[kind], "--dtype", "float32", *options]
        parsed = MODULES[kind].parser().parse_args(arguments)
        torch.manual_seed(parsed.seed)
        return TRAINABLES[kind](parsed, loop.open_accelerator(parsed))

    return make


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def timeless(path):
    return [{k: v for k, v in row.items() if k not in ("seconds", "pictures_per_second")} for row in rows(path)]


def same(a, b):
    """Whether two states hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TINY)
def test_a_run_writes_networks_that_load_and_logs(kind, train, generator_file, tmp_path):
    out = train(kind, tmp_path / "run")
    E = load_encoder(out / "encoder.safetensors")
    G = load_generator(out / "generator.safetensors" if kind == "alae" else generator_file)
    images = faces.render(faces.sample_attributes(3, 1, "heldout"), resolution=16)
    w_plus = E.encode(images, G) if kind == "restyle" else E.encode(images)
    assert w_plus.shape == (3, G.num_ws, G.w_dim) and G.synthesis(w_plus).shape == images.shape
    if kind == "idinvert":
        assert load_discriminator(out / "discriminator.safetensors")(images).shape == (3, 1)
    with safe_open(out / "encoder.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["fastinv"])["training"]
    command = "psp" if kind == "restyle" else kind
    assert shlex.split(facts["command"])[:3] == ["fastinv", "train", command] and facts["step"] == 8
    assert facts["options"]["batch"] == 4 and facts["options"]["data"] == "faces"
    log, validation = rows(out / "log.csv"), rows(out / "validation.csv")
    assert [int(row["step"]) for row in log] == [2, 4, 6, 8]
    assert [int(row["step"]) for row in validation] == [4, 8]
    # The averages of a file are those of its network: what is in the file makes the validation's numbers again.
    assert facts["validation"]["loss"] == pytest.approx(float(validation[-1]["loss"]), rel=1e-4)
    best = min(validation, key=lambda row: float(row["loss"]))
    with safe_open(out / "best_encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()["fastinv"])["training"]["step"] == int(best["step"])
    assert not list(out.glob(".*"))  # no temporary file is left


def test_the_sample_grid_has_targets_above_reconstructions(train, generator_file, tmp_path):
    out = train("psp", tmp_path / "run")
    with Image.open(out / "samples_0000008.png") as grid:
        assert grid.size == (6 * 16 + 5 * 2, 2 * 16 + 2)
        pixels = torch.tensor(list(grid.tobytes()), dtype=torch.float32).view(grid.height, grid.width, 3)
    targets = FaceBatches(16, 4).heldout(6)
    first = ((targets[0].permute(1, 2, 0) + 1) * 127.5).round()
    assert (pixels[:16, :16] - first).abs().max() <= 1
    # The file is in half precision, so its reconstruction is near the picture's, not equal to it.
    made = load_generator(generator_file).synthesis(load_encoder(out / "encoder.safetensors").encode(targets[:1]))
    made = ((made[0].detach().permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round()
    assert (pixels[18:, :16] - made).abs().max() <= 8


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["psp", "e4e", "idinvert", "alae"])
def test_a_killed_run_continues_to_the_same_bits(kind, train, tmp_path, monkeypatch):
    train(kind, tmp_path / "whole")
    original = TRAINABLES[kind].iterate

    def dying(self, images, step):
        if step == 5:
            raise Killed
        return original(self, images, step)

    monkeypatch.setattr(TRAINABLES[kind], "iterate", dying)
    with pytest.raises(Killed):  # after line 4 of the log, which the continued run makes again
        train(kind, tmp_path / "parts", "--checkpoint-steps", "3")
    monkeypatch.undo()
    train(kind, tmp_path / "parts", "--checkpoint-steps", "3", "--resume")
    whole, parts = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    for key in set(whole) - {"seconds", "options"}:
        assert same(whole[key], parts[key]), key
    for name in ("log.csv", "validation.csv"):
        assert timeless(tmp_path / "whole" / name) == timeless(tmp_path / "parts" / name)
    for name in ("encoder", "best_encoder"):
        files = [load_encoder(tmp_path / run / f"{name}.safetensors").state_dict() for run in ("whole", "parts")]
        assert same(*(dict(file) for file in files)), name


def test_runs_of_other_seeds_differ(train, tmp_path):
    states = [
        torch.load(train("psp", tmp_path / f"{seed}", "--seed", str(seed), "--steps", "2") / "state.pt")
        for seed in (0, 1)
    ]
    assert not same(states[0]["networks"], states[1]["networks"])


def test_nothing_is_overwritten_or_resumed_by_mistake(train, tmp_path):
    train("psp", tmp_path / "run", "--steps", "1")
    with pytest.raises(UsageError, match="already holds a training run; --resume continues it"):
        train("psp", tmp_path / "run")
    with pytest.raises(UsageError, match="nothing to resume"):
        train("psp", tmp_path / "other", "--resume")
    with pytest.raises(UsageError, match="damaged or does not fit these options"):
        train("psp", tmp_path / "run", "--resume", "--channels", "4,4,8")
    with pytest.raises(UsageError, match="it has other averages: encoder"):
        train("psp", tmp_path / "run", "--resume", "--average", "0")
    (tmp_path / "run" / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="damaged"):
        train("psp", tmp_path / "run", "--resume")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to"):
        train("psp", tmp_path / "file" / "run")


def test_minutes_end_a_run_with_a_checkpoint(train, tmp_path):
    out = train("psp", tmp_path / "run", "--minutes", "1e-9")
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 1
    train("psp", out, "--resume")
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 8


def test_numbers_that_are_not_finite_end_a_run(train, tmp_path, monkeypatch):
    original = psp.PSPTraining.iterate

    def broken(self, images, step):
        values = original(self, images, step)
        return values | ({"loss": torch.tensor(math.nan)} if step == 5 else {})

    monkeypatch.setattr(psp.PSPTraining, "iterate", broken)
    with pytest.raises(FastinvError, match=r"loss became nan at step 6; lower the learning rate and run again with"):
        train("psp", tmp_path / "run", "--checkpoint-steps", "4")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 4


def test_the_best_checkpoint_stays_when_validation_gets_worse(train, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(psp.PSPTraining, "measure", lambda self, images: {"loss": torch.full((6,), next(losses))})
    out = train("psp", tmp_path / "run", "--validate-every", "3")
    assert [float(row["loss"]) for row in rows(out / "validation.csv")] == [3, 1, 2]
    with safe_open(out / "best_encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()["fastinv"])["training"]["step"] == 6


@pytest.mark.parametrize("kind", ["psp", "e4e", "idinvert", "restyle"])
def test_an_encoder_learns(kind, trainable):
    """On the same few pictures again and again, reconstructions come nearer."""
    options = ["--lr", "3e-3", "--synthetic", "0", "--synthetic-only", "0", "--perceptual", "0"]
    if kind in ("psp", "e4e", "restyle"):
        options += ["--w-norm", "0", "--optimizer", "adam", "--channels", "8,8,16", "--head-channels", "16"]
    learner = trainable(kind, *options, "--steps", "60", "--identity", "0")
    images = FaceBatches(16, 4).heldout(4)
    loss = []
    for step in range(60):
        learner.begin_step(step)
        loss.append(float(learner.iterate(images, step)["pixel"].detach()))
        learner.end_step()
    assert loss[-1] < 0.6 * loss[0]


@pytest.mark.slow
def test_alae_learns_that_codes_are_those_of_pictures(trainable):
    learner = trainable("alae", "--channels", "32,32,16", "--encoder-channels", "16,32,32,32", "--batch", "8")
    stream = FaceBatches(16, 8).stream(0)
    values = []
    for step in range(150):
        learner.begin_step(step)
        values.append(float(learner.iterate(next(stream), step)["reciprocity"].detach()))
        learner.end_step()
    assert sum(values[-20:]) < 0.5 * sum(values[:20])


def test_alae_grows_from_a_run_at_half_the_resolution(train, trainable, tmp_path):
    half = train("alae", tmp_path / "half")
    state = torch.load(half / "state.pt", weights_only=True)["networks"]
    twice = ["--resolution", "32", "--channels", "8,8,8,6", "--encoder-channels", "3,4,4,4,4"]
    learner = trainable("alae", *twice, "--grow", str(half))
    small = ALAEEncoder(16, 6, 8, (4, 4, 4, 4))
    small.load_state_dict(state["encoder"])
    images = faces.render(faces.sample_attributes(2), resolution=16)
    # What the finest level would hand on goes the way of the small encoder's picture, to the same code.
    torch.testing.assert_close(learner.E(images, level=1)[:, :6], small(images), rtol=1e-5, atol=1e-5)
    for name, value in state["generator"].items():
        if ".torgb." not in name:
            assert torch.equal(learner.G.state_dict()[name], value), name
    for name, value in state["latent_discriminator"].items():
        assert torch.equal(learner.D.state_dict()[name], value), name
    # With nothing of the new layers, what is made and seen is what the small networks make and see.
    learner.fade = 0.0
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(learner._encode(large)[:, :6], small(images), rtol=1e-4, atol=1e-5)
    G = StyleGAN1Generator(16, 8, 8, {4: 8, 8: 8, 16: 8}, 2, mapping_lr_multiplier=0.1)
    G.load_state_dict(state["generator"])
    w_plus = torch.randn(2, 8, 8)
    made = learner._synthesise(w_plus, final=True)
    expected = G.synthesis(w_plus[:, :6]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    for name, average in learner.averages.items():  # they begin where the networks do
        for tensor, value in learner.networks[name].state_dict().items():
            assert torch.equal(average.module.state_dict()[tensor], value)
    out = train("alae", tmp_path / "run", *twice, "--grow", str(half), "--fade", "4")
    assert load_generator(out / "generator.safetensors").resolution == 32
    assert {int(row["step"]) for row in rows(out / "log.csv")} == {2, 4, 6, 8}
    larger = ["--resolution", "64", "--channels", "8,8,8,6,6", "--encoder-channels", "3,3,4,4,4,4"]
    wrong = ["--channels", "8,8,6,6"], ["--grow", str(tmp_path / "nowhere")], larger
    for options in wrong:
        with pytest.raises(UsageError, match="--grow: .* holds no networks to grow these from"):
            trainable("alae", *twice, "--grow", str(half), *options)


def test_alae_begins_with_a_generator_and_lets_the_encoder_learn_first(train, trainable, generator_file, tmp_path):
    half = tmp_path / "half.safetensors"
    save_network(load_generator(generator_file), half, torch.float16)
    G, options = load_generator(half), ["--generator", str(half), "--encoder-first", "3"]
    learner = trainable("alae", *options, "--resolution", "64", "--channels", "1,2", "--z-dim", "3", "--w-dim", "4")
    assert learner.resolution == G.resolution == 16 and type(learner.G) is type(G)  # its own sizes
    assert torch.equal(learner.E.latent_avg, G.w_avg.expand(G.num_ws, -1))
    images = learner.open_batches().heldout(4)

    def step(number):
        """(names of the numbers of a step, networks that it changed)"""
        before = {name: copy.deepcopy(network.state_dict()) for name, network in learner.networks.items()}
        learner.begin_step(number)
        values = learner.iterate(images, number)
        return set(values), {
            name for name, state in before.items() if not same(state, learner.networks[name].state_dict())
        }

    assert step(2) == ({"reciprocity"}, {"encoder"})
    assert same(learner.G.state_dict(), G.state_dict())
    assert step(3) == ({"d_loss", "real", "fake", "g_loss", "reciprocity"}, set(learner.networks))

    # While the generator rests it stays the one that it was: the encoder is of use with that.
    rested = train("alae", tmp_path / "rested", *options, "--encoder-first", "8")
    with safe_open(rested / "encoder.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["fastinv"])["training"]
    assert facts["generator_sha256"] == network_hash(G)
    log = rows(rested / "log.csv")
    assert len(log) == 4 and not any(row["d_loss"] or row["g_loss"] for row in log)
    out = train("alae", tmp_path / "run", *options)
    tuned = load_generator(out / "generator.safetensors")
    assert tuned.config == G.config and not same(tuned.state_dict(), G.state_dict())
    # The encoder of one run is where another begins, in which the generator may learn more slowly.
    options = ["--generator", str(half), "--start", str(rested / "encoder.safetensors"), "--generator-rate", "0.25"]
    learner = trainable("alae", *options, "--lr", "0.004", "--decay", "0")
    for name, value in load_encoder(rested / "encoder.safetensors").state_dict().items():
        assert torch.equal(learner.E.state_dict()[name], value), name
    learner.begin_step(0)
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in learner.optimizers.items()}
    assert rates == {"generator": 0.001, "encoder": 0.004, "latent_discriminator": 0.004}
    with pytest.raises(UsageError, match="--generator and --grow are two ways to begin; give one"):
        train("alae", tmp_path / "both", *options, "--grow", str(out))


@pytest.mark.parametrize("kind", ["psp", "idinvert", "alae"])
def test_conditional_generators_are_refused(kind, trainable, tmp_path):
    G = Generator(16, 8, 8, c_dim=3, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2)
    save_network(G, tmp_path / "conditional.safetensors")
    with pytest.raises(UsageError, match="is conditional; encoders can be trained for unconditional generators"):
        trainable(kind, "--generator", str(tmp_path / "conditional.safetensors"))


# Steps ----------------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_psp_step_is_the_papers(trainable):
    learner = trainable("psp", "--synthetic-only", "0", "--w-norm", "0.05", "--identity", "0.3", "--perceptual", "0.2")
    images = FaceBatches(16, 4).heldout(4)
    torch.manual_seed(3)
    generated, codes = learner.generated(2)
    torch.manual_seed(3)
    learner.begin_step(0)
    with torch.no_grad():  # in train mode, with the batch statistics of all six pictures
        w_plus = learner.encoder.encode(torch.cat([images, generated])).double()
    values = {name: value.item() for name, value in learner.iterate(images, 0).items()}
    G, network = learner.G.double(), load_attribute_network(dtype=torch.float64)
    made, wanted = G.synthesis(w_plus[:4]), images.double()
    expected = {"pixel": (made - wanted).square().mean().item()}
    maps = zip(network.features(made), network.features(wanted), strict=True)
    expected["perceptual"] = sum((a - b).square().mean().item() for a, b in maps)
    a, b = network.embedding(made), network.embedding(wanted)
    expected["identity"] = (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean().item()
    expected["w_norm"] = (w_plus[:4] - mean_latent(G)).flatten(1).norm(dim=1).mean().item()
    expected["synthetic"] = (w_plus[4:] - codes).square().mean().item()
    weights = {"pixel": 1, "perceptual": 0.2, "identity": 0.3, "w_norm": 0.05, "synthetic": 1}
    expected["loss"] = sum(weight * expected[name] for name, weight in weights.items())
    assert values == pytest.approx(expected, rel=1e-3)


def test_codes_of_generated_pictures_alone_need_no_gradient_of_the_generator(trainable, monkeypatch):
    learner = trainable("psp", "--synthetic-only", "2")
    monkeypatch.setattr(learner, "losses", None)
    learner.begin_step(0)
    assert set(learner.iterate(FaceBatches(16, 4).heldout(4), 0)) == {"loss", "synthetic"}


def test_restyle_adds_the_gradients_of_its_passes(trainable, monkeypatch):
    learner = trainable("restyle", "--synthetic", "0", "--crop-pixel", "0", "--perceptual", "0", "--identity", "0")
    images = FaceBatches(16, 4).heldout(4)
    learner.begin_step(0)
    monkeypatch.setattr(learner, "step_optimizer", lambda name: None)
    learner.iterate(images, 0)
    found = [p.grad.clone() for p in learner.encoder.parameters()]
    learner.encoder.zero_grad()
    w_plus, total = mean_latent(learner.G).expand(4, learner.G.num_ws, -1), 0
    for _ in range(2):
        made = learner.G.synthesis(w_plus.detach())
        w_plus = w_plus.detach() + learner.encoder(torch.cat([images, made], 1))
        total = total + (learner.G.synthesis(w_plus) - images).square().mean()
    total.backward()
    for p, gradient in zip(learner.encoder.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-3, atol=1e-5 * p.grad.abs().max().item() + 1e-7)


def test_the_stages_of_e4e_are_the_papers(trainable):
    learner = trainable("e4e", "--progressive-start", "20000", "--progressive-every", "2000")
    learner.G.num_ws = 18
    steps = {0: 0, 19_999: 0, 20_000: 1, 21_999: 1, 22_000: 2, 51_999: 16, 52_000: 17, 10**6: 17}
    assert {step: learner.stage(step) for step in steps} == steps


def test_heads_of_e4e_that_have_not_learned_give_no_offset(trainable):
    learner = trainable("e4e", "--progressive-start", "3")
    images = FaceBatches(16, 4).heldout(4)
    for step in range(5):  # stage 1 from step 3 on
        learner.begin_step(step)
        learner.iterate(images, step)
        w_plus = learner.code(images).detach()
        assert (w_plus[:, 2:] == w_plus[:, :1]).all()
        assert (w_plus[:, 1] == w_plus[:, 0]).all() == (step < 3)


def test_training_starts_from_the_weights_of_another_encoder(trainable, tmp_path, capsys):
    first, images = trainable("psp", "--seed", "1"), FaceBatches(16, 4).heldout(4)
    first.save(tmp_path, "", {})
    start = ("--start", str(tmp_path / "encoder.safetensors"))
    codes = trainable("psp", *start).code(images)
    assert torch.allclose(codes, first.code(images), atol=0.02)  # the file is in half precision
    assert not torch.allclose(codes, trainable("psp").code(images), atol=0.1)

    later = trainable("e4e", *start)
    codes = later.code(images)
    assert torch.allclose(codes[:, 0], first.code(images)[:, 0], atol=0.02)
    assert (codes == codes[:, :1]).all()  # what were styles in pSp would be offsets here
    with torch.no_grad():
        later.encoder.styles[1].linear.bias.fill_(0.5)
    later.save(tmp_path, "", {})
    assert torch.allclose(trainable("e4e", *start).code(images), later.code(images), atol=0.02)  # e4e's own stay

    count = len(later.encoder.state_dict()) - 1
    assert capsys.readouterr().out.count(f"{count} of {count} tensors from ") == 3
    trainable("idinvert").save(tmp_path, "", {})
    with pytest.raises(UsageError, match="has no weights of the names and shapes"):
        trainable("psp", *start)


def test_the_code_terms_of_e4e_look_at_the_active_styles(trainable):
    learner = trainable("e4e", "--delta", "0.5", "--adversarial", "0.25")
    w_plus = torch.randn(5, learner.G.num_ws, 8, dtype=torch.float32)
    loss, values = learner.code_losses(w_plus, step=5)  # stage 2
    assert values["stage"] == 2
    delta = sum((w_plus[:, i] - w_plus[:, 0]).double().norm(dim=1).mean() for i in (1, 2))
    weights = [(layer.weight.double(), layer.bias.double()) for layer in learner.D.layers if hasattr(layer, "weight")]
    x = w_plus[:, :3].double()
    for index, (weight, bias) in enumerate(weights):
        x = x @ weight.T + bias
        x = torch.where(x > 0, x, 0.2 * x) if index < 3 else x
    adversarial = (1 + (-x).exp()).log().mean()
    assert len(weights) == 4
    assert values["delta"].item() == pytest.approx(delta.item(), rel=1e-5)
    assert values["adversarial"].item() == pytest.approx(adversarial.item(), rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * delta.item() + 0.25 * adversarial.item(), rel=1e-5)
    assert all(p.requires_grad and p.grad is None for p in learner.D.parameters())


def test_offsets_of_zero_have_a_finite_gradient(trainable):
    learner = trainable("e4e", "--delta", "1")
    w_plus = torch.ones(2, learner.G.num_ws, 8, requires_grad=True)
    learner.code_losses(w_plus, step=7)[0].backward()
    assert w_plus.grad.isfinite().all()
    code = torch.ones(2, 3, 4, requires_grad=True)
    code_norm(code, torch.ones(3, 4)).sum().backward()
    assert code.grad.isfinite().all()


def test_only_the_network_of_the_step_changes(trainable):
    for kind, frozen in (("e4e", "G"), ("idinvert", "G"), ("psp", "G")):
        learner = trainable(kind, "--synthetic-only", "0")
        before = [p.clone() for p in getattr(learner, frozen).parameters()]
        learner.begin_step(0)
        learner.iterate(FaceBatches(16, 4).heldout(4), 0)
        assert all(torch.equal(a, b) for a, b in zip(before, getattr(learner, frozen).parameters(), strict=True))
        for network in learner.networks.values():
            assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_a_bundled_generator_comes_with_its_discriminator(tmp_path):
    options = idinvert.parser().parse_args(["--data", "faces", "--out", str(tmp_path), "--device", "cpu"])
    learner = idinvert.IDInvertTraining(options, loop.open_accelerator(options))
    expected = load_discriminator("faces64").state_dict()
    assert same(dict(learner.D.state_dict()), dict(expected))
    size = sum(p.numel() for p in learner.encoder.parameters())
    assert 2 * size < 6e6  # bytes of its file


def test_the_default_encoders_of_the_default_generator_are_small(tmp_path):
    for module, kind in ((psp, psp.PSPTraining), (e4e, e4e.E4ETraining)):
        options = module.parser().parse_args(["--data", "faces", "--out", str(tmp_path), "--device", "cpu"])
        learner = kind(options, loop.open_accelerator(options))
        assert 2 * sum(p.numel() for p in learner.encoder.parameters()) < 6e6


def test_encoders_are_trained_for_a_first_stylegan_too(tmp_path):
    torch.manual_seed(0)
    save_network(StyleGAN1Generator(16, 8, 8, {4: 8, 8: 8, 16: 8}, 2), tmp_path / "g.safetensors")
    arguments = [*RUN, "--generator", str(tmp_path / "g.safetensors"), "--steps", "2"]
    for kind in ("psp", "idinvert"):
        out = MODULES[kind].main([*arguments, *TINY[kind], "--out", str(tmp_path / kind)])
        assert load_encoder(out / "encoder.safetensors").num_ws == 6


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (4, 3), (4, 3, 2, 2)])
def test_ranger_follows_its_papers(shape):
    """RAdam (algorithm 2), Lookahead (algorithm 1) and gradient centralisation, written down again in float64."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape, dtype=torch.float64), torch.randn(15, *shape, dtype=torch.float64)
    p = torch.nn.Parameter(start.clone())
    optimizer = Ranger([p], lr=0.1, eps=1e-5)
    fast = slow = start
    m = v = torch.zeros_like(start)
    for t, gradient in enumerate(gradients, 1):
        p.grad = gradient.clone()
        optimizer.step()
        if gradient.ndim > 1:
            gradient = gradient - gradient.flatten(1).mean(1).view(-1, *[1] * (gradient.ndim - 1))
        m, v = 0.95 * m + 0.05 * gradient, 0.999 * v + 0.001 * gradient**2
        longest = 2 / (1 - 0.999) - 1
        length = longest - 2 * t * 0.999**t / (1 - 0.999**t)
        step = m / (1 - 0.95**t)
        if length > 5:
            rectification = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            step = step * rectification**0.5 * (1 - 0.999**t) ** 0.5 / (v.sqrt() + 1e-5)
        fast = fast - 0.1 * step
        if t % 6 == 0:
            slow = slow + 0.5 * (fast - slow)
            fast = slow
        torch.testing.assert_close(p.detach(), fast, rtol=1e-9, atol=1e-12)


def test_ranger_continues_from_its_state():
    torch.manual_seed(0)
    gradients = torch.randn(12, 3, 2)
    whole, part = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3, 2))
    optimizer, first = Ranger([whole], 0.1), Ranger([part], 0.1)
    for t, gradient in enumerate(gradients):
        if t == 4:
            state, first = first.state_dict(), Ranger([part], 0.1)
            first.load_state_dict(state)
        whole.grad, part.grad = gradient.clone(), gradient.clone()
        optimizer.step(), first.step()
    assert torch.equal(whole, part)
    for bad in ({"alpha": 0}, {"period": 0}, {"period": 2.5}):
        with pytest.raises(ValueError, match="alpha must be in"):
            Ranger([whole], **bad)


def test_learning_rates():
    factors = [loop.learning_rate_factor(step, 100, 4, 0.5) for step in range(101)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1, 1] and factors[50] == 1
    assert factors[75] == pytest.approx(0.505) and factors[100] == pytest.approx(0.01)
    assert loop.learning_rate_factor(10**6, 100, 0, 0) == 1


def test_the_learning_rate_of_idinvert_falls_by_a_fifth_each_quarter(trainable):
    learner = trainable("idinvert", "--steps", "400", "--warm-up", "0")
    rates = []
    for step in (0, 50, 100, 400):
        learner.begin_step(step)
        rates.append(learner.optimizers["encoder"].param_groups[0]["lr"] / 1e-3)
    assert rates == pytest.approx([1, 0.8**0.5, 0.8, 0.8**4])


def test_the_pool_gives_each_code_out_once_or_keeps_it():
    torch.manual_seed(0)
    pool = CodePool(5)
    first = torch.arange(5.0)[:, None]
    assert torch.equal(pool.exchange(first), first)  # until it is full
    given, news, older = [], torch.arange(5.0, 2005.0)[:, None], 0
    for part in news.split(4):
        out = pool.exchange(part)
        older += int((out != part).sum())
        given += out.flatten().tolist()
    assert sorted(given + pool.codes.flatten().tolist()) == [float(i) for i in [*range(5), *range(5, 2005)]]
    assert 900 < older < 1100  # half of them
    assert torch.equal(CodePool(0).exchange(first), first)


def test_gradient_penalty_and_logistic_loss():
    torch.manual_seed(0)
    D = LinearDiscriminator(6).double()
    a, b, c = (layer.weight.detach() * 0.1 / 6**0.5 for layer in D.layers)
    direction = c @ b @ a
    assert r1_penalty(D, torch.randn(3, 6, dtype=torch.float64)).item() == pytest.approx(
        direction.square().sum().item()
    )
    x = torch.randn(4, 6, dtype=torch.float64)
    assert r1_penalty(lambda x: x.square().sum(1), x).item() == pytest.approx((4 * x**2).sum(1).mean().item())
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.5])
    expected = (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(2))) / 2 + math.log(1 + math.exp(1.5))
    assert logistic(real, fake).item() == pytest.approx(expected, rel=1e-6)


def test_crops_are_the_face():
    losses = PictureLosses({"crop_pixel": 2.0})
    images, targets = torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64)
    images[0, :, :9], images[1, :, 9, 8] = 1.0, 1.0  # rows 35 to 223, columns 32 to 220 of 256
    values = losses(images, targets)
    assert values["crop_pixel"].tolist() == [0, pytest.approx(1 / 47**2)]
    assert losses.total(values)[1].item() == pytest.approx(2 / 47**2)
    with pytest.raises(KeyError):
        PictureLosses({"colour": 1.0})


def test_features_in_bfloat16_at_every_size():
    for size in (16, 64, 96):
        images = faces.render(faces.sample_attributes(2), resolution=size)
        weights = {"perceptual": 1.0, "identity": 1.0, "crop_perceptual": 1.0}
        exact = PictureLosses(weights)(images, images.flip(0))
        short = PictureLosses(weights, dtype=torch.bfloat16)(images, images.flip(0))
        for name, value in exact.items():
            torch.testing.assert_close(short[name], value, rtol=0.03, atol=0.01)


# Data -----------------------------------------------------------------------------------------------------------------


def take(stream, count):
    return [next(stream) for _ in range(count)]


def test_faces_depend_on_seed_and_step_alone():
    batches = FaceBatches(8, 4, seed=3)
    whole = take(batches.stream(0), 4)
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], take(batches.stream(2), 2), strict=True))
    halves = [take(batches.stream(1, process, 2), 1)[0] for process in (0, 1)]
    assert torch.equal(torch.cat(halves), whole[1])
    assert not torch.equal(whole[0], take(FaceBatches(8, 4, seed=4).stream(0), 1)[0])
    with pytest.raises(UsageError, match="--batch 4 cannot be shared by 3 processes"):
        next(batches.stream(0, 0, 3))


@pytest.fixture
def folder(tmp_path):
    """41 readable pictures of different sizes, red = their number, and three that are not."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    for i in range(41):
        where = path / ("more" if i % 2 else ".") / f"{i}.png"
        Image.new("RGB", (10 + i, 40 - i // 2), (i, 0, 255)).save(where)
    (path / "broken.png").write_bytes(b"not a picture")
    (path / "empty.jpg").touch()
    whole = (path / "40.png").read_bytes()
    (path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (path / "notes.txt").write_text("none at all")
    return path


def numbers(images):
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_a_folder_comes_in_random_order_each_picture_once_a_pass(folder, capsys):
    batches = FolderBatches(folder, 8, 5, seed=1)
    heldout = numbers(batches.heldout(10))
    assert 1 <= len(heldout) <= 3  # a twentieth of 44, less the unreadable
    training = set(range(41)) - set(heldout)
    seen = [n for images in take(batches.stream(0), 40) for n in numbers(images)]
    assert set(seen) == training
    assert [numbers(images) for images in take(batches.stream(17), 3)] == [seen[85 + 5 * i :][:5] for i in range(3)]
    assert seen[: len(training)] != sorted(seen[: len(training)])
    # Bad files are named once each, whatever happens.
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("left out: ") for line in lines)
    assert all(any(name in line for line in lines) for name in ("broken.png", "empty.jpg", "cut.png"))
    other = [n for images in take(FolderBatches(folder, 8, 5, seed=2).stream(0), 8) for n in numbers(images)]
    assert other != seen[:40]


def test_processes_share_the_batches_of_a_folder_and_workers_read_the_same(folder):
    whole = take(FolderBatches(folder, 8, 6).stream(0), 3)
    parts = [take(FolderBatches(folder, 8, 6).stream(0, process, 2), 3) for process in (0, 1)]
    assert all(torch.equal(torch.cat(pair), one) for *pair, one in zip(*parts, whole, strict=True))
    workers = take(FolderBatches(folder, 8, 6, workers=1).stream(0), 3)
    assert all(torch.equal(a, b) for a, b in zip(workers, whole, strict=True))


def test_mirrored_pictures(tmp_path):
    picture = Image.new("RGB", (8, 8), (255, 0, 0))
    picture.paste((0, 0, 0), (4, 0, 8, 8))
    picture.save(tmp_path / "a.png")
    left = [n for images in take(FolderBatches(tmp_path, 8, 8, mirror=True).stream(0), 8) for n in numbers(images)]
    assert 16 < left.count(255) < 48 and left.count(0) == 64 - left.count(255)
    assert numbers(next(FolderBatches(tmp_path, 8, 8).stream(0))) == [255] * 8
    assert numbers(FolderBatches(tmp_path, 8, 8).heldout(4)) == [255]  # the only one there is


def test_training_on_a_folder_with_bad_files(folder, train, tmp_path, capsys):
    out = train("psp", tmp_path / "run", "--data", str(folder), "--synthetic-only", "0", "--mirror")
    assert load_encoder(out / "encoder.safetensors").num_ws == 6
    assert capsys.readouterr().err.count("broken.png") <= 1


@pytest.mark.parametrize("content, message", [(None, "not a folder"), ("", "no pictures in"), ("bad", "can be read")])
def test_folders_without_pictures(content, message, train, tmp_path):
    if content is not None:
        (tmp_path / "data").mkdir()
    if content == "bad":
        (tmp_path / "data" / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        train("psp", tmp_path / "run", "--data", str(tmp_path / "data"))
    assert not (tmp_path / "run").exists()


# Several processes ----------------------------------------------------------------------------------------------------

GRADIENTS = """
import json, sys, torch
from fastinv.training import e4e, idinvert, loop, psp
from fastinv.training.batches import FaceBatches
path, runs = sys.argv[1], json.loads(sys.argv[2])
trainers = {
    "psp": (psp, psp.PSPTraining), "e4e": (e4e, e4e.E4ETraining), "idinvert": (idinvert, idinvert.IDInvertTraining)
}
found = {}
for kind, arguments in runs.items():
    module, cls = trainers[kind]
    options = module.parser().parse_args(arguments)
    torch.manual_seed(0)
    learner = cls(options, loop.open_accelerator(options))
    accelerator = learner.accelerator

    def record(*names):
        for name in names:
            network = learner.networks[name]
            loop.average_gradients(network, accelerator)
            gradients = {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}
            found.update({f"{kind}.{name}.{k}": gradient for k, gradient in gradients.items()})
            learner.optimizers[name].zero_grad()

    learner.step_optimizer = record
    images = next(FaceBatches(16, 4).stream(0, accelerator.process_index, accelerator.num_processes))
    torch.manual_seed(1)
    learner.begin_step(0)
    learner.iterate(images, 0)
    found.update({f"{kind}.buffer.{k}": b.float() for k, b in learner.encoder.named_buffers()})
if accelerator.is_main_process:
    torch.save((accelerator.num_processes, found), path)
"""


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(generator_file, tmp_path):
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    # The D of IDInvert sees groups of the batch by design (minibatch standard deviation); a pool is each process's own.
    special = {
        "psp": ["--synthetic-only", "0"],
        "e4e": ["--pool", "0", "--progressive-start", "0"],
        "idinvert": ["--adversarial", "0"],
    }
    common = [*RUN, "--generator", str(generator_file), "--out", str(tmp_path), "--dtype", "float32"]
    runs = json.dumps({kind: [*common, *TINY[kind], *options] for kind, options in special.items()})
    found = {}
    for processes in (1, 2):
        path = tmp_path / f"{processes}.pt"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes > 1 else []
        command = [sys.executable, *launch, str(script), str(path), runs]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
        assert result.returncode == 0, result.stderr[-3000:]
        count, found[processes] = torch.load(path)
        assert count == processes
    assert found[1].keys() == found[2].keys()
    for name, value in found[1].items():
        if ".wscale" in name:  # a bias before a batch norm: its gradient is zero, and here rounding errors
            assert value.abs().max() < 1e-4 and found[2][name].abs().max() < 1e-4
        else:
            assert (found[2][name] - value).abs().max() <= 1e-4 * value.abs().max(), name


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("psp", ["--steps", "0"], "--steps must be at least 1"),
        ("psp", ["--lr", "nan"], "--lr must be above 0"),
        ("psp", ["--batch", "many"], "invalid int value: 'many'; `fastinv train psp --help` lists"),
        ("psp", ["--nonsense"], "unrecognized arguments: --nonsense"),
        ("psp", ["--decay", "2"], "--decay must be at least 0 and at most 1"),
        ("psp", ["--seed", "-1"], "--seed must be at least 0"),
        ("psp", ["--checkpoint", "0"], "--checkpoint must be above 0"),
        ("psp", ["--pixel", "-1"], "--pixel must be at least 0"),
        ("psp", ["--pixel", "0", "--perceptual", "0", "--identity", "0"], "give at least one of"),
        ("psp", ["--synthetic", "0"], "--synthetic-only needs --synthetic above 0"),
        ("psp", ["--units", "1,x,1"], "--units must be whole numbers"),
        ("psp", ["--units", "1,1"], "units and channels must be positive, one each per stage"),
        ("psp", ["--restyle", "-1"], "--restyle must be at least 0"),
        ("psp", ["--dtype", "int8"], "invalid choice: 'int8'"),
        ("psp", ["--device", "toaster"], "invalid choice: 'toaster'"),
        ("psp", ["--input-resolution", "20"], "resolution must be a power of two"),
        ("e4e", ["--progressive-every", "0"], "--progressive-every must be at least 1"),
        ("e4e", ["--d-lr", "0"], "--d-lr must be above 0"),
        ("e4e", ["--pool", "-1"], "--pool must be at least 0"),
        ("idinvert", ["--batch", "1"], "--batch must be at least 2"),
        ("idinvert", ["--channels", "4"], "channels must be 3 positive counts"),
        ("idinvert", ["--discriminator", "faces64"], "it is for 64 pixels, not 16"),
        ("alae", ["--resolution", "20"], "resolution must be a power of two"),
        ("alae", ["--style-mixing", "2"], "--style-mixing must be at least 0 and at most 1"),
    ],
)
def test_bad_options(kind, arguments, message, train, tmp_path):
    with pytest.raises(UsageError, match=message) as info:
        train(kind, tmp_path / "run", *arguments)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", TRAINERS)
def test_the_command_line_hands_arguments_on(name, monkeypatch):
    seen = []
    monkeypatch.setattr(f"fastinv.training.{name}.main", seen.append)
    assert command_line(["train", name, "--data", "faces", "--out", "a", "--units", "1,2"]) == 0
    assert seen == [["--data", "faces", "--out", "a", "--units", "1,2"]]


@pytest.mark.parametrize("name", ["psp", "e4e", "idinvert", "alae"])
def test_help_lists_the_options(name, capsys):
    with pytest.raises(SystemExit) as info:
        MODULES[name].main(["--help"])
    assert info.value.code == 0
    text = capsys.readouterr().out
    assert f"fastinv train {name}" in text and "--validate-every N" in text and "(default: " in text


def test_without_accelerate_the_error_says_what_to_install(run_python):
    code = "import sys; sys.modules['accelerate'] = None; from fastinv.cli import main; "
    result = run_python(code + "sys.exit(main(['train', 'psp']))")
    assert result.returncode == 2 and "pip install 'fastinv[train]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# Sizes of encoders ----------------------------------------------------------------------------------------------------


def test_heads_of_another_width_keep_names_and_are_kept_in_files(tmp_path):
    E = GradualStyleEncoder(6, 8, input_resolution=16, units=(1, 1, 1), channels=(4, 4, 6), head_channels=5)
    plain = GradualStyleEncoder(6, 8, input_resolution=16, units=(1, 1, 1), channels=(4, 4, 6))
    assert E.state_dict().keys() == plain.state_dict().keys()
    assert E.styles[0].linear.weight.shape == (8, 5) and plain.styles[0].linear.weight.shape == (8, 8)
    assert plain.config["head_channels"] is None
    save_network(E.eval(), tmp_path / "e.safetensors")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_encoder(tmp_path / "e.safetensors").encode(images), E.encode(images))
    for cls in (Encoder4Editing, ReStyleE4E):
        options = {"input_resolution": 16, "units": (1, 1, 1), "channels": (4, 4, 6)}
        assert cls(6, 8, head_channels=3, **options).styles[1].linear.weight.shape == (8, 3)
    for bad in (0, -1, 2.5):
        with pytest.raises(UsageError, match="head_channels must be a positive integer or None"):
            GradualStyleEncoder(6, 8, head_channels=bad)
