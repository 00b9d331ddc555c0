#include "pixels.hpp"

#include <array>
#include <cstring>
#include <limits>
#include <string>

#include "error.hpp"
#include "swscale.hpp"

namespace dithead {
namespace {

[[noreturn]] void refuse(const std::string &message) {
    throw Error(DITHEAD_ERROR_INVALID_ARGUMENT, message);
}

// One of the planes of a picture, below each other in memory.
struct Plane {
    std::size_t row_bytes = 0;
    std::size_t rows = 0;
    std::size_t stride = 0;
};

// stride: of the first plane.
std::array<Plane, 3> planes_of(std::int64_t width, std::int64_t height, std::size_t stride,
                               PixelFormat format) {
    const auto w = static_cast<std::size_t>(width), h = static_cast<std::size_t>(height);
    switch (format) {
    case PixelFormat::rgb24: return {Plane{3 * w, h, stride}, Plane{}, Plane{}};
    case PixelFormat::nv12: return {Plane{w, h, stride}, Plane{w, h / 2, stride}, Plane{}};
    case PixelFormat::i420: break;
    }
    const Plane chroma{w / 2, h / 2, stride / 2};
    return {Plane{w, h, stride}, chroma, chroma};
}

std::size_t tight_stride(std::int64_t width, PixelFormat format) {
    return static_cast<std::size_t>(width) * (format == PixelFormat::rgb24 ? 3 : 1);
}

void copy_rows(const std::array<Plane, 3> &from_planes, const std::uint8_t *from,
               const std::array<Plane, 3> &to_planes, std::uint8_t *to) {
    for (std::size_t n = 0; n < from_planes.size(); ++n) {
        for (std::size_t y = 0; y < from_planes[n].rows; ++y) {
            std::memcpy(to, from, from_planes[n].row_bytes);
            from += from_planes[n].stride;
            to += to_planes[n].stride;
        }
    }
}

} // namespace

PixelFormat checked_format(std::int32_t format) {
    switch (format) {
    case DITHEAD_PIXELS_RGB24: return PixelFormat::rgb24;
    case DITHEAD_PIXELS_NV12:
    case DITHEAD_PIXELS_I420: break;
    default: refuse("unknown pixel_format " + std::to_string(format));
    }
    if (!swscale::BUILT_IN) {
        throw Error(DITHEAD_ERROR_UNSUPPORTED,
                    "this build of libdithead was made without libswscale: it takes and gives "
                    "RGB24 only");
    }
    return format == DITHEAD_PIXELS_NV12 ? PixelFormat::nv12 : PixelFormat::i420;
}

std::size_t bytes_of_picture(std::int64_t width, std::int64_t height, std::size_t stride,
                             PixelFormat format) {
    if (width < LEAST_SIDE || height < LEAST_SIDE || width > MOST_SIDE || height > MOST_SIDE) {
        refuse("a picture of " + std::to_string(width) + " x " + std::to_string(height) +
               " pixels: each side must be from 2 to 16384");
    }
    if (format != PixelFormat::rgb24 && (width % 2 != 0 || height % 2 != 0)) {
        refuse("NV12 and I420 need an even width and height");
    }
    const std::size_t least = tight_stride(width, format);
    if (stride == 0) stride = least;
    if (stride < least) {
        refuse("a stride of " + std::to_string(stride) + " bytes for rows of " +
               std::to_string(least));
    }
    if (format == PixelFormat::i420 && stride % 2 != 0) refuse("I420 needs an even stride");
    constexpr std::size_t MOST = std::numeric_limits<std::size_t>::max() / 4 / MOST_SIDE;
    if (stride > MOST) refuse("a stride of " + std::to_string(stride) + " bytes");

    std::size_t bytes = 0, last_gap = 0;
    for (const Plane &plane : planes_of(width, height, stride, format)) {
        if (plane.rows == 0) continue;
        bytes += plane.rows * plane.stride;
        last_gap = plane.stride - plane.row_bytes;
    }
    return bytes - last_gap; // nothing is read or written behind the last row
}

void check_picture(const std::uint8_t *pixels, std::int64_t width, std::int64_t height,
                   std::size_t stride, PixelFormat format) {
    if (pixels == nullptr) refuse("pixels is NULL");
    if (stride == 0) refuse("a stride of 0 bytes");
    bytes_of_picture(width, height, stride, format);
}

Tensor to_rgb(const std::uint8_t *pixels, std::int64_t width, std::int64_t height,
              std::size_t stride, PixelFormat format) {
    check_picture(pixels, width, height, stride, format);
    const bool rgb = format == PixelFormat::rgb24;
    Tensor image = Tensor::make(Type::u8, {height, width, 3});
    Tensor picture = rgb ? image : Tensor::make(Type::u8, {height * 3 / 2, width});
    copy_rows(planes_of(width, height, stride, format), pixels,
              planes_of(width, height, tight_stride(width, format), format), picture.u8());
    if (!rgb) swscale::to_rgb(picture, format, image);
    return image;
}

Tensor from_rgb(const Tensor &rgb, PixelFormat format) {
    if (format == PixelFormat::rgb24) return rgb;
    const std::int64_t height = rgb.shape()[0], width = rgb.shape()[1];
    Tensor picture = Tensor::make(Type::u8, {height * 3 / 2, width});
    swscale::from_rgb(rgb, format, picture);
    return picture;
}

void write_rows(const Tensor &picture, std::int64_t width, std::int64_t height, PixelFormat format,
                std::uint8_t *out, std::size_t stride) {
    const std::size_t tight = tight_stride(width, format);
    if (stride == 0) stride = tight;
    copy_rows(planes_of(width, height, tight, format), picture.u8(),
              planes_of(width, height, stride, format), out);
}

} // namespace dithead
