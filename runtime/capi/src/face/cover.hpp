// Tells whether something is in front of the mouth (dithead/face/cover.py).
#pragma once

#include <optional>

#include "tracker.hpp"

namespace dithead {

// Watches the mouth of one person, frame by frame.
class MouthWatch {
public:
    // Whether the mouth of a face is covered; faces must come in order.
    bool operator()(const TrackedFace &face, double time_s);

    Tensor known;      // (GALLERY, ...), the stored looks of the mouth; undefined at first
    bool anew = false; // whether the latest frame is the first to show the mouth, after something
                       // else was taken for it

private:
    bool is_near(const TrackedFace &face) const;
    void begin(const TrackedFace &face, double time_s);

    double quality_ = 0.0, redness_ = 0.0;
    std::optional<double> begun_s_;
    std::optional<double> since_s_; // when it was covered
    double for_good_s_ = 0.0;       // after so long, that is what the mouth looks like now
    int bare_ = 0;                  // for how many frames it has been bare since
    int lips_ = 0; // for how many frames lips were seen where there were none at first
};

} // namespace dithead
