#include "streams.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace {

struct Named {
    const char *name;
    void (*run)();
};

std::vector<Named> &tests() {
    static std::vector<Named> all;
    return all;
}

} // namespace

Test::Test(const char *name, void (*run)()) { tests().push_back({name, run}); }

// usage: capi_streams [NAME]
int main(int count, char **arguments) {
    bool found = false;
    for (const Named &test : tests()) {
        if (count > 1 && std::strcmp(arguments[1], test.name) != 0) continue;
        found = true;
        std::printf("%s\n", test.name);
        std::fflush(stdout);
        test.run();
        pretend::forget_faults();
        pretend::step_us = 0;
    }
    return found ? 0 : 2;
}

void expect(bool what, const char *text, const char *file, int line) {
    if (what) return;
    std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, text);
    std::_Exit(1);
}

void expect_status(dithead_status found, dithead_status wanted, const char *file, int line) {
    if (found == wanted) return;
    std::fprintf(stderr, "%s:%d: expected '%s', found '%s': %s\n", file, line,
                 dithead_status_string(wanted), dithead_status_string(found),
                 dithead_last_error());
    std::_Exit(1);
}

Bytes picture(int number) {
    std::mt19937 random(static_cast<unsigned>(number) + 1);
    Bytes image(WIDTH * HEIGHT * 3);
    for (std::uint8_t &byte : image) byte = static_cast<std::uint8_t>(random() % 251 + 1);
    return image;
}

Bytes blank(int number) {
    Bytes image = picture(number);
    image[0] = 0;
    return image;
}

std::vector<Bytes> pictures(int count) {
    std::vector<Bytes> images;
    for (int number = 0; number < count; ++number) images.push_back(picture(number));
    return images;
}

