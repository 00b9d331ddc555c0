#include "pretend.hpp"

#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "error.hpp"
#include "generator.hpp"
#include "open.hpp"

using dithead::Tensor;
using dithead::Type;

namespace pretend {

std::atomic<int> step_us{0}, tracked{0}, encoded{0}, chunks{0};

namespace {

std::mutex faults_mutex;
std::map<std::string, int> faults;

// A step of a stage.
void step(const char *stage) {
    if (step_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(step_us));
    const std::lock_guard lock(faults_mutex);
    const auto fault = faults.find(stage);
    if (fault != faults.end() && fault->second-- == 0) throw std::runtime_error("out of paper");
}

Tensor value(std::uint64_t number) {
    return Tensor::integer(static_cast<std::int64_t>(number));
}

std::uint64_t number(const Tensor &tensor) { return static_cast<std::uint64_t>(*tensor.i64()); }

} // namespace

const dithead::Config &config() {
    static const dithead::Config made = [] {
        dithead::Config config;
        config.audio.hop_ms = 120;
        config.audio.left_context_ms = 240;
        config.audio.right_context_ms = 120;
        config.audio.window_shift_ms = 80;
        config.audio.feature_dim = 4;
        return config;
    }();
    return made;
}

std::uint64_t hash(const void *data, std::size_t bytes, std::uint64_t before) {
    const auto *byte = static_cast<const std::uint8_t *>(data);
    for (std::size_t n = 0; n < bytes; ++n) before = (before ^ byte[n]) * 0x100000001b3U;
    return before;
}

std::uint64_t hash(std::uint64_t value, std::uint64_t before) {
    return hash(&value, sizeof value, before);
}

std::vector<float> encode(const float *chunk) {
    const dithead::AudioConfig &audio = config().audio;
    const std::uint64_t all =
        hash(chunk, static_cast<std::size_t>(audio.chunk_samples()) * sizeof(float));
    const auto count = static_cast<std::size_t>(audio.hop_features() * audio.feature_dim);
    std::vector<float> features(count);
    for (std::size_t n = 0; n < count; ++n) {
        features[n] = static_cast<float>(hash(n, all) >> 40U);
    }
    return features;
}

std::uint64_t window(const std::vector<float> &block, std::int64_t first, std::int64_t time_us) {
    const std::uint64_t rows = hash(block.data(), block.size() * sizeof(float));
    return hash(static_cast<std::uint64_t>(time_us), hash(static_cast<std::uint64_t>(first), rows));
}

std::uint64_t crop(const std::uint8_t *rectangle) {
    return hash(rectangle, SIDE * SIDE * 3);
}

std::uint64_t latent(std::uint64_t crop, std::uint64_t window, std::int64_t index,
                     std::uint64_t seed, std::uint64_t reference) {
    return hash(reference, hash(seed, hash(static_cast<std::uint64_t>(index), hash(window, crop))));
}

void draw(std::uint64_t value, std::uint8_t *rectangle) {
    for (std::size_t n = 0; n < SIDE * SIDE * 3; ++n) {
        rectangle[n] = static_cast<std::uint8_t>(hash(n, value) >> 32U);
    }
}

bool drawn_at(int x, int y) { return (x + y) % 5 != 0; }

void fail(const std::string &stage, int calls) {
    const std::lock_guard lock(faults_mutex);
    faults[stage] = calls;
}

void forget_faults() {
    const std::lock_guard lock(faults_mutex);
    faults.clear();
}

namespace {

class PretendedGraphs : public dithead::Graphs {
public:
    std::vector<Tensor> run(const std::string &name, const std::vector<Tensor> &inputs) override {
        const dithead::AudioConfig &audio = config().audio;
        if (name == "audio_encoder") {
            ++chunks;
            const Tensor &chunk = inputs.at(0);
            return {Tensor::floats({1, audio.hop_features(), audio.feature_dim},
                                   encode(chunk.f32()))};
        }
        if (name != "audio_window") throw std::runtime_error("no graph " + name);
        const Tensor &block = inputs.at(0);
        const std::vector<float> rows(block.f32(), block.f32() + block.count());
        return {value(window(rows, *inputs.at(1).i64(), *inputs.at(2).i64()))};
    }
    const dithead::Config &config() const override { return pretend::config(); }
    int largest_rectangle() const override { return SIDE; }
};

} // namespace
} // namespace pretend

