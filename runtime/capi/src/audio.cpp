#include "audio.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "error.hpp"

namespace dithead {
namespace {

std::int64_t ceil_divide(std::int64_t value, std::int64_t divisor) {
    return -floor_divide(-value, divisor);
}

// The hop after the last one whose chunk reaches one of the first `length` samples.
std::int64_t end_hop(const AudioConfig &config, std::int64_t length) {
    const std::int64_t reached =
        ceil_divide(length + config.left_context_samples(), config.hop_samples());
    return std::max(reached, config.first_hop() + 1);
}

std::int64_t to_microseconds(double time_s) {
    return std::llrint(time_s * 1'000'000); // halves to even, as Python's round
}

} // namespace

AudioFeatureStream::AudioFeatureStream(Graphs &graphs)
    : graphs_(graphs), config_(graphs.config().audio) {
    const std::int64_t first = config_.first_hop();
    state_.next_hop = first;
    const std::int64_t before = config_.left_context_samples() - first * config_.hop_samples();
    state_.pending.assign(static_cast<std::size_t>(before), 0.0F);
}

double AudioFeatureStream::available_s() const {
    if (state_.finished) return std::numeric_limits<double>::infinity();
    return static_cast<double>(available_us()) / 1'000'000;
}

std::int64_t AudioFeatureStream::available_us() const {
    constexpr std::int64_t US = AudioConfig::US_PER_FEATURE;
    const std::int64_t encoded = state_.next_hop * config_.hop_features();
    const std::int64_t end_us = (encoded - config_.block_features() + 1) * US;
    const std::int64_t shift_us = std::int64_t{1000} * config_.window_shift_ms;
    return end_us + shift_us + config_.window_half_span_us() + US / 2 - 1;
}

void AudioFeatureStream::push(const float *samples, std::size_t count) {
    if (state_.finished) throw Error(DITHEAD_ERROR_STATE, "sound after its end");
    state_.received += static_cast<std::int64_t>(count);
    take(samples, count);
}

void AudioFeatureStream::finish() {
    if (state_.finished) return;
    const std::int64_t hops = end_hop(config_, state_.received);
    const std::int64_t end = hops * config_.hop_samples() + config_.right_context_samples();
    const std::vector<float> silence(static_cast<std::size_t>(end - state_.received));
    take(silence.data(), silence.size());
    state_.finished = true;
}

void AudioFeatureStream::go_back(
    std::int64_t received,
    const std::function<std::vector<float>(std::int64_t, std::int64_t)> &before,
    const Features &features, std::optional<std::int64_t> last_time_us) {
    // How far a hop's chunk reaches, from the hop on.
    const std::int64_t reach = config_.chunk_samples() - config_.left_context_samples();
    State back;
    back.next_hop = std::max(config_.first_hop(),
                             floor_divide(received - reach, config_.hop_samples()) + 1);
    const std::int64_t start =
        back.next_hop * config_.hop_samples() - config_.left_context_samples();
    back.pending = before(received, received - start);
    back.received = received;
    back.features.insert(features.begin(), features.lower_bound(back.next_hop));
    back.last_time_us = last_time_us;
    state_ = std::move(back);
}

Tensor AudioFeatureStream::window(double time_s) {
    const std::int64_t time_us = to_microseconds(time_s);
    if (state_.last_time_us && time_us < *state_.last_time_us) {
        throw Error(DITHEAD_ERROR_STATE, "a window before the last one");
    }
    if (!state_.finished && time_us > available_us()) {
        throw Error(DITHEAD_ERROR_STATE, "a window beyond the sound");
    }
    state_.last_time_us = time_us;
    const std::int64_t first = config_.block_start(time_us);
    const std::int64_t count = config_.block_features();
    const std::int64_t per_hop = config_.hop_features();
    auto &kept = state_.features;
    kept.erase(kept.begin(), kept.lower_bound(floor_divide(first, per_hop)));

    const std::int64_t width = config_.feature_dim;
    Tensor block = Tensor::make(Type::f32, {count, width});
    for (std::int64_t row = 0; row < count;) {
        const std::int64_t number = floor_divide(first + row, per_hop);
        const std::int64_t inside = first + row - number * per_hop;
        const std::int64_t rows = std::min(per_hop - inside, count - row);
        std::memcpy(block.f32() + row * width, hop(number).f32() + inside * width,
                    static_cast<std::size_t>(rows * width) * sizeof(float));
        row += rows;
    }
    return graphs_.run("audio_window", {block, Tensor::integer(first), Tensor::integer(time_us)})
        .at(0);
}

const Tensor &AudioFeatureStream::hop(std::int64_t number) {
    const auto found = state_.features.find(number);
    if (found != state_.features.end()) return found->second;
    if (number >= config_.first_hop() && number < state_.next_hop) {
        throw Error(DITHEAD_ERROR_INTERNAL, "features that a window needs were dropped");
    }
    return silent_hop();
}

const Tensor &AudioFeatureStream::silent_hop() {
    if (!silence_.defined()) silence_ = encode(nullptr);
    return silence_;
}

Tensor AudioFeatureStream::encode(const float *chunk) {
    const std::int64_t samples = config_.chunk_samples();
    Tensor input = Tensor::make(Type::f32, {1, samples});
    if (chunk != nullptr) {
        std::memcpy(input.f32(), chunk, static_cast<std::size_t>(samples) * sizeof(float));
    }
    Tensor encoded = graphs_.run("audio_encoder", {input}).at(0);
    const auto expected = static_cast<std::size_t>(config_.hop_features()) *
                          static_cast<std::size_t>(config_.feature_dim);
    if (encoded.type() != Type::f32 || encoded.count() != expected) {
        throw Error(DITHEAD_ERROR_BUNDLE, "audio_encoder gives features of another shape");
    }
    return encoded;
}

void AudioFeatureStream::take(const float *samples, std::size_t count) {
    std::vector<float> &pending = state_.pending;
    pending.insert(pending.end(), samples, samples + count);
    const auto chunk = static_cast<std::size_t>(config_.chunk_samples());
    const auto hop = static_cast<std::size_t>(config_.hop_samples());
    std::size_t start = 0;
    while (pending.size() - start >= chunk) {
        const float *begin = pending.data() + start;
        // Of silence nothing is computed, so that idle streams cost little.
        const bool silent = std::all_of(begin, begin + chunk, [](float x) { return x == 0.0F; });
        state_.features[state_.next_hop] = silent ? silent_hop() : encode(begin);
        ++state_.next_hop;
        start += hop;
    }
    pending.erase(pending.begin(), pending.begin() + static_cast<std::ptrdiff_t>(start));
}

} // namespace dithead
