#include "ort.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "error.hpp"

namespace dithead::ort {
namespace {

int level_of(OrtLoggingLevel level) {
    switch (level) {
    case ORT_LOGGING_LEVEL_VERBOSE: return DITHEAD_LOG_DEBUG;
    case ORT_LOGGING_LEVEL_INFO: return DITHEAD_LOG_INFO;
    case ORT_LOGGING_LEVEL_WARNING: return DITHEAD_LOG_WARNING;
    default: return DITHEAD_LOG_ERROR;
    }
}

// ONNX Runtime's wheels collect events of the process in the user's cache from the first
// environment on, unless this says otherwise (dithead/bundle/libraries.py).
void disable_telemetry() {
#if defined(_WIN32)
    if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) _putenv_s("ORT_DISABLE_TELEMETRY", "1");
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
}

} // namespace

const OrtApi &api() {
    static const OrtApi *const found = OrtGetApiBase()->GetApi(INTERFACE);
    if (found == nullptr) {
        throw Error(DITHEAD_ERROR_PROVIDER, std::string("this ONNX Runtime is version ") +
                                                OrtGetApiBase()->GetVersionString() +
                                                "; 1.22 or later is needed");
    }
    return *found;
}

void check(OrtStatus *status) {
    if (status == nullptr) return;
    const std::unique_ptr<OrtStatus, Releaser<&OrtApi::ReleaseStatus>> owned(status);
    throw Failure(api().GetErrorMessage(status));
}

void ORT_API_CALL pass_on(void *log, OrtLoggingLevel level, const char *category, const char *,
                          const char *, const char *message) {
    try {
        (*static_cast<const Log *>(log))(
            level_of(level), std::string("ONNX Runtime (") + category + "): " + message);
    } catch (...) { // no exception may cross ONNX Runtime, and a message is worth no failure
    }
}

std::shared_ptr<Environment> Environment::shared() {
    static std::mutex mutex;
    static std::weak_ptr<Environment> open;
    const std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<Environment> environment = open.lock();
    if (!environment) {
        environment.reset(new Environment);
        open = environment;
    }
    return environment;
}

Environment::Environment() {
    disable_telemetry();
    OrtEnv *env = nullptr;
    check(api().CreateEnvWithCustomLogger(pass_on_to_all, this, ORT_LOGGING_LEVEL_ERROR, "dithead",
                                          &env));
    env_.reset(env);
}

void Environment::add_log(const std::shared_ptr<const Log> &log) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto gone = [](const std::weak_ptr<const Log> &each) { return each.expired(); };
    logs_.erase(std::remove_if(logs_.begin(), logs_.end(), gone), logs_.end());
    logs_.push_back(log);
}

void ORT_API_CALL Environment::pass_on_to_all(void *self, OrtLoggingLevel level,
                                              const char *category, const char *id,
                                              const char *place, const char *message) {
    auto *environment = static_cast<Environment *>(self);
    std::vector<std::weak_ptr<const Log>> logs;
    {
        const std::lock_guard<std::mutex> lock(environment->mutex_);
        logs = environment->logs_;
    }
    for (const std::weak_ptr<const Log> &each : logs) {
        const std::shared_ptr<const Log> log = each.lock();
        if (log) pass_on(const_cast<Log *>(log.get()), level, category, id, place, message);
    }
}

std::vector<const OrtEpDevice *> Environment::devices(const std::string &library,
                                                      const char *provider) {
    static std::mutex loading; // not mutex_: what is logged meanwhile needs that
    const std::lock_guard<std::mutex> lock(loading);
    if (std::find(libraries_.begin(), libraries_.end(), library) == libraries_.end()) {
        const std::string name = "dithead." + std::to_string(libraries_.size());
#if defined(_WIN32)
        const std::wstring path = std::filesystem::u8path(library).wstring();
#else
        const std::string &path = library;
#endif
        check(api().RegisterExecutionProviderLibrary(env_.get(), name.c_str(), path.c_str()));
        libraries_.push_back(library);
    }
    const OrtEpDevice *const *all = nullptr;
    std::size_t count = 0;
    check(api().GetEpDevices(env_.get(), &all, &count));
    std::vector<const OrtEpDevice *> devices;
    for (std::size_t i = 0; i < count; i++) {
        if (std::strcmp(api().EpDevice_EpName(all[i]), provider) == 0) devices.push_back(all[i]);
    }
    return devices;
}

} // namespace dithead::ort
