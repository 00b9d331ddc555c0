"""The detail layer: the current frame's own pixels, warped to the shape of the generated mouth.

A generated face is soft, and looks a little like somebody else. The frame itself has the person's
skin, light and lips, only in the wrong shape. So the mesh of the generated face gives the positions
of lips, jaw and cheeks, and the frame is warped to them. The blended picture provides only what the
frame cannot: the inside of the mouth and the lips' inner rim.

The warp maps backwards: for every pixel of the result, it gives the offset of its source pixel. It
is a smooth mixture of the moves of 133 mesh points, the *controls*. The upper and the lower lip
have a mixture each, and the two meet along the line between the lips: there the source of a closing
mouth is torn, and what was between its lips is left out.

Lengths are in sides of the crop (see :mod:`dithead.face.crop`), along the rectangle's own axes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.config import FaceConfig
from dithead.controls import CONTROL_POINTS, GROUPS, MOUTH_ROWS, aligned, in_crop
from dithead.face.crop import STABLE_POINTS
from dithead.face.mesh import INNER_LOWER, INNER_UPPER

NODES = 64
"""The warp is computed at so many nodes along each side of the rectangle, and is linear between
them."""
FADE = 0.10
"""Over this distance from the soft mask's edge inwards, the warp grows to its full size."""
BACKGROUND = 0.02
"""Weight of standing still in the mixture; a control has up to 1."""
FAINTEST = -40.0
"""Natural logarithm of a control's least weight along one axis; nothing that is added up here is as
small."""
SHARPENINGS = 4
"""How often the mixture is corrected by its remaining error at the controls."""
RIM = 0.010
"""How far the blended picture reaches over the lips."""
CLOSING_RIM = 0.016
"""How much further it reaches where a mouth closes that is open in the source: the mesh is not
exact, and a line of the source's teeth would be left along the lips."""
CLOSING_CORNER = 0.04
"""How much further it also reaches past the corners, as the dark area there lies beyond the
mesh's."""
CLOSING = 0.015
"""Lips that come together by this much count as closed here."""
SOFT = 0.008
"""Over this distance its share grows from nothing to all."""
SPLIT = 0.004
"""Over this distance the upper part gives way to the lower at the line between the lips; over more
beyond their corners."""
GAIN_LIMIT = 1.6
"""Its colours are changed by at most this factor."""
SHARPNESS = 0.9
"""How much of the curvature between pixels is added to the linear interpolation. A cubic uses half;
with 0.9, pixels shifted by any part of a pixel are as sharp as unshifted ones."""
STRETCH_LIMIT = 1.4
"""Its mouth is widened or narrowed by at most this factor."""
COVERED = (0.28, 0.42)
"""If the frame's colours round the mouth differ from the generated ones by more, as logarithms,
something may be in front of it: from the first value on, the frame is left more and more as it
is."""
SPOT = 0.012
"""Colours are read in squares of half this side round the points of the lips and the skin."""


