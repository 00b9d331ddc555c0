#include "swscale.hpp"

#include "error.hpp"

#ifdef DITHEAD_WITH_SWSCALE

#include <array>
#include <memory>

extern "C" {
#include <libavutil/pixfmt.h>
#include <libswscale/swscale.h>
}

namespace dithead::swscale {
namespace {

struct Freed {
    void operator()(SwsContext *context) const { sws_freeContext(context); }
};

struct Planes {
    std::array<std::uint8_t *, 4> data{};
    std::array<int, 4> stride{};
};

AVPixelFormat of(PixelFormat format) {
    return format == PixelFormat::nv12 ? AV_PIX_FMT_NV12 : AV_PIX_FMT_YUV420P;
}

Planes planes_of(std::uint8_t *pixels, std::size_t stride, int height, PixelFormat format) {
    Planes planes;
    const auto rows = static_cast<std::size_t>(height);
    planes.data[0] = pixels;
    planes.data[1] = pixels + stride * rows;
    planes.stride[0] = planes.stride[1] = static_cast<int>(stride);
    if (format == PixelFormat::i420) {
        planes.stride[1] = planes.stride[2] = static_cast<int>(stride / 2);
        planes.data[2] = planes.data[1] + stride / 2 * (rows / 2);
    }
    return planes;
}

void convert(const Planes &from, AVPixelFormat from_format, const Planes &to,
             AVPixelFormat to_format, int width, int height) {
    const std::unique_ptr<SwsContext, Freed> context(
        sws_getContext(width, height, from_format, width, height, to_format, SWS_BICUBIC, nullptr,
                       nullptr, nullptr));
    if (context == nullptr) {
        throw Error(DITHEAD_ERROR_INTERNAL, "libswscale cannot convert this picture");
    }
    const int *bt709 = sws_getCoefficients(SWS_CS_ITU709);
    const int rgb_range = 1, yuv_range = 0;
    const bool to_rgb = to_format == AV_PIX_FMT_RGB24;
    sws_setColorspaceDetails(context.get(), bt709, to_rgb ? yuv_range : rgb_range, bt709,
                             to_rgb ? rgb_range : yuv_range, 0, 1 << 16, 1 << 16);
    sws_scale(context.get(), from.data.data(), from.stride.data(), 0, height, to.data.data(),
              to.stride.data());
}

Planes rgb_planes(const Tensor &image) {
    Planes planes;
    planes.data[0] = const_cast<std::uint8_t *>(image.u8());
    planes.stride[0] = static_cast<int>(3 * image.shape()[1]);
    return planes;
}

} // namespace

void to_rgb(const std::uint8_t *pixels, std::size_t stride, PixelFormat format, Tensor &image) {
    if (stride > (1U << 30)) {
        throw Error(DITHEAD_ERROR_INVALID_ARGUMENT, "the stride is too large for libswscale");
    }
    const int height = static_cast<int>(image.shape()[0]);
    const int width = static_cast<int>(image.shape()[1]);
    // libswscale only reads its source.
    const Planes from = planes_of(const_cast<std::uint8_t *>(pixels), stride, height, format);
    convert(from, of(format), rgb_planes(image), AV_PIX_FMT_RGB24, width, height);
}

void from_rgb(const Tensor &image, PixelFormat format, Tensor &picture) {
    const int height = static_cast<int>(image.shape()[0]);
    const int width = static_cast<int>(image.shape()[1]);
    const Planes to = planes_of(picture.u8(), static_cast<std::size_t>(width), height, format);
    convert(rgb_planes(image), AV_PIX_FMT_RGB24, to, of(format), width, height);
}

} // namespace dithead::swscale

#else

namespace dithead::swscale {
namespace {

[[noreturn]] void missing() {
    throw Error(DITHEAD_ERROR_UNSUPPORTED, "this build of libdithead was made without libswscale");
}

} // namespace

void to_rgb(const std::uint8_t *, std::size_t, PixelFormat, Tensor &) { missing(); }

void from_rgb(const Tensor &, PixelFormat, Tensor &) { missing(); }

} // namespace dithead::swscale

#endif
