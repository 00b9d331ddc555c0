"""The face crop and its two masks: computes where they are, cuts the crop out of a frame, and draws
and blends the masks.

The crop and the mask are placed by points that speech does not move: eye corners, nose bridge,
forehead and temples. A fixed margin at the chin leaves room for an open mouth. So neither their
position nor their outline tells how far the mouth is open.

The *mask* is what a model must not see: the face from under the eyes down. The *blend* is the part
of it that is replaced in the picture: from the tip of the nose down, within the jaw. Between the
two, the source picture is kept.

Coordinates: *crop units* have their origin between eyes and mouth. x points to the person's left,
which is right in the picture, and y points down. Length 1 is 1.25 times the face's width between
the temples. A *placement* (cx, cy, log side, roll) puts them into a frame, in frame pixels and
radians. The *view* is the square of crop units that a crop's pixels show: all of -0.5 to 0.5, or a
part of it. Pixel i covers [i, i + 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dithead.config import FaceConfig, View
from dithead.hosttodevice import written
from dithead.kernels.sampling import compose, invert_similarity, pixel_centres, resample

STABLE_POINTS: tuple[int, ...] = (33, 133, 362, 263, 168, 6, 197, 127, 356, 54, 284, 10, 151, 9)
"""Mesh points that place the crop: eye corners, nose bridge, temples, forehead."""

# Mean position of STABLE_POINTS over frontal faces, in crop units (made by
# ``dithead.train.prepare.mean_template``).
_TEMPLATE: tuple[tuple[float, float], ...] = (
    (-0.2604, -0.3000),
    (-0.1015, -0.2915),
    (0.1015, -0.2915),
    (0.2604, -0.3000),
    (0.0000, -0.3259),
    (0.0000, -0.2787),
    (0.0000, -0.2340),
    (-0.4000, -0.2710),
    (0.4000, -0.2710),
    (-0.3442, -0.5130),
    (0.3442, -0.5130),
    (0.0000, -0.6303),
    (0.0000, -0.5300),
    (0.0000, -0.4232),
)

MASK_POLYGON: tuple[tuple[float, float], ...] = (
    (-0.44, -0.17),
    (0.44, -0.17),
    (0.44, 0.12),
    (0.38, 0.32),
    (0.24, 0.45),
    (0.12, 0.485),
    (-0.12, 0.485),
    (-0.24, 0.45),
    (-0.38, 0.32),
    (-0.44, 0.12),
)
"""Convex outline of the masked lower face in crop units, clockwise as seen: from under the eyes to
below an open jaw."""

BLEND_POINTS = (2, 172, 397, 152)
"""Mesh points that place the blend: nose base, where the upper lip begins; left and right side of
the jaw; chin."""
BLEND_ANCHORS = 4
"""Numbers kept of them: y of the nose base, x of the left and right side, y of the chin."""


def stable_template() -> Tensor:
    """The stable points in the mean face: (P, 2) in crop units."""
    return torch.tensor(_TEMPLATE)


def placement_from_mesh(mesh: Tensor, template: Tensor) -> Tensor:
    """Least-squares similarity from the template to a mesh's stable points.

    Args:
        mesh: (B, 468, 2 or 3) in frame pixels. template: from :func:`stable_template`.

    Returns:
        (B, 4): centre x, centre y (pixels), natural logarithm of the crop's side (pixels), roll
        (radians).
    """
    points = _points(mesh, STABLE_POINTS)  # (B, P, 2)
    t_mean, p_mean = template.mean(0), points.mean(1)  # (2,), (B, 2)
    t, p = template - t_mean, points - p_mean[:, None]
    norm = t.square().sum()
    cosine = (t * p).sum((1, 2)) / norm  # (B,) side * cos(roll)
    sine = (t[:, 0] * p[..., 1] - t[:, 1] * p[..., 0]).sum(1) / norm  # (B,) side * sin(roll)
    cx = p_mean[:, 0] - cosine * t_mean[0] + sine * t_mean[1]
    cy = p_mean[:, 1] - sine * t_mean[0] - cosine * t_mean[1]
    side = torch.sqrt(cosine.square() + sine.square()).clamp(min=1.0)
    return torch.stack([cx, cy, torch.log(side), torch.atan2(sine, cosine)], dim=1)


def _points(mesh: Tensor, which: tuple[int, ...]) -> Tensor:
    """Some of a mesh's points: (B, 468, 2 or 3) -> (B, P, 2)."""
    return torch.stack([mesh[:, point, :2] for point in which], dim=1).float()


