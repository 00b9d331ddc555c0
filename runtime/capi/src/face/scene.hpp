// Tells whether a frame shows a different scene from the frame before (dithead/face/scene.py).
#pragma once

#include <deque>
#include <vector>

#include "../graphs.hpp"
#include "box.hpp"

namespace dithead {

// Remembers what the latest frames showed.
class Scene {
public:
    explicit Scene(Graphs &graphs) : graphs_(graphs) {}

    void forget() { glances_.clear(); }
    void see(const Tensor &frame);
    // Whether only one frame has been seen so far.
    bool is_new() const { return glances_.size() == 1; }
    // The latest glance.
    const Tensor &now() const { return glances_.back(); }
    // Whether the latest frame shows a different scene from the one before it; or, given the place
    // of a face, somebody else there.
    bool has_cut(const Box *place) const;
    // Whether both the scene and what is round a place have changed since a glance.
    bool has_changed(const Tensor &before, const Box &place) const;

private:
    // The shares that change from one glance to the next, and the change round a place.
    std::vector<double> changes(std::vector<Tensor> glances, const Box *place) const;
    // 1 in the part of a glance that shows a place and what is round it; all of it without one.
    Tensor inside(const Box *place) const;

    Graphs &graphs_;
    std::deque<Tensor> glances_;
    double height_ = 0.0, width_ = 0.0;
};

} // namespace dithead
