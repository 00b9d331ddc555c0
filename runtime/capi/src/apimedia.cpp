// The functions of dithead.h through which sound and pictures go in and out.
#include <algorithm>
#include <cmath>
#include <string>

#include "handles.hpp"
#include "streamoptions.hpp"

using namespace dithead;

namespace {

constexpr std::size_t MOST_SAMPLES = std::size_t{1} << 30; // of one push
constexpr std::int64_t MOST_TIME_US = std::int64_t{1} << 53;

void check_time(std::int64_t us, const char *name) {
    if (us < -MOST_TIME_US || us > MOST_TIME_US) {
        refuse(std::string(name) + " must be within 2^53 microseconds of 0");
    }
}

Buffers checked_buffers(const dithead_output &output) {
    Buffers buffers;
    buffers.pixels = output.pixels;
    buffers.pixels_capacity = output.pixels == nullptr ? 0 : output.pixels_capacity;
    buffers.stride = output.stride;
    buffers.samples = output.samples;
    buffers.samples_capacity = output.samples_capacity;
    buffers.wants_events = output.events != nullptr;
    buffers.events_capacity = output.events_capacity;
    return buffers;
}

void tell(const Pulled &pulled, dithead_output &output) {
    output.index = pulled.index;
    output.pts_us = pulled.pts_us;
    output.width = static_cast<std::int32_t>(pulled.width);
    output.height = static_cast<std::int32_t>(pulled.height);
    output.left_alone = static_cast<std::int32_t>(pulled.left_alone);
    output.pixels_size = pulled.pixels_size;
    output.first_sample = pulled.sound.first;
    output.sample_count = pulled.sound.samples;
    output.event_count = pulled.sound.events;
    for (std::size_t n = 0; n < pulled.events.size(); ++n) {
        const SpeechEvent &event = pulled.events[n];
        output.events[n] = {event.piece, event.sample, static_cast<std::int32_t>(event.kind), 0};
    }
}

static_assert(static_cast<int>(LeftAlone::no) == DITHEAD_REVOICED);
static_assert(static_cast<int>(LeftAlone::no_face) == DITHEAD_LEFT_ALONE_NO_FACE);
static_assert(static_cast<int>(LeftAlone::away) == DITHEAD_LEFT_ALONE_AWAY);
static_assert(static_cast<int>(LeftAlone::nobody) == DITHEAD_LEFT_ALONE_NOBODY);
static_assert(static_cast<int>(LeftAlone::too_faint) == DITHEAD_LEFT_ALONE_FAINT);
static_assert(static_cast<int>(LeftAlone::covered) == DITHEAD_LEFT_ALONE_COVERED);
static_assert(static_cast<int>(LeftAlone::too_large) == DITHEAD_LEFT_ALONE_TOO_LARGE);
static_assert(static_cast<int>(LeftAlone::idle) == DITHEAD_LEFT_ALONE_IDLE);
static_assert(static_cast<int>(EventKind::began) == DITHEAD_EVENT_BEGAN);
static_assert(static_cast<int>(EventKind::ended) == DITHEAD_EVENT_ENDED);
static_assert(static_cast<int>(EventKind::interrupted) == DITHEAD_EVENT_INTERRUPTED);

} // namespace

dithead_status dithead_push_audio(dithead_stream *stream, const float *samples, size_t count,
                                  int64_t first_sample) {
    return on(stream, [&](dithead_stream &s) {
        const Entered entered(s.hearing);
        if (count > 0) require(samples, "samples");
        if (count > MOST_SAMPLES) refuse("more than 2^30 samples at once");
        if (first_sample < 0 && first_sample != DITHEAD_NEXT_SAMPLE) {
            refuse("first_sample must be at least 0, or DITHEAD_NEXT_SAMPLE");
        }
        if (!std::all_of(samples, samples + count, [](float x) { return std::isfinite(x); })) {
            refuse("a sample is not a finite number");
        }
        std::optional<std::int64_t> first;
        if (first_sample != DITHEAD_NEXT_SAMPLE) first = first_sample;
        s.stream.run()->push_audio(samples, count, first);
        return DITHEAD_OK;
    });
}

dithead_status dithead_finish_audio(dithead_stream *stream) {
    return on(stream, [](dithead_stream &s) {
        s.stream.run()->finish_audio();
        return DITHEAD_OK;
    });
}

