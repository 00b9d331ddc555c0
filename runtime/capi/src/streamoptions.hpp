// Checks what a C program asks of a stream.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "streamrun.hpp"

namespace dithead {

dithead_stream_options default_stream_options();

// Throws Error: an option is invalid, or two contradict each other.
StreamSettings checked_settings(const dithead_stream_options &options, const Config &config);

// A face's place in a frame. Throws Error: not finite.
Box checked_box(const float (&box)[4]);

} // namespace dithead
