// Opens a bundle on a provider: what api.cpp asks of the loader.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "graphs.hpp"

namespace dithead {

// Takes a message; the level is one of DITHEAD_LOG_.... Called from any thread; never empty.
using Log = std::function<void(int level, const std::string &message)>;

struct OpenOptions {
    std::string bundle;
    std::string provider = "cpu"; // one of cpu, cuda, tensorrt, tensorrt-rtx
    std::string provider_library; // "": beside ONNX Runtime
    int device = 0;
    int threads = 1; // of each graph, from 1
    Log log;
};

// Throws Error: DITHEAD_ERROR_BUNDLE, DITHEAD_ERROR_PROVIDER or DITHEAD_ERROR_UNSUPPORTED.
std::unique_ptr<Graphs> open_graphs(const OpenOptions &options);

} // namespace dithead
