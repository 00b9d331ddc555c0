// Chooses the frame of a person that the model is shown (dithead/face/reference.py).
#pragma once

#include "tracker.hpp"

namespace dithead {

// If the standard deviation of the face's levels is smaller, nothing can be seen.
constexpr double FAINT = 3.0;

// How good a frame is as a reference, in [0, 1].
double quality(const Measures &seen);

// What the model is shown along with a frame.
struct Shown {
    Tensor looks;       // of what is shown
    bool taken = false; // whether this frame becomes the reference
    double share = 1.0; // weight of the latest reference against the one before, in (0, 1]
};

class ReferenceChoice {
public:
    explicit ReferenceChoice(Graphs &graphs) : graphs_(&graphs) {}

    // What to show along with a face. anew: the reference is bad, whatever its quality.
    Shown operator()(const TrackedFace &face, bool anew = false);

private:
    double share() const;
    Tensor shown() const;

    Graphs *graphs_;
    Tensor before_; // looks that give way to the latest reference
    Tensor latest_;
    double quality_ = 0.0, sharpness_ = 0.0;
    int frames_ = 0; // since the latest reference
};

} // namespace dithead
