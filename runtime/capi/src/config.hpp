// What the host needs to know of a model's configuration (dithead/config.py, dithead/audio/config.py).
#pragma once

#include <cstdint>

namespace dithead {

struct AudioConfig; // audio.hpp

struct FaceConfig {
    double crop_span = 1.0;
    double crop_down = 0.0;
};

struct DiffusionConfig {
    int timesteps = 1000;
    int steps = 1;
    bool noise_per_frame = false; // config "noise" == "frame"
};

struct Config {
    FaceConfig face;
    DiffusionConfig diffusion;
    bool shape_head = false;
    // The rest is added where it is read: see manifest.cpp.
};

} // namespace dithead
