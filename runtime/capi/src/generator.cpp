#include "generator.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "error.hpp"
#include "face/cover.hpp"
#include "face/reference.hpp"
#include "face/tracker.hpp"
#include "rectangle.hpp"

namespace dithead {
namespace {

constexpr std::int64_t SMOOTHING_SIZE = 17, HABIT_SIZE = 555;

// A state that a graph carries from frame to frame, zeros at first.
struct Carried {
    explicit Carried(std::int64_t size) : value(Tensor::make(Type::f32, {size})) {}

    // Seconds since the last frame.
    float advance(double time_s) {
        const double elapsed_s = last_time_s ? time_s - *last_time_s : 0.0;
        last_time_s = time_s;
        return static_cast<float>(elapsed_s);
    }

    Tensor value;
    std::optional<double> last_time_s;
};

// What was found in a frame that showed the face.
struct Tracked {
    std::optional<Box> box;
    TrackedFace found;
    Tensor reference; // what its light was compared with
    std::optional<Face> face;
    LeftAlone left_alone = LeftAlone::no;
};

LeftAlone because(Absence absence) {
    switch (absence) {
    case Absence::away:
        return LeftAlone::away;
    case Absence::nobody:
        return LeftAlone::nobody;
    case Absence::no_face:
        break;
    }
    return LeftAlone::no_face;
}

Tensor one_integer(std::int64_t value) { return Tensor::integer(value).reshaped({1}); }

std::vector<std::int64_t> with_row(const std::vector<std::int64_t> &shape) {
    std::vector<std::int64_t> longer{1};
    longer.insert(longer.end(), shape.begin(), shape.end());
    return longer;
}

// The timesteps of so many steps, from the noisiest down, and -1 (dithead/diffusion.py).
std::vector<Tensor> visits(const DiffusionConfig &config, int steps) {
    if (steps < 1 || steps > config.timesteps) {
        throw Error(DITHEAD_ERROR_INVALID_ARGUMENT,
                    "steps must lie in 1.." + std::to_string(config.timesteps) + ", not " +
                        std::to_string(steps));
    }
    const double spacing = static_cast<double>(config.timesteps) / steps;
    std::vector<Tensor> found;
    for (int n = 0; n < steps; ++n) {
        const double at = std::nearbyint(config.timesteps - n * spacing); // half to even
        found.push_back(one_integer(static_cast<std::int64_t>(at) - 1));
    }
    found.push_back(one_integer(-1));
    return found;
}

} // namespace

struct FrameGenerator::State {
    State(Graphs &graphs_, const Options &options_)
        : graphs(graphs_), options(options_), tracker(graphs_, options_.face), choice(graphs_) {
        const DiffusionConfig &config = graphs.config().diffusion;
        timesteps = visits(config, options.steps == 0 ? config.steps : options.steps);
        for (std::size_t n = 0; n + 1 < timesteps.size(); ++n) {
            modulations.push_back(graphs.run("dit_timestep", {timesteps[n]})[0]);
        }
        seed = one_integer(options.seed);
    }

    // Starts afresh, with a face that may be another.
    void forget_face() {
        smoothing = Carried(SMOOTHING_SIZE);
        choice = ReferenceChoice(graphs);
        mouth = MouthWatch();
        fresh = true;
    }

    Tensor light_to(const Tensor &reference_looks, const Tensor &looks) const {
        return graphs.run("face_light", {reference_looks, looks})[0];
    }

    std::optional<Face> again(Tracked &same);
    std::optional<Face> judged(const TrackedFace &found, double time_s);

    Graphs &graphs;
    const Options options;
    std::vector<Tensor> timesteps, modulations;
    Tensor seed;

    // Of the tracking stage.
    FaceTracker tracker;
    LeftAlone left_alone = LeftAlone::no;
    ReferenceChoice choice;
    MouthWatch mouth;
    bool fresh = true;
    bool larger = false; // whether the last face was too large
    Carried smoothing{SMOOTHING_SIZE};
    std::optional<Tracked> before; // the latest frame, if it showed the face

    // Of the denoising stage.
    Tensor reference, replaced, shown, noise;

