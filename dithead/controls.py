"""The controls of the detail layer (:mod:`dithead.detail`): which points of the mesh they are, and
where they belong in a generated face.

Lengths are in sides of the crop (see :mod:`dithead.face.crop`), along the rectangle's own axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from dithead.face.crop import STABLE_POINTS
from dithead.face.mesh import INNER_LOWER, INNER_UPPER

MEMORY_S = 4.0
"""Over this many seconds, the difference between the generated face's points and the person's is
averaged, as a generated face never quite matches the person. What is left is speech."""
SLOW_S = 0.06
"""Time constant of the smoothing of jaw and cheeks."""
CLOSES_S, OPENS_S = 0.1, 20.0
"""How soon a mouth that is closed further than before counts as at rest, and how slowly one that no
longer closes as far."""
WIDER, NARROWER = 0.003, 0.03
"""How much further apart, or closer, a person's lips may rest than the generated ones. Beyond that
it counts as a smile, or a vowel."""
LIVELINESS = 0.75
"""How much of the difference is compensated where a person's mouth opens further than the generated
one: an exponent of the ratio of their spreads."""
USUAL_SPREAD = 0.0055
"""Spread of a mouth's opening that is assumed for both besides what has been seen of them."""
LIVELIEST = 2.0
"""A generated mouth's openings are enlarged by at most this factor."""
AT_REST = 0.004
"""Smaller openings are not enlarged."""

_UPPER_OUTER = (185, 40, 39, 37, 0, 267, 269, 270, 409)
_LOWER_OUTER = (146, 91, 181, 84, 17, 314, 405, 321, 375)
_UPPER_SKIN = (186, 92, 165, 167, 164, 393, 391, 322, 410)
_LOWER_SKIN = (43, 106, 182, 83, 18, 313, 406, 335, 273)
MOUTH_ROWS = (_UPPER_OUTER, _LOWER_OUTER, _UPPER_SKIN, _LOWER_SKIN)
_CORNERS = (78, 308, 61, 291, 62, 292, 76, 306)
_CHEEKS = (57, 287, 216, 436, 207, 427, 187, 411, 206, 426, 205, 425, 212, 432, 214, 434, 192, 416)
_JAW = (
    *(200, 199, 175, 201, 421, 208, 428, 202, 422, 204, 424, 210, 430, 211, 431, 194, 418),
    *(152, 148, 377, 176, 400, 149, 378, 150, 379, 136, 365, 172, 397, 135, 364, 138, 367),
)
_STILL = (2, 97, 326, 98, 327, 129, 358, 4, 94, 141, 370, 203, 423, 36, 266, 50, 280, 123, 352)
"""Points at and above the base of the nose, which hold the warp there."""


@dataclass(frozen=True, slots=True)
class Group:
    """Similar controls. Rows of lips have one for each pair of opposite points, from left to
    right."""

    points: tuple[int, ...]
    reach: float
    """Sigma of the bell that weights a control in the mixture."""
    limit: float
    """Limit of a move; 0 for points that hold the warp."""
    upper: bool
    """Whether they belong to the upper part."""
    lower: bool
    opens: float = 0.0
    """Share of a change of the gap between the lips that they take on, downwards."""
    slow: bool = False
    """Whether they are smoothed over time: what speech moves slowly should not tremble with the
    mesh."""


GROUPS = (
    Group(_CORNERS, 0.035, 0.09, True, True),
    Group(INNER_UPPER[1:-1], 0.030, 0.05, True, False, -0.3),
    Group(_UPPER_OUTER, 0.030, 0.05, True, False, -0.3),
    Group(_UPPER_SKIN, 0.030, 0.04, True, False, -0.15),
    Group(INNER_LOWER[1:-1], 0.030, 0.14, False, True, 0.7),
    Group(_LOWER_OUTER, 0.030, 0.14, False, True, 0.7),
    Group(_LOWER_SKIN, 0.030, 0.14, False, True, 0.6),
    Group(_CHEEKS, 0.055, 0.07, True, True, slow=True),
    Group(_JAW, 0.055, 0.12, False, True, slow=True),
    Group(_STILL, 0.045, 0.0, True, True),
)
CONTROL_POINTS = tuple(point for group in GROUPS for point in group.points)
CONTROLS = len(CONTROL_POINTS)
_UPPER_ROW, _LOWER_ROW = CONTROL_POINTS.index(INNER_UPPER[1]), CONTROL_POINTS.index(INNER_LOWER[1])
_PAIRS = len(INNER_UPPER) - 2
_MIDDLE = slice(2, 7)
"""The pairs in the middle of the mouth, which determine how far open it is."""
HABIT_SIZE = 4 * CONTROLS + 2 * _PAIRS + 4 + 1
"""Length of the state of :class:`FaceShape`: mean moves; the last moves; gaps at rest, of source
and generated face; mean and variance of how far open each is; number of seconds that the means
cover."""


