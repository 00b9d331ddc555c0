#include "frame.hpp"

#include <algorithm>

namespace dithead {

void Frame::begin_again(std::size_t stage) {
    if (!face) face = std::move(idle);
    idle.reset();
    if (face) left_alone = LeftAlone::no;
    reached = std::min(reached, stage);
    undo.clear();
}

void Frame::forget() {
    face.reset();
    idle.reset();
    undo.clear();
    cut = Cut();
    for (Tensor *tensor : {&source.image, &mesh, &region, &crop, &masked, &window, &latent,
                           &generated, &shape, &blended, &soft_mask, &detailed, &result}) {
        *tensor = Tensor();
    }
}

} // namespace dithead
