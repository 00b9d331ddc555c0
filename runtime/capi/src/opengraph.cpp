#include "opengraph.hpp"

#include "error.hpp"

namespace dithead {
namespace {

using ort::api;
using ort::check;

ONNXTensorElementDataType onnx_type(Type type) {
    switch (type) {
    case Type::f32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case Type::f64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case Type::i64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case Type::u8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

const char *name_of(Type type) {
    switch (type) {
    case Type::f32: return "float32";
    case Type::f64: return "float64";
    case Type::i64: return "int64";
    case Type::u8: return "uint8";
    }
    return "?";
}

template <typename Sides, typename Word> std::string listed(const Sides &sides, const Word &word) {
    std::string text;
    for (const auto &side : sides) text += (text.empty() ? "" : ", ") + word(side);
    return "[" + text + "]";
}

std::string shape_of(const Port &port) {
    return listed(port.shape, [](const Dimension &side) {
        return side.open() ? side.name : std::to_string(side.size);
    });
}

std::string shape_of(const std::vector<std::int64_t> &shape) {
    return listed(shape, [](std::int64_t side) { return std::to_string(side); });
}

// Whether a shape fits a port; an open dimension that has no size yet takes its size from it.
bool fits(const Port &port, const std::vector<std::int64_t> &shape, Sizes &sizes) {
    if (shape.size() != port.shape.size()) return false;
    for (std::size_t i = 0; i < shape.size(); i++) {
        const Dimension &side = port.shape[i];
        if (shape[i] < 1) return false;
        const auto expected =
            side.open() ? sizes.emplace(side.name, shape[i]).first->second : side.size;
        if (shape[i] != expected) return false;
    }
    return true;
}

// Throws Error if a file's inputs or outputs are not those of the manifest.
void check_port(const GraphEntry &graph, const Port &port, const OrtTypeInfo *info) {
    const OrtTensorTypeAndShapeInfo *tensor = nullptr;
    check(api().CastTypeInfoToTensorInfo(info, &tensor));
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    if (tensor != nullptr) check(api().GetTensorElementType(tensor, &type));
    if (type != onnx_type(port.type)) {
        throw Error(DITHEAD_ERROR_BUNDLE, "graph '" + graph.name + "': '" + port.name +
                                              "' has another type in its file than the manifest's " +
                                              name_of(port.type) + "; export again");
    }
}

void check_count(const GraphEntry &graph, std::size_t found, std::size_t expected) {
    if (found == expected) return;
    throw Error(DITHEAD_ERROR_BUNDLE, "graph '" + graph.name + "': its file has " +
                                          std::to_string(found) + " inputs or outputs where the "
                                          "manifest has " +
                                          std::to_string(expected) + "; export again");
}

} // namespace

Sizes check_inputs(const GraphEntry &graph, const std::vector<Tensor> &inputs) {
    if (inputs.size() != graph.inputs.size()) {
        throw Error(DITHEAD_ERROR_STAGE, "graph '" + graph.name + "' takes " +
                                             std::to_string(graph.inputs.size()) +
                                             " inputs, found " + std::to_string(inputs.size()));
    }
    Sizes sizes;
    for (std::size_t i = 0; i < inputs.size(); i++) {
        const Port &port = graph.inputs[i];
        const Tensor &input = inputs[i];
        if (!input.defined() || input.type() != port.type || !fits(port, input.shape(), sizes)) {
            throw Error(DITHEAD_ERROR_STAGE,
                        "graph '" + graph.name + "', input '" + port.name + "': expected " +
                            name_of(port.type) + " " + shape_of(port) + ", found " +
                            (input.defined()
                                 ? name_of(input.type()) + (" " + shape_of(input.shape()))
                                 : "nothing"));
        }
    }
    return sizes;
}

OpenGraph::OpenGraph(const GraphEntry &graph, const std::filesystem::path &path,
                     const ort::Options &options, std::shared_ptr<ort::Environment> environment,
                     std::shared_ptr<const Log> log)
    : graph_(graph), log_(std::move(log)), environment_(std::move(environment)) {
    OrtMemoryInfo *memory = nullptr;
    check(api().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    memory_.reset(memory);
    OrtSession *session = nullptr;
    check(api().CreateSession(environment_->get(), path.c_str(), options.get(), &session));
    session_.reset(session);
    std::size_t count = 0;
    check(api().SessionGetInputCount(session, &count));
    check_count(graph, count, graph.inputs.size());
    check(api().SessionGetOutputCount(session, &count));
    check_count(graph, count, graph.outputs.size());
    // Names are checked when the graph runs. The order in the file is the manifest's.
    for (std::size_t i = 0; i < graph.inputs.size(); i++) {
        OrtTypeInfo *info = nullptr;
        check(api().SessionGetInputTypeInfo(session, i, &info));
        check_port(graph, graph.inputs[i], ort::TypeInfo(info).get());
        input_names_.push_back(graph.inputs[i].name.c_str());
    }
    for (std::size_t i = 0; i < graph.outputs.size(); i++) {
        OrtTypeInfo *info = nullptr;
        check(api().SessionGetOutputTypeInfo(session, i, &info));
        check_port(graph, graph.outputs[i], ort::TypeInfo(info).get());
        output_names_.push_back(graph.outputs[i].name.c_str());
    }
}

std::vector<Tensor> OpenGraph::run(const std::vector<Tensor> &inputs, const Sizes &sizes) const {
    try {
        std::vector<ort::Value> feeds;
        std::vector<const OrtValue *> fed;
        for (const Tensor &input : inputs) {
            OrtValue *value = nullptr;
            // ONNX Runtime takes memory that it may write to, and does not write to inputs.
            check(api().CreateTensorWithDataAsOrtValue(
                memory_.get(), const_cast<void *>(input.data()), input.bytes(),
                input.shape().data(), input.shape().size(), onnx_type(input.type()), &value));
            feeds.emplace_back(value);
            fed.push_back(value);
        }
        std::vector<OrtValue *> made(output_names_.size(), nullptr);
        check(api().Run(session_.get(), nullptr, input_names_.data(), fed.data(), fed.size(),
                        output_names_.data(), made.size(), made.data()));
        std::vector<ort::Value> owned(made.begin(), made.end());
        std::vector<Tensor> outputs;
        for (std::size_t i = 0; i < owned.size(); i++) {
            outputs.push_back(take(owned[i].release(), graph_.outputs[i], sizes));
        }
        return outputs;
    } catch (const ort::Failure &failure) {
        throw Error(DITHEAD_ERROR_STAGE,
                    "graph '" + graph_.name + "' failed in ONNX Runtime: " + failure.what());
    }
}

// An output as a tensor that owns it, after a check that whoever reads it finds what the manifest
// promises.
Tensor OpenGraph::take(OrtValue *value, const Port &port, const Sizes &sizes) const {
    struct Owner {
        std::shared_ptr<ort::Environment> environment; // outlives the value
        ort::Value value;
    };
    const auto owner = std::make_shared<Owner>(Owner{environment_, ort::Value(value)});
    OrtTensorTypeAndShapeInfo *made = nullptr;
    check(api().GetTensorTypeAndShape(value, &made));
    const ort::TensorInfo info(made);
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    check(api().GetTensorElementType(made, &type));
    std::size_t rank = 0;
    check(api().GetDimensionsCount(made, &rank));
    std::vector<std::int64_t> shape(rank);
    check(api().GetDimensions(made, shape.data(), rank));
    Sizes known = sizes;
    if (type != onnx_type(port.type) || !fits(port, shape, known)) {
        throw Error(DITHEAD_ERROR_BUNDLE, "graph '" + graph_.name + "', output '" + port.name +
                                              "': the manifest says " + name_of(port.type) + " " +
                                              shape_of(port) + ", found " + shape_of(shape) +
                                              "; export again");
    }
    void *data = nullptr;
    check(api().GetTensorMutableData(value, &data));
    return Tensor::view(port.type, std::move(shape), data, owner);
}

} // namespace dithead
