#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace dithead {

void Durations::add(double seconds) {
    const std::lock_guard lock(mutex_);
    latest_[count_ % KEPT] = static_cast<float>(seconds);
    ++count_;
    total_s_ += seconds;
}

Percentiles Durations::percentiles() const {
    std::vector<float> sorted;
    {
        const std::lock_guard lock(mutex_);
        const auto held = static_cast<std::ptrdiff_t>(std::min<std::uint64_t>(count_, KEPT));
        sorted.assign(latest_.begin(), latest_.begin() + held);
    }
    if (sorted.empty()) return {};
    std::sort(sorted.begin(), sorted.end());
    // The nearest rank: a duration that occurred.
    const auto at = [&](double part) {
        const double rank = std::ceil(part * static_cast<double>(sorted.size()));
        const auto place = static_cast<std::size_t>(std::max(rank, 1.0)) - 1;
        return static_cast<std::int64_t>(std::llround(1e6 * static_cast<double>(sorted[place])));
    };
    return {at(0.50), at(0.95), at(0.99)};
}

std::uint64_t Durations::count() const {
    const std::lock_guard lock(mutex_);
    return count_;
}

double Durations::total_s() const {
    const std::lock_guard lock(mutex_);
    return total_s_;
}

} // namespace dithead
