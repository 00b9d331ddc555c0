// How long things took, of which only the latest are kept.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace dithead {

struct Percentiles {
    std::int64_t p50_us = -1, p95_us = -1, p99_us = -1; // -1: nothing was measured yet
};

// Durations, from any thread.
class Durations {
public:
    void add(double seconds);
    Percentiles percentiles() const;
    std::uint64_t count() const;
    double total_s() const;

private:
    static constexpr std::size_t KEPT = 1024;

    mutable std::mutex mutex_;
    std::array<float, KEPT> latest_{};
    std::uint64_t count_ = 0;
    double total_s_ = 0.0;
};

} // namespace dithead
