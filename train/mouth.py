"""Puts the inside of a speaker's mouth between the lips of somebody else.

Lips are given by their inner edges, 11 points each from corner to corner, and read column by column
of the picture: a mouth is upright in a stored crop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.train.motion import Motion

SEAM, SEAM_PX = 0.4, 1.2
"""Darkness and width, in stored pixels, of the line where lips meet that were apart."""
TEETH_TINT, TEETH_LIGHT = 0.5, 0.6
"""How far teeth take on the tint and (as an exponent) the brightness of a face's light."""
FLESH_TINT = (1.08, 0.96, 0.98)
"""Tongue and gums, relative to the mean of cheek and lip."""
MOST_STRETCH = 1.25
"""The height of the inside grows by at most this factor more than its width."""
CAVITY, CAVITY_PX = 0.75, 2.5
"""How much darker it is where the speaker has nothing to show, and over how many stored pixels."""
_RIM_PX = 1.3
"""Width of the soft edge of the inside of the mouth."""
_LUMA = (0.299, 0.587, 0.114)


def heights(points: Tensor, columns: Tensor) -> Tensor:
    """Height at given columns (S,) or (T, S) of lines through points (T, P, 2): (T, S)."""
    x = points[..., 0].cummax(1).values + 1e-3 * torch.arange(points.shape[1])
    columns = columns.expand(len(points), -1).contiguous()
    index = torch.searchsorted(x.contiguous(), columns).clamp(1, points.shape[1] - 1)
    x0, x1 = x.gather(1, index - 1), x.gather(1, index)
    y0, y1 = points[..., 1].gather(1, index - 1), points[..., 1].gather(1, index)
    return y0 + ((columns - x0) / (x1 - x0)).clamp(0, 1) * (y1 - y0)


def seam(
    removed: Tensor, middle: Tensor, columns: Tensor, rows: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    """The factor for a picture that makes lips that were apart in the still meet in a dark line.

    Args:
        removed: (11,) how much of the mouth was removed between them, in pixels.
        middle: (T, S) height of the line at each column. left, right: (T, 1, 1) the corners.
        columns, rows: (S,) and (R,) centres of the picture's pixels.

    Returns:
        (T, 1, R, S).
    """
    line = torch.exp(-((rows[:, None] - middle[:, None]) / SEAM_PX).square())
    across = ((columns - left) / (right - left)).clamp(0, 1)
    depth = SEAM * (4 * across * (1 - across)).sqrt() * (removed.max() / 2.0).clamp(max=1.0)
    return (1 - depth * line)[:, None]


def inner_mouth(
    motion: Motion, colour: Tensor, upper: Tensor, lower: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """A speaker's mouth between another's lips.

    Args:
        colour: (2, 3) colours of the other's cheeks and lips.
        upper, lower: (T, 11, 2) edges of the other's lips in the pixels of the result.
        size: side of the result.

    Returns:
        Pictures (T, 3, size, size) in [0, 1] in the other's light, and their opacity (T, 1, size,
        size).
    """
    own_upper, own_lower = motion.inner.unbind(1)  # (T, 11, 2)
    half = motion.contact / 2
    shrink = torch.minimum(half, (own_lower - own_upper)[..., 1].clamp(min=0) / 2)
    own_upper = torch.stack([own_upper[..., 0], own_upper[..., 1] + shrink], dim=-1)
    own_lower = torch.stack([own_lower[..., 0], own_lower[..., 1] - shrink], dim=-1)
    columns = torch.arange(size) + 0.5
    above, below = heights(upper, columns), heights(lower, columns)  # (T, size)
    left, right = upper[:, :1, 0], upper[:, -1:, 0]
    own_left, own_right = own_upper[:, :1, 0], own_upper[:, -1:, 0]
    across = (columns - left) / (right - left)  # (T, size)
    own_columns = own_left + across.clamp(0, 1) * (own_right - own_left)
    own_above, own_below = (heights(line, own_columns) for line in (own_upper, own_lower))
    y = torch.arange(size)[:, None] + 0.5
    # Where the mouth opens further than the speaker's, his teeth keep their shape, and between them
    # it is dark.
    height, own_height = (below - above).clamp(min=1e-3), (own_below - own_above).clamp(min=1e-3)
    natural = MOST_STRETCH * (right - left) / (own_right - own_left).clamp(min=1e-3)
    stretch = torch.minimum(natural, height / own_height)[:, None]  # (T, 1, size)
    half = height[:, None] / 2
    down = (y - above[:, None]).clamp(min=0).minimum(2 * half)  # (T, size, size)
    near = torch.minimum(down, 2 * half - down)  # from the nearer edge
    reach = torch.minimum(near / stretch, own_height[:, None] / 2)
    own_y = torch.where(down < half, own_above[:, None] + reach, own_below[:, None] - reach)
    depth = near - stretch * own_height[:, None] / 2
    dark = 1 - CAVITY * (depth / CAVITY_PX).clamp(0, 1)
    places = torch.stack([own_columns[:, None].expand(-1, size, -1), own_y], dim=-1)
    picture = F.grid_sample(
        motion.crops, places * (2.0 / motion.crops.shape[-1]) - 1, align_corners=False
    )
    picture = _relight(picture, motion.colour, colour) * dark[:, None]
    rim = ((y - above[:, None]) / _RIM_PX).clamp(0, 1)
    rim = rim * ((below[:, None] - y) / _RIM_PX).clamp(0, 1)
    ends = torch.minimum(columns - left, right - columns)[:, None]
    opacity = rim * (ends / _RIM_PX).clamp(0, 1)
    return picture, opacity[:, None]


def _relight(picture: Tensor, own: Tensor, wanted: Tensor) -> Tensor:
    """Pictures (T, 3, S, S) of an open mouth in another face's light.

    Only the brightness and the redness, between cheek and lip, are the speaker's: red parts take
    the other face's colour, others (teeth) are nearly white in the other light.
    """
    luma = torch.tensor(_LUMA)
    bright = torch.einsum("c,tcyx->tyx", luma, picture)[:, None]
    own_level, level = own @ luma, wanted @ luma  # (2,) of cheeks and lips
    cheek, lip = _redness(own[0]), _redness(own[1])
    red = _redness(picture.movedim(1, -1))[:, None]
    red = ((red - cheek) / (0.5 * (lip - cheek)).clamp(min=0.02)).clamp(0, 1)
    dark = (1 - bright / (0.5 * own_level[1]).clamp(min=0.05)).clamp(0, 1)
    red = torch.maximum(red, dark)
    tint = wanted / level.clamp(min=0.02)[:, None]  # (2, 3) with brightness 1
    flesh = tint.mean(0) * torch.tensor(FLESH_TINT)
    teeth = 1 + TEETH_TINT * (tint[0] - 1)
    ratio = (level / own_level.clamp(min=0.05)).clamp(0.3, 1.8)
    teeth = teeth * ratio[0] ** TEETH_LIGHT
    flesh = flesh * ratio[1]
    return (bright * (teeth + red.movedim(1, -1) * (flesh - teeth)).movedim(-1, 1)).clamp(0, 1)


def _redness(colour: Tensor) -> Tensor:
    """Share of red over green in colours (..., 3): (...)."""
    return (colour[..., 0] - colour[..., 1]) / colour.sum(-1).clamp(min=0.1)
