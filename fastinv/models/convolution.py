"""The 3x3 convolutions of a frozen synthesis network: the forms in which they can be computed, and the choice of one.

An up-sampling layer is a transposed convolution of stride 2 and a 4-tap FIR filter. With frozen weights the same result
has three forms: that one; one 2x2 convolution with four times the outputs (the four phases of the transposed
convolution); or one 3x3 convolution with four times the outputs that has the filter in its weights. The gradient of the
input is either the backward-data convolution, or an ordinary one with weights turned about beforehand. These forms are
convolutions of the library. On a CPU there are others, `fastinv.models.kinds`, which are our own.
"""

import itertools
import json
import math
import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastinv.errors import UsageError
from fastinv.models.arena import HUGE_PAGE, settled, trim
from fastinv.ops import synthesis
from fastinv.ops.frozen_conv import FrozenWeight

GRADIENTS = ("backward_data", "flipped")
PAUSE = 8_000_000  # cycles, about 5 ms: longer than queueing the calls that are timed


class Form(NamedTuple):
    """How one layer's convolution is computed.

    Attributes:
        forward: "same" for a layer that keeps the size; "transposed", "phases" or "shuffled" for one that doubles it.
        gradient: "backward_data" or "flipped".

    Or, of a fused layer on a CPU, kinds of `fastinv.ops.frozen_conv`: "direct" or "winograd" for either, or ("up",
    "down").
    """

    forward: str
    gradient: str


def candidates(up: int) -> list[Form]:
    """All forms of a layer with this up-sampling factor by the library's convolutions."""
    forwards = ("same",) if up == 1 else ("transposed", "phases", "shuffled")
    return [Form(*pair) for pair in itertools.product(forwards, GRADIENTS)]


def phase_weight(weight: torch.Tensor) -> torch.Tensor:
    """[O, I, 3, 3] -> [4 O, I, 2, 2], phases (a, b) first: tap (u, v) of a phase is tap (a + 2 - 2 u, b + 2 - 2 v)."""
    outputs, inputs = weight.shape[:2]
    result = weight.new_zeros(2, 2, outputs, inputs, 2, 2)
    for a, b, u, v in itertools.product(range(2), repeat=4):
        y, x = a + 2 - 2 * u, b + 2 - 2 * v
        if y < 3 and x < 3:
            result[a, b, :, :, u, v] = weight[:, :, y, x]
    return result.reshape(4 * outputs, inputs, 2, 2)


def filtered_phase_weight(weight: torch.Tensor, taps) -> torch.Tensor:
    """[O, I, 3, 3] and 4 taps -> [4 O, I, 3, 3]: the phases of the transposed convolution with the filter after it."""
    outputs, inputs = weight.shape[:2]
    kernel = torch.zeros(6, 3, dtype=weight.dtype, device=weight.device)  # row m + 2 is the composite's tap m = -2 .. 3
    for m, j in itertools.product(range(-2, 4), range(4)):
        if 0 <= m + j - 1 < 3:
            kernel[m + 2, m + j - 1] = taps[j]
    composite = torch.einsum("ya,xb,oiab->oiyx", kernel, kernel, weight)
    result = weight.new_zeros(2, 2, outputs, inputs, 3, 3)
    for a, b, u, v in itertools.product(range(2), range(2), range(3), range(3)):
        result[a, b, :, :, u, v] = composite[:, :, a + 4 - 2 * u, b + 4 - 2 * v]
    return result.reshape(4 * outputs, inputs, 3, 3)


