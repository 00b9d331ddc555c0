// Pushed speech: queued, cut off, and returned with the frames (runtime/speech.py).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "moment.hpp"
#include "picture.hpp"

namespace dithead {

enum class EventKind { began, ended, interrupted };

// What happens to a piece of speech that mark announced.
struct SpeechEvent {
    std::int64_t sample = 0;
    EventKind kind = EventKind::began;
    std::uint64_t piece = 0;
};

// A sequence of samples of which only the latest are kept.
class Line {
public:
    std::int64_t end() const { return start_ + static_cast<std::int64_t>(samples_.size()); }
    void add(const float *samples, std::size_t count);
    void add_silence(std::int64_t count); // nothing if it is negative
    void cut(std::int64_t end);           // drops the samples from a number on
    void drop_before(std::int64_t start);
    // Writes the samples from one number to another; 0 where there are none.
    void read(std::int64_t start, std::int64_t end, float *out) const;

private:
    std::int64_t start_ = 0; // number of the first sample that is kept
    std::deque<float> samples_;
};

// The sound of one stream, mono at 16 kHz. It is kept until it has gone out with its frames, and as
// far back as the model may have to hear it again. One thread may push sound, another read it, and
// a third give it out.
class Speech : public Waited {
public:
    // patience_s: how long a frame waits for sound before silence replaces it; nullopt waits
    // without a limit. memory: samples that may be requested once more.
    Speech(std::optional<double> patience_s, std::int64_t memory);

    // The pushed sound. These throw Stopped, or Error where the sound has ended.

    // first: number of the first sample; silence fills the gap to it. nullopt: right behind the
    // rest.
    void push(const float *samples, std::size_t count, std::optional<std::int64_t> first);
    void finish();                                // a second call does nothing
    void mark(std::optional<std::uint64_t> piece); // nullopt ends the piece

    // Drops the sound that has not gone out with a frame. first: when the first frame is due, where
    // none has gone out and that is known.
    void cut(const std::optional<Moment> &first);

    std::int64_t next_sample();
    std::int64_t queued();

    // The sound that the model hears.

    // The next samples, at most a second of them, waiting for them; empty at the end. If nothing
    // has come for longer than the picture's patience, the next moment is silent. Throws Stopped.
    std::vector<float> read(const Picture &picture);
    Moment length();      // of the sound so far
    std::int64_t kept();  // how many of the samples that were read are still to be heard
    std::vector<float> before(std::int64_t end, std::int64_t count); // 0 before the first of all
    bool speaks_at(const Moment &time); // whether somebody speaks then or close to it

    // The sound that goes out with the frames.

    // What give would give.
    struct Due {
        std::int64_t first = 0;
        std::size_t samples = 0;
        std::size_t events = 0;
    };
    // Writes the sound of the next frame, and the events in it, if it may and both fit; otherwise
    // it changes nothing. until: when the frame after it is due, as far as this is known. samples,
    // events: nullptr if they are not wanted.
    std::pair<bool, Due> give(const Moment &until, bool may, float *samples,
                              std::size_t samples_capacity, std::vector<SpeechEvent> *events,
                              std::size_t events_capacity);
    // Skips the sound before the first frame.
    void begin_at(const Moment &time);

    void stop() override;
    void pause() override;
    void resume() override;

private:
    void check_open() const;
    void end_piece();
    void note_spoken(std::int64_t start, std::int64_t end);
    void begin_anew(std::int64_t at); // what comes next begins there, with silence before it
    void put_off(std::int64_t start); // a piece that was to begin there, where silence came
    std::size_t happening(std::int64_t end) const; // how many of the events are before that

    const std::optional<double> patience_s_;
    const std::int64_t memory_;
    std::mutex mutex_;
    std::condition_variable changed_;
    Line sound_;
    std::int64_t read_ = 0; // samples that the model has read
    std::int64_t out_ = 0;  // samples that have gone out with frames
    std::deque<SpeechEvent> events_;
    std::optional<std::uint64_t> piece_;    // the latest that was announced and has not ended
    std::optional<std::uint64_t> speaking_; // the one that is going out
    std::deque<std::pair<std::int64_t, std::int64_t>> spoken_; // where speech is
    double pushed_s_ = -std::numeric_limits<double>::infinity(); // when speech came last
    bool finished_ = false;
    bool paused_ = false;
    bool stopped_ = false;
};

} // namespace dithead
