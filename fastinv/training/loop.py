"""The loop that trains encoders: files, logs, validation and continuation; what is learned is a ``Trainable``'s affair.

Built on Hugging Face Accelerate, so that ``accelerate launch`` gives several GPUs and machines without other code.
"""

import csv
import math
import pickle
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastinv.checkpoints import load_generator
from fastinv.data.grid import grid
from fastinv.data.pictures import save_picture
from fastinv.errors import FastinvError, UsageError
from fastinv.files import atomic_file, check_writable, shown
from fastinv.models.arena import trim
from fastinv.training.batches import SEED_STRIDE, open_batches
from fastinv.training.distributed import average_gradients, synchronise_batch_norm

try:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import broadcast_object_list, is_tensorboard_available
except ImportError as error:
    raise UsageError("encoders are trained with Hugging Face Accelerate: pip install 'fastinv[train]'") from error

LOG, VALIDATION_LOG, STATE = "log.csv", "validation.csv", "state.pt"
VALIDATION_BATCH = 32
SAMPLES = 16  # pictures in a sample grid
COLUMNS = 8


def open_accelerator(options) -> Accelerator:
    """The Accelerator of ``--device``, ``--dtype`` and ``--out``; it logs to TensorBoard where that is installed."""
    if not torch.distributed.is_initialized():
        # Accelerate keeps device and precision for the whole process; an earlier run's need not be this one's.
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=options.device == "cpu",
        mixed_precision="bf16" if options.dtype == "bfloat16" else "no",
        log_with="tensorboard" if is_tensorboard_available() else None,
        project_dir=options.out,
    )


