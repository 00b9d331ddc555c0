// Features of sound over time, and the window at a presentation time (dithead/audio/stream.py).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "graphs.hpp"

namespace dithead {

// Turns sound pushed in pieces of any size into windows at presentation times. The features do not
// depend on the sizes of the pieces. Memory is bounded by the sound pushed since the time of the
// latest window. Single-threaded.
class AudioFeatureStream {
public:
    using Features = std::map<std::int64_t, Tensor>; // (1, hop_features, F) by hop

    explicit AudioFeatureStream(Graphs &graphs);

    // The latest time whose window can be sampled; infinite once the sound has finished.
    double available_s() const;
    bool finished() const { return state_.finished; }

    // Takes in mono sound at 16 kHz and encodes every hop that it completes.
    void push(const float *samples, std::size_t count);
    // Silence follows. A second call does nothing.
    void finish();
    // The window at a time, which is not before the previous one's, and at most available_s.
    Tensor window(double time_s);

    // What go_back needs to know of the present.
    const Features &features() const { return state_.features; }
    std::optional<std::int64_t> last_time_us() const { return state_.last_time_us; }

    // Returns to a state in which fewer samples had been pushed; others may follow then.
    // before: gives the `count` samples before number `end`, with zeros before the first.
    void go_back(std::int64_t received,
                 const std::function<std::vector<float>(std::int64_t, std::int64_t)> &before,
                 const Features &features, std::optional<std::int64_t> last_time_us);

private:
    struct State {
        std::vector<float> pending; // from the start of the next hop's chunk on
        std::int64_t next_hop = 0;  // to encode
        std::int64_t received = 0;  // samples
        Features features;          // of the hops that a later window may need
        std::optional<std::int64_t> last_time_us;
        bool finished = false;
    };

    std::int64_t available_us() const;
    void take(const float *samples, std::size_t count);
    Tensor encode(const float *chunk); // nullptr: silence
    const Tensor &hop(std::int64_t number);
    const Tensor &silent_hop();

    Graphs &graphs_;
    const AudioConfig &config_;
    State state_;
    Tensor silence_;
};

} // namespace dithead
