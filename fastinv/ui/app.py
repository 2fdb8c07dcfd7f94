"""The page, with Gradio. Everything it does is in `fastinv.ui.studio`; here it gets buttons and sliders.

Imported only by `fastinv.ui.server`, which sets up Gradio's surroundings before.
"""

import asyncio
from pathlib import Path

import gradio as gr
import numpy as np
import torch

from fastinv.data import faces
from fastinv.data.pictures import load_picture, to_pillow
from fastinv.errors import FastinvError, UsageError
from fastinv.ui import markup
from fastinv.ui.jobs import Job
from fastinv.ui.studio import MOST_STEPS, Inverted, Studio, Tab

CSS = (Path(__file__).parent / "page.css").read_text()
ENDINGS = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"]
LOOK = 0.1  # seconds between two looks at a job

# Sliders in tabs, for the directions that come with faces64; others are under "More", by their own names.
GROUPS = {
    "Pose": {"yaw": "Head turned", "pitch": "Head tilted", "gaze": "Gaze", "face_width": "Face width"},
    "Face": {"smile": "Smile", "eye_open": "Eyes open", "glasses": "Glasses", "skin_tone": "Skin tone"},
    "Hair": {"hair_length": "Hair length", "hair_hue": "Hair colour", "hair_grey": "Grey hair", "beard": "Beard"},
    "Scene": {
        "light": "Light from the side", "bg_hue": "Background colour", "bg_light": "Background light", "shirt": "Shirt",
    },
}  # fmt: skip


def theme() -> gr.themes.Base:
    """Gradio's own, with the fonts of the machine: nothing is loaded."""
    return gr.themes.Default(
        primary_hue="teal", neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    )  # fmt: skip


def build(studio: Studio, uploads: Path) -> gr.Blocks:
    """The page for a studio; ``uploads`` is the folder where Gradio puts what is dropped."""
    page = _Page(studio, uploads.resolve())
    with gr.Blocks(title="fastinv", analytics_enabled=False, fill_width=True) as blocks:
        page.draw()
        page.connect()
        blocks.unload(page.close)
    blocks.queue(api_open=False, default_concurrency_limit=None)  # the queue that counts is the studio's
    return blocks


