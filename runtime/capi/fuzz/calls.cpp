// Calls in any order and with any arguments, on streams with a pretended model: a status each, and
// no crash, hang, leak or race.
//
// With libFuzzer the bytes are its own. Built with DITHEAD_FUZZ_ALONE, it is a program that replays
// random ones: fuzz_calls SECONDS [SEED].
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "dithead.h"
#include "pretend.hpp"

namespace {

// Takes numbers out of the fuzzer's bytes; 0 after their end.
class Numbers {
public:
    Numbers(const std::uint8_t *data, std::size_t size) : data_(data), left_(size) {}

    bool done() const { return left_ == 0; }
    std::uint8_t byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }
    std::int64_t any() {
        std::array<std::uint8_t, 8> bytes{};
        for (std::uint8_t &one : bytes) one = byte();
        std::int64_t number = 0;
        std::memcpy(&number, bytes.data(), sizeof number);
        return number;
    }
    // Mostly what makes sense, and what hardly does.
    std::int64_t number(std::int64_t usual) {
        switch (byte() % 16) {
        case 0: return any();
        case 1: return 0;
        case 2: return -1;
        case 3: return std::numeric_limits<std::int64_t>::max();
        case 4: return std::numeric_limits<std::int64_t>::min();
        case 5: return std::numeric_limits<std::int32_t>::max();
        case 6: return byte();
        default: return usual;
        }
    }
    std::int32_t small(std::int64_t usual) { return static_cast<std::int32_t>(number(usual)); }

private:
    const std::uint8_t *data_;
    std::size_t left_;
};

constexpr int WIDTH = 16, HEIGHT = 12;

std::vector<std::uint8_t> an_image(std::uint8_t kind) {
    std::vector<std::uint8_t> image(WIDTH * HEIGHT * 3, static_cast<std::uint8_t>(kind | 1U));
    if (kind % 7 == 0) image[0] = 0;
    return image;
}

dithead_stream *open_stream(dithead_session *session, Numbers &numbers) {
    const std::vector<std::uint8_t> image = an_image(numbers.byte());
    dithead_stream_options options;
    dithead_stream_options_init(&options, sizeof options);
    options.struct_size = static_cast<std::size_t>(numbers.number(sizeof options));
    options.seed = static_cast<std::uint32_t>(numbers.number(0));
    options.steps = numbers.small(1);
    options.detail = numbers.small(1);
    options.reference = numbers.small(numbers.byte() % 2);
    options.face = numbers.small(numbers.byte() % 4);
    options.face_place[2] = options.face_place[3] = 10.0F;
    options.pixel_format = numbers.small(0);
    options.overlap = numbers.small(numbers.byte() % 2);
    options.in_flight = numbers.small(numbers.byte() % 7 + 1);
    options.waiting = numbers.small(numbers.byte() % 8 + 1);
    options.idle = numbers.small(numbers.byte() % 3);
    if (options.idle != DITHEAD_IDLE_WAIT) options.patience_us = numbers.number(0);
    options.realtime = numbers.small(0);
    options.rate_numerator = numbers.small(25);
    options.rate_denominator = numbers.small(1);
    if (numbers.byte() % 3 == 0) {
        options.portrait = image.data();
        options.portrait_width = WIDTH;
        options.portrait_height = HEIGHT;
        options.portrait_stride = WIDTH * 3;
    }
    dithead_stream *stream = nullptr;
    const dithead_status status = dithead_stream_create(session, &options, &stream);
    if ((status == DITHEAD_OK) != (stream != nullptr)) std::abort();
    return stream;
}

