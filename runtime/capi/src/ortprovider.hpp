// What runs the graphs: one of ONNX Runtime's execution providers, and never another instead.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "keptopen.hpp"
#include "manifest.hpp"
#include "open.hpp"
#include "ort.hpp"

namespace dithead {

class OrtProvider {
public:
    // Throws Error: DITHEAD_ERROR_PROVIDER, or DITHEAD_ERROR_INVALID_ARGUMENT for an unknown name.
    OrtProvider(const OpenOptions &options, std::shared_ptr<ort::Environment> environment,
                std::shared_ptr<const Log> log);

    const std::string &name() const { return name_; }

    // What a bundle must have been made for: "cpu" or "gpu".
    const char *target() const { return kind_ == Kind::cpu ? "cpu" : "gpu"; }

    // Options to open a graph's file with, for the sizes of its open dimensions. Throws
    // ort::Failure.
    ort::Options options(const GraphEntry &graph, const OnnxFile &file, const Sizes &sizes) const;

private:
    enum class Kind { cpu, cuda, tensorrt, tensorrt_rtx };

    void append_cuda(OrtSessionOptions *options) const;
    void append_tensorrt(OrtSessionOptions *options, const std::string &precision) const;

    std::string name_;
    Kind kind_;
    int device_;
    int threads_;
    std::shared_ptr<ort::Environment> environment_;
    std::shared_ptr<const Log> log_;
    const OrtEpDevice *plugged_ = nullptr;
};

} // namespace dithead
