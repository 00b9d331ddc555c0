// The functions of dithead.h for sessions, streams and their statistics.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "handles.hpp"
#include "streamoptions.hpp"

using namespace dithead;

namespace {

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
    if (options.provider != nullptr) open.provider = provider_of(options.provider);
    if (options.provider_library != nullptr) open.provider_library = options.provider_library;
    if (options.device < 0 || options.device > 1024 ||
        (open.provider == Provider::cpu && options.device != 0)) {
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
