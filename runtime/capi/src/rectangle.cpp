#include "rectangle.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.hpp"

namespace dithead {
namespace {

constexpr double FARTHEST = 1e8; // pixels

// Side in crop units of the upright square round the crop's middle that holds the crop and the
// mask's soft edge, which reaches a little beyond it.
double reach_of(const FaceConfig &config) {
    return std::max(config.crop_span, 2.0 * (0.54 - config.crop_down));
}

} // namespace

Rectangle face_rectangle(const float *transform, const FaceConfig &config) {
    for (int n = 0; n < 6; ++n) {
        if (!(std::fabs(transform[n]) < FARTHEST)) {
            throw Error(DITHEAD_ERROR_STAGE, "the face was placed outside of every picture");
        }
    }
    const double a = transform[0], b = transform[1];
    const double x = transform[2] + b * config.crop_down; // the crop's middle
    const double y = transform[5] + a * config.crop_down;
    // Side of the upright square round the turned one.
    const double reach = reach_of(config) * (std::fabs(a) + std::fabs(b)) + 4.0;
    const auto found = std::find_if(RECTANGLE_SIZES.begin(), RECTANGLE_SIZES.end(),
                                    [&](int size) { return size >= reach; });
    const int side = found == RECTANGLE_SIZES.end() ? RECTANGLE_SIZES.back() : *found;
    const auto even = [side](double middle) {
        return static_cast<int>(std::floor((middle - side / 2.0) / 2)) * 2;
    };
    return {even(x), even(y), side};
}

Tensor cut_rectangle(const Tensor &frame, const Rectangle &place) {
    const std::int64_t height = frame.shape()[0], width = frame.shape()[1];
    const std::int64_t side = place.side;
    Tensor made = Tensor::make(Type::u8, {side, side, 3});
    const std::int64_t inside_from = std::clamp<std::int64_t>(-place.left, 0, side);
    const std::int64_t inside_to = std::clamp<std::int64_t>(width - place.left, inside_from, side);
    std::uint8_t *to = made.u8();
    for (std::int64_t row = 0; row < side; ++row, to += 3 * side) {
        const std::int64_t y = std::clamp<std::int64_t>(place.top + row, 0, height - 1);
        const std::uint8_t *line = frame.u8() + 3 * y * width;
        for (std::int64_t n = 0; n < inside_from; ++n) std::memcpy(to + 3 * n, line, 3);
        if (inside_from < inside_to) {
            std::memcpy(to + 3 * inside_from, line + 3 * (place.left + inside_from),
                        static_cast<std::size_t>(3 * (inside_to - inside_from)));
        }
        for (std::int64_t n = inside_to; n < side; ++n) {
            std::memcpy(to + 3 * n, line + 3 * (width - 1), 3);
        }
    }
    return made;
}

} // namespace dithead
