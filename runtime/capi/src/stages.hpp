// The stages between the pictures and their caller: each runs one step of FrameGenerator on the
// fields of a Frame (runtime/schedule/stages.py). Nothing is computed here; a stage remembers what
// it needs from one frame to the next.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "frame.hpp"
#include "speech.hpp"

namespace dithead {

// A step that every frame passes through, in order. A stage is used by one thread at a time.
class Stage {
public:
    virtual ~Stage() = default;
    virtual const char *name() const = 0;
    // Works on a frame; false: neither this frame nor a later one is wanted.
    virtual bool run(const FramePointer &frame) = 0;
    // What returns the stage to its present state; empty if it keeps none.
    virtual std::function<void()> save() { return nullptr; }
    // Whether its work depends on the sound, and is undone when speech is dropped.
    virtual bool hears() const { return true; }
};

using Stages = std::vector<std::unique_ptr<Stage>>;
// Takes a finished frame.
using Take = std::function<void(const FramePointer &frame)>;

// Every stage, in order.
//
// trim: whether frames after the end of the sound are dropped; otherwise they are silent.
// pass_idle: whether frames in which nobody speaks are passed through. detail: whether the frame's
// own pixels are warped. take: called with each finished frame, in order.
Stages make_stages(FrameGenerator &generator, Graphs &graphs, Speech &speech, bool trim,
                   bool pass_idle, bool detail, Take take);

} // namespace dithead
