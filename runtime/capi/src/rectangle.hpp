// The square of a frame that is cut out round a face (dithead/graphs.py, dithead/patch.py).
#pragma once

#include <array>

#include "config.hpp"
#include "tensor.hpp"

namespace dithead {

// Sides of the squares, in pixels.
constexpr std::array<int, 15> RECTANGLE_SIZES{64,  128, 192,  256,  320,  384,  512, 640,
                                              768, 1024, 1536, 2048, 3072, 4096, 8192};

struct Rectangle {
    int left, top, side; // left and top are even, and may be negative
};

// The smallest rectangle of a fixed size that holds a crop and the mask's soft edge. transform:
// (2, 3), crop units to frame pixels. Throws Error: it is not finite, or out of the world.
Rectangle face_rectangle(const float *transform, const FaceConfig &config);

// That part of a frame (H, W, 3); beyond the frame its edge pixels are repeated.
Tensor cut_rectangle(const Tensor &frame, const Rectangle &place);

} // namespace dithead
