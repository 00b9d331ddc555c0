// The square of a frame that is cut out round a face (dithead/graphs.py, dithead/patch.py).
#pragma once

#include "config.hpp"
#include "tensor.hpp"

namespace dithead {

struct Rectangle {
    int left, top, side; // left and top are even, and may be negative
};

// The smallest rectangle of a fixed size that holds a crop and the mask's soft edge. transform:
// (2, 3), crop units to frame pixels. Throws Error: it is not finite, or out of the world.
Rectangle face_rectangle(const float *transform, const FaceConfig &config);

// That part of a frame (H, W, 3); beyond the frame its edge pixels are repeated.
Tensor cut_rectangle(const Tensor &frame, const Rectangle &place);

} // namespace dithead
