// A frame as it passes through the stages: a field for everything that a stage reads or writes
// (runtime/schedule/frame.py).
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "generator.hpp"
#include "picture.hpp"
#include "tensor.hpp"

namespace dithead {

struct Frame {
    Picture source;
    bool same = false; // whether its picture is that of the frame before, to the bit

    // For the scheduler.
    bool has_room = false;   // whether it is one of those that may be in progress
    std::size_t reached = 0; // the stage that works, or will work, on it
    std::map<std::size_t, std::function<void()>> undo; // by stage: back to before this frame
    double waited_s = 0.0;   // how long the present stage has waited for others

    // Written by one stage and read by later ones.
    std::optional<Face> face; // the face to re-voice; none if the frame is left alone
    std::optional<Face> idle; // the face, if the frame is passed through as nobody speaks
    LeftAlone left_alone = LeftAlone::no;
    Cut cut;                     // the rectangle round the face
    Tensor mesh, region;         // the face's, in the rectangle's pixels
    Tensor crop, masked;         // the face crop; the latent of its masked half
    Tensor window;               // the sound round the frame
    Tensor latent;               // generated
    Tensor generated, shape;     // the crop of that latent, and its mesh
    Tensor blended, soft_mask;   // the crop in its rectangle; where it may differ
    Tensor detailed;             // the pixels to write over the source; without detail, `blended`
    float covered = 0.0F;        // how far something hides the mouth
    Tensor result;               // the finished picture

    std::int64_t index() const { return source.index; }
    double time_s() const { return source.time.seconds(); }

    // Returns to the state before a stage, so that it can run once more.
    void begin_again(std::size_t stage);
    // Releases everything but the source's place in time.
    void forget();
};

using FramePointer = std::shared_ptr<Frame>;

} // namespace dithead
