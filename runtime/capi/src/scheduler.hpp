// Runs stages in parallel: each has a thread, and frames pass from one to the next
// (runtime/schedule/scheduler.py). It does not know what a stage does. It ensures that frames keep
// their order, that no more are in progress than allowed, and that one failure stops everything.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "channel.hpp"
#include "error.hpp"
#include "frame.hpp"
#include "stages.hpp"
#include "statistics.hpp"

namespace dithead {

// What a scheduler runs. All of it outlives the scheduler.
struct Schedule {
    Source &source;
    Stages &stages;
    std::vector<Durations> &clocks; // how long each stage works on a frame
    std::vector<Waited *> waits;    // what threads may be waiting for
    int in_flight = 1;              // most frames in progress
    bool overlap = true;            // whether each stage has a thread; else one runs all in turn
    std::function<FramePointer(Picture picture)> load;
    std::function<void()> ended;                    // called when all frames have passed through
    std::function<void(const Error &error)> failed; // called with the first error, from any thread
};

class Scheduler {
public:
    // carried: frames that an earlier scheduler of the same stages had in progress. taken_in: how
    // many that one took from the source.
    Scheduler(const Schedule &schedule, const std::vector<FramePointer> &carried,
              std::int64_t taken_in);
    ~Scheduler();
    Scheduler(const Scheduler &) = delete;
    Scheduler &operator=(const Scheduler &) = delete;

    void start(); // the threads

    // Stops wherever the frames are, and waits until the threads are gone: each ends after its
    // present step.
    void stop();

    // Stops each thread after its present step, and leaves the stages to another scheduler. The
    // caller pauses what threads may be waiting for. Returns the frames in progress. Throws Error:
    // a stage takes too long, give_up was called, or a stage has failed.
    std::vector<FramePointer> halt();
    // Lets a halt that waits for a stage end at once.
    void give_up();

    void fail(const Error &error); // as if a stage had thrown it
    void throw_error();            // the error of the stage that failed, if one did
    std::int64_t taken_in() const { return taken_in_; }

private:
    void guard(const std::function<void()> &work);
    void feed();                // the source's thread
    void work(std::size_t stage); // a stage's thread
    void in_turn();             // all stages in one thread
    bool through(const FramePointer &frame, std::size_t stage);
    FramePointer loaded();      // the source's next frame; null at the end
    bool step(std::size_t stage, const FramePointer &frame);
    void release(const FramePointer &frame);
    void stop_inboxes();
    void stop_channels();

    const Schedule schedule_;
    std::vector<FramePointer> carried_; // by number; only without overlap
    std::vector<std::unique_ptr<Channel<FramePointer>>> inboxes_;
    Channel<int> room_; // one item for each frame that may be added
    std::atomic<std::int64_t> taken_in_;
    std::atomic<bool> stopping_{false};

    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<FramePointer> flying_;
    std::optional<Error> error_;
    std::size_t running_ = 0; // threads
    bool given_up_ = false;
    std::vector<std::thread> threads_;
};

} // namespace dithead
