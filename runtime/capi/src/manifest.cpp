#include "manifest.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>

#include "bundlefile.hpp"
#include "error.hpp"
#include "jsonvalue.hpp"
#include "modelconfig.hpp"

namespace dithead {
namespace {

namespace fs = std::filesystem;

// Far above any bundle: what is larger is refused before it costs time or memory.
constexpr std::uintmax_t MOST_MANIFEST_BYTES = 16U << 20;
constexpr std::size_t MOST_GRAPHS = 4096;
constexpr std::size_t MOST_PORTS = 64;
constexpr std::size_t MOST_DIMENSIONS = 8;
constexpr std::int64_t MOST_ELEMENTS = std::int64_t{1} << 31;
constexpr std::size_t LONGEST_NAME = 256;

Error unusable(const std::string &message) {
    return {DITHEAD_ERROR_BUNDLE, message + "; export again"};
}

Type read_type(const JsonValue &value) {
    const std::string name = value.text();
    if (name == "float32") return Type::f32;
    if (name == "float64") return Type::f64;
    if (name == "int64") return Type::i64;
    if (name == "uint8") return Type::u8;
    value.fail("float32, float64, int64 or uint8");
}

Port read_port(const JsonValue &values) {
    Port port;
    port.name = values.at("name").text(LONGEST_NAME);
    port.type = read_type(values.at("dtype"));
    std::int64_t elements = 1;
    for (const JsonValue &side : values.at("shape").items(MOST_DIMENSIONS)) {
        Dimension dimension;
        if (side.is_text()) {
            dimension.name = side.text(LONGEST_NAME);
            if (dimension.name.empty()) side.fail("a name");
        } else {
            dimension.size = side.integer(1, MOST_ELEMENTS / elements);
            elements *= dimension.size;
        }
        port.shape.push_back(std::move(dimension));
    }
    return port;
}

std::vector<Port> read_ports(const JsonValue &values) {
    std::vector<Port> ports;
    std::set<std::string> names;
    for (const JsonValue &port : values.items(MOST_PORTS)) {
        ports.push_back(read_port(port));
        if (!names.insert(ports.back().name).second) port.fail("no name twice");
    }
    return ports;
}

BundleFile read_file(const JsonValue &values) {
    BundleFile file;
    file.path = values.at("path").text();
    if (!is_file_name(file.path)) values.at("path").fail("the name of a file in the bundle");
    file.sha256 = values.at("sha256").text();
    file.bytes = static_cast<std::uint64_t>(values.at("bytes").integer(0, INT64_MAX));
    return file;
}

OnnxFile read_onnx(const JsonValue &values) {
    OnnxFile onnx{values.at("precision").text(LONGEST_NAME), read_file(values.at("file")), {}};
    const JsonValue weights = values.at("weights");
    if (!weights.is_null()) onnx.weights = read_file(weights);
    return onnx;
}

GraphEntry read_graph(const JsonValue &values) {
    GraphEntry graph;
    graph.name = values.at("name").text(LONGEST_NAME);
    graph.inputs = read_ports(values.at("inputs"));
    graph.outputs = read_ports(values.at("outputs"));
    graph.engine = values.at("engine").flag();
    for (const JsonValue &file : values.at("onnx").items(16)) graph.onnx.push_back(read_onnx(file));
    return graph;
}

Manifest read_values(const JsonValue &values) {
    Manifest manifest;
    manifest.config = read_config(values.at("config"));
    manifest.checkpoint = values.at("checkpoint").text();
    manifest.checkpoint_sha256 = values.at("checkpoint_sha256").text();
    manifest.precision = values.at("precision").text(LONGEST_NAME);
    for (const JsonValue &target : values.at("targets").items(16)) {
        manifest.targets.push_back(target.text(LONGEST_NAME));
    }
    const std::int64_t side = values.at("largest_rectangle").integer(1, 16384);
    manifest.largest_rectangle = static_cast<int>(side);
    std::set<std::string> names;
    for (const JsonValue &graph : values.at("graphs").items(MOST_GRAPHS)) {
        manifest.graphs.push_back(read_graph(graph));
        if (!names.insert(manifest.graphs.back().name).second) graph.fail("no graph twice");
    }
    return manifest;
}

} // namespace

const OnnxFile *GraphEntry::onnx_for(const std::string &precision) const {
    if (onnx.size() == 1 && onnx.front().precision == "fp32") return &onnx.front();
    const auto fits = [&](const OnnxFile &file) { return file.precision == precision; };
    const auto found = std::find_if(onnx.begin(), onnx.end(), fits);
    return found == onnx.end() ? nullptr : &*found;
}

const GraphEntry *Manifest::find(const std::string &name) const {
    const auto same = [&](const GraphEntry &graph) { return graph.name == name; };
    const auto found = std::find_if(graphs.begin(), graphs.end(), same);
    return found == graphs.end() ? nullptr : &*found;
}

const GraphEntry &Manifest::graph(const std::string &name) const {
    if (const GraphEntry *found = find(name)) return *found;
    throw Error(DITHEAD_ERROR_BUNDLE,
                "the bundle has no graph '" + name +
                    "': it was made by another version of DiT-Head, or holds only some of the "
                    "graphs; export again, without --graphs");
}

Manifest parse_manifest(const std::string &text, const std::string &where) {
    try {
        const nlohmann::json json = parse_json(text);
        const JsonValue values(json, "manifest");
        const std::int64_t schema = values.at("schema").integer(INT64_MIN, INT64_MAX);
        if (schema == BUNDLE_SCHEMA) return read_values(values);
        throw unusable(where + " has schema version " + std::to_string(schema) +
                       ", and this version of DiT-Head reads " + std::to_string(BUNDLE_SCHEMA));
    } catch (const JsonError &error) {
        throw unusable(where + " is damaged (" + error.what() + ")");
    }
}

Manifest read_manifest(const fs::path &bundle) {
    const fs::path path = bundle / "manifest.json";
    std::error_code failed;
    if (!fs::is_regular_file(path, failed)) {
        throw Error(DITHEAD_ERROR_BUNDLE, bundle.string() +
                                              " is no bundle: it has no manifest.json; make one "
                                              "with dithead-export -o " +
                                              bundle.string());
    }
    check_inside(bundle, path);
    const std::uintmax_t bytes = fs::file_size(path, failed);
    if (failed || bytes > MOST_MANIFEST_BYTES) {
        throw unusable(path.string() + " is damaged: it is larger than " +
                       std::to_string(MOST_MANIFEST_BYTES) + " bytes, or cannot be read");
    }
    std::ifstream file(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    if (!file) throw unusable(path.string() + " cannot be read");
    return parse_manifest(text, path.string());
}

} // namespace dithead