    // Of the detail stage.
    Carried habit{HABIT_SIZE};
};

FrameGenerator::FrameGenerator(Graphs &graphs, const Options &options)
    : state_(std::make_unique<State>(graphs, options)) {}

FrameGenerator::~FrameGenerator() = default;

LeftAlone FrameGenerator::left_alone() const { return state_->left_alone; }

std::optional<Face> FrameGenerator::track(const Tensor &frame, double time_s, const Box *box,
                                          bool same) {
    State &s = *state_;
    const std::optional<Box> place = box == nullptr ? std::nullopt : std::optional<Box>(*box);
    std::optional<Tracked> before = std::exchange(s.before, std::nullopt);
    const Tensor reference = s.tracker.reference;
    if (same && before && before->box == place) {
        const std::optional<Face> face = s.again(*before);
        s.before = Tracked{place, before->found, reference, face, s.left_alone};
        return face;
    }
    const std::optional<TrackedFace> found = s.tracker(frame, box);
    if (!found) {
        s.left_alone = because(s.tracker.absence);
        return std::nullopt;
    }
    const std::optional<Face> face = s.judged(*found, time_s);
    s.before = Tracked{place, *found, reference, face, s.left_alone};
    return face;
}

// The face in a frame that shows the same picture as the one before.
std::optional<Face> FrameGenerator::State::again(Tracked &same) {
    left_alone = same.left_alone;
    if (!same.face) return std::nullopt;
    const Tensor looks = tracker.reference;
    const Shown now = choice(same.found);
    Face face = *same.face;
    face.still = true;
    if (looks.defined() && !looks.is(same.reference)) {
        face.light = light_to(looks, same.found.looks);
        face.still = false;
    }
    tracker.reference = now.looks;
    face.fresh = false;
    face.refers = now.taken;
    face.reference_share = static_cast<float>(now.share);
    return face;
}

// A face's smoothed place, and what the model is shown along with it; none if it is to be left
// alone.
std::optional<Face> FrameGenerator::State::judged(const TrackedFace &found, double time_s) {
    if (found.changed) forget_face();
    const Tensor elapsed = Tensor::scalar(smoothing.advance(time_s));
    const std::vector<Tensor> placed =
        graphs.run("crop_smoother", {found.mesh, smoothing.value, elapsed});
    smoothing.value = placed[2];
    if (found.measures.contrast < FAINT) {
        left_alone = LeftAlone::too_faint;
        return std::nullopt;
    }
    const bool covered = found.crossed || mouth(found, time_s);
    tracker.mouths = mouth.known;
    if (covered) {
        left_alone = LeftAlone::covered;
        return std::nullopt;
    }
    const Shown now = choice(found, mouth.anew);
    Face face;
    face.light = now.taken ? light_to(now.looks, found.looks) : found.light;
    tracker.reference = now.looks;
    // What was learnt about the mouth from a bad reference's frames is forgotten with it.
    face.fresh = fresh || now.taken;
    fresh = false;
    left_alone = LeftAlone::no;
    face.transform = placed[0];
    face.polygon = placed[1];
    face.mesh = found.mesh;
    face.region = found.region;
    face.samples = found.samples;
    face.refers = now.taken;
    face.reference_share = static_cast<float>(now.share);
    return face;
}

Cut FrameGenerator::cut(const Tensor &frame, const Tensor &transform) const {
    const Rectangle place = face_rectangle(transform.f32(), state_->graphs.config().face);
    Cut found;
    found.left = place.left;
    found.top = place.top;
    found.rectangle = cut_rectangle(frame, place);
    found.transform = transform.clone();
    found.transform.f32()[2] -= static_cast<float>(place.left);
    found.transform.f32()[5] -= static_cast<float>(place.top);
    return found;
}

std::optional<Face> FrameGenerator::fitted(const Face &face, const Tensor &rectangle) {
    State &s = *state_;
    const bool before =
        std::exchange(s.larger, rectangle.shape()[0] > s.graphs.largest_rectangle());
    if (s.larger) {
        s.left_alone = LeftAlone::too_large;
        return std::nullopt;
    }
    Face found = face;
    found.fresh = face.fresh || before;
    return found;
}

std::pair<Tensor, Tensor> FrameGenerator::in_rectangle(const Face &face, int left, int top) {
    Tensor mesh = face.mesh.clone(), region = face.region.clone();
    const auto x = static_cast<float>(left), y = static_cast<float>(top);
    for (std::int64_t n = 0; n < mesh.shape()[0]; ++n) {
        mesh.f32()[3 * n] -= x;
        mesh.f32()[3 * n + 1] -= y;
    }
    region.f32()[0] -= x;
    region.f32()[1] -= y;
    return {mesh, region};
}

std::pair<Tensor, Tensor> FrameGenerator::encode(const Tensor &rectangle, const Tensor &transform,
                                                 const Tensor &light) const {
    const std::string name = "face_crop." + std::to_string(rectangle.shape()[0]);
    const std::vector<Tensor> crops = state_->graphs.run(name, {rectangle, transform, light});
    return {crops[0], state_->graphs.run("masked_encoder", {crops[1]})[0]};
}

Tensor FrameGenerator::denoise(const Tensor &crop, const Tensor &masked, const Tensor &window,
                               std::int64_t index, const Face &face) {
    State &s = *state_;
    Graphs &graphs = s.graphs;
    if (face.refers || !s.reference.defined()) {
        s.replaced = s.shown;
        s.reference = graphs.run("reference_encoder", {crop})[0];
    }
    Tensor reference = s.reference;
    if (face.reference_share < 1.0F && s.replaced.defined()) {
        const Tensor share = Tensor::scalar(face.reference_share);
        reference = graphs.run("reference_mix", {s.replaced, reference, share})[0];
    }
    s.shown = reference;
    if (!s.noise.defined() || graphs.config().diffusion.noise_per_frame) {
        s.noise = graphs.run("noise", {s.seed, one_integer(index)})[0];
    }
    const Tensor heard = window.reshaped(with_row(window.shape()));
    const Tensor context = graphs.run("dit_context", {heard})[0];
    Tensor latent = s.noise;
    for (std::size_t n = 0; n < s.modulations.size(); ++n) {
        latent = graphs.run("dit_step", {latent, masked, reference, context, s.modulations[n],
                                         s.timesteps[n], s.timesteps[n + 1]})[0];
    }
    if (s.options.reference_previous) s.reference = s.shown = latent;
    return latent;
}

std::function<void()> FrameGenerator::save_denoising() {
    State &s = *state_;
    return [&s, reference = s.reference, replaced = s.replaced, shown = s.shown, noise = s.noise] {
        s.reference = reference;
        s.replaced = replaced;
        s.shown = shown;
        s.noise = noise;
    };
}

std::pair<Tensor, Tensor> FrameGenerator::decode(const Tensor &latent, const Tensor &light) const {
    const State &s = *state_;
    const Tensor face =
        s.graphs.run("face_decoder", {latent, light.reshaped(with_row(light.shape()))})[0];
    if (!s.options.detail || !s.graphs.config().shape_head) {
        return {face, Tensor::make(Type::f32, {0, 2})};
    }
    return {face, row_of(s.graphs.run("shape_head", {latent})[0], 0)};
}

std::pair<Tensor, Tensor> FrameGenerator::blend(const Tensor &face, const Cut &cut,
                                                const Tensor &crop, const Tensor &polygon) const {
    const std::string name = "face_blend." + std::to_string(cut.rectangle.shape()[0]);
    const std::vector<Tensor> blended =
        state_->graphs.run(name, {face, cut.rectangle, crop, cut.transform, polygon});
    return {blended[0], blended[1]};
}

FrameGenerator::Detailed FrameGenerator::detail(const Tensor &blended, const Tensor &mask,
                                                const Cut &cut, const Face &face,
                                                const Tensor &mesh, const Tensor &region,
                                                const Tensor &shape, double time_s) {
    State &s = *state_;
    Graphs &graphs = s.graphs;
    if (face.fresh) s.habit = Carried(HABIT_SIZE);
    const Tensor elapsed = Tensor::scalar(s.habit.advance(time_s));
    Tensor wanted;
    if (shape.count() > 0) {
        wanted = graphs.run("generated_mesh", {shape, cut.transform})[0];
    } else {
        const std::string region_cut = "face_region." + std::to_string(face.samples);
        const Tensor picture = graphs.run(region_cut, {blended, region})[0];
        wanted = row_of(graphs.run("face_landmarks", {picture, region})[0], 0);
    }
    const std::vector<Tensor> target =
        graphs.run("face_shape", {mesh, wanted, cut.transform, s.habit.value, elapsed});
    s.habit.value = target[1];
    const std::string name = "face_detail." + std::to_string(cut.rectangle.shape()[0]);
    const std::vector<Tensor> made =
        graphs.run(name, {cut.rectangle, blended, mask, cut.transform, face.polygon, mesh, wanted,
                          target[0]});
    return {made[0], made[1].f32()[0]};
}

std::function<void()> FrameGenerator::save_detail() {
    State &s = *state_;
    return [&s, saved = s.habit] { s.habit = saved; };
}

} // namespace dithead
