#include "streamrun.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace dithead {
namespace {

std::int64_t memory_of(const AudioConfig &config) {
    return config.chunk_samples() + config.hop_samples();
}

std::string seconds(const Moment &time) { return std::to_string(time.seconds()) + " s"; }

} // namespace

StreamRun::StreamRun(Graphs &graphs, const StreamSettings &settings, Log log)
    : settings_(settings), log_(std::move(log)), generator_(graphs, settings.options),
      speech_(settings.patience_s, memory_of(graphs.config().audio)),
      outbox_(static_cast<std::size_t>(std::max(1, settings.in_flight)), Side::writer) {
    const bool own = settings.portrait.defined();
    if (own) {
        // With a thread for each stage, pictures are taken while others wait for their sound.
        const double delay_s = settings.overlap ? 0.0 : settings.patience_s.value_or(0.0);
        portrait_ = std::make_unique<Portrait>(settings.portrait, settings.rate, settings.realtime,
                                               delay_s);
    } else {
        pushed_ = std::make_unique<PushedPictures>(static_cast<std::size_t>(settings.waiting));
    }
    stages_ = make_stages(generator_, graphs, speech_, own, settings.idle == Idle::pass,
                          settings.options.detail,
                          [this](const FramePointer &frame) { take(frame); });
    clocks_ = std::vector<Durations>(stages_.size());
    restart({}, 0);
}

StreamRun::~StreamRun() { stop("the stream is closed"); }

void StreamRun::restart(const std::vector<FramePointer> &carried, std::int64_t taken_in) {
    Source &source = portrait_ ? static_cast<Source &>(*portrait_) : *pushed_;
    auto made = std::make_shared<Scheduler>(
        Schedule{source,
                 stages_,
                 clocks_,
                 {&source, &outbox_, &speech_},
                 settings_.in_flight,
                 settings_.overlap,
                 [this](Picture picture) { return load(std::move(picture)); },
                 [this] { outbox_.close(); },
                 [this](const Error &error) { log_(DITHEAD_LOG_ERROR, error.what()); }},
        carried, taken_in);
    {
        const std::lock_guard lock(mutex_);
        scheduler_.swap(made);
    }
    scheduler_->start();
}

FramePointer StreamRun::load(Picture picture) {
    auto frame = std::make_shared<Frame>();
    frame->same = same_(picture.image);
    frame->source = std::move(picture);
    const std::lock_guard lock(mutex_);
    ++counts_.in;
    return frame;
}

void StreamRun::push_audio(const float *samples, std::size_t count,
                           std::optional<std::int64_t> first) {
    try {
        speech_.push(samples, count, first);
    } catch (const Stopped &) {
        throw_stopped();
    }
}

void StreamRun::mark(std::optional<std::uint64_t> piece) {
    try {
        speech_.mark(piece);
    } catch (const Stopped &) {
        throw_stopped();
    }
}

void StreamRun::finish_audio() {
    try {
        speech_.finish();
    } catch (const Stopped &) {
        throw_stopped();
    }
}

void StreamRun::finish() {
    finish_audio();
    if (pushed_) pushed_->inbox().close();
}

bool StreamRun::push_frame(const std::function<Tensor()> &image, std::int64_t pts_us,
                           const std::optional<Box> &face_box, const Deadline &deadline) {
    if (!pushed_) {
        throw Error(DITHEAD_ERROR_STATE, "this stream shows a portrait: it takes only sound");
    }
    const Moment at = Moment::of_microseconds(pts_us);
    Picture picture;
    {
        const std::lock_guard lock(mutex_);
        if (last_ && at <= *last_) {
            throw Error(DITHEAD_ERROR_STATE, "a frame at " + seconds(at) + " after one at " +
                                                 seconds(*last_) + ": times must increase");
        }
        check_gap(at);
        if (pushed_count_ == 0) first_ = at;
        picture.index = pushed_count_;
    }
    picture.time = at;
    picture.face_box = face_box;
    try {
        if (!pushed_->inbox().wait_for_room(deadline)) return false;
        picture.image = image();
        picture.arrived_s = now_s();
        if (!pushed_->inbox().put(picture, deadline)) return false;
    } catch (const Stopped &) {
        throw_stopped();
    }
    const std::lock_guard lock(mutex_);
    ++pushed_count_;
    last_ = at;
    return true;
}