class FaceShape(nn.Module):
    """``face_shape``: the target positions of a frame's controls, from its mesh and that of the
    generated face. No weights.

    The gap between the lips is the generated one, but it begins where the person's own lips meet
    and grows as far as theirs do: a generated face closes and opens its mouth a little like the
    people in the training data. Everything else moves with the generated face, but keeps its own
    place on average.
    """

    controls: Tensor
    stable: Tensor
    limits: Tensor
    upper: Tensor
    lower: Tensor
    opening: Tensor
    slow: Tensor

    def __init__(self) -> None:
        super().__init__()
        opening = torch.zeros(CONTROLS, _PAIRS)
        starts = accumulate((len(group.points) for group in GROUPS), initial=0)
        for group, start in zip(GROUPS, starts, strict=False):
            if group.opens:
                opening[start : start + _PAIRS] = group.opens * torch.eye(_PAIRS)
        limits = [[group.limit] for group in GROUPS for _ in group.points]
        buffers = {
            "controls": torch.tensor(CONTROL_POINTS),
            "stable": torch.tensor(STABLE_POINTS),
            "limits": torch.tensor(limits),
            "upper": torch.tensor(INNER_UPPER[1:-1]),
            "lower": torch.tensor(INNER_LOWER[1:-1]),
            "opening": opening,
            "slow": torch.tensor([[float(group.slow)] for group in GROUPS for _ in group.points]),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    @staticmethod
    def initial_habit(device: torch.device | None = None) -> Tensor:
        """State before the first frame: (HABIT_SIZE,). Nothing is known: the whole difference
        between the two faces in the first frame counts as lasting, and only the gap is carried
        over."""
        return torch.zeros(HABIT_SIZE, device=device)

    def forward(
        self, source: Tensor, wanted: Tensor, transform: Tensor, habit: Tensor, elapsed_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Advance by one frame.

        Args:
            source, wanted: meshes (468, 3) of the rectangle and of the blended picture, in the
                rectangle's pixels. transform: (2, 3), crop units to its pixels.
            habit: (HABIT_SIZE,). elapsed_s: scalar, seconds since the last frame.

        Returns:
            (CONTROLS, 2) in the rectangle's pixels; new state (HABIT_SIZE,).
        """
        source, wanted = in_crop(source, transform), in_crop(wanted, transform)  # (468, 2)
        wanted = aligned(wanted, source, self.stable)
        start = torch.index_select(source, 0, self.controls)  # (K, 2)
        move = torch.index_select(wanted - source, 0, self.controls)
        move = limited(move, torch.full_like(self.limits, 0.2))
        step = elapsed_s.clamp(0.001, 0.2)
        seconds = (habit[-1] + step).clamp(max=MEMORY_S)
        mean, last = habit[: 4 * CONTROLS].view(2, -1, 2)
        mean = mean + (move - mean) * (step / seconds)
        move = move - mean
        move = move + self.slow * (last - move) * (SLOW_S / (SLOW_S + step))
        gaps = torch.stack([self.gap(source), self.gap(wanted)])  # (2, pairs)
        apart, manner = self.manner(gaps, habit, step, seconds)
        state = torch.cat([mean.flatten(), move.flatten(), manner, seconds[None]])
        gap = apart - gaps[0]  # (pairs,)
        below, above = _LOWER_ROW, _UPPER_ROW
        got = move[below : below + len(gap), 1] - move[above : above + len(gap), 1]
        opened = self.opening @ (gap - got)  # (K,)
        move = torch.stack([move[:, 0], move[:, 1] + opened], dim=1)
        target = start + limited(move, self.limits)
        target = target @ transform[:, :2].T + transform[:, 2]
        return target, state

    def manner(
        self, gaps: Tensor, habit: Tensor, step: Tensor, seconds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How far open the person would have the mouth, and the updated state.

        Args:
            gaps: (2, pairs), of the source and of the generated face.

        Returns:
            (pairs,); its part of the state.
        """
        rest, spread = habit[4 * CONTROLS : -1].split([2 * _PAIRS, 4])
        rest, (mean, variance) = rest.view(2, -1), spread.view(2, 2)
        rest = torch.where(habit[-1] > 0, rest, gaps)
        constant = torch.where(gaps < rest, CLOSES_S, OPENS_S)
        rest = rest + (gaps - rest) * (step / constant).clamp(max=1.0)
        share = step / seconds
        off = gaps[:, _MIDDLE].mean(1) - mean  # (2,)
        mean = mean + share * off
        variance = variance + share * (off * off * (1.0 - share) - variance)
        own, other = (variance + USUAL_SPREAD**2).log()
        larger = (0.5 * LIVELINESS * (own - other)).exp().clamp(1.0, LIVELIEST) - 1.0
        apart = gaps[1] + (rest[0] - rest[1]).clamp(-NARROWER, WIDER)
        apart = apart + larger * (gaps[1] - rest[1] - AT_REST).clamp(min=0.0)
        return apart.clamp(min=0.0), torch.cat([rest.flatten(), mean, variance])

    def gap(self, mesh: Tensor) -> Tensor:
        """How far apart the inner edges of the lips are, between their corners: (pairs,)."""
        return torch.index_select(mesh[:, 1], 0, self.lower) - torch.index_select(
            mesh[:, 1], 0, self.upper
        )


def in_crop(mesh: Tensor, transform: Tensor) -> Tensor:
    """A mesh (468, 3) of pixels in crop units (468, 2); NaN becomes 0."""
    inverse = transform[:, :2].T / transform[:, 0].square().sum()
    points = (mesh[:, :2] - transform[:, 2]) @ inverse.T
    return torch.where(points.abs() < 4.0, points, torch.zeros_like(points))


def aligned(mesh: Tensor, source: Tensor, stable: Tensor) -> Tensor:
    """A mesh (468, 2) moved so that its stable points are, on average, where the source's are."""
    return mesh + torch.index_select(source - mesh, 0, stable).mean(0)


def limited(moves: Tensor, limits: Tensor) -> Tensor:
    """Limit moves (N, 2) to a length of at most (N, 1), keeping their directions."""
    length = moves.square().sum(1, keepdim=True).sqrt().clamp(min=1e-9)
    return moves * (limits / length).clamp(max=1.0)
