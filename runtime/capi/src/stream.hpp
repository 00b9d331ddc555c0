// One speaker: a run that can be replaced by a new one while other threads use it.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "streamrun.hpp"

namespace dithead {

// For any thread, but for what StreamRun says of pushing and pulling.
class Stream {
public:
    Stream(std::shared_ptr<Graphs> graphs, StreamSettings settings, Log log)
        : graphs_(std::move(graphs)), settings_(std::move(settings)), log_(std::move(log)),
          run_(begin()) {}
    ~Stream() { stop(); }
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;

    // The present run. Who holds it while it is replaced is told that it was stopped.
    std::shared_ptr<StreamRun> run() {
        const std::lock_guard lock(mutex_);
        return run_;
    }

    const StreamSettings &settings() const { return settings_; }

    void flush_audio() {
        const std::lock_guard lock(changing_);
        run()->flush_audio();
    }

    // Forgets everything. If it throws, nothing has changed.
    void reset() {
        run()->give_up();
        const std::lock_guard lock(changing_);
        if (stopped_) throw Error(DITHEAD_ERROR_STOPPED, "the stream was stopped: open another");
        std::shared_ptr<StreamRun> fresh = begin();
        {
            const std::lock_guard run_lock(mutex_);
            run_.swap(fresh);
        }
        fresh->stop("the stream was reset");
    }

    void stop() {
        run()->give_up();
        const std::lock_guard lock(changing_);
        stopped_ = true;
        run()->stop("the stream was stopped");
    }

private:
    std::shared_ptr<StreamRun> begin() const {
        return std::make_shared<StreamRun>(*graphs_, settings_, log_);
    }

    const std::shared_ptr<Graphs> graphs_;
    const StreamSettings settings_;
    const Log log_;
    std::mutex changing_; // of what the run is, or does; held for long
    bool stopped_ = false;
    std::mutex mutex_; // of the pointer
    std::shared_ptr<StreamRun> run_;
};

} // namespace dithead
