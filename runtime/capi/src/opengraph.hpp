// One graph of a bundle, open in ONNX Runtime for one set of sizes.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "keptopen.hpp"
#include "manifest.hpp"
#include "ort.hpp"

namespace dithead {

// The sizes of a graph's open dimensions in its inputs, after a check of their number, types and
// shapes. Throws Error (DITHEAD_ERROR_STAGE).
Sizes check_inputs(const GraphEntry &graph, const std::vector<Tensor> &inputs);

class OpenGraph {
public:
    // graph: must outlive this. Throws ort::Failure, or Error (DITHEAD_ERROR_BUNDLE) if the file has
    // not the graph's inputs and outputs.
    OpenGraph(const GraphEntry &graph, const std::filesystem::path &path, const ort::Options &options,
              std::shared_ptr<ort::Environment> environment, std::shared_ptr<const Log> log);

    // inputs: as check_inputs accepts them, with these sizes. Thread-safe. Throws Error
    // (DITHEAD_ERROR_STAGE).
    std::vector<Tensor> run(const std::vector<Tensor> &inputs, const Sizes &sizes) const;

private:
    Tensor take(OrtValue *value, const Port &port, const Sizes &sizes) const;

    const GraphEntry &graph_;
    std::shared_ptr<const Log> log_;
    std::shared_ptr<ort::Environment> environment_;
    ort::MemoryInfo memory_;
    ort::Session session_;
    std::vector<const char *> input_names_;
    std::vector<const char *> output_names_;
};

} // namespace dithead