def transform_from_placement(placement: Tensor) -> Tensor:
    """Placement (B, 4) -> matrix (B, 2, 3) that maps crop units to frame pixels."""
    cx, cy, log_side, roll = placement.unbind(1)
    side = torch.exp(log_side)
    c, s = side * torch.cos(roll), side * torch.sin(roll)
    rows = torch.stack([c, -s, cx, s, c, cy], dim=1)
    return rows.view(-1, 2, 3)


WHOLE = View()
"""The view of a crop that shows all crop units from -0.5 to 0.5."""


def crop_face(
    image: Tensor, transform: Tensor, size: int, density: int = 1, view: View = WHOLE
) -> Tensor:
    """Cut the crop out of a picture.

    Args:
        image: (B, 3, H, W) float. transform: (B, 2, 3), maps crop units to its pixels.
        size: side of the crop in pixels.
        density: samples along each side of a crop pixel, which are averaged; should be about the
            number of source pixels per crop pixel.
        view: what the crop shows.

    Returns:
        (B, 3, size, size) float, in the picture's range.
    """
    matrix = compose(transform, _units_of_crop_pixels(size, view, image.device))
    samples = pixel_centres(size, size, density, image.device)
    return resample(image, matrix, samples, size, density)


def paste_matrix(transform: Tensor, size: int, view: View = WHOLE) -> Tensor:
    """Matrix (B, 2, 3) that maps pixels of a rectangle to those of a crop of ``size`` pixels:
    transform (B, 2, 3), maps crop units to rectangle pixels; view: what the crop shows."""
    pixels = size / view.span  # per crop unit
    pixels_of_units = _scaling(pixels, size / 2, size / 2 - pixels * view.down, transform.device)
    return compose(pixels_of_units, invert_similarity(transform))


def _units_of_crop_pixels(size: int, view: View, device: torch.device) -> Tensor:
    """Matrix (1, 2, 3) that maps a crop's pixels to crop units."""
    half = 0.5 * view.span
    return _scaling(view.span / size, -half, view.down - half, device)


def crop_positions(size: int, view: View = WHOLE) -> tuple[Tensor, Tensor]:
    """Positions of a crop's pixels: x and y in crop units, each (size, size)."""
    line = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(view.span * line + view.down, view.span * line, indexing="ij")
    return x, y


def _scaling(scale: float, right: float, down: float, device: torch.device) -> Tensor:
    """Matrix (1, 2, 3) that maps (x, y) to (scale * x + right, scale * y + down)."""
    return written([scale, 0.0, right, 0.0, scale, down], device).view(1, 2, 3)


def blend_anchors(mesh: Tensor, placement: Tensor) -> Tensor:
    """Measure the face's own outline, for :func:`blend_polygon`.

    Args:
        mesh: (B, 468, 2 or 3) in frame pixels. placement: (B, 4).

    Returns:
        (B, BLEND_ANCHORS) in crop units: y of the nose base, x of the left and right side, y of
            the chin.
    """
    delta = _points(mesh, BLEND_POINTS) - placement[:, None, :2]  # (B, 4, 2)
    c, s = torch.cos(placement[:, 3:]), torch.sin(placement[:, 3:])  # (B, 1)
    side = torch.exp(placement[:, 2:3])
    x = (c * delta[..., 0] + s * delta[..., 1]) / side  # (B, 4)
    y = (c * delta[..., 1] - s * delta[..., 0]) / side
    return torch.stack([y[:, 0], x[:, 1], x[:, 2], y[:, 3]], dim=1)


def blend_polygon(anchors: Tensor) -> Tensor:
    """Outline of what is replaced: from the tip of the nose, along the jaw, to where the chin would
    be with the mouth open.

    The tip is included because speech moves it a little, enough to tell how far the mouth is open.

    Args:
        anchors: (B, BLEND_ANCHORS) from :func:`blend_anchors`. They are clamped to limits within
            which the outline is convex and lies inside the mask.

    Returns:
        (B, P, 2) in crop units, clockwise as seen.
    """
    nose = anchors[:, 0].clamp(-0.11, 0.10)  # (B,)
    left, right = anchors[:, 1].clamp(-0.36, -0.20), anchors[:, 2].clamp(0.20, 0.36)
    chin = torch.maximum(anchors[:, 3], nose + 0.30).clamp(max=0.425)
    top, corner = nose - 0.06, chin - 0.14
    points = [
        (left, top),
        (right, top),
        (right, corner),
        (0.72 * right, chin),
        (0.36 * right, chin + 0.06),
        (0.36 * left, chin + 0.06),
        (0.72 * left, chin),
        (left, corner),
    ]
    return torch.stack([torch.stack(point, dim=1) for point in points], dim=1)


