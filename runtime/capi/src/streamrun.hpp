// One life of a stream, from start to end (runtime/stream.py, runtime/run.py): the source, the
// stages, and the frames that wait to be pulled.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "open.hpp"
#include "pixels.hpp"
#include "scheduler.hpp"
#include "speech.hpp"
#include "turn.hpp"

namespace dithead {

// From sound and frames to the next frame, in a stream that idles.
constexpr std::int64_t LONGEST_GAP_S = 600;

enum class Idle { wait, rest, pass };

struct StreamSettings {
    Options options;
    int in_flight = 6;
    int waiting = 24;
    bool overlap = true;
    Idle idle = Idle::wait;
    std::optional<double> patience_s; // nullopt lets a frame wait for sound without a limit
    bool realtime = false;
    FrameRate rate;
    PixelFormat format = PixelFormat::rgb24;
    Tensor portrait; // what the stream shows by itself; undefined: it takes pushed pictures
};

// Where a pulled frame goes.
struct Buffers {
    std::uint8_t *pixels = nullptr;
    std::size_t pixels_capacity = 0;
    std::size_t stride = 0; // 0: rows follow each other
    float *samples = nullptr; // nullptr: not wanted
    std::size_t samples_capacity = 0;
    bool wants_events = false;
    std::size_t events_capacity = 0;
};

// What came with it; or, if it did not fit, what it needs.
struct Pulled {
    bool fits = false;
    std::int64_t index = 0;
    std::int64_t pts_us = 0;
    std::int64_t width = 0, height = 0;
    LeftAlone left_alone = LeftAlone::no;
    std::size_t pixels_size = 0;
    Speech::Due sound;
    std::vector<SpeechEvent> events;
};

// What has happened so far.
struct Counts {
    std::uint64_t in = 0, out = 0;
    std::array<std::uint64_t, 16> left_alone{};
    std::int64_t first_frame_us = -1;
    Percentiles latency;
};

// Sound is pushed by one thread at a time, frames by another, and frames are pulled by a third. The
// rest may be called by any thread, but rewinding and stopping by one at a time. Everything throws
// Error.
class StreamRun {
public:
    StreamRun(Graphs &graphs, const StreamSettings &settings, Log log);
    ~StreamRun();
    StreamRun(const StreamRun &) = delete;
    StreamRun &operator=(const StreamRun &) = delete;

    void push_audio(const float *samples, std::size_t count, std::optional<std::int64_t> first);
    void mark(std::optional<std::uint64_t> piece);
    void finish_audio();
    void flush_audio();
    Speech &speech() { return speech_; }

    // false: there was no room in time.
    bool push_frame(const std::function<Tensor()> &image, std::int64_t pts_us, const std::optional<Box> &face_box,
                    const Deadline &deadline);
    void set_portrait(Tensor image);
    void finish();

    // nullopt: none was finished in time. Throws Closed: all have come.
    std::optional<Pulled> pull(const Buffers &buffers, const Deadline &deadline);

    Counts counts() const;
    const Stages &stages() const { return stages_; }
    const Durations &clock(std::size_t stage) const { return clocks_[stage]; }

    void give_up(); // lets a flush_audio that waits for a stage end at once
    void stop(const std::string &why);

private:
    struct Finished {
        int edition = 0;
        FramePointer frame;
    };

    FramePointer load(Picture picture);
    void take(const FramePointer &frame);
    Pulled give(Frame &frame, const Buffers &buffers);
    void check_gap(const Moment &at);
    void rewind();
    void restart(const std::vector<FramePointer> &carried, std::int64_t taken_in);
    std::vector<FramePointer> cut();
    bool is_stopped() const;
    void throw_error(); // of the stage that failed, if one did
    [[noreturn]] void throw_stopped(); // why nothing more goes in or out

    const StreamSettings settings_;
    const Log log_;
    FrameGenerator generator_;
    Speech speech_;
    std::unique_ptr<PushedPictures> pushed_; // one of these two
    std::unique_ptr<Portrait> portrait_;
    Channel<Finished> outbox_;
    Stages stages_;
    std::vector<Durations> clocks_;
    SamePicture same_;

    Turn giving_;                    // whoever gives frames or drops speech
    std::optional<Finished> popped_; // out of the outbox, but not given yet; the puller's
    std::optional<Moment> shown_;    // when the frame that was pulled last is shown; as giving_
    std::optional<Moment> step_;     // from the frame before it
    std::atomic<int> edition_{0};    // increases each time that frames are made again

    mutable std::mutex mutex_; // of what follows
    std::map<std::int64_t, FramePointer> taken_; // finished, but not pulled yet
    std::optional<Moment> first_, last_;         // times of pushed frames
    std::int64_t pushed_count_ = 0;
    std::string stopped_; // why
    Counts counts_;
    Durations latency_;
    std::shared_ptr<Scheduler> scheduler_;
};

} // namespace dithead
