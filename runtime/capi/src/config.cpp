#include "config.hpp"

namespace dithead {

std::int64_t floor_divide(std::int64_t value, std::int64_t divisor) {
    return value / divisor - (value % divisor < 0 ? 1 : 0);
}

std::int64_t AudioConfig::chunk_ms() const {
    return std::int64_t{left_context_ms} + hop_ms + right_context_ms;
}

std::int64_t AudioConfig::left_context_features() const {
    return left_context_samples() / SAMPLES_PER_FEATURE;
}

std::int64_t AudioConfig::first_hop() const {
    return floor_divide(-right_context_samples(), hop_samples());
}

std::int64_t AudioConfig::window_half_span_us() const {
    const std::int64_t half_frames_us =
        std::int64_t{(window_frames - 1) / 2} * window_spacing_ms * 1000;
    return half_frames_us + (features_per_frame - 1) * US_PER_FEATURE / 2;
}

std::int64_t AudioConfig::longest_wait_ms() const {
    const std::int64_t ahead_ms = window_half_span_us() / 1000 - window_shift_ms;
    return hop_ms + right_context_ms + ahead_ms + US_PER_FEATURE / 2000;
}

std::int64_t AudioConfig::block_features() const {
    const std::int64_t span_us = 2 * window_half_span_us();
    return (span_us + US_PER_FEATURE - 1) / US_PER_FEATURE + 2;
}

std::int64_t AudioConfig::block_start(std::int64_t time_us) const {
    const std::int64_t first_us = time_us - 1000 * window_shift_ms - window_half_span_us();
    return floor_divide(first_us - US_PER_FEATURE / 2, US_PER_FEATURE);
}

} // namespace dithead
