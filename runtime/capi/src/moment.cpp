#include "moment.hpp"

#include <numeric>

#include "config.hpp"

namespace dithead {

Moment Moment::of(std::int64_t ticks, std::int64_t ticks_per_s) {
    Moment made;
    made.whole_ = floor_divide(ticks, ticks_per_s);
    const std::int64_t part = ticks - made.whole_ * ticks_per_s;
    const std::int64_t common = std::gcd(part, ticks_per_s);
    made.part_ = part / common;
    made.of_ = ticks_per_s / common;
    return made;
}

double Moment::seconds() const {
    // Both are exact in a double, and division rounds once.
    return static_cast<double>(whole_ * of_ + part_) / static_cast<double>(of_);
}

std::int64_t Moment::rounded(std::int64_t rate) const {
    const std::int64_t scaled = part_ * rate;
    const std::int64_t below = whole_ * rate + scaled / of_;
    const std::int64_t twice = 2 * (scaled % of_);
    const bool up = twice > of_ || (twice == of_ && below % 2 != 0);
    return below + (up ? 1 : 0);
}

Moment Moment::operator+(const Moment &other) const {
    const std::int64_t common = std::lcm(of_, other.of_);
    Moment sum = of(part_ * (common / of_) + other.part_ * (common / other.of_), common);
    sum.whole_ += whole_ + other.whole_;
    return sum;
}

Moment Moment::operator-(const Moment &other) const {
    const std::int64_t common = std::lcm(of_, other.of_);
    Moment difference = of(part_ * (common / of_) - other.part_ * (common / other.of_), common);
    difference.whole_ += whole_ - other.whole_;
    return difference;
}

bool Moment::operator<(const Moment &other) const {
    if (whole_ != other.whole_) return whole_ < other.whole_;
    const std::int64_t common = std::lcm(of_, other.of_);
    return part_ * (common / of_) < other.part_ * (common / other.of_);
}

} // namespace dithead
