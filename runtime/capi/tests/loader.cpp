// What the loader makes of a bundle, for tests/test_capi_loader.py.
//
// usage: capi_loader manifest BUNDLE                       what the manifest says, as JSON
//        capi_loader open BUNDLE PROVIDER [LIBRARY]        opens the graphs that every stream runs
//        capi_loader complete BUNDLE                       the same, and none may be missing
//        capi_loader run BUNDLE GRAPH THREADS OUT IN...    raw inputs -> raw outputs, OUT.0 ...
//        capi_loader sizes                                 which sizes stay open
//        capi_loader table                                 the graphs that the library expects
//
// An input is FILE or FILE:SIDE,SIDE... where its shape is open. Exits with minus the status, after
// its message on stderr.
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "graphtable.hpp"
#include "ortgraphs.hpp"

using dithead::Tensor;
using nlohmann::json;

namespace {

json as_json(const std::vector<dithead::Port> &ports) {
    json list = json::array();
    for (const dithead::Port &port : ports) {
        json shape = json::array();
        for (const dithead::Dimension &side : port.shape) {
            shape.push_back(side.open() ? json(side.name) : json(side.size));
        }
        list.push_back({{"name", port.name}, {"shape", shape}});
    }
    return list;
}

void show_manifest(const char *bundle) {
    const dithead::Manifest manifest = dithead::read_manifest(bundle);
    const dithead::AudioConfig &audio = manifest.config.audio;
    json graphs = json::object();
    for (const dithead::GraphEntry &graph : manifest.graphs) {
        graphs[graph.name] = {{"inputs", as_json(graph.inputs)},
                              {"outputs", as_json(graph.outputs)}};
    }
    json starts = json::array();
    for (const std::int64_t time_us : {-1000000, -1, 0, 1, 39999, 40000, 12345678}) {
        starts.push_back(audio.block_start(time_us));
    }
    std::cout << json{{"graphs", graphs},
                      {"largest_rectangle", manifest.largest_rectangle},
                      {"crop_px", manifest.config.face.crop_px},
                      {"crop_span", manifest.config.face.crop_span},
                      {"crop_down", manifest.config.face.crop_down},
                      {"latent_size", manifest.config.latent_size()},
                      {"latent_channels", manifest.config.vqgan.latent_channels},
                      {"timesteps", manifest.config.diffusion.timesteps},
                      {"steps", manifest.config.diffusion.steps},
                      {"noise_per_frame", manifest.config.diffusion.noise_per_frame},
                      {"shape_head", manifest.config.shape_head},
                      {"window_shape", {audio.window_frames, audio.window_width()}},
                      {"chunk_ms", audio.chunk_ms()},
                      {"chunk_samples", audio.chunk_samples()},
                      {"hop_samples", audio.hop_samples()},
                      {"left_context_samples", audio.left_context_samples()},
                      {"right_context_samples", audio.right_context_samples()},
                      {"chunk_features", audio.chunk_features()},
                      {"hop_features", audio.hop_features()},
                      {"left_context_features", audio.left_context_features()},
                      {"first_hop", audio.first_hop()},
                      {"window_half_span_us", audio.window_half_span_us()},
                      {"longest_wait_ms", audio.longest_wait_ms()},
                      {"block_features", audio.block_features()},
                      {"block_start", starts}}
              << "\n";
}

dithead::OpenOptions options(const char *bundle, const char *provider, int threads) {
    dithead::OpenOptions options;
    options.bundle = bundle;
    options.provider = dithead::provider_of(provider);
    options.threads = threads;
    options.log = [](int level, const std::string &message) {
        std::cerr << "log " << level << ": " << message << "\n";
    };
    return options;
}

// An input from its file, in the shape of its port.
Tensor read(const dithead::Port &port, const std::string &argument) {
    const std::size_t colon = argument.rfind(':');
    std::vector<std::int64_t> shape;
    if (colon == std::string::npos) {
        for (const dithead::Dimension &side : port.shape) shape.push_back(side.size);
    } else {
        std::istringstream sides(argument.substr(colon + 1));
        for (std::string side; std::getline(sides, side, ',');) shape.push_back(std::stoll(side));
    }
    Tensor input = Tensor::make(port.type, shape);
    std::ifstream file(argument.substr(0, colon), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    if (bytes.size() != input.bytes()) throw std::runtime_error(argument + " has another size");
    std::memcpy(input.writable(), bytes.data(), bytes.size());
    return input;
}

void run(char **arguments, int count) {
    dithead::OrtGraphs graphs(options(arguments[0], "cpu", std::stoi(arguments[2])));
    const dithead::GraphEntry &graph = graphs.manifest().graph(arguments[1]);
    std::vector<Tensor> inputs;
    for (int i = 4; i < count; i++) {
        inputs.push_back(read(graph.inputs.at(static_cast<std::size_t>(i - 4)), arguments[i]));
    }
    const std::vector<Tensor> outputs = graphs.run(graph.name, inputs);
    for (std::size_t i = 0; i < outputs.size(); i++) {
        std::ofstream file(arguments[3] + ("." + std::to_string(i)), std::ios::binary);
        file.write(static_cast<const char *>(outputs[i].data()),
                   static_cast<std::streamsize>(outputs[i].bytes()));
    }
}

void require(bool holds, const char *what) {
    if (!holds) throw std::runtime_error(what);
}

void check_sizes() {
    using Kept = dithead::KeptOpen<int>;
    Kept kept;
    const Kept::Clock::time_point start{};
    int opened = 0;
    const auto use = [&](std::int64_t side, int seconds) {
        const dithead::Sizes sizes{{"H", side}};
        return kept.get("graph", sizes, [&] { return std::make_shared<int>(++opened); },
                        start + std::chrono::seconds(seconds));
    };
    const std::shared_ptr<int> held = use(1, 0);
    for (std::int64_t side = 2; side <= 9; side++) use(side, 1);
    require(*use(1, 2) == 1 && opened == 9, "sizes that were just in use were closed");
    use(10, 60);
    require(kept.kept("graph") == Kept::KEPT, "sizes out of use stay open");
    require(*use(1, 60) == 1, "the latest sizes were closed");
    for (std::int64_t side = 100; side < 200; side++) use(side, 60);
    require(kept.kept("graph") == Kept::MOST, "without an end, sizes stay open");
    require(*held == 1 && *use(1, 60) != 1, "a size that was closed is not opened again");
    bool failed = false;
    try {
        kept.get("other", {}, []() -> std::shared_ptr<int> { throw std::runtime_error(""); });
    } catch (const std::runtime_error &) {
        failed = true;
    }
    require(failed && *kept.get("other", {}, [] { return std::make_shared<int>(7); }) == 7,
            "a graph that failed to open cannot be opened again");
}

} // namespace

int main(int count, char **arguments) {
    try {
        const std::string command = count > 1 ? arguments[1] : "";
        if (command == "manifest" && count == 3) {
            show_manifest(arguments[2]);
        } else if (command == "open" && (count == 4 || count == 5)) {
            dithead::OpenOptions open = options(arguments[2], arguments[3], 1);
            if (count == 5) open.provider_library = arguments[4];
            dithead::OrtGraphs graphs(open);
            graphs.preload();
            std::cout << graphs.opened_bytes() << "\n";
        } else if (command == "complete" && count == 3) {
            dithead::open_graphs(options(arguments[2], "cpu", 1));
        } else if (command == "table") {
            std::cout << dithead::graph_table();
        } else if (command == "run" && count >= 6) {
            run(arguments + 2, count - 2);
        } else if (command == "sizes") {
            check_sizes();
        } else {
            std::cerr << "see loader.cpp for how to call this\n";
            return 64;
        }
        return 0;
    } catch (const dithead::Error &error) {
        std::cerr << error.what() << "\n";
        return -error.status();
    } catch (const std::exception &error) {
        std::cerr << "unexpected: " << error.what() << "\n";
        return 65;
    }
}
