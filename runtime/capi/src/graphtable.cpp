#include "graphtable.hpp"

#include <map>
#include <sstream>

#include "error.hpp"
#include "rectangle.hpp"

namespace dithead {
namespace {

// Words in shapes stand for numbers of the model's configuration, H and W for a frame's, PICTURE for
// the side of what the landmark network sees, and (*) for whatever shape the graph that takes it has.
constexpr const char *TABLE = R"(
face_detector: frame(H,W,3):u8 -> boxes(16,4) scores(16) keypoints(16,6,2)
face_sighting: box(4) keypoints(6,2) -> region(1,5)
face_region.1: frame(H,W,3):u8 region(1,5) -> picture(1,3,PICTURE,PICTURE)
face_region.2: frame(H,W,3):u8 region(1,5) -> picture(1,3,PICTURE,PICTURE)
face_landmarks: picture(1,3,PICTURE,PICTURE) region(1,5) -> mesh(1,468,3) score(1)
face_judge: picture(1,3,PICTURE,PICTURE) region(1,5) mesh(1,468,3) score(1) last_mesh(468,3) last_looks(3,18,24) person(6,3,18,24) reference(3,18,24) mouths(6,3,61) -> looks(3,18,24) mouth(3,61) light(2,3) around(1,5) measures(18)
face_look: mesh(468,3) -> region(1,5) points(10)
face_picture: picture(1,3,PICTURE,PICTURE) -> frame(PICTURE,PICTURE,3):u8
face_likeness: known(8,3,18,24) looks(3,18,24) -> unlike(8)
face_light: reference(3,18,24) looks(3,18,24) -> light(2,3)
looks_mix: before(3,18,24) latest(3,18,24) share() -> looks(3,18,24)
frame_glance: frame(H,W,3):u8 -> glance(18,32,3)
scene_change: glances(4,18,32,3) inside(18,32) -> changes(4)
face_sides: frame(H,W,3):u8 mesh(468,3) looks(3,18,24) known(5,10,8,3) -> sides(10,8,3) seen(18)
crop_smoother: mesh(468,3) state(17) elapsed_s() -> transform(2,3) polygon(8,2) next_state(17)
generated_mesh: shape(468,2) transform(2,3) -> wanted(468,3)
face_shape: source(468,3) wanted(468,3) transform(2,3) habit(555) elapsed_s() -> target(133,2) next_habit(555)
masked_encoder: crop(1,3,CROP,CROP) -> masked(1,CHANNELS,LATENT,LATENT)
reference_encoder: crop(1,3,CROP,CROP) -> reference(1,CHANNELS,LATENT,LATENT)
reference_mix: before(1,CHANNELS,LATENT,LATENT) latest(1,CHANNELS,LATENT,LATENT) share() -> reference(1,CHANNELS,LATENT,LATENT)
audio_encoder: chunk(1,SAMPLES) -> features(1,HOP,FEATURE)
audio_window: features(BLOCK,FEATURE) first_index():i64 time_us():i64 -> window(WINDOW,WIDTH)
noise: seed(1):i64 frame_index(1):i64 -> noise(1,CHANNELS,LATENT,LATENT)
dit_context: window(1,WINDOW,WIDTH) -> context(*)
dit_timestep: timestep(1):i64 -> modulation(*)
dit_step: noisy(1,CHANNELS,LATENT,LATENT) masked(1,CHANNELS,LATENT,LATENT) reference(1,CHANNELS,LATENT,LATENT) context(*) modulation(*) timestep(1):i64 following(1):i64 -> latent(1,CHANNELS,LATENT,LATENT)
face_decoder: latent(1,CHANNELS,LATENT,LATENT) light(1,2,3) -> face(1,3,CROP,CROP)
shape_head: latent(1,CHANNELS,LATENT,LATENT) -> shape(1,468,2)
face_crop.SIDE: rectangle(SIDE,SIDE,3):u8 transform(2,3) light(2,3) -> crop(1,3,CROP,CROP) lit(1,3,CROP,CROP)
face_blend.SIDE: face(1,3,CROP,CROP) rectangle(SIDE,SIDE,3):u8 crop(1,3,CROP,CROP) transform(2,3) polygon(8,2) -> composited(SIDE,SIDE,3):u8 soft_mask(SIDE,SIDE)
face_detail.SIDE: rectangle(SIDE,SIDE,3):u8 blended(SIDE,SIDE,3):u8 soft_mask(SIDE,SIDE) transform(2,3) polygon(8,2) source(468,3) wanted(468,3) target(133,2) -> detailed(SIDE,SIDE,3):u8 covered()
)";

using Words = std::map<std::string, std::int64_t>;

Words words_of(const Config &config) {
    const AudioConfig &audio = config.audio;
    return {{"CROP", config.face.crop_px},
            {"LATENT", config.latent_size()},
            {"CHANNELS", config.vqgan.latent_channels},
            {"SAMPLES", audio.chunk_samples()},
            {"HOP", audio.hop_features()},
            {"FEATURE", audio.feature_dim},
            {"BLOCK", audio.block_features()},
            {"WINDOW", audio.window_frames},
            {"WIDTH", audio.window_width()}};
}

// The side of a region's picture: that of the mesh network, or of FAN if the bundle was made for it.
std::int64_t picture_side(const Manifest &manifest) {
    constexpr std::int64_t MESH = 192, FAN = 256;
    const GraphEntry *region = manifest.find("face_region.1");
    if (region == nullptr || region->outputs.size() != 1) return MESH;
    const std::vector<Dimension> &shape = region->outputs[0].shape;
    return !shape.empty() && shape.back().size == FAN ? FAN : MESH;
}

// A port as the table writes it, with its words replaced.
std::string expected(const std::string &port, const Words &words) {
    std::string text, word;
    for (const char letter : port) {
        if (letter >= 'A' && letter <= 'Z') {
            word += letter;
            continue;
        }
        const auto found = words.find(word);
        text += found != words.end() ? std::to_string(found->second) : word;
        text += letter;
        word.clear();
    }
    return text;
}

// A port of a manifest in the table's form. Streams of one at a time are all that is run here.
std::string written(const Port &port) {
    std::string sides;
    for (const Dimension &side : port.shape) {
        if (!sides.empty()) sides += ',';
        sides += !side.open() ? std::to_string(side.size) : side.name == "B" ? "1" : side.name;
    }
    const char *type = port.type == Type::f32   ? ""
                       : port.type == Type::u8  ? ":u8"
                       : port.type == Type::i64 ? ":i64"
                                                : ":f64";
    return port.name + "(" + sides + ")" + type;
}

bool fits(const std::string &port, const std::string &pattern) {
    const std::size_t any = pattern.find("(*)");
    return any == std::string::npos ? port == pattern
                                    : port.compare(0, any + 1, pattern, 0, any + 1) == 0;
}

void check(const GraphEntry &graph, std::istringstream &ports, const Words &words) {
    std::vector<std::string> found;
    for (const Port &port : graph.inputs) found.push_back(written(port));
    found.emplace_back("->");
    for (const Port &port : graph.outputs) found.push_back(written(port));
    std::size_t count = 0;
    bool same = true;
    std::string first;
    for (std::string port; ports >> port; count++) {
        const std::string pattern = expected(port, words);
        if (same && (count >= found.size() || !fits(found[count], pattern))) {
            same = false;
            first = "expected " + pattern + ", found " +
                    (count < found.size() ? found[count] : "no more");
        }
    }
    if (same && count == found.size()) return;
    if (same) first = "expected no more, found " + found[count];
    throw Error(DITHEAD_ERROR_BUNDLE, "graph '" + graph.name +
                                          "' was made by another version of DiT-Head (" + first +
                                          "); export again");
}

// The size at the end of a graph's name, 0 if it is not a kind with the table's `SIDE`.
std::int64_t side_of(const std::string &name, const std::string &kind) {
    if (name.size() <= kind.size() || name.size() > kind.size() + 5) return 0;
    if (name.compare(0, kind.size(), kind) != 0) return 0;
    const std::string side = name.substr(kind.size());
    return side.find_first_not_of("0123456789") == std::string::npos ? std::stoll(side) : 0;
}

// Calls what is given with each line's name, and the rest of the line.
template <typename Do> void each_line(const Do &with) {
    std::istringstream lines(TABLE);
    for (std::string line; std::getline(lines, line);) {
        const std::size_t colon = line.find(':');
        if (colon == std::string::npos) continue;
        with(line.substr(0, colon), line.substr(colon + 1));
    }
}

} // namespace

const char *graph_table() { return TABLE; }

void check_ports(const Manifest &manifest) {
    Words words = words_of(manifest.config);
    words["PICTURE"] = picture_side(manifest);
    each_line([&](const std::string &name, const std::string &ports) {
        const std::size_t sized = name.find("SIDE");
        for (const GraphEntry &graph : manifest.graphs) {
            const std::int64_t side =
                sized == std::string::npos ? 0 : side_of(graph.name, name.substr(0, sized));
            if (side == 0 && graph.name != name) continue;
            words["SIDE"] = side;
            std::istringstream split(ports);
            check(graph, split, words);
        }
    });
}

void require_graphs(const Manifest &manifest) {
    each_line([&](const std::string &name, const std::string &) {
        if (!manifest.config.shape_head && (name == "shape_head" || name == "generated_mesh")) return;
        const std::size_t sized = name.find("SIDE");
        if (sized == std::string::npos) {
            manifest.graph(name);
            return;
        }
        for (const int side : RECTANGLE_SIZES) {
            if (side > manifest.largest_rectangle) break;
            manifest.graph(name.substr(0, sized) + std::to_string(side));
        }
    });
}

} // namespace dithead