namespace dithead {

std::unique_ptr<Graphs> open_graphs(const OpenOptions &options) {
    if (options.bundle != "pretended") {
        throw Error(DITHEAD_ERROR_BUNDLE, options.bundle + " is no bundle");
    }
    return std::make_unique<pretend::PretendedGraphs>();
}

struct FrameGenerator::State {
    Options options;
    LeftAlone left_alone = LeftAlone::no;
    std::uint64_t reference = 0;
    std::uint64_t habit = 0;
};

FrameGenerator::FrameGenerator(Graphs &, const Options &options)
    : state_(std::make_unique<State>()) {
    state_->options = options;
}

FrameGenerator::~FrameGenerator() = default;

LeftAlone FrameGenerator::left_alone() const { return state_->left_alone; }

std::optional<Face> FrameGenerator::track(const Tensor &frame, double, const Box *box, bool same) {
    pretend::step("track");
    ++pretend::tracked;
    const bool nobody = box != nullptr && *box == Box{};
    if (nobody || frame.u8()[0] == 0) {
        state_->left_alone = nobody ? LeftAlone::nobody : LeftAlone::no_face;
        return std::nullopt;
    }
    Face face;
    face.transform = Tensor::scalar(0.0F);
    face.still = same;
    return face;
}

Cut FrameGenerator::cut(const Tensor &frame, const Tensor &transform) const {
    using namespace pretend;
    Cut cut{LEFT, TOP, Tensor::make(Type::u8, {SIDE, SIDE, 3}), transform};
    const auto width = static_cast<std::size_t>(frame.shape()[1]);
    for (std::size_t y = 0; y < SIDE; ++y) {
        std::memcpy(cut.rectangle.u8() + y * SIDE * 3,
                    frame.u8() + ((y + TOP) * width + LEFT) * 3, SIDE * 3);
    }
    return cut;
}

std::optional<Face> FrameGenerator::fitted(const Face &face, const Tensor &) { return face; }

std::pair<Tensor, Tensor> FrameGenerator::in_rectangle(const Face &, int, int) {
    return {Tensor::scalar(0.0F), Tensor::scalar(0.0F)};
}

std::pair<Tensor, Tensor> FrameGenerator::encode(const Tensor &rectangle, const Tensor &,
                                                 const Tensor &) const {
    pretend::step("encode face");
    ++pretend::encoded;
    return {pretend::value(pretend::crop(rectangle.u8())), Tensor::scalar(0.0F)};
}

Tensor FrameGenerator::denoise(const Tensor &crop, const Tensor &, const Tensor &window,
                               std::int64_t index, const Face &) {
    pretend::step("denoise");
    const std::uint64_t made =
        pretend::latent(pretend::number(crop), pretend::number(window), index,
                        state_->options.seed, state_->reference);
    if (state_->options.reference_previous) state_->reference = made;
    return pretend::value(made);
}

std::function<void()> FrameGenerator::save_denoising() {
    return [this, saved = state_->reference] { state_->reference = saved; };
}

std::pair<Tensor, Tensor> FrameGenerator::decode(const Tensor &latent, const Tensor &) const {
    pretend::step("decode face");
    return {latent, Tensor::scalar(0.0F)};
}

std::pair<Tensor, Tensor> FrameGenerator::blend(const Tensor &face, const Cut &cut, const Tensor &,
                                                const Tensor &) const {
    pretend::step("blend");
    using pretend::SIDE;
    Tensor image = cut.rectangle.clone(), mask = Tensor::make(Type::f32, {SIDE, SIDE});
    pretend::draw(pretend::number(face), image.u8());
    for (int y = 0; y < SIDE; ++y) {
        for (int x = 0; x < SIDE; ++x) {
            mask.f32()[y * SIDE + x] = pretend::drawn_at(x, y) ? 0.5F : 0.0F;
        }
    }
    return {image, mask};
}

FrameGenerator::Detailed FrameGenerator::detail(const Tensor &blended, const Tensor &,
                                                const Cut &cut, const Face &, const Tensor &,
                                                const Tensor &, const Tensor &, double) {
    pretend::step("detail");
    state_->habit = pretend::hash(pretend::crop(blended.u8()), state_->habit);
    Tensor image = blended.clone();
    pretend::draw(state_->habit, image.u8());
    return {image, cut.rectangle.u8()[1] == 255 ? 1.0F : 0.0F};
}

std::function<void()> FrameGenerator::save_detail() {
    return [this, saved = state_->habit] { state_->habit = saved; };
}

} // namespace dithead
