// ONNX Runtime's C API, with owners for what it hands out.
#pragma once

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime_c_api.h>

#include "open.hpp"

namespace dithead::ort {

// The oldest ONNX Runtime with everything in use; newer ones go on offering its interface.
constexpr unsigned INTERFACE = 22;

#if ORT_API_VERSION < 22
#error "onnxruntime_c_api.h is too old: RegisterExecutionProviderLibrary came with ONNX Runtime 1.22"
#endif

// What ONNX Runtime said of a failure. Whoever knows what was tried makes an Error of it.
class Failure : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Throws Error (DITHEAD_ERROR_PROVIDER) if the library is older than INTERFACE.
const OrtApi &api();

// Throws Failure, and releases the status.
void check(OrtStatus *status);

template <auto Release> struct Releaser {
    template <typename T> void operator()(T *held) const { (api().*Release)(held); }
};

using Env = std::unique_ptr<OrtEnv, Releaser<&OrtApi::ReleaseEnv>>;
using MemoryInfo = std::unique_ptr<OrtMemoryInfo, Releaser<&OrtApi::ReleaseMemoryInfo>>;
using Options = std::unique_ptr<OrtSessionOptions, Releaser<&OrtApi::ReleaseSessionOptions>>;
using Session = std::unique_ptr<OrtSession, Releaser<&OrtApi::ReleaseSession>>;
using TypeInfo = std::unique_ptr<OrtTypeInfo, Releaser<&OrtApi::ReleaseTypeInfo>>;
using TensorInfo =
    std::unique_ptr<OrtTensorTypeAndShapeInfo, Releaser<&OrtApi::ReleaseTensorTypeAndShapeInfo>>;
using Value = std::unique_ptr<OrtValue, Releaser<&OrtApi::ReleaseValue>>;

// Passes on what a session logs. log: a `const Log *`.
void ORT_API_CALL pass_on(void *log, OrtLoggingLevel level, const char *category, const char *id,
                          const char *place, const char *message);

// The process's environment, of which there can be only one: shared by all that is open, and gone
// with the last of it.
class Environment {
public:
    static std::shared_ptr<Environment> shared();

    OrtEnv *get() const { return env_.get(); }

    // Messages that belong to no session go to every log.
    void add_log(const std::shared_ptr<const Log> &log);

    // The devices of a plug-in provider, whose library is loaded unless it is already. Throws
    // Failure.
    std::vector<const OrtEpDevice *> devices(const std::string &library, const char *provider);

private:
    Environment();
    static void ORT_API_CALL pass_on_to_all(void *self, OrtLoggingLevel level,
                                            const char *category, const char *id,
                                            const char *place, const char *message);

    std::mutex mutex_;
    std::vector<std::weak_ptr<const Log>> logs_;
    std::vector<std::string> libraries_;
    Env env_;
};

} // namespace dithead::ort
