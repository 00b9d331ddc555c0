// Tells when somebody passes in front of the followed person (dithead/face/passing.py).
#pragma once

#include <functional>
#include <vector>

#include "others.hpp"

namespace dithead {

class Passing {
public:
    explicit Passing(Graphs &graphs) : graphs_(&graphs) {}

    // Whether somebody is in front of a face, or soon will be. mesh, looks: of the face. look:
    // updates where the others are, from this frame.
    bool operator()(const Tensor &frame, const Tensor &mesh, const Tensor &looks,
                    const Others &others, const std::function<void()> &look);

private:
    static constexpr int UNSEEN = 5;

    Graphs *graphs_;
    std::vector<Tensor> known_; // what the sides looked like
    Tensor latest_;             // the same, in the frame before
    int unseen_ = UNSEEN;       // frames since somebody was seen to reach into the sides
    int still_ = 0;             // for how many frames nothing has moved there
    int wait_ = 0;              // frames until it may be asked again if nobody else is known
    int in_vain_ = 0;           // how often it was asked in vain
};

} // namespace dithead
