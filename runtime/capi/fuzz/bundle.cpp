// Any bytes as a manifest: read, or refused with a status, and with sane numbers if it was read.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "bundlefile.hpp"
#include "error.hpp"
#include "manifest.hpp"

namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

void check(const dithead::Manifest &manifest) {
    const dithead::AudioConfig &audio = manifest.config.audio;
    require(audio.hop_samples() > 0 && audio.chunk_features() > 0 && audio.first_hop() <= 0);
    require(audio.block_features() > 0 && audio.window_width() > 0);
    require(audio.block_start(0) <= audio.block_start(1000000));
    require(manifest.config.latent_size() > 0 && manifest.largest_rectangle > 0);
    for (const dithead::GraphEntry &graph : manifest.graphs) {
        require(manifest.find(graph.name) == &graph);
        for (const dithead::OnnxFile &onnx : graph.onnx) {
            require(graph.onnx_for(onnx.precision) != nullptr);
            require(dithead::is_file_name(onnx.file.path));
            require(!onnx.weights || dithead::is_file_name(onnx.weights->path));
        }
        for (const std::vector<dithead::Port> *ports : {&graph.inputs, &graph.outputs}) {
            for (const dithead::Port &port : *ports) {
                std::int64_t elements = 1;
                for (const dithead::Dimension &side : port.shape) {
                    require(side.open() ? !side.name.empty() : side.size > 0);
                    if (!side.open()) elements *= side.size;
                }
                require(elements > 0 && elements <= (std::int64_t{1} << 31));
            }
        }
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    const std::string text(reinterpret_cast<const char *>(data), size);
    try {
        check(dithead::parse_manifest(text, "manifest.json"));
    } catch (const dithead::Error &error) {
        require(error.status() == DITHEAD_ERROR_BUNDLE && *error.what() != '\0');
    }
    return 0;
}