void push_audio(dithead_stream *stream, Numbers &numbers) {
    std::vector<float> samples(numbers.byte() * 40U);
    for (std::size_t n = 0; n < samples.size(); ++n) {
        samples[n] = static_cast<float>((n * 7919) % 200) / 100 - 1;
    }
    if (numbers.byte() == 1 && !samples.empty()) samples.back() = NAN;
    std::int64_t first = numbers.number(DITHEAD_NEXT_SAMPLE);
    if (first > 100'000) first = DITHEAD_NEXT_SAMPLE; // a gap of minutes takes long to encode
    dithead_push_audio(stream, samples.data(), samples.size(), first);
}

void push_frame(dithead_stream *stream, Numbers &numbers, std::int64_t &time_us) {
    const std::vector<std::uint8_t> image = an_image(numbers.byte());
    dithead_frame frame;
    dithead_frame_init(&frame, sizeof frame);
    frame.struct_size = static_cast<std::size_t>(numbers.number(sizeof frame));
    frame.pixels = numbers.byte() == 0 ? nullptr : image.data();
    frame.width = WIDTH;
    frame.height = HEIGHT;
    frame.stride = WIDTH * 3;
    switch (numbers.byte() % 8) { // what does not fit the picture must be refused
    case 0: frame.stride = WIDTH * 3 - 1 - numbers.byte() % 48U; break;
    case 1: frame.width = 1 - numbers.byte(); break;
    case 2: frame.height = 16'385 + numbers.byte(); break;
    case 3: frame.stride = std::numeric_limits<std::size_t>::max() - numbers.byte(); break;
    default: break;
    }
    frame.pts_us = numbers.number(time_us);
    frame.has_face_box = numbers.byte() % 4 == 0;
    if (frame.has_face_box != 0 && numbers.byte() % 2 == 0) frame.face_box[2] = 5.0F;
    // Where times are far apart, a stream that idles fills in that much silence.
    if (std::abs(static_cast<double>(frame.pts_us)) < 1e15 && frame.pts_us > time_us + 5'000'000) {
        frame.pts_us = time_us;
    }
    const std::int64_t waits[] = {0, 0, 100, 1000};
    if (dithead_push_frame(stream, &frame, waits[numbers.byte() % 4]) == DITHEAD_OK) {
        time_us = frame.pts_us + 40'000;
    }
}

void pull_frame(dithead_stream *stream, Numbers &numbers) {
    std::vector<std::uint8_t> pixels(WIDTH * HEIGHT * 3);
    std::vector<float> samples(numbers.byte() * 16U);
    std::array<dithead_event, 2> events;
    dithead_output out;
    dithead_output_init(&out, sizeof out);
    out.struct_size = static_cast<std::size_t>(numbers.number(sizeof out));
    out.pixels = pixels.data();
    out.pixels_capacity = numbers.byte() % 4 == 0 ? numbers.byte() : pixels.size();
    if (numbers.byte() % 8 == 0) out.stride = static_cast<std::size_t>(numbers.any());
    if (numbers.byte() % 2 == 0) {
        out.samples = samples.data();
        out.samples_capacity = samples.size();
    }
    if (numbers.byte() % 2 == 0) {
        out.events = events.data();
        out.events_capacity = events.size();
    }
    dithead_pull_frame(stream, &out, numbers.byte() % 4 == 0 ? 1000 : 0);
}

void call(dithead_stream *stream, Numbers &numbers, std::int64_t &time_us) {
    switch (numbers.byte() % 24) {
    case 0:
    case 1:
    case 2: return push_audio(stream, numbers);
    case 3: dithead_finish_audio(stream); return;
    case 4:
    case 5: dithead_flush_audio(stream); return;
    case 6: dithead_mark(stream, numbers.byte()); return;
    case 7: dithead_mark_end(stream); return;
    case 8: dithead_finish(stream); return;
    case 9:
        dithead_stream_reset(stream);
        time_us = 0;
        return;
    case 10:
        if (numbers.byte() % 4 == 0) dithead_stream_stop(stream);
        return;
    case 11: {
        const std::vector<std::uint8_t> image = an_image(numbers.byte());
        dithead_set_portrait(stream, image.data(), WIDTH, HEIGHT, WIDTH * 3);
        return;
    }
    case 12: {
        dithead_statistics told{};
        told.struct_size = static_cast<std::size_t>(numbers.number(sizeof told));
        dithead_get_statistics(stream, &told);
        dithead_stage_statistics stage{};
        stage.struct_size = sizeof stage;
        dithead_get_stage_statistics(stream, static_cast<std::size_t>(numbers.number(2)), &stage);
        return;
    }
    case 13: {
        std::int64_t next = 0, queued = 0;
        dithead_get_audio_position(stream, &next, numbers.byte() % 2 == 0 ? &queued : nullptr);
        if (next < 0 || queued < 0) std::abort();
        return;
    }
    case 14: {
        char text[32];
        dithead_stream_last_error(stream, text, numbers.byte() % sizeof text);
        dithead_status_string(numbers.small(0));
        dithead_left_alone_string(numbers.small(0));
        return;
    }
    case 15:
        if (numbers.byte() % 8 == 0) pretend::fail("denoise", numbers.byte() % 8);
        return;
    case 16:
    case 17:
    case 18: return push_frame(stream, numbers, time_us);
    case 19: std::this_thread::yield(); return;
    default: return pull_frame(stream, numbers);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    Numbers numbers(data, size);
    pretend::forget_faults();
    dithead_session_options setup;
    dithead_session_options_init(&setup, sizeof setup);
    setup.bundle_path = "pretended";
    dithead_session *session = nullptr;
    if (dithead_session_create(&setup, &session) != DITHEAD_OK) std::abort();
    dithead_stream *stream = open_stream(session, numbers);
    if (numbers.byte() % 2 == 0) dithead_session_destroy(std::exchange(session, nullptr));
    // Calls of the groups that may run beside each other, in two threads.
    const bool beside = numbers.byte() % 4 == 0;
    const std::size_t half = beside ? size / 2 : 0;
    std::thread other;
    if (beside) {
        other = std::thread([=] {
            Numbers others(data + half, size - half);
            std::int64_t time_us = 0;
            for (int calls = 0; calls < 200 && !others.done(); ++calls) {
                call(stream, others, time_us);
            }
        });
    }
    std::int64_t time_us = 0;
    for (int calls = 0; calls < 200 && !numbers.done(); ++calls) call(stream, numbers, time_us);
    if (beside) other.join();
    dithead_stream_destroy(stream);
    dithead_session_destroy(session);
    return 0;
}

#ifdef DITHEAD_FUZZ_ALONE
#include <chrono>
#include <random>

int main(int count, char **arguments) {
    const double seconds = count > 1 ? std::atof(arguments[1]) : 10.0;
    const unsigned seed = count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 0;
    std::mt19937 random(seed);
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t runs = 0;
    while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
           seconds) {
        std::vector<std::uint8_t> bytes(random() % 1500);
        for (std::uint8_t &byte : bytes) byte = static_cast<std::uint8_t>(random());
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        ++runs;
    }
    std::printf("%llu sequences of calls\n", static_cast<unsigned long long>(runs));
    return 0;
}
#endif