class _Page:
    def __init__(self, studio: Studio, uploads: Path):
        self.studio, self.uploads = studio, uploads
        self.examples = example_pictures(studio.G.resolution)

    # ---- what it looks like

    def draw(self) -> None:
        gr.HTML(
            "<h1>fastinv</h1><p>Turn a picture into a latent code, then edit it. Nothing leaves this computer.</p>",
            elem_classes="fi-head",
        )
        with gr.Row(elem_classes="fi-columns"):
            with gr.Column(scale=4, min_width=300, elem_classes="fi-panel"):
                self._draw_picture()
            with gr.Column(scale=5, min_width=300, elem_classes="fi-panel"):
                gr.HTML("<h2>Reconstruction</h2>")
                self.live = gr.HTML(markup.live(None, "Choose a picture, then press Start."), elem_id="live")
            with gr.Column(scale=5, min_width=300, elem_classes="fi-panel"):
                gr.HTML("<h2>Edit</h2>")
                self.result = gr.HTML(markup.result(None), elem_id="result")
                self._draw_edits()

    def _draw_picture(self) -> None:
        choices = self.studio.choices
        default = "balanced"
        gr.HTML("<h2>Picture</h2>")
        self.file, self.picture, self.gallery = self._drop("picture", "Drop a portrait here, or click")
        self.message = gr.HTML("", elem_id="message")
        self.choice = gr.Radio(
            [(f"{choice.label}: {choice.what}", name) for name, choice in choices.items()], value=default,
            show_label=False, container=False, elem_id="how",
        )  # fmt: skip
        with gr.Row(elem_classes="fi-buttons"):
            self.steps = gr.Number(
                choices[default].steps, label="Steps", precision=0, minimum=1, maximum=MOST_STEPS, min_width=80,
                elem_id="steps",
            )  # fmt: skip
            self.start = gr.Button("Start", variant="primary", min_width=80, elem_id="start")
            self.cancel = gr.Button("Cancel", interactive=False, min_width=80, elem_id="cancel")

    def _drop(self, name: str, hint: str) -> tuple[gr.File, gr.HTML, gr.Gallery]:
        """A place to drop a picture, which shows it, and examples below. The file lies over the picture, unseen."""
        with gr.Column(elem_classes="fi-drop", min_width=0):
            shown = gr.HTML(markup.picture(None, "", hint), elem_id=name)
            dropped = gr.File(
                file_types=ENDINGS, height="100%", show_label=False, label=hint, elem_id=name + "-file",
                elem_classes="fi-file",
            )  # fmt: skip
        gallery = gr.Gallery(
            [_pixels(picture, 96) for picture in self.examples.values()], columns=len(self.examples), format="png",
            allow_preview=False, interactive=False, show_label=False, buttons=[], object_fit="cover", height="auto",
            elem_id=name + "-examples", elem_classes="fi-examples",
        )  # fmt: skip
        return dropped, shown, gallery

    def _draw_edits(self) -> None:
        self.sliders: dict[str, gr.Slider] = {}
        left = list(self.studio.directions)
        groups = {
            title: {name: text for name, text in group.items() if name in left} for title, group in GROUPS.items()
        }
        known = {name for group in groups.values() for name in group}
        groups["More"] = {name: name.replace("_", " ") for name in left if name not in known}
        with gr.Tabs(elem_classes="fi-tabs"):
            for title, group in groups.items():
                if group:
                    with gr.Tab(title, render_children=True, elem_classes="fi-sliders"):
                        for name, text in group.items():
                            self.sliders[name] = self._slider(name, text)
            with gr.Tab("Mix", render_children=True):
                self._draw_mix()
        self.reset = gr.Button("Reset the sliders", size="sm", elem_id="reset")

    def _slider(self, name: str, text: str) -> gr.Slider:
        most = 2 * self.studio.directions[name].strength  # from the one end of what it does to the other
        return gr.Slider(
            -most, most, value=0, step=most / 60, precision=2, label=text, buttons=[], elem_id="edit-" + name
        )

    def _draw_mix(self) -> None:
        layers = list(self.studio.layers)
        with gr.Row(elem_classes="fi-mix"):
            with gr.Column(scale=2, min_width=120):
                self.other_file, self.other, self.other_gallery = self._drop("other", "Drop a second one")
            with gr.Column(scale=3, min_width=150):
                self.layers = gr.CheckboxGroup(
                    [(name.capitalize(), name) for name in layers],
                    value=layers[1:2],
                    label="Its layers",
                    elem_id="layers",
                )
                self.amount = gr.Slider(0, 1, value=1, step=0.05, label="Strength", buttons=[], elem_id="amount")
        self.other_message = gr.HTML(
            markup.status("Coarse layers hold pose and shape, middle ones features, fine ones colours."),
            elem_id="other-message",
        )

    # ---- what it does

    def connect(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        edits = [*self.sliders.values(), self.layers, self.amount]
        loaded = [self.file, self.picture, self.live, self.result, self.message]
        self.file.upload(self.load, self.file, loaded, **quiet)
        self.gallery.select(self.load_example, None, loaded, **quiet)
        self.choice.input(self.choose, self.choice, self.steps, **quiet)
        self.cancel.click(self.stop, None, None, queue=False, **quiet)
        ran = self.start.click(self.run, [self.choice, self.steps], [self.live, self.start, self.cancel], **quiet)
        ran.then(self.edit, edits, self.result, **quiet)

        mixed = [self.other_file, self.other, self.other_message]
        for event in (
            self.other_file.upload(self.load_other, self.other_file, mixed, **quiet),
            self.other_gallery.select(self.load_other_example, None, mixed, **quiet),
        ):
            event.then(self.edit, edits, self.result, **quiet)
        changed = [control.input for control in edits]
        gr.on(changed, self.edit, edits, self.result, trigger_mode="always_last", **quiet)
        self.reset.click(lambda: [0] * len(self.sliders), None, list(self.sliders.values()), **quiet).then(
            self.edit, edits, self.result, **quiet
        )

    def tab(self, request: gr.Request) -> Tab:
        return self.studio.tabs[request.session_hash]

    def close(self, request: gr.Request) -> None:
        self.studio.tabs.close(request.session_hash)

    def load(self, path: str | None, request: gr.Request):
        tab = self.tab(request)
        try:
            target = self._read(path)
        except FastinvError as error:
            tab.load(None)
            return self._loaded(None, str(error))
        tab.load(target)
        return self._loaded(target)

    def load_example(self, request: gr.Request, chosen: gr.SelectData):
        target = self._example(chosen.index)
        self.tab(request).load(target)
        return self._loaded(target)

    def _loaded(self, target: torch.Tensor | None, error: str = ""):
        """What the page shows of a new picture, or of none; the place to drop one is empty again."""
        note = "Choose a picture, then press Start." if target is None else "Ready: press Start."
        message = markup.status(error, "error") if error else ""
        shown = markup.picture(target, "Picture", "Drop another one")
        return None, shown, markup.live(None, note), markup.result(None), message

    def _read(self, path: str | None) -> torch.Tensor:
        """The target [3, R, R] of an uploaded file, which is removed."""
        path = Path(path or "").resolve()
        if self.uploads not in path.parents or not path.is_file():  # Gradio looks at this, too
            raise UsageError("no picture has arrived; drop it again")
        try:
            return self.studio.read(path)
        finally:
            path.unlink(missing_ok=True)

    def _example(self, index: int) -> torch.Tensor:
        return list(self.examples.values())[index]

    def choose(self, name: str):
        steps = self.studio.choices[name].steps
        return gr.Number(steps or None, interactive=bool(steps))

    async def run(self, name: str, steps: float | None, request: gr.Request):
        """Invert the tab's picture; shows how it goes until it has ended."""
        tab, ready = self.tab(request), (gr.Button(interactive=True), gr.Button(interactive=False))
        try:
            job = tab.begin(self.studio, self.studio.choices[name], steps)
        except FastinvError as error:
            yield markup.live(None, str(error), "error"), *ready
            return
        async for progress, note in _watched(job):
            if tab.job is job:
                yield markup.live(progress, note), gr.Button(interactive=False), gr.Button(interactive=True)
        yield _ended(job) if tab.end(job) else gr.skip(), *ready  # of another picture by now, nothing is said

    def stop(self, request: gr.Request) -> None:
        job = self.tab(request).job
        if job is not None:
            job.cancel()

    def edit(self, request: gr.Request, *values):
        """The picture of the tab with all edits that the controls say."""
        *strengths, layers, amount = values
        tab = self.tab(request)
        if tab.inverted is None:
            return markup.result(None)
        edits = {name: round(value, 4) for name, value in zip(self.sliders, strengths, strict=True) if value}
        other = None if tab.other is None else tab.other.codes
        layers = [name for name in self.studio.layers if name in layers]  # not in the order of the clicks
        codes = self.studio.edit(tab.inverted.codes, edits, other, layers, amount)
        made = {"directions": edits} | ({"mix": {"layers": layers, "amount": amount}} if other else {})
        latent = self.studio.latent_file(codes, tab.inverted.settings, made)
        return markup.result(self.studio.picture(codes), latent)

    async def load_other(self, path: str | None, request: gr.Request):
        try:
            target = self._read(path)
        except FastinvError as error:
            self.tab(request).other = None
            yield None, markup.picture(None, "", "Drop another one"), markup.status(str(error), "error")
            return
        async for output in self._invert_other(self.tab(request), target):
            yield output

    async def load_other_example(self, request: gr.Request, chosen: gr.SelectData):
        target = self._example(chosen.index)
        async for output in self._invert_other(self.tab(request), target):
            yield output

    async def _invert_other(self, tab: Tab, target: torch.Tensor):
        """Codes of the picture to mix with, in the quickest way there is."""
        tab.other, shown = None, markup.picture(target, "Second picture")
        try:
            job = self.studio.invert(target, self.studio.quick)
        except FastinvError as error:
            yield None, shown, markup.status(str(error), "error")
            return
        async for _, note in _watched(job):
            yield None, shown, markup.status(note)
        if isinstance(job.result, Inverted):
            tab.other = job.result
            yield (
                None,
                shown,
                markup.status(f"Mixing with this picture, inverted with {job.result.progress.psnr:.1f} dB."),
            )
        else:
            yield None, shown, markup.status(job.error or "Cancelled.", "error")


async def _watched(job: Job):
    """(its Progress, a line about it) whenever there is news of a job, until it has ended or nobody looks any more."""
    seen = None
    try:
        while not job.ended:
            place, progress = job.place, job.latest
            if (place, progress, job.state) != seen:
                seen = place, progress, job.state
                waiting = f"Waiting: {place} before this one" if job.state == "waiting" else "Getting ready"
                yield progress, waiting if progress is None else "Converging"
            await asyncio.sleep(LOOK)
    finally:
        job.cancel()  # the tab was closed; nothing happens to one that has ended


def _ended(job: Job) -> str:
    """The reconstruction at the end of a job, or why there is none."""
    if job.state == "failed":
        return markup.live(job.latest, job.error, "error")
    if job.state == "cancelled":
        kept = "the best so far is kept" if job.result is not None else "nothing was kept"
        return markup.live(job.latest, f"Cancelled: {kept}.")
    seconds = job.result.settings["seconds"]
    return markup.live(job.latest, f"Done in {seconds:.1f} s. Now edit it.")


def example_pictures(resolution: int) -> dict[str, torch.Tensor]:
    """Pictures to try: renders that the generator has never seen, and a photograph (NASA, public domain)."""
    renders = faces.sample(3, seed=2, split="heldout", resolution=resolution)[0]
    photograph = load_picture(Path(faces.__file__).parent / "astronaut.png", resolution)
    return {f"render {index + 1}": render for index, render in enumerate(renders)} | {"astronaut": photograph}


def _pixels(picture: torch.Tensor, side: int) -> np.ndarray:
    """A picture as [side, side, 3] bytes, its pixels as squares where it is smaller."""
    return np.asarray(to_pillow(picture).resize((side, side), 0 if picture.shape[-1] < side else 1))
