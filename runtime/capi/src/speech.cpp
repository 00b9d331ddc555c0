#include "speech.hpp"

#include <algorithm>

#include "config.hpp"
#include "error.hpp"

namespace dithead {
namespace {

constexpr std::int64_t RATE = 16'000;
constexpr std::int64_t PIECE = RATE;        // sound is encoded in pieces of at most a second
constexpr std::int64_t SILENCE = RATE / 50; // inserted at a time where no speech comes
constexpr std::int64_t NEAR = RATE / 4;     // from speech, where the mouth still moves
// From the sound to the frame that needs it, beyond which silence fills the whole gap.
const Moment GAP = Moment::of(1, 1);
constexpr std::int64_t LONGEST_GAP = 600 * RATE; // that a push may leave

} // namespace

void Line::add(const float *samples, std::size_t count) {
    samples_.insert(samples_.end(), samples, samples + count);
}

void Line::add_silence(std::int64_t count) {
    if (count > 0) samples_.insert(samples_.end(), static_cast<std::size_t>(count), 0.0F);
}

void Line::cut(std::int64_t last) {
    const std::int64_t kept = std::max<std::int64_t>(0, last - start_);
    if (end() > last) samples_.resize(static_cast<std::size_t>(kept));
}

void Line::drop_before(std::int64_t start) {
    if (start <= start_) return;
    const std::int64_t count = std::min(start, end()) - start_;
    samples_.erase(samples_.begin(), samples_.begin() + count);
    start_ += count;
}

void Line::read(std::int64_t first, std::int64_t last, float *out) const {
    if (last <= first) return;
    std::fill(out, out + (last - first), 0.0F);
    const std::int64_t low = std::max(first, start_), high = std::min(last, end());
    if (low < high) {
        std::copy(samples_.begin() + (low - start_), samples_.begin() + (high - start_),
                  out + (low - first));
    }
}

Speech::Speech(std::optional<double> patience_s, std::int64_t memory)
    : patience_s_(patience_s), memory_(memory) {}

void Speech::push(const float *samples, std::size_t count, std::optional<std::int64_t> first) {
    const std::lock_guard lock(mutex_);
    check_open();
    const std::int64_t end = sound_.end();
    if (first && *first < end) {
        throw Error(DITHEAD_ERROR_STATE, "sound from sample " + std::to_string(*first) +
                                             " on, where sound up to sample " +
                                             std::to_string(end) + " is already there");
    }
    if (first && *first - end > LONGEST_GAP) {
        throw Error(DITHEAD_ERROR_INVALID_ARGUMENT,
                    "sound from sample " + std::to_string(*first) + " on, " +
                        std::to_string((*first - end) / RATE) +
                        " s after all that came before: at most 600 s are allowed");
    }
    if (first && *first > end) {
        sound_.add_silence(*first - end);
        put_off(end);
    }
    if (count > 0) pushed_s_ = now_s();
    const std::int64_t start = sound_.end();
    sound_.add(samples, count);
    note_spoken(start, sound_.end());
    changed_.notify_all();
}

void Speech::finish() {
    const std::lock_guard lock(mutex_);
    if (stopped_) throw Stopped();
    if (finished_) return;
    end_piece();
    finished_ = true;
    changed_.notify_all();
}

void Speech::mark(std::optional<std::uint64_t> piece) {
    const std::lock_guard lock(mutex_);
    check_open();
    end_piece();
    if (piece) events_.push_back({sound_.end(), EventKind::began, *piece});
    piece_ = piece;
}

void Speech::cut(const std::optional<Moment> &first) {
    const std::lock_guard lock(mutex_);
    const std::int64_t kept = out_;
    pushed_s_ = -std::numeric_limits<double>::infinity();
    if (first) out_ = std::max<std::int64_t>(0, first->samples());

    std::deque<SpeechEvent> told, lost;
    if (speaking_) lost.push_back({out_, EventKind::interrupted, *speaking_});
    for (const SpeechEvent &event : events_) {
        if (event.kind == EventKind::began) {
            lost.push_back({out_, EventKind::interrupted, event.piece});
        } else if (event.kind == EventKind::interrupted) {
            told.push_back(event);
        }
    }
    told.insert(told.end(), lost.begin(), lost.end());
    events_ = std::move(told);
    piece_.reset();
    speaking_.reset();

    sound_.cut(kept);
    while (!spoken_.empty() && spoken_.back().first >= kept) spoken_.pop_back();
    if (!spoken_.empty()) spoken_.back().second = std::min(spoken_.back().second, kept);
    read_ = std::min(read_, kept);
    if (!finished_) begin_anew(out_);
}

std::int64_t Speech::next_sample() {
    const std::lock_guard lock(mutex_);
    return sound_.end();
}

std::int64_t Speech::queued() {
    const std::lock_guard lock(mutex_);
    std::int64_t samples = 0;
    for (const auto &[start, end] : spoken_) {
        samples += std::max<std::int64_t>(0, end - std::max(start, out_));
    }
    return samples;
}

void Speech::check_open() const {
    if (stopped_) throw Stopped();
    if (finished_) {
        throw Error(DITHEAD_ERROR_STATE,
                    "sound after its end was declared: reset the stream before a new sound");
    }
}

void Speech::end_piece() {
    if (piece_) events_.push_back({sound_.end(), EventKind::ended, *piece_});
    piece_.reset();
}

void Speech::note_spoken(std::int64_t start, std::int64_t end) {
    if (!spoken_.empty() && spoken_.back().second == start) {
        start = spoken_.back().first;
        spoken_.pop_back();
    }
    if (start < end) spoken_.emplace_back(start, end);
}

void Speech::begin_anew(std::int64_t at) {
    const std::int64_t start = sound_.end();
    sound_.add_silence(at - start);
    put_off(start);
    changed_.notify_all();
}

void Speech::put_off(std::int64_t start) {
    if (events_.empty()) return;
    SpeechEvent &last = events_.back();
    if (last.kind == EventKind::began && last.sample == start) last.sample = sound_.end();
}

std::vector<float> Speech::read(const Picture &picture) {
    std::unique_lock lock(mutex_);
    while (true) {
        if (stopped_ || paused_) throw Stopped(); // however much there is to hear
        if (sound_.end() > read_) break;
        if (finished_) return {};
        if (!patience_s_) {
            changed_.wait(lock);
            continue;
        }
        double since_s = picture.arrived_s;
        if (since_s > 0) since_s = std::max(since_s, pushed_s_); // live speech is not torn apart
        const double wait_s = since_s + *patience_s_ - now_s();
        if (wait_s > 0) {
            changed_.wait_for(lock, std::chrono::duration<double>(wait_s));
            continue;
        }
        const std::int64_t start = sound_.end();
        const Moment gap = picture.time - Moment::of_samples(start);
        sound_.add_silence(gap > GAP ? gap.samples() : SILENCE);
        put_off(start);
    }
    const std::int64_t end = std::min(sound_.end(), read_ + PIECE);
    std::vector<float> samples(static_cast<std::size_t>(end - read_));
    sound_.read(read_, end, samples.data());
    read_ = end;
    return samples;
}

Moment Speech::length() {
    const std::lock_guard lock(mutex_);
    return Moment::of_samples(sound_.end());
}

std::int64_t Speech::kept() {
    const std::lock_guard lock(mutex_);
    return read_;
}

std::vector<float> Speech::before(std::int64_t end, std::int64_t count) {
    const std::lock_guard lock(mutex_);
    std::vector<float> samples(static_cast<std::size_t>(count));
    sound_.read(end - count, end, samples.data());
    return samples;
}

bool Speech::speaks_at(const Moment &time) {
    const std::lock_guard lock(mutex_);
    const std::int64_t at = time.samples();
    return std::any_of(spoken_.begin(), spoken_.end(), [&](const auto &speech) {
        return speech.first < at + NEAR && speech.second > at - NEAR;
    });
}

std::size_t Speech::happening(std::int64_t end) const {
    std::size_t count = 0;
    for (const SpeechEvent &event : events_) {
        const bool before = event.sample < end + (event.kind == EventKind::ended ? 1 : 0);
        if (!before && event.sample > out_) break;
        ++count;
    }
    return count;
}

std::pair<bool, Speech::Due> Speech::give(const Moment &until, bool may, float *samples,
                                          std::size_t samples_capacity,
                                          std::vector<SpeechEvent> *events,
                                          std::size_t events_capacity) {
    const std::lock_guard lock(mutex_);
    std::int64_t end = until.samples();
    if (!finished_) end = std::min(end, sound_.end());
    end = std::max(end, out_);
    const Due due{out_, static_cast<std::size_t>(end - out_), happening(end)};
    const bool fits = may && (samples == nullptr || due.samples <= samples_capacity) &&
                      (events == nullptr || due.events <= events_capacity);
    if (!fits) return {false, due};

    if (events != nullptr) events->reserve(due.events);
    if (samples != nullptr) sound_.read(out_, end, samples);
    for (std::size_t n = 0; n < due.events; ++n) {
        const SpeechEvent event = events_.front();
        events_.pop_front();
        speaking_.reset();
        if (event.kind == EventKind::began) speaking_ = event.piece;
        if (events != nullptr) events->push_back(event);
    }
    out_ = end;
    while (!spoken_.empty() && spoken_.front().second < end - NEAR) spoken_.pop_front();
    sound_.drop_before(std::min(end, read_) - memory_);
    return {true, due};
}

void Speech::begin_at(const Moment &time) {
    const std::lock_guard lock(mutex_);
    out_ = std::max<std::int64_t>(0, time.samples());
}

void Speech::stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
}

void Speech::pause() {
    const std::lock_guard lock(mutex_);
    paused_ = true;
    changed_.notify_all();
}

void Speech::resume() {
    const std::lock_guard lock(mutex_);
    paused_ = false;
}

} // namespace dithead