void StreamRun::check_gap(const Moment &at) {
    // Where no sound comes, and where it is dropped, all of a gap is filled with silence.
    Moment before = speech_.length();
    if (last_ && *last_ > before) before = *last_;
    if (at - before > Moment::of(LONGEST_GAP_S, 1)) {
        throw Error(DITHEAD_ERROR_INVALID_ARGUMENT,
                    "a frame at " + seconds(at) + ", " + seconds(at - before) +
                        " after all that came before: at most 600 s are allowed; times count "
                        "from the first sample of the sound");
    }
}

void StreamRun::set_portrait(Tensor image) {
    if (!portrait_) {
        throw Error(DITHEAD_ERROR_STATE,
                    "this stream takes pushed frames: open one with a portrait");
    }
    throw_error();
    if (is_stopped()) throw_stopped();
    portrait_->change(std::move(image));
}

void StreamRun::take(const FramePointer &frame) {
    Finished finished{edition_, frame};
    {
        const double waited_s = now_s() - frame->source.arrived_s;
        const std::lock_guard lock(mutex_);
        taken_[frame->index()] = frame;
        if (frame->source.arrived_s > 0) {
            latency_.add(waited_s);
            if (counts_.first_frame_us < 0) {
                counts_.first_frame_us = static_cast<std::int64_t>(std::llround(1e6 * waited_s));
            }
        }
    }
    outbox_.put(finished);
}

std::optional<Pulled> StreamRun::pull(const Buffers &buffers, const Deadline &deadline) {
    try {
        while (true) {
            if (!popped_) {
                popped_ = outbox_.get(deadline);
                if (!popped_) return std::nullopt;
            }
            if (!giving_.take(deadline)) return std::nullopt;
            const Turn::Ended ended{giving_};
            if (popped_->edition != edition_) { // it is made anew
                popped_.reset();
                continue;
            }
            Pulled pulled = give(*popped_->frame, buffers);
            if (pulled.fits) popped_.reset();
            return pulled;
        }
    } catch (const Stopped &) {
        throw_stopped();
    }
}

Pulled StreamRun::give(Frame &frame, const Buffers &buffers) {
    Pulled pulled;
    pulled.index = frame.index();
    pulled.pts_us = frame.source.time.rounded(1'000'000);
    pulled.height = frame.result.shape()[0];
    pulled.width = frame.result.shape()[1];
    pulled.left_alone = frame.left_alone;
    pulled.pixels_size =
        bytes_of_picture(pulled.width, pulled.height, buffers.stride, settings_.format);
    const bool roomy = buffers.pixels != nullptr && buffers.pixels_capacity >= pulled.pixels_size;
    const Tensor picture = roomy ? from_rgb(frame.result, settings_.format) : Tensor();

    const Moment &time = frame.source.time;
    if (!shown_) speech_.begin_at(time);
    const std::optional<Moment> step = shown_ ? std::optional(time - *shown_) : std::nullopt;
    // After a pause of the camera, the next frame is due as soon as one was before it.
    const Moment until = frame.source.end ? *frame.source.end
                         : !step          ? time + settings_.rate.after(1)
                         : step_ && *step_ < *step ? time + *step_
                                                   : time + *step;
    const auto [given, due] =
        speech_.give(until, roomy, buffers.samples, buffers.samples_capacity,
                     buffers.wants_events ? &pulled.events : nullptr, buffers.events_capacity);
    pulled.sound = due;
    if (!given) return pulled;

    write_rows(picture, pulled.width, pulled.height, settings_.format, buffers.pixels,
               buffers.stride);
    shown_ = time;
    step_ = step;
    {
        const std::lock_guard lock(mutex_);
        taken_.erase(frame.index());
        ++counts_.out;
        ++counts_.left_alone[static_cast<std::size_t>(pulled.left_alone)];
    }
    frame.forget();
    pulled.fits = true;
    return pulled;
}

