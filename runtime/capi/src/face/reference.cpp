#include "reference.hpp"

#include <algorithm>
#include <cmath>

namespace dithead {
namespace {

constexpr double BETTER = 0.35, SHARPER = 2.2;
constexpr int REPLACED_OVER = 10;

// 0 up to `low`, 1 from `high` on, linear in between.
double rise(double value, double low, double high) {
    return std::min(1.0, std::max(0.0, (value - low) / (high - low)));
}

} // namespace

double quality(const Measures &seen) {
    const double lit = rise(seen.level, 12.0, 90.0) * (1.0 - rise(seen.level, 215.0, 245.0));
    const double clear = rise(seen.contrast, FAINT, 12.0);
    const double frontal = 1.0 - rise(std::fabs(seen.turn), 0.4, 0.75);
    return lit * clear * frontal;
}

Shown ReferenceChoice::operator()(const TrackedFace &face, bool anew) {
    const double found = quality(face.measures);
    const bool sharper =
        found > quality_ - 0.1 && face.measures.sharpness > SHARPER * sharpness_;
    const bool taken = anew || !latest_.defined() || found > quality_ + BETTER || sharper;
    if (taken) {
        before_ = latest_.defined() ? shown() : Tensor();
        latest_ = face.looks;
        quality_ = found;
        sharpness_ = face.measures.sharpness;
        frames_ = 0;
    }
    ++frames_;
    return {shown(), taken, share()};
}

double ReferenceChoice::share() const {
    return before_.defined() ? std::min(1.0, static_cast<double>(frames_) / REPLACED_OVER) : 1.0;
}

Tensor ReferenceChoice::shown() const {
    if (!before_.defined() || share() == 1.0) return latest_;
    const Tensor part = Tensor::scalar(static_cast<float>(share()));
    return graphs_->run("looks_mix", {before_, latest_, part})[0];
}

} // namespace dithead
