#include "box.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace dithead {
namespace {

// A box extended to the forehead and chin, which the detector leaves out.
Box wider(const Box &box) {
    const double x = 0.3 * (box[2] - box[0]), y = 0.3 * (box[3] - box[1]);
    return {box[0] - x, box[1] - y, box[2] + x, box[3] + y};
}

Point middle_of(const Box &box) { return {(box[0] + box[2]) / 2, (box[1] + box[3]) / 2}; }

// How far a point is from the edges of a box, in sum.
double off(const Point &point, const Box &box) {
    return std::fabs(box[0] - point[0]) + std::fabs(box[1] - point[1]) +
           std::fabs(box[2] - point[0]) + std::fabs(box[3] - point[1]);
}

std::optional<std::size_t> nth_from_left(const std::vector<Sighting> &seen, int index) {
    std::vector<std::size_t> order(seen.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return seen[a].box[0] + seen[a].box[2] < seen[b].box[0] + seen[b].box[2];
    });
    const auto wanted = static_cast<std::size_t>(index);
    if (index < 0 || wanted >= order.size()) return std::nullopt;
    return order[wanted];
}

// The face with the highest value, the first of equal ones; `value` gives none for those that are
// out of the question.
template <typename Value>
std::optional<std::size_t> best(const std::vector<Sighting> &seen, Value value) {
    std::optional<std::size_t> found;
    double highest = 0.0;
    for (std::size_t n = 0; n < seen.size(); ++n) {
        const std::optional<double> its = value(seen[n]);
        if (its && (!found || *its > highest)) {
            found = n;
            highest = *its;
        }
    }
    return found;
}

} // namespace

double area(const Box &box) {
    return std::max(0.0, box[2] - box[0]) * std::max(0.0, box[3] - box[1]);
}

double overlap(const Box &a, const Box &b) {
    const double shared = area({std::max(a[0], b[0]), std::max(a[1], b[1]), std::min(a[2], b[2]),
                                std::min(a[3], b[3])});
    return shared / std::max(area(a) + area(b) - shared, 1e-9);
}

bool inside(const Point &point, const Box &box) {
    return box[0] <= point[0] && point[0] <= box[2] && box[1] <= point[1] && point[1] <= box[3];
}

std::optional<std::size_t> chosen(const std::vector<Sighting> &seen, const FaceChoice &choice) {
    using Found = std::optional<double>;
    switch (choice.kind) {
    case FaceChoiceKind::index:
        return nth_from_left(seen, choice.index);
    case FaceChoiceKind::point: {
        const Point point{choice.box[0], choice.box[1]};
        return best(seen, [&](const Sighting &face) {
            return inside(point, wider(face.box)) ? Found(-off(point, face.box)) : Found();
        });
    }
    case FaceChoiceKind::box:
        return best(seen, [&](const Sighting &face) {
            const bool within = inside(middle_of(face.box), choice.box);
            return within ? Found(overlap(choice.box, face.box)) : Found();
        });
    case FaceChoiceKind::largest:
        break;
    }
    return best(seen, [](const Sighting &face) { return Found(area(face.box)); });
}

} // namespace dithead
