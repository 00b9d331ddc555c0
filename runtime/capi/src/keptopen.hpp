// Keeps graphs open for the sizes in use: _Opened in runtime/backends/onnxruntime.py.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace dithead {

using Sizes = std::map<std::string, std::int64_t>; // of open dimensions

// Opens a graph once for each size. Of each graph, the latest KEPT sizes stay open; further ones, up
// to MOST, for as long as they are used at least every RECENT: so streams of different sizes do not
// close each other's graphs. Nothing is closed while somebody uses it. Thread-safe; graphs that are
// open do not wait for one that is being opened.
template <typename T> class KeptOpen {
public:
    using Clock = std::chrono::steady_clock;

    static constexpr std::size_t KEPT = 4;
    static constexpr std::size_t MOST = 32;
    static constexpr Clock::duration RECENT = std::chrono::seconds(10);

    std::shared_ptr<T> get(const std::string &graph, const Sizes &sizes,
                           const std::function<std::shared_ptr<T>()> &opener,
                           Clock::time_point now = Clock::now()) {
        std::list<Slot> closed; // ends after the lock
        const std::shared_ptr<Opening> opening = find(graph, sizes, now, closed);
        const std::lock_guard<std::mutex> lock(opening->mutex);
        if (!opening->opened) opening->opened = opener();
        return opening->opened;
    }

    std::size_t kept(const std::string &graph) {
        const std::lock_guard<std::mutex> lock(mutex_);
        return slots_[graph].size();
    }

private:
    struct Opening {
        std::mutex mutex;
        std::shared_ptr<T> opened;
    };
    struct Slot {
        Sizes sizes;
        std::shared_ptr<Opening> opening;
        Clock::time_point used;
    };

    std::shared_ptr<Opening> find(const std::string &graph, const Sizes &sizes,
                                  Clock::time_point now, std::list<Slot> &closed) {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::list<Slot> &slots = slots_[graph]; // the latest first
        auto slot = slots.begin();
        while (slot != slots.end() && slot->sizes != sizes) ++slot;
        if (slot == slots.end()) {
            slots.push_front({sizes, std::make_shared<Opening>(), now});
            while (slots.size() > KEPT && (slots.size() > MOST || now - slots.back().used > RECENT)) {
                closed.splice(closed.begin(), slots, std::prev(slots.end()));
            }
        } else {
            slots.splice(slots.begin(), slots, slot);
            slots.front().used = now;
        }
        return slots.front().opening;
    }

    std::mutex mutex_;
    std::map<std::string, std::list<Slot>> slots_;
};

} // namespace dithead
