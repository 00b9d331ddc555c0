"""A video frame: planes carried through bit for bit, and conversion of a rectangle to RGB and back.

swscale converts colours. Chroma is repeated on the way to RGB and averaged on the way back: a pixel
that nobody changed returns as it was (to rounding), and a rectangle's pixels do not depend on where
it was cut. Pixels are seen upright, as a player shows them, while the planes stay as they are
stored. Transparency stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.codec.codec import find_best_pix_fmt_of_list
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

_PLAIN_FORMATS = (
    "yuv420p",
    "yuv422p",
    "yuv444p",
    "yuv420p10le",
    "yuv422p10le",
    "yuv444p10le",
)
_FULL_RANGE_FORMATS = ("yuvj420p", "yuvj422p", "yuvj444p")
_ALPHA_FORMATS = tuple(f"yuva{name[3:]}" for name in _PLAIN_FORMATS)

#: Pixel formats whose planes are carried through untouched; anything else becomes the nearest.
WORKING_FORMATS = _PLAIN_FORMATS + _FULL_RANGE_FORMATS + _ALPHA_FORMATS

# FFmpeg's number of a colour matrix -> the matrix used by swscale.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}

_EXACT = (
    Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_TO_RGB = Interpolation.POINT | _EXACT
_TO_YUV = Interpolation.AREA | _EXACT


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """A picture and its place in time.

    Attributes:
        index: number of the frame, from 0.
        pts: presentation time in ticks of `time_base`.
        time_base: seconds in one tick.
        duration: ticks for which the frame is shown, according to the file; in a variable-rate file
            only the last frame's is reliable, as the others end where the next begins.
        picture: the planes, in one of `WORKING_FORMATS`. Shared with the decoder: never written to.
        turns: counter-clockwise quarter turns that bring the planes upright.
    """

    index: int
    pts: int
    time_base: Fraction
    duration: int
    picture: av.VideoFrame
    turns: int = 0

    @property
    def face_box(self) -> None:
        """A file does not say which face to re-voice."""
        return None

    @property
    def time_s(self) -> Fraction:
        """Presentation time in seconds."""
        return self.pts * self.time_base

    @property
    def end_s(self) -> Fraction:
        """Time at which the next frame is due, in seconds."""
        return (self.pts + self.duration) * self.time_base

    @property
    def width(self) -> int:
        """Width in pixels, upright."""
        return self.picture.height if self.turns % 2 else self.picture.width

    @property
    def height(self) -> int:
        """Height in pixels, upright."""
        return self.picture.width if self.turns % 2 else self.picture.height

    def rgb(self) -> np.ndarray:
        """Convert the whole frame to RGB: (H, W, 3) uint8."""
        return self.rectangle_rgb(0, 0, self.width, self.height)

    def rectangle_rgb(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Convert a rectangle to RGB with the frame's own matrix and range.

        Args:
            x, y: top left corner in pixels, both even.
            width, height: size in pixels; even, unless the rectangle ends at the frame's edge.

        Returns:
            (height, width, 3) uint8, equal to the same rectangle of `rgb()`.

        Raises:
            ValueError: the rectangle is not aligned, is empty or leaves the frame.
        """
        self._check_rectangle(x, y, width, height)
        stored = self._stored(x, y, width, height)
        left, top = stored[0] % 2, stored[1] % 2  # chroma samples start at even pixels
        x, y, width, height = stored[0] - left, stored[1] - top, stored[2] + left, stored[3] + top
        part = av.VideoFrame(_even(width), _even(height), self.picture.format.name)
        for part_plane, plane in zip(planes(part), planes(self.picture), strict=True):
            rows, columns = _covered(part, part_plane, x, y)
            cut = plane[rows, columns]
            missing = [(0, n - m) for n, m in zip(part_plane.shape, cut.shape, strict=True)]
            part_plane[:] = np.pad(cut, missing, mode="edge")
        converted = VideoReformatter().reformat(
            part,
            format="rgb24",
            src_colorspace=_matrix(self.picture),
            src_color_range=_range(self.picture),
            interpolation=_TO_RGB,
            threads=1,
        )
        rgb = converted.to_ndarray()[top:height, left:width]
        return np.ascontiguousarray(np.rot90(rgb, self.turns))

    def with_rectangle(self, x: int, y: int, rgb: np.ndarray, mask: np.ndarray) -> VideoFrame:
        """Write composited RGB into a copy of the frame, only where a mask allows it.

        A chroma sample is written if any of the pixels it covers may be. Every other sample of the
        new frame equals this frame's bit for bit.

        Args:
            x, y: top left corner in pixels, both even.
            rgb: (height, width, 3) uint8; height and width as for `rectangle_rgb`.
            mask: (height, width) of any dtype; a pixel may be written where it is not 0.

        Raises:
            ValueError: a shape or the dtype of `rgb` is wrong, or the rectangle is invalid as
                above.
        """
        height, width = mask.shape
        if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
            raise ValueError(
                f"expected rgb ({height}, {width}, 3) uint8, as the mask; "
                f"found {rgb.shape} {rgb.dtype}"
            )
        self._check_rectangle(x, y, width, height)
        x, y, width, height = self._stored(x, y, width, height)
        rgb, mask = np.rot90(rgb, -self.turns), np.rot90(mask, -self.turns)
        picture = copy_picture(self.picture)
        left, top = x % 2, y % 2  # chroma samples start at even pixels
        margin = ((top, (height + top) % 2), (left, (width + left) % 2))
        x, y = x - left, y - top
        writable = np.pad(mask.astype(bool), margin)
        part = VideoReformatter().reformat(
            av.VideoFrame.from_ndarray(np.pad(rgb, (*margin, (0, 0)), mode="edge"), "rgb24"),
            format=picture.format.name,
            dst_colorspace=_matrix(picture),
            dst_color_range=_range(picture),
            interpolation=_TO_YUV,
            threads=1,
        )
        for part_plane, plane in zip(planes(part)[:3], planes(picture)[:3], strict=True):
            h, w = part_plane.shape
            blocks = writable.reshape(h, part.height // h, w, part.width // w)
            allowed = np.logical_or.reduce(blocks, axis=(1, 3))
            target = plane[_covered(part, part_plane, x, y)]
            inside = np.s_[: target.shape[0], : target.shape[1]]
            np.copyto(target, part_plane[inside], where=allowed[inside])
        return replace(self, picture=picture)

    def _stored(self, x: int, y: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Convert a rectangle of the upright picture to the planes' orientation."""
        right, bottom = self.width - x - width, self.height - y - height
        if self.turns % 2:
            width, height = height, width
        corner = ((x, y), (bottom, x), (right, bottom), (y, right))[self.turns % 4]
        return *corner, width, height

    def _check_rectangle(self, x: int, y: int, width: int, height: int) -> None:
        for start, size, limit in ((x, width, self.width), (y, height, self.height)):
            end = start + size
            aligned = start % 2 == 0 and (size % 2 == 0 or end == limit)
            if not (aligned and 0 <= start < end <= limit):
                raise ValueError(
                    f"expected a rectangle with even corners inside {self.width}x{self.height}; "
                    f"found {width}x{height} at ({x}, {y})"
                )


def planes(picture: av.VideoFrame) -> list[np.ndarray]:
    """View the planes of a planar picture without copying.

    Returns:
        Y, U, V and, if there is one, alpha: (H, W) for Y and alpha, rounded up to whole samples
        for the others; uint8, or uint16 for more than 8 bits.
    """
    dtype = np.dtype(np.uint8 if picture.format.components[0].bits == 8 else np.uint16)
    views = []
    for plane in picture.planes:
        stride = plane.line_size  # negative if the rows are stored bottom up
        offset = -stride * (plane.height - 1) if stride < 0 else 0
        shape, strides = (plane.height, plane.width), (stride, dtype.itemsize)
        views.append(np.ndarray(shape, dtype, memoryview(plane), offset, strides))
    return views


def copy_picture(picture: av.VideoFrame, width: int = 0, height: int = 0) -> av.VideoFrame:
    """Copy planes and colour tags; a larger width or height repeats the last column or row."""
    copy = av.VideoFrame(width or picture.width, height or picture.height, picture.format.name)
    for target, source in zip(planes(copy), planes(picture), strict=True):
        rows, columns = source.shape
        target[:rows, :columns] = source
        target[:rows, columns:] = source[:, -1:]
        target[rows:] = target[rows - 1]
    _copy_tags(copy, picture)
    return copy


def upright(picture: av.VideoFrame, turns: int) -> av.VideoFrame:
    """A copy of planes and colour tags, turned counter-clockwise by so many quarters.

    Chroma that is subsampled in only one direction gets whole samples first.
    """
    chroma = VideoFormat(picture.format.name, 2, 2)
    if turns % 2 and chroma.chroma_width() != chroma.chroma_height():
        whole = picture.format.name.replace("422", "444")
        picture = convert_picture(picture, whole, picture.width, picture.height)
    size = (picture.width, picture.height)
    turned = av.VideoFrame(*(size[::-1] if turns % 2 else size), picture.format.name)
    for target, source in zip(planes(turned), planes(picture), strict=True):
        target[:] = np.rot90(source, turns)
    _copy_tags(turned, picture)
    return turned


def working_format(pix_fmt: str) -> str:
    """The working format nearest to a pixel format; its own name if it is one already."""
    if pix_fmt in WORKING_FORMATS:
        return pix_fmt
    wanted = VideoFormat(pix_fmt)
    if _is_grey(wanted):
        return "yuv420p" if wanted.components[0].bits <= 8 else "yuv420p10le"
    alpha = has_alpha(pix_fmt)
    names = _ALPHA_FORMATS if alpha else _PLAIN_FORMATS
    best, _ = find_best_pix_fmt_of_list(names, pix_fmt, alpha)
    return best.name if best is not None else names[2]


def has_alpha(pix_fmt: str) -> bool:
    """Whether a pixel format has transparency besides colours."""
    return any(component.is_alpha for component in VideoFormat(pix_fmt).components)


def has_transparency(picture: av.VideoFrame) -> bool:
    """Whether a picture in working format is transparent anywhere."""
    if not has_alpha(picture.format.name):
        return False
    opaque = (1 << picture.format.components[3].bits) - 1
    return bool((planes(picture)[3] < opaque).any())


def convert_picture(picture: av.VideoFrame, pix_fmt: str, width: int, height: int) -> av.VideoFrame:
    """Convert a picture to a YUV format and size; returned as it is if it has them already.

    YUV keeps its matrix and range; RGB becomes limited-range YUV; grey levels stay what they are.
    """
    source = picture.format
    if (source.name, picture.width, picture.height) == (pix_fmt, width, height):
        return picture
    grey = _is_grey(source)
    has_matrix = not (source.is_rgb or source.has_palette)
    out_range = _range(picture) if has_matrix else ColorRange.MPEG
    converted = VideoReformatter().reformat(
        picture,
        width=width,
        height=height,
        format=pix_fmt,
        src_color_range=_range(picture) if has_matrix else ColorRange.JPEG,
        # swscale takes every grey format as full range: full to full copies the levels.
        dst_color_range=ColorRange.JPEG if grey else out_range,
        dst_colorspace=None if has_matrix else _matrix(picture),
        interpolation=Interpolation.BILINEAR | _EXACT,
        threads=1,
    )
    converted.color_range = out_range
    return converted


def _copy_tags(target: av.VideoFrame, source: av.VideoFrame) -> None:
    target.color_range = source.color_range
    target.colorspace = source.colorspace
    target.color_primaries = source.color_primaries
    target.color_trc = source.color_trc


def _is_grey(pix_fmt: VideoFormat) -> bool:
    colours = [component for component in pix_fmt.components if not component.is_alpha]
    return len(colours) == 1 and not pix_fmt.has_palette


def _matrix(picture: av.VideoFrame) -> Colorspace:
    # If the file does not say: what players assume from the size.
    high_definition = picture.width >= 1280 or picture.height > 576
    guess = Colorspace.ITU709 if high_definition else Colorspace.ITU601
    return _MATRICES.get(picture.colorspace, guess)


def _range(picture: av.VideoFrame) -> ColorRange:
    full = picture.color_range == ColorRange.JPEG or picture.format.name.startswith("yuvj")
    return ColorRange.JPEG if full else ColorRange.MPEG


def _even(size: int) -> int:
    return size + size % 2


def _covered(part: av.VideoFrame, part_plane: np.ndarray, x: int, y: int) -> tuple[slice, slice]:
    """Rows and columns of a whole picture's plane that a part's plane at pixel (x, y) covers."""
    height, width = part_plane.shape
    top, left = y * height // part.height, x * width // part.width
    return slice(top, top + height), slice(left, left + width)
