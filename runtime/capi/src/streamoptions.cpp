#include "streamoptions.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

namespace dithead {
namespace {

[[noreturn]] void refuse(const std::string &message) {
    throw Error(DITHEAD_ERROR_INVALID_ARGUMENT, message);
}

int in_range(std::int64_t value, const char *name, std::int64_t least, std::int64_t most) {
    if (value < least || value > most) {
        refuse(std::string(name) + " must be from " + std::to_string(least) + " to " +
               std::to_string(most) + ", not " + std::to_string(value));
    }
    return static_cast<int>(value);
}

FaceChoice checked_choice(const dithead_stream_options &options) {
    FaceChoice choice;
    choice.kind = static_cast<FaceChoiceKind>(
        in_range(options.face, "face", DITHEAD_FACE_LARGEST, DITHEAD_FACE_BOX));
    if (choice.kind == FaceChoiceKind::index) {
        choice.index = in_range(options.face_index, "face_index", 0, 1'000'000);
    }
    if (choice.kind == FaceChoiceKind::point || choice.kind == FaceChoiceKind::box) {
        choice.box = checked_box(options.face_place);
    }
    const auto &[left, top, right, bottom] = choice.box;
    if (choice.kind == FaceChoiceKind::box && !(left < right && top < bottom)) {
        refuse("face_place must be a box with an area: left, top, right, bottom in pixels");
    }
    return choice;
}

FrameRate checked_rate(const dithead_stream_options &options) {
    const std::int64_t numerator =
        in_range(options.rate_numerator, "rate_numerator", 1, 1'000'000);
    const std::int64_t denominator =
        in_range(options.rate_denominator, "rate_denominator", 1, 100'000);
    if (denominator > LONGEST_GAP_S * numerator) {
        refuse("a frame may last 600 s at most: the rate is " + std::to_string(numerator) + " / " +
               std::to_string(denominator) + " a second");
    }
    const std::int64_t common = std::gcd(numerator, denominator);
    return {numerator / common, denominator / common};
}

std::optional<double> checked_patience(const dithead_stream_options &options, Idle idle,
                                       const AudioConfig &audio) {
    const std::int64_t us = options.patience_us;
    if (us < 0 && us != DITHEAD_PATIENCE_DEFAULT) {
        refuse("patience_us must be at least 0, or DITHEAD_PATIENCE_DEFAULT, not " +
               std::to_string(us));
    }
    if (idle == Idle::wait) {
        if (us != DITHEAD_PATIENCE_DEFAULT) {
            refuse("patience_us is for DITHEAD_IDLE_REST and DITHEAD_IDLE_PASS");
        }
        return std::nullopt;
    }
    if (us == DITHEAD_PATIENCE_DEFAULT) {
        return static_cast<double>(audio.longest_wait_ms()) / 1000 + 0.1;
    }
    constexpr std::int64_t YEAR_US = std::int64_t{366} * 86'400 * 1'000'000;
    return static_cast<double>(std::min(us, YEAR_US)) / 1'000'000;
}

} // namespace

dithead_stream_options default_stream_options() {
    dithead_stream_options options{};
    options.detail = 1;
    options.overlap = 1;
    options.in_flight = 6;
    options.waiting = 24;
    options.patience_us = DITHEAD_PATIENCE_DEFAULT;
    options.realtime = 1;
    options.rate_numerator = 25;
    options.rate_denominator = 1;
    options.struct_size = sizeof options;
    return options;
}

StreamSettings checked_settings(const dithead_stream_options &options, const Config &config) {
    if (options.reserved != 0) refuse("reserved must be 0");
    StreamSettings settings;
    settings.options.seed = options.seed;
    settings.options.steps = in_range(options.steps, "steps", 0, config.diffusion.timesteps);
    settings.options.detail = in_range(options.detail, "detail", 0, 1) == 1;
    settings.options.reference_previous =
        in_range(options.reference, "reference", DITHEAD_REFERENCE_FIXED,
                 DITHEAD_REFERENCE_PREVIOUS) == DITHEAD_REFERENCE_PREVIOUS;
    settings.options.face = checked_choice(options);
    settings.format = checked_format(options.pixel_format);
    settings.overlap = in_range(options.overlap, "overlap", 0, 1) == 1;
    settings.in_flight = in_range(options.in_flight, "in_flight", 1, 64);
    settings.waiting = in_range(options.waiting, "waiting", 1, 4096);
    settings.idle =
        static_cast<Idle>(in_range(options.idle, "idle", DITHEAD_IDLE_WAIT, DITHEAD_IDLE_PASS));
    settings.patience_s = checked_patience(options, settings.idle, config.audio);
    settings.realtime =
        in_range(options.realtime, "realtime", 0, 1) == 1 && settings.idle != Idle::wait;
    settings.rate = checked_rate(options);
    if (options.portrait != nullptr) {
        settings.portrait = to_rgb(options.portrait, options.portrait_width,
                                   options.portrait_height, options.portrait_stride,
                                   settings.format);
    }
    return settings;
}

Box checked_box(const float (&box)[4]) {
    Box checked{};
    std::copy(std::begin(box), std::end(box), checked.begin());
    if (!std::all_of(checked.begin(), checked.end(),
                     [](float edge) { return std::isfinite(edge); })) {
        refuse("a face's place must be finite numbers of pixels");
    }
    return checked;
}

} // namespace dithead
