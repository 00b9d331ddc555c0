// Conversion between RGB and FFmpeg's layouts, where the library is built with libswscale
// (DITHEAD_WITH_SWSCALE). BT.709, limited range, as the Python runtime's layouts.
#pragma once

#include "pixels.hpp"
#include "tensor.hpp"

namespace dithead::swscale {

#ifdef DITHEAD_WITH_SWSCALE
constexpr bool BUILT_IN = true;
#else
constexpr bool BUILT_IN = false;
#endif

// Picture (3 H / 2, W), the planes below each other without gaps -> image (H, W, 3). Throws Error.
void to_rgb(const Tensor &picture, PixelFormat format, Tensor &image);

// The reverse. Throws Error.
void from_rgb(const Tensor &image, PixelFormat format, Tensor &picture);

} // namespace dithead::swscale