class FaceDetail(nn.Module):
    """``face_detail``: warps the frame to a shape, for rectangles of one size. No weights."""

    controls: Tensor
    stable: Tensor
    upper_inner: Tensor
    lower_inner: Tensor
    inner: Tensor
    inner_controls: Tensor
    reach: Tensor
    parts: Tensor
    nodes: Tensor
    mouth_points: Tensor
    around: Tensor
    halves: Tensor

    def __init__(self, config: FaceConfig, side: int) -> None:
        super().__init__()
        self.side = side
        self.edge = 2.5 * config.mask_softness  # the soft mask ends this far outside the polygon
        each = [group for group in GROUPS for _ in group.points]
        inner = (*INNER_UPPER, *INNER_LOWER)
        spot = torch.tensor([-SPOT, 0.0, SPOT])
        left = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0]) / 4.5 / len(MOUTH_ROWS)
        buffers = {
            "controls": torch.tensor(CONTROL_POINTS),
            "stable": torch.tensor(STABLE_POINTS),
            "upper_inner": torch.tensor([CONTROL_POINTS.index(point) for point in INNER_UPPER]),
            "lower_inner": torch.tensor([CONTROL_POINTS.index(point) for point in INNER_LOWER]),
            "inner": torch.tensor(inner),
            "inner_controls": torch.tensor([CONTROL_POINTS.index(point) for point in inner]),
            "reach": torch.tensor([group.reach for group in each]),
            "parts": torch.tensor([[float(group.upper), float(group.lower)] for group in each]),
            "nodes": torch.linspace(0.5, side - 0.5, NODES),
            "mouth_points": torch.tensor([point for row in MOUTH_ROWS for point in row]),
            "around": torch.cartesian_prod(spot, spot),
            "halves": torch.stack([left, left.flip(0)], dim=1).repeat(len(MOUTH_ROWS), 1),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    def forward(
        self,
        rectangle: Tensor,
        blended: Tensor,
        soft_mask: Tensor,
        transform: Tensor,
        polygon: Tensor,
        source: Tensor,
        wanted: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Warp a frame.

        Args:
            rectangle: (S, S, 3) uint8, the frame's. blended, soft_mask: outputs of
                :class:`dithead.graphs.FaceBlend`. transform: (2, 3), crop units to its pixels.
                polygon: (P, 2) in crop units, the blend's outline.
            source, wanted: meshes (468, 3) of the rectangle and of the blended picture, in the
                rectangle's pixels. target: (CONTROLS, 2), from :class:`FaceShape`.

        Returns:
            The result (S, S, 3) uint8, equal to the rectangle where the soft mask is 0; how far it
            was left as it was because something is in front of the mouth, () in [0, 1].
        """
        inverse = transform[:, :2].T / transform[:, 0].square().sum()  # (2, 2)
        target = (target - transform[:, 2]) @ inverse.T  # (K, 2), now all in crop units
        source, wanted = (in_crop(mesh, transform) for mesh in (source, wanted))
        wanted = aligned(wanted, source, self.stable)
        moved = target - torch.index_select(source, 0, self.controls)  # (K, 2)

        picture = rectangle.float().permute(2, 0, 1)[None]  # TensorRT permutes no uint8
        made = blended.float().permute(2, 0, 1)[None]  # (1, 3, S, S)
        covered = self.covered(picture, made, source, wanted, transform)
        bare = 1.0 - covered
        moved = moved * bare

        unit = transform[:, 0].square().sum().sqrt()  # the crop's side in pixels
        turned = transform[:, :2] / unit
        nodes = self.nodes / unit  # from here on in crop sides, along the rectangle's axes
        corner = transform[:, 2] / unit
        points, outline = (value @ turned.T + corner for value in (target, polygon))
        warp = self.warp(nodes, points, moved @ turned.T, outline)  # (4, N, N)
        closing = self.closing(source, target)
        mouth = self.mouth(nodes, points, CLOSING_CORNER * closing)  # (2, N, N)
        inside = self.generated(nodes, wanted @ turned.T + corner, points, turned)  # (2, N, N)
        shifts = torch.cat([warp, inside]).view(3, 2, NODES, NODES) * unit
        fine = self.upsampled(torch.cat([self.places(shifts).flatten(0, 1), mouth]))  # (8, S, S)
        place = torch.lerp(fine[:2], fine[2:4], torch.sigmoid(fine[7]))  # (2, S, S)

        warped = self.sharp(picture, place)
        made = _read(made, fine[4:6])
        rim = RIM + CLOSING_RIM * closing
        share = _smooth_step((fine[6] + rim) / SOFT) * soft_mask * bare  # (S, S)
        result = torch.lerp(warped, made * self.gain(made, warped, fine[6]), share)
        result = torch.where(soft_mask > 0, result, picture)[0].round().clamp(0, 255)
        return result.permute(1, 2, 0).to(torch.uint8), covered

    def covered(
        self, picture: Tensor, made: Tensor, source: Tensor, wanted: Tensor, transform: Tensor
    ) -> Tensor:
        """Whether something is in front of the mouth, in [0, 1]: from the difference between the
        colours of lips and skin on either side and the generated ones. Takes pictures (1, 3, S, S)
        and their meshes (468, 2) in crop units."""
        spots = torch.index_select(torch.stack([source, wanted]), 1, self.mouth_points)  # (2, M, 2)
        places = (spots[:, :, None] + self.around) @ transform[:, :2].T + transform[:, 2]
        places = places * (2.0 / self.side) - 1.0  # (2, M, 9, 2)
        own, other = (
            F.grid_sample(image, grid[None], padding_mode="border", align_corners=False).mean(3)
            for image, grid in zip((picture, made), places, strict=True)
        )  # (1, 3, M)
        apart = torch.log((own @ self.halves + 4.0) / (other @ self.halves + 4.0))  # (1, 3, 2)
        apart = apart.abs().flatten().amax(0)
        return _smooth_step((apart - COVERED[0]) / (COVERED[1] - COVERED[0]))

    def generated(self, nodes: Tensor, mesh: Tensor, points: Tensor, turned: Tensor) -> Tensor:
        """Offset from each node at which the blended picture is read, so that its mouth lies
        between the lips: it is moved, and stretched along the mouth. (2, N, N)."""
        there = torch.index_select(mesh, 0, self.inner)  # (22, 2)
        here = torch.index_select(points, 0, self.inner_controls)
        across = turned[:, 0]
        width = (there[10] - there[0]) @ across, (here[10] - here[0]) @ across
        stretch = width[0].clamp(min=0.01) / width[1].clamp(min=0.01)
        stretch = stretch.clamp(1 / STRETCH_LIMIT, STRETCH_LIMIT) - 1.0
        linear = across[:, None] * across * stretch  # (2, 2), beside the identity
        offset = there.mean(0) - here.mean(0) - linear @ here.mean(0)  # (2,)
        columns, rows = linear[:, :1] * nodes, linear[:, 1:] * nodes  # (2, N)
        return columns[:, None] + rows[:, :, None] + offset[:, None, None]

    def closing(self, source: Tensor, target: Tensor) -> Tensor:
        """Whether a mouth closes, in [0, 1]: from the source's mesh (468, 2) and the wanted
        controls (K, 2), in crop units."""
        edges = torch.index_select(source, 0, self.inner)[:, 1].view(2, -1)  # (upper and lower, 11)
        wanted = torch.index_select(target, 0, self.inner_controls)[:, 1].view(2, -1)
        narrower = ((edges[1] - edges[0]) - (wanted[1] - wanted[0])).mean()
        return _smooth_step(narrower / CLOSING)

    def warp(self, nodes: Tensor, points: Tensor, moved: Tensor, outline: Tensor) -> Tensor:
        """Offset from each node to its source: x and y by the upper part, x and y by the lower.

        Args:
            nodes: (N,), columns and rows. points: (K, 2), the wanted controls. moved: (K, 2).
                outline: (P, 2), beyond which nothing moves.

        Returns:
            (4, N, N).
        """
        own = self.bell(points[:, :1] - points[:, 0]) * self.bell(points[:, 1:] - points[:, 1])
        own = own / (own @ self.parts + BACKGROUND).T[:, :, None] * self.parts.T[:, None]
        target = moved.expand(2, -1, -1) * self.parts.T[:, :, None]  # (2 parts, K, 2)
        amounts = target
        for _ in range(SHARPENINGS):
            amounts = amounts + (target - own @ amounts) * self.parts.T[:, :, None]
        columns = self.bell(nodes[:, None] - points[:, 0])  # (N, K)
        rows = self.bell(nodes[:, None] - points[:, 1])
        # A bell is the product of its column and its row, so all sums are one matrix product.
        each = torch.cat([amounts, self.parts.T[:, :, None]], dim=2)  # (2 parts, K, 3)
        factors = each.permute(0, 2, 1).reshape(6, 1, -1)  # (6, 1, K)
        sums = ((factors * rows).flatten(0, 1) @ columns.T).view(2, 3, NODES, NODES)
        mixed = sums[:, :2] / (sums[:, 2:] + BACKGROUND)  # (2 parts, 2, N, N)
        fade = _smooth_step((self.edge - _outside(nodes, outline)) / FADE)  # (N, N)
        return -(mixed * fade).flatten(0, 1)

    def bell(self, distance: Tensor) -> Tensor:
        """Weight of each control at a distance from it along one axis: (..., K)."""
        # Products of smaller weights would be denormal, which CPUs multiply a hundred times slower.
        return torch.exp((distance.square() * (-0.5 / self.reach.square())).clamp(min=FAINTEST))

    def mouth(self, nodes: Tensor, points: Tensor, longer: Tensor) -> Tensor:
        """Position of nodes in the mouth formed by controls (K, 2): how deep between the lips,
        which are extended by so much past the corners, negative outside; and how far below the line
        between the lips, for a sigmoid. (2, N, N)."""
        upper, lower = (
            torch.index_select(points, 0, edge) for edge in (self.upper_inner, self.lower_inner)
        )  # (11, 2)
        left = upper[0]
        axis = upper[-1] - left
        width = axis.square().sum().sqrt().clamp(min=1e-3)
        axis = axis / width
        down = torch.stack([-axis[1], axis[0]])
        x, y = nodes - left[0], nodes[:, None] - left[1]
        along, depth = x * axis[0] + y * axis[1], x * down[0] + y * down[1]  # (N, N)
        top, bottom = (
            _line(along, (edge - left) @ axis, (edge - left) @ down) for edge in (upper, lower)
        )
        beyond = torch.maximum(-along, along - width).clamp(min=0)  # past a corner
        between = torch.minimum(depth - top, bottom - depth)
        below = (depth - (top + bottom) / 2) / (SPLIT + 0.5 * beyond)
        return torch.stack([between - (beyond - longer).clamp(min=0), below.clamp(-20, 20)])

    def places(self, shifts: Tensor) -> Tensor:
        """Where nodes read a picture, in the coordinates of ``grid_sample``, at least half a pixel
        within the edge: shifts in pixels (R, 2, N, N) -> (R, 2, N, N)."""
        own = torch.stack([self.nodes.expand(NODES, -1), self.nodes[:, None].expand(-1, NODES)])
        limit = 1.0 - 1.0 / self.side
        return ((own + shifts) * (2.0 / self.side) - 1.0).clamp(-limit, limit)

    def upsampled(self, values: Tensor) -> Tensor:
        """Values at the nodes (C, N, N), linear between them: (C, S, S)."""
        size = (self.side, self.side)
        return F.interpolate(values[None], size, mode="bilinear", align_corners=True)[0]

    def sharp(self, picture: Tensor, places: Tensor) -> Tensor:
        """A picture (1, 3, S, S) at places (2, S, S), as sharp between its pixels as on them.
        Linear interpolation loses the curvature: it is added back to all three colours equally,
        from the second differences of their mean."""
        grey = picture.mean(1, keepdim=True)
        wide = F.pad(grey, (1, 1, 1, 1), mode="replicate")
        across = wide[:, :, 1:-1, 2:] - 2 * grey + wide[:, :, 1:-1, :-2]
        down = wide[:, :, 2:, 1:-1] - 2 * grey + wide[:, :, :-2, 1:-1]
        found = _read(torch.cat([picture, across, down], dim=1), places)  # (1, 5, S, S)
        pixels = (places + 1.0) * (self.side / 2) - 0.5
        past = pixels - pixels.floor()  # how far past a pixel's middle
        lost = (past * (1.0 - past) * found[0, 3:]).sum(0)  # (S, S)
        return found[:, :3] - SHARPNESS * lost

    def gain(self, made: Tensor, warped: Tensor, between: Tensor) -> Tensor:
        """How much the colours of the blended picture differ from the warped one's on the lips
        round the mouth: (3, 1, 1)."""
        step = max(1, self.side // NODES)
        depth = between[::step, ::step]
        lips = _smooth_step((0.05 + depth) / 0.02) * _smooth_step(-depth / 0.01)
        a, b = ((image[0, :, ::step, ::step] * lips).sum((1, 2)) for image in (made, warped))
        return ((b + 1.0) / (a + 1.0)).clamp(1 / GAIN_LIMIT, GAIN_LIMIT)[:, None, None]


def _read(picture: Tensor, places: Tensor) -> Tensor:
    """A picture (1, C, S, S) at places (2, S, S)."""
    grid = places.permute(1, 2, 0)[None]
    return F.grid_sample(picture, grid, mode="bilinear", align_corners=False)


def _smooth_step(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, with slope 0 at both ends."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _outside(nodes: Tensor, polygon: Tensor) -> Tensor:
    """How far nodes (N,), columns and rows, are outside a convex polygon (P, 2), clockwise as seen:
    (N, N), negative inside."""
    edge = torch.roll(polygon, -1, dims=0) - polygon  # (P, 2)
    length = edge.square().sum(1, keepdim=True).sqrt().clamp(min=1e-9)
    x, y = edge[:, 1:] / length, -edge[:, :1] / length  # (P, 1), outward
    offset = x[:, 0] * polygon[:, 0] + y[:, 0] * polygon[:, 1]
    columns, rows = x * nodes, y * nodes - offset[:, None]  # (P, N)
    return (columns[:, None] + rows[:, :, None]).amax(0)


def _line(along: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Height, at each place ``along`` (N, N), of the line through points (P,) with increasing
    ``x``; level beyond its ends."""
    step = (x[1:] - x[:-1]).clamp(min=1e-3)[:, None]  # (P - 1, 1)
    part = ((along.flatten() - x[:-1, None]) / step).clamp(0.0, 1.0)  # (P - 1, N * N)
    return y[0] + ((y[1:] - y[:-1]) @ part).view_as(along)
