"""Drawing of the procedural portraits of fastinv.data.faces, layer by layer on one canvas.

The head is a unit sphere behind every pixel of the head's silhouette. Turning that sphere back by yaw and pitch gives
each pixel its coordinates (u, v) on the face, so that eyes, mouth, beard and hairline are drawn once, frontally, and
wrap round the head by themselves: nothing can slide off the face.

Masks are [n, 1, h, R] with opacity 0..1; colours are [n, 3, 1, 1], or [n, 3, h, R] where shaded.
"""

import math

import torch
from torch import Tensor

ZOOM = 1.14  # the picture shows -1/ZOOM..1/ZOOM of the plane
MAX_YAW, MAX_PITCH = 0.42, 0.25  # radians at attribute value 1
SKIN = ((1.0, 0.87, 0.76), (0.97, 0.77, 0.62), (0.84, 0.61, 0.44), (0.64, 0.42, 0.29), (0.46, 0.29, 0.21))
HAIR = ((0.13, 0.11, 0.13), (0.30, 0.18, 0.12), (0.52, 0.27, 0.14), (0.78, 0.40, 0.17), (0.95, 0.77, 0.42))
BACKGROUND = (
    (0.52, 0.67, 0.93), (0.42, 0.80, 0.80), (0.54, 0.82, 0.50), (0.94, 0.85, 0.47),
    (0.96, 0.62, 0.44), (0.90, 0.55, 0.72), (0.64, 0.55, 0.91),
)  # fmt: skip
SHIRT = ((0.18, 0.26, 0.50), (0.16, 0.48, 0.48), (0.92, 0.88, 0.80), (0.80, 0.30, 0.27), (0.28, 0.28, 0.32))
GREY, WHITE, FRAME = (0.84, 0.84, 0.86), (1.0, 1.0, 1.0), (0.12, 0.10, 0.14)
IRIS, PUPIL, TEETH = (0.20, 0.42, 0.50), (0.05, 0.05, 0.07), (0.99, 0.98, 0.95)


