// Graphs of a bundle through ONNX Runtime: runtime/backends/onnxruntime.py.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "graphs.hpp"
#include "keptopen.hpp"
#include "manifest.hpp"
#include "open.hpp"
#include "opengraph.hpp"
#include "ortprovider.hpp"

namespace dithead {

// Files are checked against the manifest, and opened by preload or on first use. A graph with open
// dimensions is opened for each size that occurs: then there is no shape arithmetic left, which a
// GPU's provider would pass to the CPU.
class OrtGraphs : public Graphs {
public:
    // The bundle may hold only some of the graphs. Throws Error: DITHEAD_ERROR_BUNDLE,
    // DITHEAD_ERROR_PROVIDER.
    explicit OrtGraphs(const OpenOptions &options);

    // Opens the graphs that every stream runs, whatever the size of frame and face, and checks the
    // files of the others.
    void preload();

    std::vector<Tensor> run(const std::string &name, const std::vector<Tensor> &inputs) override;
    const Config &config() const override { return manifest_.config; }
    int largest_rectangle() const override { return manifest_.largest_rectangle; }

    const Manifest &manifest() const { return manifest_; }
    // Bytes of the files of all graphs that have been opened.
    std::uint64_t opened_bytes() const;

private:
    struct Checked {
        mutable std::mutex mutex;
        std::filesystem::path path; // empty: not yet checked
        std::uint64_t bytes = 0;
    };

    const GraphEntry &entry(const std::string &name) const;
    std::shared_ptr<OpenGraph> open(const GraphEntry &graph, const Sizes &sizes);
    const OnnxFile &onnx(const GraphEntry &graph) const;
    std::filesystem::path path(const GraphEntry &graph, const OnnxFile &file);

    std::filesystem::path bundle_;
    Manifest manifest_;
    std::map<std::string, const GraphEntry *> entries_;
    std::map<std::string, Checked> checked_; // one for each graph, from the start
    std::shared_ptr<const Log> log_;
    std::shared_ptr<ort::Environment> environment_;
    OrtProvider provider_;
    std::string precision_;
    KeptOpen<OpenGraph> opened_;
};

} // namespace dithead
