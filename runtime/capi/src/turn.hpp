// A lock that can be waited for only so long. (std::timed_mutex is not known to every
// ThreadSanitizer.)
#pragma once

#include <condition_variable>
#include <mutex>

#include "channel.hpp"

namespace dithead {

class Turn {
public:
    // false: not by then.
    bool take(const Deadline &deadline) {
        std::unique_lock lock(mutex_);
        if (!wait_until(changed_, lock, deadline, [this] { return !taken_; })) return false;
        taken_ = true;
        return true;
    }

    void end() {
        const std::lock_guard lock(mutex_);
        taken_ = false;
        changed_.notify_all();
    }

    // Ends a turn that was taken, however its scope is left.
    struct Ended {
        Turn &turn;
        ~Ended() { turn.end(); }
    };

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool taken_ = false;
};

} // namespace dithead