class Trainable:
    """Networks, how one step changes them, and what is measured; a subclass for each kind of encoder.

    A subclass's ``__init__`` sets up its networks with ``add``; ``iterate``, ``reconstruct``, ``measure`` and ``save``
    are its own.

    Attributes:
        measures: names of the numbers that ``iterate`` returns, columns of the log; a step may leave some out.
        resolution: of the pictures that it wants.
        networks: {name: network} that are trained, each with an optimiser of the same name in ``optimizers``.
        averages: {name: moving average of a network}, see ``torch.optim.swa_utils``.
    """

    measures: tuple[str, ...] = ()
    resolution: int

    def __init__(self, options, accelerator: Accelerator):
        self.options, self.accelerator = options, accelerator
        self.device = accelerator.device
        self.dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
        self.networks: dict[str, torch.nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.averages: dict[str, AveragedModel] = {}
        self._rates: dict[str, float] = {}

    def add(
        self, name: str, network: torch.nn.Module, optimizer: Callable, average: float = 0.0, mixed: bool = True
    ) -> torch.nn.Module:
        """Train a network.

        Args:
            name: in the files.
            network: on any device; the one that is returned is on the accelerator's.
            optimizer: called with the parameters.
            average: half life in steps of a moving average of the weights; 0 for none.
            mixed: forward passes are in the accelerator's precision (the results are float32); False is float32.
        """
        network = network.train().requires_grad_(True).to(self.device, memory_format=torch.channels_last)
        if average > 0:
            keep = get_ema_multi_avg_fn(0.5 ** (1 / average))
            self.averages[name] = AveragedModel(network, multi_avg_fn=keep).eval().requires_grad_(False)
        if self.accelerator.num_processes > 1:
            synchronise_batch_norm(network)
        if mixed:  # evaluation_mode: mixed precision only; gradients are averaged by `step_optimizer`
            network = self.accelerator.prepare_model(network, evaluation_mode=True)
        self.networks[name] = network
        self.optimizers[name] = optimizer(network.parameters())
        self._rates[name] = self.optimizers[name].param_groups[0]["lr"]
        return network

    def read_generator(self):
        """The generator that ``--generator`` names; UsageError for a conditional one."""
        G = load_generator(self.options.generator, device=self.device)
        if G.c_dim:
            raise UsageError(
                f"{self.options.generator} is conditional; encoders can be trained for unconditional generators"
            )
        return G

    def take_over(self, encoder: torch.nn.Module, other: torch.nn.Module) -> None:
        """Give ``encoder`` the weights of another one, ``--start``, as far as names and shapes are the same."""
        weights, mine = other.state_dict(), encoder.state_dict()
        fitting = {
            name: value for name, value in weights.items()
            if name != "latent_avg" and name in mine and mine[name].shape == value.shape
        }  # fmt: skip
        if not any(value.is_floating_point() for value in fitting.values()):
            raise UsageError(f"--start {shown(self.options.start)} has no weights of the names and shapes needed here")
        encoder.load_state_dict(fitting, strict=False)
        if self.accelerator.is_main_process:
            print(f"{len(fitting)} of {len(mine) - 1} tensors from {shown(self.options.start)}", flush=True)

    def final(self, name: str) -> torch.nn.Module:
        """The network as it is to be used: its average where there is one, in eval mode (the average always is)."""
        return self.averages[name].module if name in self.averages else self.networks[name].eval()

    def step_optimizer(self, *names: str) -> None:
        """One optimiser step of networks whose gradients are there."""
        for name in names:
            average_gradients(self.networks[name], self.accelerator)
        for name in names:
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)

    def learning_rate_factor(self, step: int) -> float:
        """What the optimisers' learning rates are multiplied by: warm-up, then constant, then ``--decay``."""
        return learning_rate_factor(step, self.options.steps, self.options.warm_up, self.options.decay)

    def begin_step(self, step: int) -> None:
        """Learning rates and train mode of one step."""
        factor = self.learning_rate_factor(step)
        for name, optimizer in self.optimizers.items():
            self.networks[name].train()
            for group in optimizer.param_groups:
                group["lr"] = self._rates[name] * factor

    def end_step(self) -> None:
        """Move the averages."""
        for name, average in self.averages.items():
            average.update_parameters(self.networks[name])

    def open_batches(self):
        """Where its pictures come from, see `fastinv.training.batches`: they are handed on as they come."""
        options = self.options
        return open_batches(
            options.data, self.resolution, options.batch, options.seed, options.mirror, options.workers, self.device
        )

    def iterate(self, images: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """One step on pictures [N, 3, R, R] in [-1, 1], backward passes and optimisers included -> {name: number}."""
        raise NotImplementedError

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, R, R] -> what the final networks make of them, for sample grids; without gradients."""
        raise NotImplementedError

    def sampled(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pictures [N, 3, R, R] for the sample grid, which stand below each other there."""
        return images, self.reconstruct(images)

    def measure(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Validation of the final networks on pictures: {name: [N]}; "loss" chooses the best checkpoint."""
        raise NotImplementedError

    def save(self, folder: Path, prefix: str, facts: dict) -> None:
        """Write the final networks in half precision, to files whose names begin with ``prefix`` ("" or "best_")."""
        raise NotImplementedError

    def state(self) -> dict:
        """Tensors and plain values of everything that changes in training."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state(self, state: dict) -> None:
        """Take over what ``state`` gave."""
        for kind in ("networks", "averages", "optimizers"):
            mine = getattr(self, kind)
            if mine.keys() != state[kind].keys():
                raise ValueError(f"it has other {kind}: {', '.join(state[kind]) or 'none'}")
            for name, value in mine.items():
                value.load_state_dict(state[kind][name])


def learning_rate_factor(step: int, steps: int, warm_up: int, decay: float) -> float:
    """Linear warm-up over ``warm_up`` steps; cosine decay to a hundredth over the last ``decay`` share of all steps."""
    factor = min(1.0, (step + 1) / max(1, warm_up))
    start = steps * (1 - decay)
    if decay > 0 and step > start:
        factor *= 0.505 + 0.495 * math.cos(math.pi * min(1.0, (step - start) / (steps - start)))
    return factor


class Loop:
    """One training run.

    Random numbers of a step depend on ``--seed`` and the number of the step alone; with the state of the trainable this
    makes a continued run equal an undisturbed one, to the bit on one process.

    Args:
        command: name of the trainer, for the facts in the files.
        trainable: see there.
        options: the command's, see `fastinv.training.encoder_options`.
    """

    def __init__(self, command: str, trainable: Trainable, options):
        self.command, self.trainable, self.options = command, trainable, options
        self.accelerator, self.out = trainable.accelerator, Path(options.out)
        self.batches = trainable.open_batches()
        self.heldout = self.batches.heldout(options.validation)
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.validation: dict[str, float] = {}

    # Files ---------------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write the state and the networks; each file appears whole or not at all."""
        if self.accelerator.is_main_process:
            state = self.trainable.state() | {
                "step": self.step, "seconds": self.seconds, "best": self.best, "sums": self.sums,
                "counts": self.counts, "validation": self.validation, "options": self.settings(),
            }  # fmt: skip
            self.trainable.save(self.out, "", self.facts())
            with atomic_file(self.out / STATE) as temporary, open(temporary, "wb") as file:
                torch.save(state, file)
        trim()  # a long run leaves holes in the heap: without this it grew by 0.2 MB a step

    def resume(self) -> None:
        """Go on from ``state.pt``; logs lose what is later than it.

        Raises:
            UsageError: there is none, it is damaged, or its networks have other shapes than these options ask for.
        """
        path = self.out / STATE
        if not path.exists():
            raise UsageError(f"nothing to resume: {shown(path)} does not exist")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.trainable.load_state(state)
            for name in ("step", "seconds", "best", "counts", "validation"):
                setattr(self, name, state[name])
            self.sums = {name: value.to(self.accelerator.device) for name, value in state["sums"].items()}
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError,
                pickle.UnpicklingError) as error:  # fmt: skip
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{shown(path)} is damaged or does not fit these options: {reason}") from error
        if self.accelerator.is_main_process:
            for name in (LOG, VALIDATION_LOG):
                _forget_after(self.out / name, self.step)

    def settings(self) -> dict:
        """The command's options, without what says nothing about the result."""
        left_out = ("arguments", "out", "resume")
        return {name: value for name, value in vars(self.options).items() if name not in left_out}

    def facts(self) -> dict:
        """Origin of the weights, for the metadata of their files."""
        return {
            "command": shlex.join(["fastinv", "train", self.command, *self.options.arguments]),
            "options": {k: None if v == math.inf else v for k, v in self.settings().items()},
            "step": self.step, "seconds": round(self.seconds), "validation": self.validation,
        }  # fmt: skip

    # Numbers -------------------------------------------------------------------------------------------------------

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """Note numbers of a step; they are read at the next log line only: each look makes a GPU wait."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def log(self, speed: float) -> None:
        """Means since the last line, to log.csv, the terminal and TensorBoard.

        Raises:
            FastinvError: one is not finite.
        """
        names = [name for name in self.trainable.measures if name in self.sums]
        means = torch.stack([self.sums[name] / self.counts[name] for name in names])
        values = dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        self.sums, self.counts = {}, {}
        for name, value in values.items():
            if not math.isfinite(value):
                message = f"{name} became {value} at step {self.step}; lower the learning rate"
                state = self.out / STATE
                if state.exists():
                    message += f" and run again with --resume: {shown(state)} holds the last good state"
                raise FastinvError(message)
        if self.accelerator.is_main_process:
            head = {"step": self.step, "seconds": round(self.seconds), "pictures_per_second": round(speed, 1)}
            row = head | {name: f"{value:.5g}" for name, value in values.items()}
            _append(self.out / LOG, [*head, *self.trainable.measures], row)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        self.accelerator.log(values, step=self.step)

    @torch.no_grad()
    def validate(self) -> None:
        """Measure the final networks on held-out pictures; the best so far are kept under the names best_*."""
        if not self.accelerator.is_main_process:
            return
        parts = [self.trainable.measure(images) for images in self.heldout.split(VALIDATION_BATCH)]
        self.validation = {name: torch.cat([part[name] for part in parts]).mean().item() for name in parts[0]}
        row = {"step": self.step} | {name: f"{value:.5g}" for name, value in self.validation.items()}
        _append(self.out / VALIDATION_LOG, list(row), row)
        print("validation  " + "  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        self.accelerator.log({f"validation/{name}": value for name, value in self.validation.items()}, step=self.step)
        if self.validation["loss"] < self.best:
            self.best = self.validation["loss"]
            self.trainable.save(self.out, "best_", self.facts())

    @torch.no_grad()
    def samples(self) -> None:
        """A grid of held-out pictures, each row of them above the rows of what was made of them."""
        if not self.accelerator.is_main_process:
            return
        shown = [images.float() for images in self.trainable.sampled(self.heldout[:SAMPLES])]
        rows = [row for below in zip(*(images.split(COLUMNS) for images in shown), strict=True) for row in below]
        count = len(shown[0])
        blank = rows[0].new_ones(COLUMNS, *rows[0].shape[1:])  # fills a last row of fewer pictures
        rows = [torch.cat([row, blank[len(row) :]]) for row in rows] if count > COLUMNS else rows
        sheet = grid(torch.cat(rows), columns=min(COLUMNS, count))
        save_picture(sheet, self.out / f"samples_{self.step:07d}.png")

    # The run -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until ``--steps`` or ``--minutes``."""
        options, started = self.options, time.monotonic()
        saved = logged = started
        logged_step = self.step
        stream = self.batches.stream(self.step, self.accelerator.process_index, self.accelerator.num_processes)
        while self.step < options.steps:
            start = time.monotonic()
            torch.manual_seed(options.seed * SEED_STRIDE + self.step)
            self.trainable.begin_step(self.step)
            self.add(self.trainable.iterate(next(stream), self.step))
            self.trainable.end_step()
            self.step += 1
            now = time.monotonic()
            self.seconds += now - start
            last = self.step == options.steps
            if self.step % options.log_every == 0 or last:
                self.log((self.step - logged_step) * options.batch / (now - logged))
                logged, logged_step = time.monotonic(), self.step
            if self.step % options.validate_every == 0 or last:
                self.validate()
            if self.step % options.sample_every == 0 or last:
                self.samples()
            stop = self._agreed(now - started > options.minutes * 60)
            by_time = self._agreed(now - saved > options.checkpoint * 60)
            if by_time or last or stop or (options.checkpoint_steps and self.step % options.checkpoint_steps == 0):
                self.checkpoint()
                saved = time.monotonic()
            if stop:
                break

    def _agreed(self, answer: bool) -> bool:
        """The main process's answer: clocks of several differ."""
        if self.accelerator.num_processes == 1:
            return answer
        return broadcast_object_list([answer])[0]


