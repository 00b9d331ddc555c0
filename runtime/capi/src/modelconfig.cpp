#include "modelconfig.hpp"

#include <set>

namespace dithead {
namespace {

// Far above any model; keeps every product of settings within 64 bits.
constexpr int MOST_PX = 4096;
constexpr int MOST_MS = 30000;
constexpr int WAV2VEC2_LOGITS = 33;

// Of an encoder of speech: how many of its layers can be asked for, and the width of one.
struct EncoderSizes {
    int blocks;
    int width;
};

EncoderSizes sizes_of(const std::string &encoder) {
    if (encoder == "whisper-tiny.en") return {4, 384};
    if (encoder == "whisper-base") return {6, 512};
    return {-1, WAV2VEC2_LOGITS}; // only its last layer
}

int whole(const JsonValue &values, const char *name, int otherwise, int least, int most,
          int step = 1) {
    const auto value = static_cast<int>(values.integer(name, otherwise, least, most));
    if (value % step != 0) values.at(name).fail("a multiple of " + std::to_string(step));
    return value;
}

FaceConfig read_face(const JsonValue &values) {
    values.only({"crop_px", "crop_span", "crop_down", "mask", "mask_softness",
                 "smoothing_cutoff_hz", "smoothing_speed_gain"});
    values.word("mask", "fixed", {"fixed"}); // the paper's has no graph in a bundle
    FaceConfig face;
    face.crop_px = whole(values, "crop_px", face.crop_px, 32, MOST_PX, 16);
    face.crop_span = values.number("crop_span", face.crop_span, 0.5, 1.0);
    face.crop_down = values.number("crop_down", face.crop_down, 0.0, 0.5 * (1.0 - face.crop_span));
    return face;
}

VqganConfig read_vqgan(const JsonValue &values) {
    VqganConfig vqgan;
    std::size_t levels = 4;
    if (values.has("encoder_channels")) {
        levels = values.at("encoder_channels").items(8).size();
        if (levels < 2) values.at("encoder_channels").fail("at least two levels");
    }
    vqgan.factor = whole(values, "fold", 1, 1, 64) << (levels - 1);
    vqgan.latent_channels = whole(values, "latent_channels", 4, 1, 1024);
    return vqgan;
}

DiffusionConfig read_diffusion(const JsonValue &values) {
    values.only({"timesteps", "schedule", "prediction", "noise", "noise_scale", "steps", "inpaint"});
    if (values.flag("inpaint", false)) values.at("inpaint").fail("false: only PyTorch can do that");
    DiffusionConfig diffusion;
    diffusion.timesteps = whole(values, "timesteps", diffusion.timesteps, 2, 1000000);
    diffusion.steps = whole(values, "steps", diffusion.steps, 1, diffusion.timesteps);
    diffusion.noise_per_frame = values.word("noise", "frame", {"frame", "stream"}) == "frame";
    return diffusion;
}

// How many of the encoder's layers are joined in a feature.
int read_layers(const JsonValue &values, int blocks) {
    if (!values.has("layers")) return 1;
    const JsonValue layers = values.at("layers");
    std::set<std::int64_t> different;
    for (const JsonValue &layer : layers.items(blocks < 0 ? 1 : blocks + 1)) {
        const std::int64_t number = layer.integer(-1, blocks);
        if (!different.insert(number == -1 ? blocks : number).second) {
            layers.fail("no layer twice");
        }
    }
    if (different.empty()) layers.fail("at least one layer");
    return static_cast<int>(different.size());
}

AudioConfig read_audio(const JsonValue &values) {
    values.only({"encoder", "layers", "sample_rate_hz", "hop_ms", "left_context_ms",
                 "right_context_ms", "feature_rate_hz", "feature_dim", "window_frames",
                 "window_spacing_ms", "window_shift_ms", "features_per_frame"});
    AudioConfig audio;
    audio.encoder = values.word("encoder", "whisper-tiny.en",
                                {"whisper-tiny.en", "whisper-base", "wav2vec2-xlsr-english"});
    const EncoderSizes sizes = sizes_of(audio.encoder);
    audio.sample_rate_hz = whole(values, "sample_rate_hz", 16000, 16000, 16000);
    audio.feature_rate_hz = whole(values, "feature_rate_hz", 50, 50, 50);
    audio.hop_ms = whole(values, "hop_ms", audio.hop_ms, 20, MOST_MS, 20);
    audio.left_context_ms = whole(values, "left_context_ms", audio.left_context_ms, 0, MOST_MS, 20);
    audio.right_context_ms =
        whole(values, "right_context_ms", audio.right_context_ms, 0, MOST_MS, 20);
    if (audio.chunk_ms() < 40 || audio.chunk_ms() > MOST_MS) {
        values.fail("left_context_ms + hop_ms + right_context_ms from 40 to 30000");
    }
    audio.window_frames = whole(values, "window_frames", audio.window_frames, 1, 1001);
    if (audio.window_frames % 2 == 0) values.at("window_frames").fail("an odd number");
    audio.window_spacing_ms = whole(values, "window_spacing_ms", audio.window_spacing_ms, 1, MOST_MS);
    audio.window_shift_ms = whole(values, "window_shift_ms", 0, 0, MOST_MS);
    audio.features_per_frame = whole(values, "features_per_frame", 2, 1, 1000);
    audio.feature_dim = read_layers(values, sizes.blocks) * sizes.width;
    if (values.integer("feature_dim", 0, 0, INT32_MAX) != 0 &&
        values.at("feature_dim").integer(0, INT32_MAX) != audio.feature_dim) {
        values.at("feature_dim").fail(std::to_string(audio.feature_dim) + " for its layers");
    }
    return audio;
}

} // namespace

Config read_config(const JsonValue &values) {
    values.only({"preset", "face", "vqgan", "dit", "diffusion", "audio", "shape_head"});
    const nlohmann::json nothing = nlohmann::json::object();
    const auto part = [&](const char *name) {
        return values.has(name) ? values.at(name) : JsonValue(nothing, name);
    };
    Config config;
    if (values.has("preset")) config.preset = values.at("preset").text();
    config.face = read_face(part("face"));
    config.vqgan = read_vqgan(part("vqgan"));
    config.diffusion = read_diffusion(part("diffusion"));
    config.audio = read_audio(part("audio"));
    config.shape_head = values.flag("shape_head", false);
    const JsonValue dit = part("dit");
    if (dit.flag("landmarks", false)) dit.at("landmarks").fail("false: only PyTorch shows them");
    whole(dit, "motion_frames", 0, 0, 0);
    const int step = config.vqgan.factor * whole(dit, "patch", 2, 1, 64);
    if (config.face.crop_px % step != 0) {
        part("face").fail("crop_px to be a multiple of " + std::to_string(step));
    }
    return config;
}

} // namespace dithead
