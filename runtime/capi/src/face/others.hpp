// Remembers who else is in the picture (dithead/face/others.py).
#pragma once

#include <optional>
#include <vector>

#include "../graphs.hpp"
#include "box.hpp"

namespace dithead {

constexpr double MIN_OVERLAP = 0.2; // boxes that overlap by more belong to the same face

// Somebody who is not followed.
struct Other {
    Box box{};    // where they were seen last
    Tensor looks; // what they looked like when first seen
};

// Somebody at a box: one who is known already, or else a new one, if there is a face.
std::optional<Other> seen_at(const Box &box, const std::optional<Other> &known,
                             const Tensor &looks);

// How unlike looks are to each of up to 8 others.
std::vector<double> compared(const std::vector<Tensor> &known, const Tensor &looks,
                             Graphs &graphs);

// Everybody except the person who is followed.
class Others {
public:
    explicit Others(Graphs &graphs) : graphs_(&graphs) {}

    bool any() const { return !known_.empty(); }
    // Which of the others a face continues, by its place.
    std::optional<Other> at(const Sighting &face) const;
    // Difference between looks and those of the most similar other; infinite without any.
    double unlike(const Tensor &looks) const;
    // Which of the others looks show, if they differ by `limit` at most.
    std::optional<Other> like(const Tensor &looks, double limit) const;
    // Whether somebody else was seen next to a box.
    bool near(const Box &place) const;
    // Whether somebody else's face reaches into a box; with `head`, hair and shoulders count, too.
    bool reach(const Box &place, bool head) const;
    // Stores those who were just seen. With `keep`, the rest are remembered, too.
    void replace(const std::vector<std::optional<Other>> &seen, bool keep);

private:
    std::vector<double> compared_with(const Tensor &looks) const;

    Graphs *graphs_;
    std::vector<Other> known_;
};

} // namespace dithead