def soft_polygon(
    polygon: Tensor, softness: float, units_of_pixels: Tensor, height: int, width: int
) -> Tensor:
    """Draw a filled convex polygon whose edge is softened by a Gaussian.

    Args:
        polygon: (B, P, 2) in crop units, clockwise as seen (y down). softness: the Gaussian's
            sigma, in crop units. units_of_pixels: (B or 1, 2, 3), maps the picture's pixels to
            crop units. height, width: of the picture.

    Returns:
        (B, 1, height, width) in [0, 1]; exactly 0 further than 2.5 sigma outside, and exactly 1
        further than that inside.
    """
    return soft_convex(polygon_planes(polygon), softness, units_of_pixels, height, width)


def polygon_planes(polygon: Tensor) -> Tensor:
    """The lines of a convex polygon's edges: (B, P, 2), clockwise as seen -> (B, P, 3), outward
    normals and minus their offsets; a place (x, y, 1) times a row is how far outside it is."""
    ends = torch.roll(polygon, -1, dims=1)
    edge = ends - polygon  # (B, P, 2)
    length = edge.norm(dim=2).clamp(min=1e-9)
    normal = torch.stack([edge[..., 1], -edge[..., 0]], dim=-1) / length[..., None]  # outward
    offset = (normal * polygon).sum(-1, keepdim=True)  # (B, P, 1)
    return torch.cat([normal, -offset], dim=-1)


def soft_convex(
    planes: Tensor, softness: float, units_of_pixels: Tensor, height: int, width: int
) -> Tensor:
    """As :func:`soft_polygon`, from the lines of the edges (B, P, 3), see
    :func:`polygon_planes`."""
    outside = compose(planes, units_of_pixels)  # (B, P, 3)
    distances = outside @ pixel_centres(height, width, 1, planes.device)  # (B, P, h * w)
    distance = distances.amax(1)  # signed, positive outside
    reach = math.erf(2.5 / math.sqrt(2.0))
    smooth = -torch.erf(distance / (softness * math.sqrt(2.0))) / reach
    return (0.5 + 0.5 * smooth).clamp(0.0, 1.0).reshape(-1, 1, height, width)


def crop_mask(size: int, softness: float, polygon: Tensor, view: View = WHOLE) -> Tensor:
    """Soft mask of a crop: polygon (B, P, 2) in crop units -> (B, 1, size, size) in [0, 1]."""
    return convex_crop_mask(size, softness, polygon_planes(polygon), view)


def fixed_mask(config: FaceConfig) -> Tensor:
    """The soft mask of every crop, whatever the face: (1, 1, S, S) in [0, 1]."""
    return crop_mask(config.crop_px, config.mask_softness, mask_polygon(1), config.view)


def convex_crop_mask(size: int, softness: float, planes: Tensor, view: View = WHOLE) -> Tensor:
    """As :func:`crop_mask`, from the lines of the edges (B, P, 3), see :func:`polygon_planes`."""
    units = _units_of_crop_pixels(size, view, planes.device)
    return soft_convex(planes, softness, units, size, size)


def visible(mask: Tensor) -> Tensor:
    """What a model may see: 1 where the soft mask is exactly 0, else 0.

    Pixels under the mask's soft edge are weakened, not removed: a regressor can still tell from
    them how far the mouth is open. So the soft edge is used only for blending.
    """
    return (mask <= 0).to(mask.dtype)


def mask_out(image: Tensor, mask: Tensor) -> Tensor:
    """The masked face: mid-grey under the mask and its soft edge.

    image: (B, 3, S, S) in [-1, 1]. mask: (B, 1, S, S).
    """
    return image * visible(mask)


def rectangle_mask(
    transform: Tensor, height: int, width: int, softness: float, polygon: Tensor
) -> Tensor:
    """Soft mask of a rectangle: transform (B, 2, 3), polygon (B, P, 2) in crop units -> (B, 1,
    height, width)."""
    return soft_polygon(polygon, softness, invert_similarity(transform), height, width)


def mask_polygon(batch: int) -> Tensor:
    """The mask's outline: (B, P, 2) in crop units."""
    return torch.tensor(MASK_POLYGON).expand(batch, -1, -1)
