// What the C functions' handles hold.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "boundary.hpp"
#include "open.hpp"
#include "stream.hpp"

struct dithead_session {
    std::shared_ptr<dithead::Graphs> graphs;
    dithead::Log log;
};

struct dithead_stream {
    dithead_stream(std::shared_ptr<dithead::Graphs> graphs, dithead::StreamSettings settings,
                   dithead::Log log)
        : stream(std::move(graphs), std::move(settings), std::move(log)) {}

    dithead::SharedErrorText error;
    std::atomic_flag hearing = ATOMIC_FLAG_INIT; // see THREADS in dithead.h
    std::atomic_flag seeing = ATOMIC_FLAG_INIT;
    std::atomic_flag pulling = ATOMIC_FLAG_INIT;
    dithead::Stream stream;
};

namespace dithead {

// Runs a call on a stream.
template <class Body> dithead_status on(dithead_stream *stream, Body body) noexcept {
    if (stream == nullptr) {
        return note(nullptr, DITHEAD_ERROR_INVALID_ARGUMENT, "stream is NULL");
    }
    return guarded(&stream->error, [&] { return body(*stream); });
}

[[noreturn]] inline void refuse(const std::string &message) {
    throw Error(DITHEAD_ERROR_INVALID_ARGUMENT, message);
}

} // namespace dithead
