// The functions of dithead.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "boundary.hpp"
#include "open.hpp"
#include "stream.hpp"
#include "streamoptions.hpp"

using namespace dithead;

// The library's log, as long as a session or one of its streams lives.
struct dithead_session {
    std::shared_ptr<Graphs> graphs;
    Log log;
};

struct dithead_stream {
    dithead_stream(std::shared_ptr<Graphs> graphs, StreamSettings settings, Log log)
        : stream(std::move(graphs), std::move(settings), std::move(log)) {}

    SharedErrorText error;
    std::atomic_flag hearing = ATOMIC_FLAG_INIT; // see THREADS in dithead.h
    std::atomic_flag seeing = ATOMIC_FLAG_INIT;
    std::atomic_flag pulling = ATOMIC_FLAG_INIT;
    Stream stream;
};

namespace {

constexpr std::size_t MOST_SAMPLES = std::size_t{1} << 30; // of one push
constexpr std::int64_t MOST_TIME_US = std::int64_t{1} << 53;

// Runs a call on a stream.
template <class Body> dithead_status on(dithead_stream *stream, Body body) noexcept {
    if (stream == nullptr) {
        return note(nullptr, DITHEAD_ERROR_INVALID_ARGUMENT, "stream is NULL");
    }
    return guarded(&stream->error, [&] { return body(*stream); });
}

[[noreturn]] void refuse(const std::string &message) {
    throw Error(DITHEAD_ERROR_INVALID_ARGUMENT, message);
}

void check_time(std::int64_t us, const char *name) {
    if (us < -MOST_TIME_US || us > MOST_TIME_US) {
        refuse(std::string(name) + " must be within 2^53 microseconds of 0");
    }
}

Log log_of(const dithead_session_options &options) {
    if (options.log == nullptr) return [](int, const std::string &) {};
    return [call = options.log, data = options.log_user_data,
            least = options.log_level](int level, const std::string &message) {
        if (level >= least) call(data, level, message.c_str());
    };
}

OpenOptions checked_open(const dithead_session_options &options) {
    require(options.bundle_path, "bundle_path");
    if (options.reserved != 0) refuse("reserved must be 0");
    OpenOptions open;
    open.bundle = options.bundle_path;
    if (options.provider != nullptr) open.provider = options.provider;
    constexpr const char *PROVIDERS[] = {"cpu", "cuda", "tensorrt", "tensorrt-rtx"};
    if (std::find(std::begin(PROVIDERS), std::end(PROVIDERS), open.provider) ==
        std::end(PROVIDERS)) {
        refuse("unknown provider '" + open.provider +
               "': expected cpu, cuda, tensorrt or tensorrt-rtx");
    }
    if (options.provider_library != nullptr) open.provider_library = options.provider_library;
    if (options.device < 0 || options.device > 1024 ||
        (open.provider == "cpu" && options.device != 0)) {
        refuse("device must be the number of a GPU, or 0 with the provider cpu, not " +
               std::to_string(options.device));
    }
    if (options.threads < 0 || options.threads > 1024) {
        refuse("threads must be from 0 to 1024, not " + std::to_string(options.threads));
    }
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    open.device = options.device;
    open.threads = options.threads != 0 ? options.threads : std::max(1, cores / 4);
    open.log = log_of(options);
    return open;
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
static_assert(static_cast<int>(Idle::wait) == DITHEAD_IDLE_WAIT);
static_assert(static_cast<int>(Idle::rest) == DITHEAD_IDLE_REST);
static_assert(static_cast<int>(Idle::pass) == DITHEAD_IDLE_PASS);

} // namespace

const char *dithead_last_error(void) { return thread_error().get(); }

dithead_status dithead_session_options_init(dithead_session_options *options,
                                            size_t struct_size) {
    return guarded(nullptr, [&] {
        dithead_session_options defaults{};
        defaults.log_level = DITHEAD_LOG_WARNING;
        return init_struct(options, struct_size, "dithead_session_options", defaults);
    });
}

dithead_status dithead_session_create(const dithead_session_options *options,
                                      dithead_session **session) {
    return guarded(nullptr, [&] {
        require(session, "session");
        *session = nullptr;
        const OpenOptions open = checked_open(read_struct(options, "dithead_session_options"));
        auto made = std::make_unique<dithead_session>();
        made->log = open.log;
        made->graphs = open_graphs(open);
        *session = made.release();
        return DITHEAD_OK;
    });
}

void dithead_session_destroy(dithead_session *session) { delete session; }

dithead_status dithead_stream_options_init(dithead_stream_options *options, size_t struct_size) {
    return guarded(nullptr, [&] {
        return init_struct(options, struct_size, "dithead_stream_options",
                           default_stream_options());
    });
}

dithead_status dithead_stream_create(dithead_session *session,
                                     const dithead_stream_options *options,
                                     dithead_stream **stream) {
    return guarded(nullptr, [&] {
        require(stream, "stream");
        *stream = nullptr;
        require(session, "session");
        const dithead_stream_options asked =
            options == nullptr ? default_stream_options()
                               : read_struct(options, "dithead_stream_options");
        StreamSettings settings = checked_settings(asked, session->graphs->config());
        *stream = new dithead_stream(session->graphs, std::move(settings), session->log);
        return DITHEAD_OK;
    });
}

void dithead_stream_destroy(dithead_stream *stream) { delete stream; }

dithead_status dithead_stream_reset(dithead_stream *stream) {
    return on(stream, [](dithead_stream &s) {
        s.stream.reset();
        return DITHEAD_OK;
    });
}

dithead_status dithead_stream_stop(dithead_stream *stream) {
    return on(stream, [](dithead_stream &s) {
        s.stream.stop();
        return DITHEAD_OK;
    });
}

size_t dithead_stream_last_error(dithead_stream *stream, char *buffer, size_t capacity) {
    if (stream != nullptr) return stream->error.copy(buffer, capacity);
    if (buffer != nullptr && capacity > 0) buffer[0] = '\0';
    return 0;
}

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
        Tensor image = to_rgb(given.pixels, given.width, given.height, given.stride,
                              s.stream.settings().format);
        const bool taken =
            s.stream.run()->push_frame(std::move(image), given.pts_us, box, deadline);
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

dithead_status dithead_get_statistics(dithead_stream *stream, dithead_statistics *statistics) {
    return on(stream, [&](dithead_stream &s) {
        dithead_statistics told = read_struct(statistics, "dithead_statistics");
        const Counts counts = s.stream.run()->counts();
        told.frames_in = counts.in;
        told.frames_out = counts.out;
        std::copy(counts.left_alone.begin(), counts.left_alone.end(), std::begin(told.left_alone));
        told.first_frame_us = counts.first_frame_us;
        told.latency_p50_us = counts.latency.p50_us;
        told.latency_p95_us = counts.latency.p95_us;
        told.latency_p99_us = counts.latency.p99_us;
        *statistics = told;
        return DITHEAD_OK;
    });
}

dithead_status dithead_get_stage_statistics(dithead_stream *stream, size_t stage,
                                            dithead_stage_statistics *statistics) {
    return on(stream, [&](dithead_stream &s) -> dithead_status {
        dithead_stage_statistics told = read_struct(statistics, "dithead_stage_statistics");
        const std::shared_ptr<StreamRun> run = s.stream.run();
        if (stage >= run->stages().size()) return DITHEAD_END_OF_STREAM;
        const Durations &clock = run->clock(stage);
        const Percentiles work = clock.percentiles();
        std::memset(told.name, 0, sizeof told.name);
        std::strncpy(told.name, run->stages()[stage]->name(), sizeof told.name - 1);
        told.frames = clock.count();
        told.busy_us = static_cast<std::int64_t>(std::llround(1e6 * clock.total_s()));
        told.work_p50_us = work.p50_us;
        told.work_p95_us = work.p95_us;
        told.work_p99_us = work.p99_us;
        *statistics = told;
        return DITHEAD_OK;
    });
}
