// Conversion between RGB and FFmpeg's layouts, where the library is built with libswscale
// (DITHEAD_WITH_SWSCALE). BT.709, limited range, as the Python runtime's layouts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pixels.hpp"
#include "tensor.hpp"

namespace dithead::swscale {

#ifdef DITHEAD_WITH_SWSCALE
constexpr bool BUILT_IN = true;
#else
constexpr bool BUILT_IN = false;
#endif

// Pixels with the planes below each other -> image (H, W, 3). Throws Error.
void to_rgb(const std::uint8_t *pixels, std::size_t stride, PixelFormat format, Tensor &image);

// Image (H, W, 3) -> picture (3 H / 2, W), the planes below each other without gaps. Throws Error.
void from_rgb(const Tensor &image, PixelFormat format, Tensor &picture);

} // namespace dithead::swscale