class FrozenConvolution:
    """A frozen 3x3 convolution in every form, each form's weights laid out once, when it is first used.

    Args:
        weight: [O, I, 3, 3], float32 or float64.
        up: 1 (correlation, padding 1) or 2 (convolution after zero insertion, FIR filter after it).
        taps: the filter's four taps with its gain, as a correlation.
        dtype: of the feature maps.
    """

    def __init__(self, weight: torch.Tensor, up: int, taps, dtype: torch.dtype):
        if weight.shape[2:] != (3, 3):
            raise UsageError(f"a frozen synthesis layer has a 3x3 kernel, not {list(weight.shape[2:])}")
        self.source, self.up, self.taps, self.dtype = weight.detach(), up, taps, dtype
        # Asked for once, here: torch.compile cannot trace the question.
        self.device_name = torch.cuda.get_device_name(weight.device) if weight.is_cuda else weight.device.type
        self._laid_out: dict[str, torch.Tensor] = {}
        self._packed: dict[tuple[str, bool, bool], FrozenWeight] = {}
        self._borrowed: int | None = None  # version of the source, where it is the generator's own

    def borrow(self, weight: torch.Tensor) -> None:
        """Let the generator's own weight, equal to the source, take its place: a copy would cost its memory."""
        if not weight.is_inference():
            self.source = weight.detach()
            self._borrowed = self.source._version
            for kept in self._packed.values():
                kept.source = weight.new_full((), math.nan).expand(kept.source.shape)

    def __getstate__(self):
        # A pickle may come to a machine with other kernels, which packs the weights, then the copy's own, for itself.
        return vars(self) | {"_packed": {}, "_borrowed": None, "source": self._unchanged_source()}

    def weight(self, name: str) -> torch.Tensor:
        """Weights of a forward form, or, for the gradient of it by an ordinary convolution, of "<form>.flipped"."""
        if name not in self._laid_out:
            form, _, flipped = name.partition(".")
            w = self._unchanged_source()
            if form == "transposed":
                w = w.transpose(0, 1)
            elif form == "phases":
                w = phase_weight(w)
            elif form == "shuffled":
                w = filtered_phase_weight(w, self.taps)
            w = w.flip(2, 3).transpose(0, 1) if flipped else w
            self._laid_out[name] = w.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self._laid_out[name]

    def _unchanged_source(self) -> torch.Tensor:
        # torch.compile cannot trace the question.
        borrowed = self._borrowed is not None and not torch.compiler.is_compiling()
        if borrowed and self.source._version != self._borrowed:
            raise UsageError(
                "the generator's weights were changed after prepare(), and are needed in another form now (by a copy, "
                "say); prepare the generator again"
            )
        return self.source

    def packed(self, kind: str, adjoint: bool, native: bool = True) -> FrozenWeight:
        """Weights of a kind of our own, of the convolution or, adjoint, of the gradient of its input.

        native: only the kernels need them. What the reference would need, and costs memory, is then not kept.
        """
        key = kind, adjoint, native
        if key not in self._packed:
            w = self._unchanged_source()
            if adjoint:
                w = settled((w if kind == "down" else w.flip(2, 3)).transpose(0, 1))
            taps = tuple(self.taps) if kind in ("up", "down") else ()
            with torch.inference_mode(False):
                weight = FrozenWeight(w, kind, self.dtype, taps)
                weight.packed = None if weight.packed is None else settled(weight.packed)
            if native and adjoint and weight.packed is not None:
                weight.source = w.new_full((), math.nan).expand(w.shape)
            self._packed[key] = weight
            if w.nbytes >= HUGE_PAGE:
                del w
                trim()  # of what packing took meanwhile
        return self._packed[key]

    def forward(self, x: torch.Tensor, form: Form) -> torch.Tensor:
        """x [N, I, h, w] -> [N, O, h, w], or the layout of the up-sampling form, see `fastinv.ops.synthesis`."""
        weight = self.weight(form.forward)
        if form.forward == "transposed":
            return F.conv_transpose2d(x, weight, stride=2)
        return F.conv2d(x, weight, padding=1)

    def gradient(self, du: torch.Tensor, form: Form) -> torch.Tensor:
        """Gradient of x from that of the forward result."""
        if form.forward == "transposed":  # the adjoint of a transposed convolution is an ordinary one either way
            return F.conv2d(du, self.weight("transposed"), stride=2)
        if form.gradient == "flipped":
            return F.conv2d(du, self.weight(form.forward + ".flipped"), padding=0 if form.forward == "phases" else 1)
        return F.conv_transpose2d(du, self.weight(form.forward), padding=1)