Sound voice(double seconds, unsigned seed) {
    std::mt19937 random(seed);
    Sound sound(static_cast<std::size_t>(std::lround(16'000 * seconds)));
    for (float &sample : sound) {
        sample = static_cast<float>(random() % 20'000) / 10'000.0F - 0.99995F;
    }
    return sound;
}

SessionHandle::SessionHandle() {
    dithead_session_options options;
    EXPECT_OK(dithead_session_options_init(&options, sizeof options));
    options.bundle_path = "pretended";
    EXPECT_OK(dithead_session_create(&options, &handle));
}

bool Event::operator==(const Event &other) const {
    return index == other.index && kind == other.kind && piece == other.piece &&
           sample == other.sample;
}

const std::vector<Change> SCHEDULES = {
    [](dithead_stream_options &) {},
    [](dithead_stream_options &o) { o.overlap = 0; },
    [](dithead_stream_options &o) { o.in_flight = 1; },
};

dithead_stream_options options_with(const Change &change) {
    dithead_stream_options options;
    EXPECT_OK(dithead_stream_options_init(&options, sizeof options));
    if (change) change(options);
    return options;
}

dithead_frame frame_of(const Bytes &image) {
    dithead_frame frame;
    EXPECT_OK(dithead_frame_init(&frame, sizeof frame));
    frame.pixels = image.data();
    frame.width = WIDTH;
    frame.height = HEIGHT;
    frame.stride = WIDTH * 3;
    return frame;
}

StreamHandle::StreamHandle(SessionHandle &session, const Change &change) {
    const dithead_stream_options options = options_with(change);
    EXPECT_OK(dithead_stream_create(session.handle, &options, &handle));
}

void StreamHandle::hear(const Sound &sound) {
    EXPECT_OK(dithead_push_audio(handle, sound.data(), sound.size(), DITHEAD_NEXT_SAMPLE));
}

dithead_status StreamHandle::show(const Bytes &image, std::int64_t pts_us,
                                  std::int64_t timeout_us) {
    dithead_frame frame = frame_of(image);
    frame.pts_us = pts_us;
    return dithead_push_frame(handle, &frame, timeout_us);
}

void StreamHandle::show_all(const std::vector<Bytes> &images) {
    for (std::size_t n = 0; n < images.size(); ++n) {
        EXPECT_OK(show(images[n], static_cast<std::int64_t>(n) * FRAME_US));
    }
}

dithead_status StreamHandle::pull(Output &output, std::int64_t timeout_us) {
    output = Output();
    output.pixels.resize(WIDTH * HEIGHT * 3);
    output.sound.resize(200'000);
    dithead_event events[16];
    dithead_output out;
    EXPECT_OK(dithead_output_init(&out, sizeof out));
    out.pixels = output.pixels.data();
    out.pixels_capacity = output.pixels.size();
    out.samples = output.sound.data();
    out.samples_capacity = output.sound.size();
    out.events = events;
    out.events_capacity = 16;
    const dithead_status status = dithead_pull_frame(handle, &out, timeout_us);
    if (status != DITHEAD_OK) return status;
    EXPECT(out.width == WIDTH && out.height == HEIGHT);
    output.index = out.index;
    output.pts_us = out.pts_us;
    output.left_alone = out.left_alone;
    output.sound.resize(out.sample_count);
    output.first_sample = out.first_sample;
    for (std::size_t n = 0; n < out.event_count; ++n) {
        output.events.push_back({out.index, events[n].kind, events[n].piece, events[n].sample});
    }
    return status;
}

Output StreamHandle::next() {
    Output output;
    EXPECT_OK(pull(output, 60'000'000));
    return output;
}

std::vector<Output> StreamHandle::rest() {
    std::vector<Output> outputs;
    Output output;
    dithead_status status = DITHEAD_OK;
    while ((status = pull(output, 60'000'000)) == DITHEAD_OK) outputs.push_back(output);
    EXPECT_STATUS(status, DITHEAD_END_OF_STREAM);
    return outputs;
}

std::string StreamHandle::error() {
    char text[1024];
    dithead_stream_last_error(handle, text, sizeof text);
    return text;
}

namespace {

// The window at a time of a whole sound.
std::uint64_t window_of(const Sound &sound, std::int64_t time_us) {
    const dithead::AudioConfig &audio = pretend::config().audio;
    const std::int64_t first = audio.block_start(time_us);
    std::vector<float> block;
    for (std::int64_t row = first; row < first + audio.block_features(); ++row) {
        const std::int64_t hop = dithead::floor_divide(row, audio.hop_features());
        const std::int64_t start = hop * audio.hop_samples() - audio.left_context_samples();
        Sound chunk(static_cast<std::size_t>(audio.chunk_samples()));
        for (std::size_t n = 0; n < chunk.size(); ++n) {
            const std::int64_t at = start + static_cast<std::int64_t>(n);
            const bool there = at >= 0 && at < static_cast<std::int64_t>(sound.size());
            chunk[n] = there ? sound[static_cast<std::size_t>(at)] : 0.0F;
        }
        const std::vector<float> features = pretend::encode(chunk.data());
        const std::int64_t offset = (row - hop * audio.hop_features()) * audio.feature_dim;
        block.insert(block.end(), features.begin() + offset,
                     features.begin() + offset + audio.feature_dim);
    }
    return pretend::window(block, first, time_us);
}

} // namespace

std::vector<Bytes> expected(const std::vector<Bytes> &images, const Heard &heard,
                            const dithead_stream_options &options) {
    using namespace pretend;
    std::vector<Bytes> made;
    std::uint64_t reference = 0, habit = 0;
    for (std::size_t n = 0; n < images.size(); ++n) {
        Bytes image = images[n], rectangle(SIDE * SIDE * 3);
        const Sound *sound = nullptr;
        for (const auto &[first, one] : heard) {
            if (first <= static_cast<int>(n)) sound = &one;
        }
        const auto at = [&](int x, int y) { return ((y + TOP) * WIDTH + x + LEFT) * 3; };
        for (int y = 0; y < SIDE; ++y) {
            std::memcpy(&rectangle[static_cast<std::size_t>(y * SIDE * 3)],
                        &image[static_cast<std::size_t>(at(0, y))], SIDE * 3);
        }
        if (image[0] != 0) {
            const auto index = static_cast<std::int64_t>(n);
            const std::uint64_t value =
                latent(crop(rectangle.data()), window_of(*sound, index * FRAME_US), index,
                       options.seed, reference);
            if (options.reference == DITHEAD_REFERENCE_PREVIOUS) reference = value;
            draw(value, rectangle.data());
            if (options.detail != 0) {
                habit = hash(crop(rectangle.data()), habit);
                draw(habit, rectangle.data());
            }
            for (int y = 0; y < SIDE; ++y) {
                for (int x = 0; x < SIDE; ++x) {
                    if (!drawn_at(x, y)) continue;
                    std::memcpy(&image[static_cast<std::size_t>(at(x, y))],
                                &rectangle[static_cast<std::size_t>((y * SIDE + x) * 3)], 3);
                }
            }
        }
        made.push_back(image);
    }
    return made;
}

bool same(const std::vector<Output> &found, const std::vector<Bytes> &wanted) {
    if (found.size() != wanted.size()) return false;
    for (std::size_t n = 0; n < found.size(); ++n) {
        if (found[n].index != static_cast<std::int64_t>(n) || found[n].pixels != wanted[n]) {
            std::fprintf(stderr, "frame %zu differs\n", n);
            return false;
        }
    }
    return true;
}

Sound sound_of(const std::vector<Output> &outputs) {
    Sound all;
    for (const Output &output : outputs) all = joined(all, output.sound);
    return all;
}

Sound joined(const Sound &first, const Sound &second) {
    Sound all = first;
    all.insert(all.end(), second.begin(), second.end());
    return all;
}

Sound part(const Sound &sound, std::size_t count) {
    return Sound(sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(count));
}
