// Opens a bundle on a provider: what api.cpp asks of the loader.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <string>

#include "error.hpp"
#include "graphs.hpp"

namespace dithead {

// Takes a message; the level is one of DITHEAD_LOG_.... Called from any thread; never empty.
using Log = std::function<void(int level, const std::string &message)>;

enum class Provider { cpu, cuda, tensorrt, tensorrt_rtx };

constexpr std::array<const char *, 4> PROVIDERS{"cpu", "cuda", "tensorrt", "tensorrt-rtx"};

inline const char *name_of(Provider provider) {
    return PROVIDERS[static_cast<std::size_t>(provider)];
}

// Throws Error (DITHEAD_ERROR_INVALID_ARGUMENT): there is no such provider.
inline Provider provider_of(const std::string &name) {
    const auto found = std::find(PROVIDERS.begin(), PROVIDERS.end(), name);
    if (found == PROVIDERS.end()) {
        throw Error(DITHEAD_ERROR_INVALID_ARGUMENT,
                    "unknown provider '" + name +
                        "'; choose one of cpu, cuda, tensorrt, tensorrt-rtx");
    }
    return static_cast<Provider>(found - PROVIDERS.begin());
}

struct OpenOptions {
    std::string bundle;
    Provider provider = Provider::cpu;
    std::string provider_library; // "": beside ONNX Runtime
    int device = 0;
    int threads = 1; // of each graph, from 1
    Log log;
};

// Throws Error: DITHEAD_ERROR_BUNDLE, DITHEAD_ERROR_PROVIDER or DITHEAD_ERROR_UNSUPPORTED.
std::unique_ptr<Graphs> open_graphs(const OpenOptions &options);

} // namespace dithead
