// A bundle's manifest, and a bundle's files: dithead/bundle/manifest.py. Everything here throws
// Error with DITHEAD_ERROR_BUNDLE, and takes the manifest for untrusted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "config.hpp"
#include "tensor.hpp"

namespace dithead {

// Of the manifest, and of what the graphs are: dithead/bundle/manifest.py.
constexpr int BUNDLE_SCHEMA = 2;

struct Dimension {
    std::int64_t size = 0; // 0: open, under the name
    std::string name;

    bool open() const { return size == 0; }
};

struct Port {
    std::string name;
    Type type = Type::f32;
    std::vector<Dimension> shape;
};

struct BundleFile {
    std::string path; // a name in the bundle's folder
    std::string sha256;
    std::uint64_t bytes = 0;
};

struct OnnxFile {
    std::string precision; // "fp32", "fp16" or "bf16"
    BundleFile file;
    std::optional<BundleFile> weights; // beside the graph, if they are too large for it
};

struct GraphEntry {
    std::string name;
    std::vector<Port> inputs;
    std::vector<Port> outputs;
    bool engine = false; // whether TensorRT can run it
    std::vector<OnnxFile> onnx;

    // The file to run for a precision, or nullptr; a graph that is always float32 has only that one.
    const OnnxFile *onnx_for(const std::string &precision) const;
};

struct Manifest {
    Config config;
    std::string checkpoint;        // where the weights came from, in words
    std::string checkpoint_sha256; // empty: random weights
    std::string precision;         // of the graphs on a GPU; on a CPU they are float32
    std::vector<std::string> targets;
    int largest_rectangle = 0;
    std::vector<GraphEntry> graphs;

    const GraphEntry *find(const std::string &name) const; // or nullptr
    // As find, but throws and says what to do where there is none.
    const GraphEntry &graph(const std::string &name) const;
};

// Reads a bundle's manifest, without looking at its other files.
Manifest read_manifest(const std::filesystem::path &bundle);

// The same from its text; `where` names it in messages.
Manifest parse_manifest(const std::string &text, const std::string &where);

// The path of a graph's file, after a check that it and its weights are there, are inside the
// bundle's folder, and have the size and hash that the manifest names.
std::filesystem::path check_onnx(const std::filesystem::path &bundle, const OnnxFile &file);

} // namespace dithead