class Portrait:
    """A canvas [n, 3, R, R] in 0..1 with the picture plane x, y in -1..1 (y down), and one method per layer."""

    channels, dtype = 3, torch.float32  # of what ``paint`` gives

    def __init__(self, attributes: dict[str, Tensor], resolution: int):
        self.a = {name: column.view(-1, 1, 1, 1) for name, column in attributes.items()}
        self.pixel = 2 / resolution / ZOOM
        self.resolution = resolution
        index = torch.arange(resolution, device=attributes["yaw"].device, dtype=torch.float32)
        centres = (index + 0.5) * self.pixel - 1 / ZOOM
        self.x, self.y = centres.view(1, 1, 1, -1), centres.view(1, 1, -1, 1)
        a = self.a
        self.skin = _palette(SKIN, a["skin_tone"])
        hair = _palette(HAIR, a["hair_hue"])
        self.hair = hair + 0.94 * a["hair_grey"] * (self.colour(GREY) - hair)
        self.shirt = _palette(SHIRT, a["shirt"])
        self.background = _palette(BACKGROUND, a["bg_hue"]) * (0.42 + 0.6 * a["bg_light"])
        light = torch.cat([0.95 * a["light"], torch.full_like(a["light"], -0.45), torch.full_like(a["light"], 0.75)], 1)
        self.light = (light / light.norm(dim=1, keepdim=True)).split(1, 1)
        self._pose()

    def _pose(self) -> None:
        """Head position, silhouette, normals and face coordinates of every pixel."""
        a = self.a
        self.head_x, self.head_y = 0.03 * a["yaw"], -0.02 + 0.02 * a["pitch"]
        self.width, self.height = 0.475 + 0.055 * a["face_width"], 0.575
        self.sides = self.x - self.head_x  # [n, 1, 1, R]
        self.down = self.y - self.head_y  # [n, 1, R, 1]
        ny = self.down / self.height
        jaw = 1 - 0.19 * ny.clamp(0, 1.2).square()  # the face narrows towards the chin
        nx = self.sides / (self.width * jaw)
        radius = (nx.square() + ny.square()).clamp(min=1e-6)
        self.outside = (radius.sqrt() - 1) * 0.5  # distance to the silhouette, negative inside
        nz = (1 - radius).clamp(min=0).sqrt()
        self.normal = (nx, ny, nz)
        self.cos_yaw, self.sin_yaw = (MAX_YAW * a["yaw"]).cos(), (MAX_YAW * a["yaw"]).sin()
        self.cos_pitch, self.sin_pitch = (MAX_PITCH * a["pitch"]).cos(), (MAX_PITCH * a["pitch"]).sin()
        level = ny * self.sin_pitch + nz * self.cos_pitch
        self.u = (nx * self.cos_yaw - level * self.sin_yaw) * 0.475  # across the face, in picture units of a mean head
        self.v = (ny * self.cos_pitch - nz * self.sin_pitch) * 0.575  # down the face
        self.w = nx * self.sin_yaw + level * self.cos_yaw  # towards the nose, 1 at the middle of the face

    # ---- small tools

    def project(self, u: float, v: float, out: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Where the face point (u, v), lifted off the head by the factor `out`, is in the picture: x, y and depth."""
        u, v = u / 0.475, v / 0.575
        w = math.sqrt(max(1 - u * u - v * v, 0.0))
        u, v, w = u * out, v * out, w * out
        x, level = u * self.cos_yaw + w * self.sin_yaw, w * self.cos_yaw - u * self.sin_yaw
        y, depth = v * self.cos_pitch + level * self.sin_pitch, level * self.cos_pitch - v * self.sin_pitch
        jaw = 1 - 0.19 * y.clamp(0, 1.2).square()
        return self.head_x + x * self.width * jaw, self.head_y + y * self.height, depth

    def colour(self, rgb: tuple[float, float, float]) -> Tensor:
        return self.x.new_tensor(rgb).view(1, 3, 1, 1)

    def rows(self, low: float, high: float) -> slice:
        """Rows of the canvas between two heights: small features are painted on their band only."""
        first = math.floor((low + 1 / ZOOM) / self.pixel) - 1
        return slice(max(first, 0), max(min(math.ceil((high + 1 / ZOOM) / self.pixel) + 1, self.resolution), 0))

    def cover(self, distance: Tensor, soft: float = 0.0) -> Tensor:
        """Coverage 0..1 of the shape with this signed distance (negative inside): over one pixel, plus a soft edge."""
        edge = self.pixel + 2 * soft
        share = (0.5 - distance / edge).clamp_(0, 1)
        return share.square() * (3 - 2 * share) if soft else share

    def lambert(self, nx: Tensor | float, ny: Tensor | float, nz: Tensor | float) -> Tensor:
        """Wrapped diffuse light, 0 (away from the light) .. 1 (facing it)."""
        lx, ly, lz = self.light
        return (nx * lx + ny * ly + nz * lz).mul_(0.62).add_(0.38).clamp_(0, 1)

    # ---- the canvas; `fastinv.data.parts` has another one, of labels

    def fill(self, colour: Tensor, part: str) -> None:
        """Begin a canvas with colour [n, 3, R, R]."""
        self.canvas = colour

    def lay(self, colour: Tensor, mask: Tensor, rows: slice = slice(None), part: str | None = None) -> None:
        """Paint colour [n, 3, 1|h, 1|R] over the canvas rows with opacity mask [n, 1, h, R]; it is of a part of the
        portrait, or is light and shade (None).
        """
        self.canvas[:, :, rows].lerp_(colour, mask)

    def cut(self, mask: Tensor, behind: Tensor) -> None:
        """Keep the canvas within mask [n, 1, R, R]; outside is the canvas ``behind``."""
        self.canvas = behind.lerp_(self.canvas, mask)

    # ---- layers

    def paint(self) -> Tensor:
        """All layers; the picture [n, 3, R, R] in 0..1."""
        self.paint_layers()
        return self.canvas.clamp_(0, 1)

    def paint_layers(self) -> None:
        self.paint_background()
        self.paint_back_hair()
        self.paint_body()
        scene = self.canvas
        self.paint_skin()
        self.paint_beard()
        self.paint_nose()
        self.paint_mouth()
        self.paint_eyes()
        self.cut(self.cover(self.outside), scene)
        self.paint_ears()
        self.paint_front_hair()
        self.paint_glasses()

    def paint_background(self) -> None:
        glow = (self.x - 0.5 * self.a["light"]).square() + (self.y + 0.3).square()
        self.fill(self.background * (1.08 - 0.17 * glow), "background")

    def hair_outline(self) -> tuple[Tensor, Tensor]:
        """Distances to the hair cap round the skull and to the hair that falls behind and beside the face."""
        length, x = self.a["hair_length"], self.sides + 0.04 * self.a["yaw"]
        volume = 0.015 + 0.07 * length
        cap = (x / (self.width + volume)).square() + ((self.down + 0.03) / (self.height + volume)).square()
        fall = ((length - 0.15) / 0.85).clamp(min=0)
        ramp = ((self.down + 0.25) / 0.5).clamp(0, 1)
        half = self.width - 0.02 + fall * (0.11 * ramp.square() * (3 - 2 * ramp) + 0.05 * self.down.clamp(0, 1))
        self.hair_bottom = 0.02 + 0.80 * fall
        bottom = self.hair_bottom - 0.16 * (x / half).square().square().clamp(max=2)
        falling = torch.maximum(torch.maximum(x.abs() - half, self.down - bottom), -0.2 - self.down)
        return (cap.sqrt() - 1) * 0.55, falling

    def paint_back_hair(self) -> None:
        self.hair_cap, self.hair_fall = self.hair_outline()
        mask = self.cover(torch.minimum(torch.maximum(self.hair_cap, self.down - 0.05), self.hair_fall), 0.01)
        shade = 0.42 + 0.25 * self.lambert(self.sides / 0.8, self.down / 1.2, 0.6)
        self.lay(self.hair * shade, mask, part="hair")

    def paint_body(self) -> None:
        x = self.x - 0.4 * self.head_x
        rows = self.rows(0.3, 1)
        y = self.y[:, :, rows]
        neck_x = self.x - 0.8 * self.head_x
        neck = neck_x.abs() - 0.165 - 0.9 * (y - 0.52).clamp(min=0).square()
        light = self.lambert(neck_x / 0.35, 0.0, 0.75)
        shadow = 1 - 0.32 * torch.exp(-((y - self.head_y - 0.52) / 0.15).square())
        self.lay(self.skin * ((0.60 + 0.38 * light) * shadow), self.cover(neck), rows, "neck")
        shoulders = (x / 0.92).square() + ((y - 1.17) / 0.52).square()
        collar = (neck_x / 0.25).square() + ((y - 0.64) / 0.16).square()
        cloth = torch.maximum((shoulders.sqrt() - 1) * 0.6, (1 - collar.sqrt()) * 0.2)
        light = self.lambert(x / 0.9, (y - 1.3) / 0.8, 0.6)
        self.lay(self.shirt * (0.58 + 0.45 * light), self.cover(cloth), rows, "clothes")

    def paint_skin(self) -> None:
        light = self.lambert(*self.normal)
        self.face_light = light
        dark = self.skin * self.colour((0.62, 0.50, 0.50))
        self.fill(torch.lerp(dark, self.skin * 1.06, light), "face")
        rows = self.rows(-0.15, 0.5)
        u, v = self.u[:, :, rows], self.v[:, :, rows]
        blush = torch.exp(-((u.abs() - 0.27) / 0.10).square() - ((v - 0.13 + 0.02 * self.a["smile"]) / 0.075).square())
        rosy = torch.lerp(self.skin, self.colour((0.95, 0.36, 0.33)), 0.55)
        self.lay(rosy, blush.mul_(0.40 + 0.20 * self.a["smile"].clamp(min=0)), rows)

    def paint_beard(self) -> None:
        rows = self.rows(-0.2, 0.7)
        u, v = self.u[:, :, rows], self.v[:, :, rows]
        across = u.abs()
        # from the ear down the cheek in a bow, then level under the nose
        line = 0.20 - 1.9 * (across - 0.17).clamp(min=0).square() + 0.05 * torch.exp(-((across - 0.19) / 0.06).square())
        mouth = (u / 0.145).square() + ((v - 0.312) / 0.062).square()
        mask = self.cover(line - v, 0.045) * self.cover((1 - mouth.sqrt()) * 0.09, 0.02)
        colour = self.hair * 0.82 * (0.50 + 0.55 * self.face_light[:, :, rows])
        self.lay(colour, mask * (1.05 * self.a["beard"]).clamp(max=0.95), rows, "beard")

    def paint_nose(self) -> None:
        rows = self.rows(-0.35, 0.4)
        lx = self.a["light"]
        y = self.y[:, :, rows]
        bridge_x, bridge_y, _ = self.project(0, -0.06, 1.02)
        tip_x, tip_y, _ = self.project(0, 0.125, 1.16)
        along = ((y - bridge_y) / (tip_y - bridge_y)).clamp(0, 1)
        ridge = self.x - torch.lerp(bridge_x, tip_x, along)
        span = self.cover((y - (tip_y + bridge_y) / 2).abs() - (tip_y - bridge_y) / 2, 0.05)
        shadow = torch.exp(-((ridge + 0.06 * lx) / 0.05).square()) * span * along
        self.lay(self.skin * self.colour((0.62, 0.46, 0.45)), shadow * (0.25 + 0.45 * lx.abs()), rows)
        under = ((self.x - tip_x) / 0.085).square() + ((y - tip_y - 0.035) / 0.05).square()
        below = self.cover((under.sqrt() - 1) * 0.06, 0.012) * 0.8
        self.lay(self.skin * self.colour((0.58, 0.38, 0.38)), below, rows, "nose")
        ball = ((self.x - tip_x) / 0.075).square() + ((y - tip_y) / 0.058).square()
        mask = self.cover((ball.sqrt() - 1) * 0.06, 0.015)
        self.lay(self.skin * (0.80 + 0.26 * self.face_light[:, :, rows]), mask, rows, "nose")
        spot = torch.exp(-((self.x - tip_x - 0.025 * lx) / 0.03).square() - ((y - tip_y + 0.018) / 0.026).square())
        self.lay(self.colour(WHITE), spot * 0.45, rows)

    def paint_mouth(self) -> None:
        rows = self.rows(0.0, 0.62)
        u, v = self.u[:, :, rows], self.v[:, :, rows]
        smile = self.a["smile"]
        half = 0.145 + 0.03 * smile
        t2 = (u / half).square().clamp(max=1.5)
        within = self.cover(u.abs() - half)
        body = (1 - t2).clamp(min=0)
        bend = 0.07 * (smile + 0.4) / 1.4  # straight at -0.4
        curve = 0.30 + bend * (0.6 - 1.2 * t2)
        opening = 0.125 * (smile.clamp(min=-0.2) + 0.2).square() / 1.44 * body
        upper, lower = curve - 0.3 * opening, curve + 0.7 * opening
        lips = torch.maximum(upper - 0.034 * body - v, v - lower - 0.044 * body)
        pink = torch.lerp(self.skin * 0.66, self.colour((0.82, 0.24, 0.27)), 0.62)
        light = self.face_light[:, :, rows]
        self.lay(pink * (0.72 + 0.33 * light), self.cover(lips) * within, rows, "lips")
        inside = self.cover(torch.maximum(upper - v, v - lower) - 0.008 * body)
        self.lay(self.skin * self.colour((0.34, 0.14, 0.15)), inside * within, rows, "mouth")
        teeth = torch.maximum(upper + 0.004 - v, v - lower + 0.25 * opening)
        teeth = self.cover(teeth) * within * (opening * 40).clamp(max=1)
        self.lay(self.colour(TEETH) * (0.80 + 0.2 * light), teeth, rows, "mouth")

    def paint_eyes(self) -> None:
        rows = self.rows(-0.5, 0.32)
        u, v = self.u[:, :, rows], self.v[:, :, rows]
        eye_open, smile = self.a["eye_open"], self.a["smile"]
        light = self.face_light[:, :, rows]
        lash = self.skin * 0.16
        for side in (-1, 1):
            across = u - 0.200 * side
            t2 = (across / 0.116).square()
            body = (1 - t2).clamp(min=0)
            lower = -0.045 + (0.030 + 0.022 * eye_open) * body
            upper = lower - (0.16 * eye_open * (1.35 - 0.35 * eye_open)) * body
            socket = torch.exp(-(across / 0.13).square() - ((v + 0.075) / 0.08).square())
            self.lay(self.skin * self.colour((0.62, 0.46, 0.46)), socket.mul_(0.38), rows)
            eye = self.cover(torch.maximum(upper - v, v - lower)) * (t2 < 1)
            self.lay(self.colour(WHITE) * (0.80 + 0.20 * light), eye, rows, "eyes")
            gaze_x = across - 0.056 * self.a["gaze"]
            distance = (gaze_x.square() + (v + 0.068).square()).sqrt()
            self.lay(self.colour(IRIS), eye * self.cover(distance - 0.060), rows, "irises")
            self.lay(self.colour(PUPIL), eye * self.cover(distance - 0.034), rows, "irises")
            glint = ((gaze_x - 0.02).square() + (v + 0.09).square()).sqrt()
            self.lay(self.colour(WHITE), eye * self.cover(glint - 0.019), rows)
            lid = torch.maximum((v - upper).abs() - 0.017, across.abs() - 0.120)
            self.lay(lash, self.cover(lid), rows, "eyes")
            rise = 0.03 * eye_open + 0.012 * smile
            brow = -0.212 - rise + 0.042 * (across / 0.12).square()
            stroke = torch.maximum((v - brow).abs() - 0.026, across.abs() - 0.125)
            self.lay(self.hair * 0.62, self.cover(stroke, 0.006) * 0.9, rows, "brows")

    def paint_ears(self) -> None:
        rows = self.rows(-0.3, 0.4)
        y = self.y[:, :, rows]
        inside = self.cover(self.outside[:, :, rows])
        for side in (-1, 1):
            # the sphere point at the ear, turned; it is drawn over the head as it comes to the near side
            ear_x = self.head_x + self.width * (1.03 * side * self.cos_yaw - 0.10 * self.sin_yaw)
            ear_y = self.head_y + 0.05 - 0.05 * self.sin_pitch
            depth = -side * self.sin_yaw
            near = (0.5 + 4 * depth).clamp(0, 1)
            ring = ((self.x - ear_x) / 0.075).square() + ((y - ear_y) / 0.125).square()
            mask = self.cover((ring.sqrt() - 1) * 0.09) * (1 - inside * (1 - near))
            light = self.lambert(0.6 * side, 0.0, 0.7)
            self.lay(self.skin * (0.62 + 0.36 * light), mask, rows, "ears")
            hollow = mask * self.cover((ring.sqrt() - 0.5) * 0.09, 0.02)
            self.lay(self.skin * self.colour((0.58, 0.36, 0.36)), hollow * 0.7, rows)

    def paint_front_hair(self) -> None:
        length = self.a["hair_length"]
        nx, ny, nz = self.normal
        u, v = self.u / 0.475, self.v / 0.575
        part = (u + 0.30) / 0.34
        line = -0.63 + 0.72 * u.abs().pow(3) + (0.02 + 0.22 * length) * (1 - torch.exp(-part.square()))
        line = torch.minimum(line, -0.08 + 0.38 * length) + (-0.7 * self.w).clamp(0, 0.22)
        front = torch.maximum(self.hair_cap, (v - line) * 0.5)
        inner = self.width * 0.93 + 0.06 * (self.down - 0.25).clamp(min=0)
        locks = torch.maximum(self.hair_fall, inner - (self.sides + 0.04 * self.a["yaw"]).abs())
        mask = torch.maximum(self.cover(front, 0.006), self.cover(locks, 0.01))
        light = self.lambert(nx, ny, nz)
        sheen = torch.exp(-((ny + 0.62 + 0.25 * (nx - 0.4 * self.a["light"]).square()) / 0.13).square())
        waves = torch.cos(3.2 * part + 2 * v)
        shade = 0.58 + 0.44 * light + 0.04 * waves + 0.16 * sheen
        self.lay(self.hair * shade + 0.07 * sheen, mask, part="hair")

    def paint_glasses(self) -> None:
        rows = self.rows(-0.5, 0.35)
        u, v = self.u[:, :, rows], self.v[:, :, rows]
        across = u.abs() - 0.20
        ring = ((across / 0.155).square() + ((v + 0.05) / 0.150).square()).sqrt()
        bridge = torch.maximum(u.abs() - 0.05, (v + 0.075).abs() - 0.022)
        arm = torch.maximum(0.35 - u.abs(), (v + 0.075).abs() - 0.022)
        frame = torch.minimum(torch.minimum(((ring - 1) * 0.152).abs() - 0.024, bridge), arm)
        mask = self.cover(frame) * self.cover(self.outside[:, :, rows] - 0.01)
        glass = self.cover((ring - 1) * 0.152)
        self.lay(self.colour((0.85, 0.93, 1.0)), glass * (0.14 * self.a["glasses"]), rows)
        self.lay(self.colour(FRAME), mask * self.a["glasses"], rows, "glasses")


def _palette(colours: tuple, position: Tensor) -> Tensor:
    """Piecewise linear palette at position [n, 1, 1, 1] in 0..1: [n, 3, 1, 1]."""
    table = position.new_tensor(colours)
    place = position.flatten() * (len(colours) - 1)
    first = place.long().clamp(max=len(colours) - 2)
    return torch.lerp(table[first], table[first + 1], (place - first).unsqueeze(1))[:, :, None, None]
