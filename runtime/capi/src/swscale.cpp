#include "swscale.hpp"

#include "error.hpp"

#ifdef DITHEAD_WITH_SWSCALE

#include <memory>
#include <new>

extern "C" {
#include <libavutil/imgutils.h>
#include <libavutil/mem.h>
#include <libswscale/swscale.h>
}

namespace dithead::swscale {
namespace {

// libswscale may read and write behind the end of a row.
constexpr int PADDING = 64;

struct Planes {
    std::uint8_t *data[4] = {};
    int stride[4] = {};
};

// The planes of a tensor, which follow each other without gaps.
struct Tight : Planes {
    Tight(const std::uint8_t *pixels, AVPixelFormat format, int width, int height) {
        if (av_image_fill_arrays(data, stride, pixels, format, width, height, 1) < 0) {
            throw Error(DITHEAD_ERROR_INTERNAL, "libavutil cannot describe this picture");
        }
    }
};

struct Padded : Planes {
    Padded(AVPixelFormat format, int width, int height) {
        if (av_image_alloc(data, stride, width, height, format, PADDING) < 0) {
            throw std::bad_alloc();
        }
    }
    ~Padded() { av_freep(&data[0]); }
    Padded(const Padded &) = delete;
    Padded &operator=(const Padded &) = delete;
};

void copy(const Planes &from, const Planes &to, AVPixelFormat format, int width, int height) {
    const std::uint8_t *data[4] = {from.data[0], from.data[1], from.data[2], from.data[3]};
    std::uint8_t *into[4] = {to.data[0], to.data[1], to.data[2], to.data[3]};
    int stride[4] = {to.stride[0], to.stride[1], to.stride[2], to.stride[3]};
    av_image_copy(into, stride, data, from.stride, format, width, height);
}

struct Freed {
    void operator()(SwsContext *context) const { sws_freeContext(context); }
};

void convert(const Tensor &from, AVPixelFormat from_format, Tensor &to, AVPixelFormat to_format,
             int width, int height) {
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
    const Padded source(from_format, width, height), result(to_format, width, height);
    copy(Tight(from.u8(), from_format, width, height), source, from_format, width, height);
    sws_scale(context.get(), source.data, source.stride, 0, height, result.data, result.stride);
    copy(result, Tight(to.u8(), to_format, width, height), to_format, width, height);
}

AVPixelFormat of(PixelFormat format) {
    return format == PixelFormat::nv12 ? AV_PIX_FMT_NV12 : AV_PIX_FMT_YUV420P;
}

} // namespace

void to_rgb(const Tensor &picture, PixelFormat format, Tensor &image) {
    const int height = static_cast<int>(image.shape()[0]);
    const int width = static_cast<int>(image.shape()[1]);
    convert(picture, of(format), image, AV_PIX_FMT_RGB24, width, height);
}

void from_rgb(const Tensor &image, PixelFormat format, Tensor &picture) {
    const int height = static_cast<int>(image.shape()[0]);
    const int width = static_cast<int>(image.shape()[1]);
    convert(image, AV_PIX_FMT_RGB24, picture, of(format), width, height);
}

} // namespace dithead::swscale

#else

namespace dithead::swscale {
namespace {

[[noreturn]] void missing() {
    throw Error(DITHEAD_ERROR_UNSUPPORTED, "this build of libdithead was made without libswscale");
}

} // namespace

void to_rgb(const Tensor &, PixelFormat, Tensor &) { missing(); }

void from_rgb(const Tensor &, PixelFormat, Tensor &) { missing(); }

} // namespace dithead::swscale

#endif
