#include "others.hpp"

#include <algorithm>
#include <limits>

#include "../arrays.hpp"

namespace dithead {
namespace {

constexpr std::size_t MOST_COMPARED = 8, MOST_OTHERS = MOST_COMPARED;
constexpr double HEAD = 0.55, HAIR = 0.8;

// A detector's box, extended by the hair and by everything below.
Box whole(const Box &box) {
    const double width = box[2] - box[0], height = box[3] - box[1];
    return {box[0] - HEAD * width, box[1] - HAIR * height, box[2] + HEAD * width,
            box[3] + 8.0 * height};
}

} // namespace

std::optional<Other> seen_at(const Box &box, const std::optional<Other> &known,
                             const Tensor &looks) {
    if (known) return Other{box, known->looks};
    if (!looks.defined()) return std::nullopt;
    return Other{box, looks};
}

std::vector<double> compared(const std::vector<Tensor> &known, const Tensor &looks,
                             Graphs &graphs) {
    std::vector<Tensor> rows = known;
    rows.resize(MOST_COMPARED, Tensor::make(Type::f32, looks.shape()));
    std::vector<double> unlike = numbers(graphs.run("face_likeness", {stacked(rows), looks})[0]);
    unlike.resize(known.size());
    return unlike;
}

std::optional<Other> Others::at(const Sighting &face) const {
    const Other *best = nullptr;
    double most = 0.0;
    for (const Other &one : known_) {
        const double shared = overlap(face.box, one.box);
        if (best == nullptr || shared > most) {
            best = &one;
            most = shared;
        }
    }
    if (best == nullptr || !(most > MIN_OVERLAP)) return std::nullopt;
    return *best;
}

double Others::unlike(const Tensor &looks) const {
    const std::vector<double> all = compared_with(looks);
    return all.empty() ? std::numeric_limits<double>::infinity()
                       : *std::min_element(all.begin(), all.end());
}

std::optional<Other> Others::like(const Tensor &looks, double limit) const {
    const std::vector<double> all = compared_with(looks);
    const auto best = std::min_element(all.begin(), all.end());
    if (best == all.end() || !(*best <= limit)) return std::nullopt;
    return known_[static_cast<std::size_t>(best - all.begin())];
}

bool Others::near(const Box &place) const {
    const double x = place[2] - place[0], y = place[3] - place[1];
    const Box wide{place[0] - x, place[1] - y, place[2] + x, place[3] + y};
    return std::any_of(known_.begin(), known_.end(),
                       [&](const Other &one) { return overlap(wide, one.box) > 0; });
}

bool Others::reach(const Box &place, bool head) const {
    return std::any_of(known_.begin(), known_.end(), [&](const Other &one) {
        return overlap(place, head ? whole(one.box) : one.box) > 0;
    });
}

void Others::replace(const std::vector<std::optional<Other>> &seen, bool keep) {
    std::vector<Other> now;
    for (const std::optional<Other> &one : seen) {
        if (one) now.push_back(*one);
    }
    const std::size_t just_seen = now.size();
    for (const Other &one : keep ? known_ : std::vector<Other>()) {
        const auto end = now.begin() + static_cast<std::ptrdiff_t>(just_seen);
        const bool again = std::any_of(now.begin(), end, [&](const Other &other) {
            return other.looks.is(one.looks);
        });
        if (!again) now.push_back(one);
    }
    if (now.size() > MOST_OTHERS) now.resize(MOST_OTHERS);
    known_ = std::move(now);
}

std::vector<double> Others::compared_with(const Tensor &looks) const {
    if (known_.empty()) return {};
    std::vector<Tensor> rows;
    for (const Other &one : known_) rows.push_back(one.looks);
    return compared(rows, looks, *graphs_);
}

} // namespace dithead