def run_training(command: str, make: Callable, options) -> Path:
    """Everything from checked options to the end of the training.

    Args:
        command: see ``Loop``.
        make: (options, accelerator) -> Trainable.
        options: parsed and checked.

    Returns:
        the folder of the run.

    Raises:
        UsageError: the folder holds another run, or something is wrong with the options.
    """
    out = Path(options.out)
    if (out / STATE).exists() and not options.resume:
        raise UsageError(f"{shown(out)} already holds a training run; --resume continues it, or choose another folder")
    check_writable(out)
    torch.manual_seed(options.seed)  # of the initial weights
    loop = Loop(command, make(options, open_accelerator(options)), options)
    if options.resume:
        loop.resume()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {shown(out)}: {error.strerror}") from error
    loop.accelerator.init_trackers(command)
    if loop.accelerator.is_main_process:
        sizes = {k: sum(p.numel() for p in n.parameters()) / 1e6 for k, n in loop.trainable.networks.items()}
        about = ", ".join(f"{name} {size:.2f} M parameters" for name, size in sizes.items())
        print(f"{about}, {options.dtype} on {loop.accelerator.device}", flush=True)
    loop.run()
    loop.accelerator.end_training()
    return out


def _append(path: Path, columns: list[str], row: dict) -> None:
    """One line at the end of a CSV file, which begins with the names of its columns."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if new:
            writer.writeheader()
        writer.writerow(row)


def _forget_after(path: Path, step: int) -> None:
    """Drop the rows of steps that a continued run will make again."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if int(row["step"]) <= step]
    if len(kept) < len(rows):
        path.unlink()
        for row in kept:
            _append(path, list(row), row)
