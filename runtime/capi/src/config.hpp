// What the host needs to know of a model's configuration (dithead/config.py, dithead/audio/config.py).
// The other settings are already in the graphs.
#pragma once

#include <cstdint>
#include <string>

namespace dithead {

struct FaceConfig {
    int crop_px = 256;
    double crop_span = 1.0;
    double crop_down = 0.0;
};

struct VqganConfig {
    int factor = 8; // pixels per latent position, along each side
    int latent_channels = 4;
};

struct DiffusionConfig {
    int timesteps = 1000;
    int steps = 250;
    bool noise_per_frame = true; // "noise": "frame"; false is "stream"
};

// The speech encoder's grid of chunks and the audio window of one frame. Names and formulas are
// those of dithead/audio/config.py.
struct AudioConfig {
    std::string encoder = "whisper-tiny.en";
    int sample_rate_hz = 16000;
    int feature_rate_hz = 50;
    int hop_ms = 320;
    int left_context_ms = 1480;
    int right_context_ms = 200;
    int feature_dim = 384;
    int window_frames = 11;
    int window_spacing_ms = 40;
    int window_shift_ms = 0;
    int features_per_frame = 2;

    static constexpr std::int64_t US_PER_FEATURE = 20000;
    static constexpr std::int64_t SAMPLES_PER_FEATURE = 320;

    // A window has the shape (window_frames, window_width()).
    std::int64_t window_width() const { return std::int64_t{features_per_frame} * feature_dim; }
    std::int64_t chunk_ms() const;
    std::int64_t chunk_samples() const { return samples(chunk_ms()); }
    std::int64_t hop_samples() const { return samples(hop_ms); }
    std::int64_t left_context_samples() const { return samples(left_context_ms); }
    std::int64_t right_context_samples() const { return samples(right_context_ms); }
    std::int64_t chunk_features() const { return chunk_samples() / SAMPLES_PER_FEATURE; }
    std::int64_t hop_features() const { return hop_samples() / SAMPLES_PER_FEATURE; }
    std::int64_t left_context_features() const;
    // The first hop whose chunk reaches sound: negative, as right context looks ahead.
    std::int64_t first_hop() const;
    // From a window's time to the centre of its last feature.
    std::int64_t window_half_span_us() const;
    // Sound past a frame's time for which a live frame may have to wait.
    std::int64_t longest_wait_ms() const;
    // Consecutive features from which a window at any time can be sampled.
    std::int64_t block_features() const;
    // Index of the first of them for the window at a time.
    std::int64_t block_start(std::int64_t time_us) const;

private:
    std::int64_t samples(std::int64_t ms) const { return ms * sample_rate_hz / 1000; }
};

struct Config {
    std::string preset = "custom";
    FaceConfig face;
    VqganConfig vqgan;
    DiffusionConfig diffusion;
    AudioConfig audio;
    bool shape_head = false;

    // Side of the square latent.
    int latent_size() const { return face.crop_px / vqgan.factor; }
};

// Division that rounds down, as Python's `//`, for a positive divisor.
std::int64_t floor_divide(std::int64_t value, std::int64_t divisor);

} // namespace dithead
