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
    // Throws Error (DITHEAD_ERROR_PROVIDER).
    OrtProvider(const OpenOptions &options, std::shared_ptr<ort::Environment> environment,
                std::shared_ptr<const Log> log);

    Provider kind() const { return kind_; }
    const char *name() const { return name_of(kind_); }

    // What a bundle must have been made for: "cpu" or "gpu".
    const char *target() const { return kind_ == Provider::cpu ? "cpu" : "gpu"; }

    // Options to open a graph's file with, for the sizes of its open dimensions. Throws
    // ort::Failure.
    ort::Options options(const GraphEntry &graph, const OnnxFile &file, const Sizes &sizes) const;

private:
    void append_cuda(OrtSessionOptions *options) const;
    void append_tensorrt(OrtSessionOptions *options, const std::string &precision) const;

    Provider kind_;
    int device_;
    int threads_;
    std::shared_ptr<ort::Environment> environment_;
    std::shared_ptr<const Log> log_;
    const OrtEpDevice *plugged_ = nullptr;
};

} // namespace dithead
