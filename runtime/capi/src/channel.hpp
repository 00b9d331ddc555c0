// A queue between two threads that can be closed from either end, or stopped from outside
// (runtime/schedule/channel.py).
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace dithead {

// Thrown: who waits, or works, should end quietly.
struct Stopped {};
// Thrown: no more items will come.
struct Closed {};

using Clock = std::chrono::steady_clock;
// When waiting ends; nullopt waits without a limit.
using Deadline = std::optional<Clock::time_point>;

// A caller's timeout; below 0 is no limit.
inline Deadline deadline_after(std::int64_t timeout_us) {
    constexpr std::int64_t YEARS_US = std::int64_t{10} * 366 * 86'400 * 1'000'000;
    if (timeout_us < 0 || timeout_us > YEARS_US) return std::nullopt;
    return Clock::now() + std::chrono::microseconds(timeout_us);
}

// Waits until something is true; returns whether it is, at the deadline at the latest.
template <class Test>
bool wait_until(std::condition_variable &changed, std::unique_lock<std::mutex> &lock,
                const Deadline &deadline, Test test) {
    if (deadline) return changed.wait_until(lock, *deadline, test);
    changed.wait(lock, test);
    return true;
}

// Something that threads may be waiting for.
class Waited {
public:
    virtual ~Waited() = default;
    virtual void stop() = 0;   // wakes all who wait, and stops them for good
    virtual void pause() = 0;  // wakes the stages' threads and stops them, until resume
    virtual void resume() = 0;
};

enum class Side { reader, writer };

template <class Item> class Channel : public Waited {
public:
    // capacity: items that may wait, a writer waits for room; 0 means no limit. paused: the side
    // that pause() stops.
    explicit Channel(std::size_t capacity = 0, Side paused = Side::reader)
        : capacity_(capacity), side_(paused) {}

    // Adds an item, waiting for room; false: there was none in time, and the item is unchanged.
    // Throws Stopped, also where the channel is closed.
    bool put(Item &item, const Deadline &deadline = std::nullopt) {
        std::unique_lock lock(mutex_);
        const bool roomy = has_room(lock, deadline);
        if (roomy) {
            items_.push_back(std::move(item));
            changed_.notify_all();
        }
        return roomy;
    }

    // Waits for room; false: there was none in time. With a single writer, what it then puts fits.
    // Throws Stopped, also where the channel is closed.
    bool wait_for_room(const Deadline &deadline) {
        std::unique_lock lock(mutex_);
        return has_room(lock, deadline);
    }

    // Takes the next item, waiting for one; nullopt: none came in time. Throws Stopped or Closed.
    std::optional<Item> get(const Deadline &deadline = std::nullopt) {
        std::unique_lock lock(mutex_);
        const auto refused = [&] { return stopped_ || paused_at(Side::reader); };
        const bool ready = wait_until(changed_, lock, deadline,
                                      [&] { return refused() || closed_ || !items_.empty(); });
        if (refused()) throw Stopped();
        if (items_.empty()) {
            if (!ready) return std::nullopt;
            throw Closed();
        }
        std::optional<Item> item(std::move(items_.front()));
        items_.pop_front();
        changed_.notify_all();
        return item;
    }

    // Accepts no more items; those already there can still be taken.
    void close() {
        change([&] { closed_ = true; });
    }
    void stop() override {
        change([&] {
            stopped_ = true;
            items_.clear();
        });
    }
    void pause() override {
        change([&] { paused_ = true; });
    }
    void resume() override {
        change([&] { paused_ = false; });
    }
    // Drops all items, and accepts more even after close().
    void empty() {
        change([&] {
            items_.clear();
            closed_ = false;
        });
    }

private:
    bool paused_at(Side side) const { return paused_ && side_ == side; }

    // Whether a writer has room, at the deadline at the latest. Throws Stopped.
    bool has_room(std::unique_lock<std::mutex> &lock, const Deadline &deadline) {
        const auto refused = [&] { return stopped_ || closed_ || paused_at(Side::writer); };
        const bool roomy = wait_until(changed_, lock, deadline, [&] {
            return refused() || capacity_ == 0 || items_.size() < capacity_;
        });
        if (refused()) throw Stopped();
        return roomy;
    }

    template <class Change> void change(Change make) {
        const std::lock_guard lock(mutex_);
        make();
        changed_.notify_all();
    }

    const std::size_t capacity_;
    const Side side_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Item> items_;
    bool closed_ = false;
    bool stopped_ = false;
    bool paused_ = false;
};

} // namespace dithead
