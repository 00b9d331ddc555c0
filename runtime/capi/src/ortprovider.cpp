#include "ortprovider.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iterator>

#include "error.hpp"

namespace dithead {
namespace {

using ort::api;
using ort::check;

constexpr const char *CUDA = "CUDAExecutionProvider";
constexpr const char *TENSORRT = "TensorrtExecutionProvider";
constexpr const char *TENSORRT_RTX = "NvTensorRTRTXExecutionProvider";
#if defined(_WIN32)
constexpr const char *PLUGIN = "onnxruntime_providers_nv_tensorrt_rtx.dll";
#else
constexpr const char *PLUGIN = "libonnxruntime_providers_nv_tensorrt_rtx.so";
#endif

struct Settings {
    std::vector<const char *> keys;
    std::vector<const char *> values;

    void add(const char *key, const std::string &value) {
        keys.push_back(key);
        values.push_back(value.c_str());
    }
};

// Throws Error if this ONNX Runtime was built without a provider.
void require(const char *provider) {
    char **names = nullptr;
    int count = 0;
    check(api().GetAvailableProviders(&names, &count));
    const std::vector<std::string> available(names, names + count);
    check(api().ReleaseAvailableProviders(names, count));
    if (std::find(available.begin(), available.end(), provider) != available.end()) return;
    std::string all;
    for (const std::string &name : available) all += (all.empty() ? "" : ", ") + name;
    throw Error(DITHEAD_ERROR_PROVIDER, std::string("this ONNX Runtime has no ") + provider +
                                            ", only " + all +
                                            "; use a build of ONNX Runtime for GPUs, or the "
                                            "provider cpu");
}

// Where TensorRT keeps the engines that it makes, which takes minutes; "" where nobody says. Its
// names for them are made from the graph and the name of its file, and that holds the file's key.
std::string engine_folder() {
    const char *cache = std::getenv("XDG_CACHE_HOME");
    if (cache != nullptr && *cache == '/') return std::string(cache) + "/dithead/tensorrt";
    const char *home = std::getenv("HOME");
    return home != nullptr ? std::string(home) + "/.cache/dithead/tensorrt" : std::string();
}

const OrtEpDevice *plug_in(ort::Environment &environment, const OpenOptions &options) {
    // ONNX Runtime looks for a name alone beside its own library.
    const std::string library =
        options.provider_library.empty()
            ? PLUGIN
            : std::filesystem::absolute(options.provider_library).string();
    std::vector<const OrtEpDevice *> devices;
    try {
        devices = environment.devices(library, TENSORRT_RTX);
    } catch (const ort::Failure &failure) {
        throw Error(DITHEAD_ERROR_PROVIDER,
                    "cannot load the plug-in provider " + library + " (" + failure.what() +
                        "); it needs NVIDIA's driver, and the libraries of TensorRT-RTX beside it");
    }
    if (options.device < 0 || static_cast<std::size_t>(options.device) >= devices.size()) {
        throw Error(DITHEAD_ERROR_PROVIDER, library + " has no device " +
                                                std::to_string(options.device) + ", only " +
                                                std::to_string(devices.size()) + " from 0");
    }
    return devices[static_cast<std::size_t>(options.device)];
}

} // namespace

OrtProvider::OrtProvider(const OpenOptions &options, std::shared_ptr<ort::Environment> environment,
                         std::shared_ptr<const Log> log)
    : kind_(options.provider), device_(options.device), threads_(options.threads),
      environment_(std::move(environment)), log_(std::move(log)) {
    if (kind_ == Provider::cuda) require(CUDA);
    if (kind_ == Provider::tensorrt) require(TENSORRT);
    if (kind_ == Provider::tensorrt_rtx) plugged_ = plug_in(*environment_, options);
}

ort::Options OrtProvider::options(const GraphEntry &graph, const OnnxFile &file,
                                  const Sizes &sizes) const {
    OrtSessionOptions *made = nullptr;
    check(api().CreateSessionOptions(&made));
    ort::Options options(made);
    check(api().SetSessionLogSeverityLevel(made, ORT_LOGGING_LEVEL_ERROR));
    check(api().SetUserLoggingFunction(made, ort::pass_on, const_cast<Log *>(log_.get())));
    for (const auto &[dimension, size] : sizes) {
        check(api().AddFreeDimensionOverrideByName(made, dimension.c_str(), size));
    }
    check(api().SetIntraOpNumThreads(made, threads_));
    // Every graph has its own threads, which would keep busy-waiting while the next one runs.
    check(api().AddSessionConfigEntry(made, "session.force_spinning_stop", "1"));
    // Graphs without an engine have no weights and a few numbers for inputs and outputs. TensorRT
    // lacks some of their operators.
    if (kind_ == Provider::cpu || (kind_ == Provider::tensorrt_rtx && !graph.engine)) return options;
    // A node that the provider cannot run is an error, and never runs on the CPU instead.
    check(api().AddSessionConfigEntry(made, "session.disable_cpu_ep_fallback", "1"));
    if (kind_ == Provider::tensorrt_rtx) {
        check(api().SessionOptionsAppendExecutionProvider_V2(made, environment_->get(), &plugged_, 1,
                                                             nullptr, nullptr, 0));
        return options;
    }
    if (kind_ == Provider::tensorrt && graph.engine) append_tensorrt(made, file.precision);
    append_cuda(made);
    return options;
}

void OrtProvider::append_cuda(OrtSessionOptions *options) const {
    OrtCUDAProviderOptionsV2 *made = nullptr;
    check(api().CreateCUDAProviderOptions(&made));
    const std::unique_ptr<OrtCUDAProviderOptionsV2,
                          ort::Releaser<&OrtApi::ReleaseCUDAProviderOptions>>
        owned(made);
    const std::string device = std::to_string(device_);
    const std::string off = "0";
    Settings settings;
    settings.add("device_id", device);
    settings.add("use_tf32", off); // it has only float16's digits, too few for coordinates
    check(api().UpdateCUDAProviderOptions(made, settings.keys.data(), settings.values.data(),
                                          settings.keys.size()));
    check(api().SessionOptionsAppendExecutionProvider_CUDA_V2(options, made));
}

void OrtProvider::append_tensorrt(OrtSessionOptions *options, const std::string &precision) const {
    OrtTensorRTProviderOptionsV2 *made = nullptr;
    check(api().CreateTensorRTProviderOptions(&made));
    const std::unique_ptr<OrtTensorRTProviderOptionsV2,
                          ort::Releaser<&OrtApi::ReleaseTensorRTProviderOptions>>
        owned(made);
    const std::string device = std::to_string(device_);
    const std::string on = "1";
    const std::string folder = engine_folder();
    Settings settings;
    settings.add("device_id", device);
    if (precision == "fp16") settings.add("trt_fp16_enable", on);
    if (precision == "bf16") settings.add("trt_bf16_enable", on);
    if (!folder.empty()) {
        settings.add("trt_engine_cache_enable", on);
        settings.add("trt_engine_cache_path", folder);
    }
    check(api().UpdateTensorRTProviderOptions(made, settings.keys.data(), settings.values.data(),
                                              settings.keys.size()));
    check(api().SessionOptionsAppendExecutionProvider_TensorRT_V2(options, made));
}

} // namespace dithead