class Forms:
    """Chooses the form of each convolution: what the caller said, else what was chosen before, else what is measured.

    Measuring is for CUDA, where the ranking of the forms depends on the library's kernels; elsewhere there is a rule. A
    choice holds for the rest of the process, so all results of a process are computed in one way; ``save`` and ``load``
    carry the choices to another.
    """

    timed_on = ("cuda",)

    def __init__(self):
        self.table: dict[tuple, Form] = {}
        self.measured: dict[tuple, dict[Form, float]] = {}

    def choose(self, convolution: FrozenConvolution, x: torch.Tensor, override: Form | None = None) -> Form:
        """The form for an input x [N, I, h, w].

        Raises:
            UsageError: an override that is no form of such a layer.
        """
        if override is not None:
            form = Form(*override)
            if form not in candidates(convolution.up):
                raise UsageError(f"{tuple(form)} is no form of a layer with up={convolution.up}; see candidates(up)")
            return form
        if x.device.type not in self.timed_on:
            return self._rule(convolution)
        key = self._key(convolution, x)
        if key not in self.table:
            if torch.cuda.is_current_stream_capturing():
                return self._rule(convolution)  # nothing can be timed here; the warm-up before a capture measures
            self.measure(convolution, x)
        return self.table[key]

    def measure(self, convolution: FrozenConvolution, x: torch.Tensor, repeats: int = 7) -> dict[Form, float]:
        """Time every form for inputs like x, note the fastest as the choice, return the seconds of each."""
        key = self._key(convolution, x)
        self.measured[key] = measure(convolution, x, repeats)
        self.table[key] = min(self.measured[key], key=self.measured[key].get)
        return self.measured[key]

    @staticmethod
    def _key(convolution: FrozenConvolution, x: torch.Tensor) -> tuple:
        dtype = str(x.dtype).removeprefix("torch.")
        return convolution.device_name, dtype, *x.shape, len(convolution.source), convolution.up

    @staticmethod
    def _rule(convolution: FrozenConvolution) -> Form:
        if convolution.up == 1:
            return Form("same", "backward_data")
        # torch's bfloat16 transposed convolution on the CPU is several times slower than an ordinary one.
        slow = convolution.dtype == torch.bfloat16 and convolution.source.device.type == "cpu"
        return Form("phases" if slow else "transposed", "backward_data")

    def save(self, path) -> None:
        """Write the choices as JSON."""
        rows = [{"layer": list(key), "form": list(form)} for key, form in self.table.items()]
        with open(path, "w") as file:
            json.dump(rows, file, indent=1)

    def load(self, path) -> None:
        """Take over choices that ``save`` wrote; they win over those made before."""
        with open(path) as file:
            self.table |= {tuple(row["layer"]): Form(*row["form"]) for row in json.load(file)}


FORMS = Forms()


@torch.no_grad()
def measure(convolution: FrozenConvolution, x: torch.Tensor, repeats: int = 7) -> dict[Form, float]:
    """Median seconds of each form, forward and gradient with the passes around them, on random data.

    torch's random numbers are left as they are. A form that the device cannot run counts as infinitely slow.
    """
    seconds = {}
    random = torch.Generator(x.device).manual_seed(0)
    x = torch.empty_like(x).normal_(generator=random)
    for form in candidates(convolution.up):
        code = synthesis.FORMS[form.forward]

        def layer(form=form, code=code):
            u = convolution.forward(x, form)
            y, *_ = synthesis.epilogue(u, taps=convolution.taps, form=code)
            du, *_ = synthesis.epilogue_backward(y, None, y, taps=convolution.taps, form=code)
            return convolution.gradient(du, form)

        try:
            seconds[form] = statistics.median(_durations(layer, x.device, repeats))
        except RuntimeError as error:  # no kernel of the library, or not enough memory
            seconds[form], failure = math.inf, error
    if min(seconds.values()) == math.inf:
        raise failure
    return seconds


def _durations(function, device: torch.device, repeats: int) -> list[float]:
    """Seconds of each call, after calls that let the library pick its kernels.

    On a GPU the calls wait behind a pause, which gives the host the time to queue them all: a small layer is shorter
    than its launches, and how long those take does not matter in a recorded step.
    """
    for _ in range(3):
        function()
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(repeats):
            function()
            times.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(times)]
    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        torch.cuda.synchronize()
        torch.cuda._sleep(PAUSE)
        events[0].record()
        for event in events[1:]:
            function()
            event.record()
        torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]