void StreamRun::flush_audio() {
    if (is_stopped()) throw_stopped();
    giving_.take(std::nullopt);
    const Turn::Ended ended{giving_};
    try {
        rewind();
    } catch (const Error &error) { // or threads would wait for ever
        scheduler_->fail(error);
        throw;
    } catch (const std::exception &error) {
        scheduler_->fail(Error(DITHEAD_ERROR_INTERNAL, error.what()));
        throw;
    }
}

// Undoes the work on the latest frames that depends on the sound, and goes on from there.
void StreamRun::rewind() {
    std::vector<Waited *> pauses{&outbox_, &speech_};
    if (portrait_) pauses.push_back(portrait_.get());
    if (pushed_) pauses.push_back(pushed_.get());
    for (Waited *paused : pauses) paused->pause();
    std::vector<FramePointer> again = scheduler_->halt();
    for (const FramePointer &frame : cut()) {
        if (std::find(again.begin(), again.end(), frame) == again.end()) again.push_back(frame);
    }
    std::sort(again.begin(), again.end(),
              [](const auto &a, const auto &b) { return a->index() < b->index(); });

    std::size_t first = 0;
    while (!stages_[first]->hears()) ++first;
    for (std::size_t number = first; number < stages_.size(); ++number) {
        const auto saved = std::find_if(again.begin(), again.end(), [&](const auto &frame) {
            return frame->undo.count(number) != 0;
        });
        const auto restore =
            saved != again.end() ? (*saved)->undo[number] : stages_[number]->save();
        if (restore) restore();
    }
    for (const FramePointer &frame : again) frame->begin_again(first);
    for (Waited *paused : pauses) paused->resume();
    restart(again, scheduler_->taken_in());
}

// Changes the sound while nobody reads it; the frames that are finished must be made once more.
std::vector<FramePointer> StreamRun::cut() {
    std::vector<FramePointer> taken;
    std::optional<Moment> first;
    {
        const std::lock_guard lock(mutex_);
        for (const auto &[index, frame] : taken_) taken.push_back(frame);
        taken_.clear();
        if (!shown_) first = first_;
    }
    ++edition_;
    outbox_.empty();
    speech_.cut(first);
    return taken;
}

Counts StreamRun::counts() const {
    const std::lock_guard lock(mutex_);
    Counts counts = counts_;
    counts.latency = latency_.percentiles();
    return counts;
}

void StreamRun::give_up() {
    std::shared_ptr<Scheduler> scheduler;
    {
        const std::lock_guard lock(mutex_);
        scheduler = scheduler_;
    }
    scheduler->give_up();
}

void StreamRun::stop(const std::string &why) {
    {
        const std::lock_guard lock(mutex_);
        if (stopped_.empty()) stopped_ = why;
    }
    scheduler_->stop();
    giving_.take(std::nullopt);
    const Turn::Ended ended{giving_};
    const std::lock_guard lock(mutex_);
    taken_.clear();
    ++edition_;
}

bool StreamRun::is_stopped() const {
    const std::lock_guard lock(mutex_);
    return !stopped_.empty();
}

void StreamRun::throw_error() {
    std::shared_ptr<Scheduler> scheduler;
    {
        const std::lock_guard lock(mutex_);
        scheduler = scheduler_;
    }
    scheduler->throw_error();
}

void StreamRun::throw_stopped() {
    throw_error();
    {
        const std::lock_guard lock(mutex_);
        if (!stopped_.empty()) throw Error(DITHEAD_ERROR_STOPPED, stopped_);
    }
    throw Error(DITHEAD_ERROR_STATE,
                "a frame after the end was declared: reset the stream before a new video");
}

} // namespace dithead
