#include "cover.hpp"

#include <algorithm>

#include "../arrays.hpp"
#include "reference.hpp"

namespace dithead {
namespace {

constexpr double COVERED = 0.16, BARE = 0.125, NEW_LOOK = 0.07, OLD_LOOK = 0.12, CLEAR = 0.5;
constexpr double NO_LIPS = 0.03, LIPS = 0.06, NOT_LIPS = 0.2, SAME_RED = 0.03;
constexpr double FOR_GOOD_S = 4.0, AT_LEAST_S = 1.0;
constexpr int BARE_FRAMES = 3;

} // namespace

bool MouthWatch::operator()(const TrackedFace &face, double time_s) {
    const Measures &seen = face.measures;
    anew = false;
    const bool lips = redness_ < NO_LIPS && LIPS < seen.redness && seen.redness < NOT_LIPS;
    lips_ = lips && seen.unlike_mouth > BARE ? lips_ + 1 : 0;
    if (!known.defined() || quality_ < CLEAR) {
        begin(face, time_s);
        return false;
    }
    if (!since_s_) {
        if (seen.unlike_mouth <= COVERED) {
            if (NEW_LOOK < seen.unlike_mouth && seen.unlike_mouth < OLD_LOOK && is_near(face)) {
                const auto count = static_cast<std::int64_t>(GALLERY);
                known = joined(
                    {rows_of(known, 0, 1), rows_of(known, 2, count), stacked({face.mouth})});
            }
            return false;
        }
        since_s_ = time_s;
        bare_ = 0;
        for_good_s_ = FOR_GOOD_S;
        if (seen.redness > redness_ - SAME_RED) {
            const double known_s = std::max(AT_LEAST_S, time_s - begun_s_.value_or(0.0));
            for_good_s_ = std::min(FOR_GOOD_S, known_s);
        }
        return true;
    }
    bare_ = seen.unlike_mouth < BARE ? bare_ + 1 : 0;
    if (bare_ >= BARE_FRAMES) {
        since_s_.reset();
        lips_ = 0;
    } else if (lips_ >= BARE_FRAMES || time_s - *since_s_ > for_good_s_) {
        begin(face, time_s);
        anew = true;
    }
    return since_s_.has_value();
}

bool MouthWatch::is_near(const TrackedFace &face) const {
    const Measures &seen = face.measures;
    return seen.unlike_first_mouth < COVERED && seen.redness > redness_ - SAME_RED;
}

void MouthWatch::begin(const TrackedFace &face, double time_s) {
    known = stacked(std::vector<Tensor>(GALLERY, face.mouth));
    quality_ = quality(face.measures);
    redness_ = face.measures.redness;
    if (!begun_s_) begun_s_ = time_s;
    since_s_.reset();
}

} // namespace dithead
