#include "ortgraphs.hpp"

#include <algorithm>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "error.hpp"
#include "graphtable.hpp"

namespace dithead {
namespace {

namespace fs = std::filesystem;

std::shared_ptr<ort::Environment> shared_environment() {
    try {
        return ort::Environment::shared();
    } catch (const ort::Failure &failure) {
        throw Error(DITHEAD_ERROR_PROVIDER, std::string("ONNX Runtime does not start: ") +
                                                failure.what());
    }
}

// The open dimensions of a graph that is the same for every size of frame and face: only the
// number of streams, `B`. False for other graphs.
bool sizes_to_preload(const GraphEntry &graph, Sizes &sizes) {
    const std::size_t point = graph.name.rfind('.');
    if (point != std::string::npos && point + 1 < graph.name.size() &&
        graph.name.find_first_not_of("0123456789", point + 1) == std::string::npos) {
        return false;
    }
    for (const Port &port : graph.inputs) {
        for (const Dimension &side : port.shape) {
            if (side.open() && side.name != "B") return false;
            if (side.open()) sizes[side.name] = 1;
        }
    }
    return true;
}

} // namespace

OrtGraphs::OrtGraphs(const OpenOptions &options)
    : bundle_(fs::absolute(fs::u8path(options.bundle))), manifest_(read_manifest(bundle_)),
      log_(std::make_shared<const Log>(options.log)), environment_(shared_environment()),
      provider_(options, environment_, log_),
      precision_(options.provider == Provider::cpu ? "fp32" : manifest_.precision) {
    check_ports(manifest_);
    environment_->add_log(log_);
    const std::vector<std::string> &targets = manifest_.targets;
    if (std::find(targets.begin(), targets.end(), provider_.target()) == targets.end()) {
        throw Error(DITHEAD_ERROR_BUNDLE, options.bundle + " was not made for the provider " +
                                              provider_.name() + "; export again with --targets " +
                                              provider_.target());
    }
    for (const GraphEntry &graph : manifest_.graphs) {
        entries_[graph.name] = &graph;
        checked_[graph.name];
    }
    if (manifest_.checkpoint_sha256.empty()) {
        (*log_)(DITHEAD_LOG_WARNING, options.bundle + " holds " + manifest_.checkpoint +
                                         ": it says how fast the model is, not how good");
    }
}

void OrtGraphs::preload() {
    for (const GraphEntry &graph : manifest_.graphs) {
        Sizes sizes;
        if (sizes_to_preload(graph, sizes)) {
            open(graph, sizes);
        } else {
            path(graph, onnx(graph));
        }
    }
}

std::vector<Tensor> OrtGraphs::run(const std::string &name, const std::vector<Tensor> &inputs) {
    const GraphEntry &graph = entry(name);
    const Sizes sizes = check_inputs(graph, inputs);
    return open(graph, sizes)->run(inputs, sizes);
}

std::uint64_t OrtGraphs::opened_bytes() const {
    std::uint64_t bytes = 0;
    for (const auto &[name, checked] : checked_) {
        const std::lock_guard<std::mutex> lock(checked.mutex);
        bytes += checked.bytes;
    }
    return bytes;
}

const GraphEntry &OrtGraphs::entry(const std::string &name) const {
    const auto found = entries_.find(name);
    return found != entries_.end() ? *found->second : manifest_.graph(name);
}

std::shared_ptr<OpenGraph> OrtGraphs::open(const GraphEntry &graph, const Sizes &sizes) {
    return opened_.get(graph.name, sizes, [&] {
        const OnnxFile &file = onnx(graph);
        const fs::path where = path(graph, file);
        try {
            const ort::Options options = provider_.options(graph, file, sizes);
            return std::make_shared<OpenGraph>(graph, where, options, environment_, log_);
        } catch (const ort::Failure &failure) {
            const bool cpu = provider_.kind() == Provider::cpu;
            throw Error(cpu ? DITHEAD_ERROR_BUNDLE : DITHEAD_ERROR_PROVIDER,
                        "ONNX Runtime cannot open graph '" + graph.name + "' on " +
                            provider_.name() + ": " + failure.what());
        }
    });
}

// A graph in the precision that is run.
const OnnxFile &OrtGraphs::onnx(const GraphEntry &graph) const {
    if (const OnnxFile *file = graph.onnx_for(precision_)) return *file;
    throw Error(DITHEAD_ERROR_BUNDLE, bundle_.string() + " has graph '" + graph.name + "' not in " +
                                          precision_ + "; export again");
}

// The file of a graph, checked once.
fs::path OrtGraphs::path(const GraphEntry &graph, const OnnxFile &file) {
    Checked &checked = checked_.at(graph.name);
    const std::lock_guard<std::mutex> lock(checked.mutex);
    if (checked.path.empty()) {
        checked.path = check_onnx(bundle_, file);
        checked.bytes = file.file.bytes + (file.weights ? file.weights->bytes : 0);
    }
    return checked.path;
}

std::unique_ptr<Graphs> open_graphs(const OpenOptions &options) {
    auto graphs = std::make_unique<OrtGraphs>(options);
    require_graphs(graphs->manifest());
    graphs->preload();
#ifdef __GLIBC__
    malloc_trim(0); // what ONNX Runtime needed to optimise the graphs
#endif
    return graphs;
}

} // namespace dithead
