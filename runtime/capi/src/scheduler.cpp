#include "scheduler.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <utility>

namespace dithead {
namespace {

// Time within which halt expects a stage to finish its present step.
constexpr std::chrono::seconds HALT(60);

// With a text of its own: copies of an exception share theirs, between threads, too.
Error copied(const Error &error) { return {error.status(), std::string(error.what())}; }

// Names the stage and the frame in what it throws.
template <class Work> auto at(const char *stage, std::int64_t frame, Work work) {
    const auto error = [&](const std::string &message) {
        return Error(DITHEAD_ERROR_STAGE, "stage '" + std::string(stage) + "' failed at frame " +
                                              std::to_string(frame) + ": " + message);
    };
    try {
        return work();
    } catch (const std::bad_alloc &) {
        throw error("out of memory");
    } catch (const std::exception &cause) {
        throw error(cause.what());
    }
}

} // namespace

Scheduler::Scheduler(const Schedule &schedule, const std::vector<FramePointer> &carried,
                     std::int64_t taken_in)
    : schedule_(schedule), taken_in_(taken_in), flying_(carried) {
    for (std::size_t n = 0; n < schedule_.stages.size(); ++n) {
        inboxes_.push_back(std::make_unique<Channel<FramePointer>>());
    }
    if (!schedule_.overlap) {
        carried_ = carried;
    } else {
        for (FramePointer frame : carried) inboxes_[frame->reached]->put(frame);
    }
    const auto with_room = std::count_if(carried.begin(), carried.end(),
                                         [](const FramePointer &frame) { return frame->has_room; });
    for (std::int64_t room = with_room; room < schedule_.in_flight; ++room) {
        int token = 0;
        room_.put(token);
    }
}

Scheduler::~Scheduler() {
    if (!threads_.empty()) stop(); // after a halt, another scheduler works
}

void Scheduler::start() {
    std::vector<std::function<void()>> works;
    if (schedule_.overlap) {
        works.emplace_back([this] { feed(); });
        for (std::size_t n = 0; n < inboxes_.size(); ++n) {
            works.emplace_back([this, n] { work(n); });
        }
    } else {
        works.emplace_back([this] { in_turn(); });
    }
    threads_.reserve(works.size());
    for (const auto &each : works) {
        {
            const std::lock_guard lock(mutex_);
            ++running_;
        }
        try {
            threads_.emplace_back([this, each] { guard(each); });
        } catch (const std::exception &cause) {
            {
                const std::lock_guard lock(mutex_);
                --running_;
            }
            const Error error(DITHEAD_ERROR_OUT_OF_MEMORY,
                              std::string("cannot start a thread: ") + cause.what());
            fail(error);
            throw error;
        }
    }
}

void Scheduler::stop() {
    stop_channels();
    for (std::thread &thread : threads_) thread.join();
    threads_.clear();
    const std::lock_guard lock(mutex_);
    flying_.clear();
    carried_.clear();
}

std::vector<FramePointer> Scheduler::halt() {
    stop_inboxes();
    {
        std::unique_lock lock(mutex_);
        const bool gone = wait_until(changed_, lock, Clock::now() + HALT,
                                     [this] { return running_ == 0 || given_up_; });
        if (error_) throw copied(*error_);
        if (given_up_) throw Error(DITHEAD_ERROR_STOPPED, "the stream was stopped");
        if (!gone) throw Error(DITHEAD_ERROR_STAGE, "a stage was still at work after 60 s");
    }
    for (std::thread &thread : threads_) thread.join();
    threads_.clear();
    const std::lock_guard lock(mutex_);
    return flying_;
}

void Scheduler::give_up() {
    const std::lock_guard lock(mutex_);
    given_up_ = true;
    changed_.notify_all();
}

void Scheduler::fail(const Error &error) {
    bool first = false;
    {
        const std::lock_guard lock(mutex_);
        if (!error_) {
            error_.emplace(copied(error));
            first = true;
        }
    }
    stop_channels();
    if (first && schedule_.failed) schedule_.failed(error);
}

void Scheduler::throw_error() {
    const std::lock_guard lock(mutex_);
    if (error_) throw copied(*error_);
}

void Scheduler::stop_inboxes() {
    stopping_ = true;
    room_.stop();
    for (const auto &inbox : inboxes_) inbox->stop();
}

void Scheduler::stop_channels() {
    stop_inboxes();
    for (Waited *waited : schedule_.waits) waited->stop();
}

void Scheduler::guard(const std::function<void()> &work) {
    try {
        work();
    } catch (const Stopped &) { // quietly
    } catch (const Error &error) {
        fail(error);
    } catch (const std::exception &error) {
        fail(Error(DITHEAD_ERROR_INTERNAL, error.what()));
    }
    const std::lock_guard lock(mutex_);
    --running_;
    changed_.notify_all();
}

void Scheduler::feed() {
    while (FramePointer frame = loaded()) inboxes_.front()->put(frame);
    inboxes_.front()->close();
}

void Scheduler::work(std::size_t stage) {
    const bool last = stage + 1 == inboxes_.size();
    try {
        while (std::optional<FramePointer> frame = inboxes_[stage]->get()) {
            if (!step(stage, *frame)) { // stop what comes before it
                room_.stop();
                for (std::size_t n = 0; n <= stage; ++n) inboxes_[n]->stop();
                break;
            }
            if (last) {
                release(*frame);
            } else {
                inboxes_[stage + 1]->put(*frame);
            }
        }
    } catch (const Closed &) { // all have come
    }
    if (!last) {
        inboxes_[stage + 1]->close();
    } else {
        schedule_.ended();
    }
}

void Scheduler::in_turn() {
    bool wanted = true;
    for (const FramePointer &frame : std::exchange(carried_, {})) {
        wanted = wanted && through(frame, frame->reached);
    }
    while (wanted) {
        const FramePointer frame = loaded();
        wanted = frame != nullptr && through(frame, 0);
    }
    schedule_.ended();
}

bool Scheduler::through(const FramePointer &frame, std::size_t stage) {
    for (; stage < inboxes_.size(); ++stage) {
        if (stopping_) throw Stopped();
        if (!step(stage, frame)) return false;
    }
    release(frame);
    return true;
}

FramePointer Scheduler::loaded() {
    room_.get();
    const std::int64_t number = taken_in_;
    return at("take in", number, [&]() -> FramePointer {
        std::optional<Picture> picture = schedule_.source.next();
        if (!picture) return nullptr;
        FramePointer frame = schedule_.load(std::move(*picture));
        frame->has_room = true;
        const std::lock_guard lock(mutex_);
        flying_.push_back(frame);
        taken_in_ = number + 1;
        return frame;
    });
}

bool Scheduler::step(std::size_t number, const FramePointer &frame) {
    Stage &stage = *schedule_.stages[number];
    const bool last = number + 1 == schedule_.stages.size();
    const std::int64_t index = frame->index();
    if (stage.hears()) frame->undo[number] = stage.save();
    frame->waited_s = 0.0;
    const double begun_s = now_s();
    const bool wanted = at(stage.name(), index, [&] { return stage.run(frame); });
    // After the last stage, the frame belongs to whoever took it.
    if (!last) {
        schedule_.clocks[number].add(now_s() - begun_s - frame->waited_s);
        if (wanted) frame->reached = number + 1;
    }
    return wanted;
}

void Scheduler::release(const FramePointer &frame) {
    {
        const std::lock_guard lock(mutex_);
        flying_.erase(std::find(flying_.begin(), flying_.end(), frame));
    }
    if (!std::exchange(frame->has_room, false)) return;
    try {
        int token = 0;
        room_.put(token);
    } catch (const Stopped &) { // the source may have ended
    }
}

} // namespace dithead
