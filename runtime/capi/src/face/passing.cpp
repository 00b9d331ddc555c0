#include "passing.hpp"

#include <algorithm>
#include <array>

#include "../arrays.hpp"

namespace dithead {
namespace {

constexpr double NEW_SIDES = 0.2, STILL = 0.1;
constexpr std::size_t MOST_SIDES = 4;
constexpr int SETTLED = 25, MOST_WAIT = 8;
constexpr std::int64_t COLUMNS = 10, ROWS = 8;

Box round_both(const Box &a, const Box &b) {
    return {std::min(a[0], b[0]), std::min(a[1], b[1]), std::max(a[2], b[2]),
            std::max(a[3], b[3])};
}

Box box_at(const std::vector<double> &values, std::size_t from) {
    return {values[from], values[from + 1], values[from + 2], values[from + 3]};
}

// The left or the right half of what is seen beside a face.
Tensor half_of(const Tensor &sides, std::size_t side) {
    const auto from = static_cast<std::int64_t>(side) * COLUMNS / 2;
    return rows_of(sides, from, from + COLUMNS / 2);
}

} // namespace

bool Passing::operator()(const Tensor &frame, const Tensor &mesh, const Tensor &looks,
                         const Others &others, const std::function<void()> &look) {
    std::vector<Tensor> before = known_;
    if (latest_.defined()) before.push_back(latest_);
    const std::size_t last = before.empty() ? 0 : before.size() - 1;
    before.resize(MOST_SIDES + 1, Tensor::make(Type::f32, {COLUMNS, ROWS, 3}));
    const std::vector<Tensor> found =
        graphs_->run("face_sides", {frame, mesh, looks, stacked(before)});
    const Tensor sides = found[0];
    const std::vector<double> seen = numbers(found[1]); // how unlike to each, then two boxes
    latest_ = sides;
    wait_ = std::max(0, wait_ - 1);
    if (known_.empty()) {
        known_ = {sides};
        return false;
    }
    std::array<bool, 2> is_new{};
    for (const std::size_t side : {std::size_t{0}, std::size_t{1}}) {
        double least = seen[side];
        for (std::size_t n = 1; n < last; ++n) least = std::min(least, seen[2 * n + side]);
        is_new[side] = least > NEW_SIDES;
    }
    if (!is_new[0] && !is_new[1]) {
        unseen_ = UNSEEN;
        still_ = 0;
        if (wait_ == 0) in_vain_ = std::max(0, in_vain_ - 1);
        return false;
    }
    if (wait_ > 0 && !others.any()) return false;
    look();
    const std::array<Box, 2> boxes{box_at(seen, seen.size() - 8), box_at(seen, seen.size() - 4)};
    const bool reached = (is_new[0] && others.reach(boxes[0], true)) ||
                         (is_new[1] && others.reach(boxes[1], true));
    unseen_ = reached ? 0 : unseen_ + 1;
    still_ = std::max(seen[2 * last], seen[2 * last + 1]) < STILL ? still_ + 1 : 0;
    const bool settled =
        still_ >= SETTLED && !others.reach(round_both(boxes[0], boxes[1]), false);
    if (unseen_ < UNSEEN && !settled) {
        wait_ = in_vain_ = 0;
        return true;
    }
    const Tensor &newest = known_.back();
    known_.push_back(joined(
        {half_of(is_new[0] ? sides : newest, 0), half_of(is_new[1] ? sides : newest, 1)}));
    if (known_.size() > MOST_SIDES) known_.erase(known_.begin());
    unseen_ = UNSEEN;
    still_ = 0;
    wait_ = std::min(MOST_WAIT, 1 << std::min(in_vain_, 8));
    ++in_vain_;
    return false;
}

} // namespace dithead