dithead_status dithead_flush_audio(dithead_stream *stream) {
    return on(stream, [](dithead_stream &s) {
        s.stream.flush_audio();
        return DITHEAD_OK;
    });
}

dithead_status dithead_mark(dithead_stream *stream, uint64_t piece) {
    return on(stream, [&](dithead_stream &s) {
        const Entered entered(s.hearing);
        s.stream.run()->mark(piece);
        return DITHEAD_OK;
    });
}

dithead_status dithead_mark_end(dithead_stream *stream) {
    return on(stream, [](dithead_stream &s) {
        const Entered entered(s.hearing);
        s.stream.run()->mark(std::nullopt);
        return DITHEAD_OK;
    });
}

dithead_status dithead_get_audio_position(dithead_stream *stream, int64_t *next_sample,
                                          int64_t *queued_samples) {
    return on(stream, [&](dithead_stream &s) {
        Speech &speech = s.stream.run()->speech();
        if (next_sample != nullptr) *next_sample = speech.next_sample();
        if (queued_samples != nullptr) *queued_samples = speech.queued();
        return DITHEAD_OK;
    });
}

dithead_status dithead_frame_init(dithead_frame *frame, size_t struct_size) {
    return guarded(nullptr, [&] {
        return init_struct(frame, struct_size, "dithead_frame", dithead_frame{});
    });
}

dithead_status dithead_push_frame(dithead_stream *stream, const dithead_frame *frame,
                                  int64_t timeout_us) {
    return on(stream, [&](dithead_stream &s) {
        const Entered entered(s.seeing);
        const Deadline deadline = deadline_after(timeout_us);
        const dithead_frame given = read_struct(frame, "dithead_frame");
        if (given.reserved != 0) refuse("reserved must be 0");
        check_time(given.pts_us, "pts_us");
        std::optional<Box> box;
        if (given.has_face_box != 0) box = checked_box(given.face_box);
        const PixelFormat format = s.stream.settings().format;
        check_picture(given.pixels, given.width, given.height, given.stride, format);
        const auto image = [&] { // copied when there is room for it
            return to_rgb(given.pixels, given.width, given.height, given.stride, format);
        };
        const bool taken = s.stream.run()->push_frame(image, given.pts_us, box, deadline);
        return taken ? DITHEAD_OK : DITHEAD_WOULD_BLOCK;
    });
}

dithead_status dithead_set_portrait(dithead_stream *stream, const uint8_t *pixels, int32_t width,
                                    int32_t height, size_t stride) {
    return on(stream, [&](dithead_stream &s) {
        const Entered entered(s.seeing);
        s.stream.run()->set_portrait(
            to_rgb(pixels, width, height, stride, s.stream.settings().format));
        return DITHEAD_OK;
    });
}

dithead_status dithead_finish(dithead_stream *stream) {
    return on(stream, [](dithead_stream &s) {
        s.stream.run()->finish();
        return DITHEAD_OK;
    });
}

dithead_status dithead_output_init(dithead_output *output, size_t struct_size) {
    return guarded(nullptr, [&] {
        return init_struct(output, struct_size, "dithead_output", dithead_output{});
    });
}

dithead_status dithead_pull_frame(dithead_stream *stream, dithead_output *output,
                                  int64_t timeout_us) {
    return on(stream, [&](dithead_stream &s) -> dithead_status {
        const Entered entered(s.pulling);
        const Deadline deadline = deadline_after(timeout_us);
        const Buffers buffers = checked_buffers(read_struct(output, "dithead_output"));
        try {
            const std::optional<Pulled> pulled = s.stream.run()->pull(buffers, deadline);
            if (!pulled) return DITHEAD_WOULD_BLOCK;
            tell(*pulled, *output);
            if (pulled->fits) return DITHEAD_OK;
            throw Error(DITHEAD_ERROR_BUFFER_TOO_SMALL,
                        "the frame takes " + std::to_string(pulled->pixels_size) + " bytes, " +
                            std::to_string(pulled->sound.samples) + " samples and " +
                            std::to_string(pulled->sound.events) + " events");
        } catch (const Closed &) {
            return DITHEAD_END_OF_STREAM;
        }
    });
}
