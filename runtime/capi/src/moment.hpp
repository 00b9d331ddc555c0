// An exact time on a stream's clock: what Python's Fraction does there.
#pragma once

#include <cstdint>

namespace dithead {

// Seconds, as a whole number and a proper fraction. Frame rates of up to 1,000,000 / 1 and
// microseconds have common denominators below 10^12, so nothing overflows for 2^53 microseconds.
class Moment {
public:
    Moment() = default; // 0
    static Moment of_microseconds(std::int64_t us) { return of(us, 1'000'000); }
    static Moment of_samples(std::int64_t samples) { return of(samples, 16'000); }
    static Moment of(std::int64_t ticks, std::int64_t ticks_per_s);

    double seconds() const; // the nearest double
    // Multiples of 1 / rate s, rounded to the nearest, halves to even, as Python's round.
    std::int64_t rounded(std::int64_t rate) const;
    std::int64_t samples() const { return rounded(16'000); }

    Moment operator+(const Moment &other) const;
    Moment operator-(const Moment &other) const;
    bool operator<(const Moment &other) const;
    bool operator>(const Moment &other) const { return other < *this; }
    bool operator<=(const Moment &other) const { return !(other < *this); }
    bool operator>=(const Moment &other) const { return !(*this < other); }
    bool operator==(const Moment &other) const { return *this <= other && other <= *this; }

private:
    std::int64_t whole_ = 0;
    std::int64_t part_ = 0; // of of_, from 0
    std::int64_t of_ = 1;
};

} // namespace dithead
