// Portraits, silence, and speech that comes and goes.
#include <algorithm>
#include <chrono>

#include "streams.hpp"

namespace {

Change portrait_of(const Bytes &image, int idle) {
    return [&image, idle](dithead_stream_options &o) {
        o.portrait = image.data();
        o.portrait_width = WIDTH;
        o.portrait_height = HEIGHT;
        o.portrait_stride = WIDTH * 3;
        o.idle = idle;
        if (idle != DITHEAD_IDLE_WAIT) o.patience_us = 0;
        o.realtime = 0;
    };
}

} // namespace

TEST(a_portrait_speaks_for_as_long_as_there_is_sound) {
    SessionHandle session;
    const Bytes image = picture(1);
    const Sound sound = voice(0.4, 1);
    const Change change = portrait_of(image, DITHEAD_IDLE_WAIT);
    for (const int overlap : {0, 1}) {
        StreamHandle stream(session, [&](dithead_stream_options &o) {
            change(o);
            o.overlap = overlap;
        });
        stream.hear(sound);
        EXPECT_OK(dithead_finish(stream.handle));
        const std::vector<Output> outputs = stream.rest();
        EXPECT(same(outputs, expected(std::vector<Bytes>(10, image), {{0, sound}},
                                      options_with(change))));
        EXPECT(sound_of(outputs) == sound);
        EXPECT_STATUS(stream.show(image, 0), DITHEAD_ERROR_STATE);
    }
}

TEST(speech_of_a_portrait_is_dropped_after_its_end) {
    SessionHandle session;
    const Bytes image = picture(1);
    const Change change = portrait_of(image, DITHEAD_IDLE_WAIT);
    StreamHandle stream(session, change);
    const Sound first = voice(0.4, 1), second = voice(0.2, 2);
    stream.hear(first);
    for (int n = 0; n < 3; ++n) stream.next();
    EXPECT_OK(dithead_flush_audio(stream.handle));
    stream.hear(second);
    EXPECT_OK(dithead_finish(stream.handle));
    const std::vector<Output> outputs = stream.rest();
    EXPECT(outputs.size() == 5);
    EXPECT(sound_of(outputs) == second);
}

TEST(a_stream_idles_and_speaks_again) {
    SessionHandle session;
    const Bytes image = picture(1);
    const Change change = portrait_of(image, DITHEAD_IDLE_REST);
    StreamHandle stream(session, change);
    std::vector<Output> outputs;
    for (unsigned turn = 0; turn < 3; ++turn) {
        stream.hear(voice(0.4, turn));
        for (int n = 0; n < 25; ++n) outputs.push_back(stream.next());
    }
    EXPECT_OK(dithead_finish(stream.handle));
    for (const Output &output : stream.rest()) outputs.push_back(output);
    const Sound sound = sound_of(outputs);
    EXPECT(same(outputs, expected(std::vector<Bytes>(outputs.size(), image), {{0, sound}},
                                  options_with(change))));
    for (unsigned turn = 0; turn < 3; ++turn) {
        const Sound piece = voice(0.4, turn);
        EXPECT(std::search(sound.begin(), sound.end(), piece.begin(), piece.end()) != sound.end());
    }
}

TEST(idle_frames_are_handed_through) {
    SessionHandle session;
    const Bytes image = picture(1);
    StreamHandle stream(session, portrait_of(image, DITHEAD_IDLE_PASS));
    std::vector<Output> outputs;
    for (const bool speaks : {false, true, false}) {
        if (speaks) {
            EXPECT_OK(dithead_flush_audio(stream.handle)); // speech begins with the next frame
            stream.hear(voice(0.4, 1));
        }
        for (int n = 0; n < 25; ++n) outputs.push_back(stream.next());
    }
    const Sound sound = sound_of(outputs);
    const auto first = std::find_if(sound.begin(), sound.end(), [](float x) { return x != 0.0F; });
    const auto start = static_cast<std::size_t>(first - sound.begin()) / 640;
    EXPECT(start >= 25);
    for (std::size_t n = 0; n < outputs.size(); ++n) {
        const bool idle = outputs[n].left_alone == DITHEAD_LEFT_ALONE_IDLE;
        EXPECT(idle == (outputs[n].pixels == image));
        if (n + 7 < start || n >= start + 17) EXPECT(idle);
        if (n >= start && n < start + 10) EXPECT(!idle);
    }
}

TEST(another_portrait_is_shown_from_a_frame_on) {
    SessionHandle session;
    const Bytes before = picture(1), after = picture(2);
    const Change change = portrait_of(before, DITHEAD_IDLE_WAIT);
    StreamHandle stream(session, [&](dithead_stream_options &o) {
        change(o);
        o.in_flight = 1;
    });
    const Sound sound = voice(1.0, 1);
    stream.hear(sound);
    EXPECT_OK(dithead_finish(stream.handle));
    std::vector<Output> outputs;
    for (int n = 0; n < 3; ++n) outputs.push_back(stream.next());
    EXPECT_OK(dithead_set_portrait(stream.handle, after.data(), WIDTH, HEIGHT, WIDTH * 3));
    for (const Output &output : stream.rest()) outputs.push_back(output);
    EXPECT(outputs.size() == 25);
    std::size_t first = 0;
    while (outputs[first].pixels[0] == before[0]) ++first;
    EXPECT(first >= 3 && first <= 6); // those on their way still come
    std::vector<Bytes> shown(25, after);
    std::fill_n(shown.begin(), first, before);
    EXPECT(same(outputs, expected(shown, {{0, sound}}, options_with(change))));
}

TEST(a_portrait_keeps_the_pace_of_the_clock) {
    SessionHandle session;
    const Bytes image = picture(1);
    const Change change = portrait_of(image, DITHEAD_IDLE_REST);
    const auto start = std::chrono::steady_clock::now();
    StreamHandle stream(session, [&](dithead_stream_options &o) {
        change(o);
        o.realtime = 1;
        o.rate_numerator = 50;
    });
    std::int64_t last_us = -1;
    while (last_us < 200'000) { // a slow machine leaves frames out
        const Output output = stream.next();
        EXPECT(output.pts_us > last_us && output.pts_us % 20'000 == 0);
        last_us = output.pts_us;
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    EXPECT(took.count() > 0.199);
}

TEST(pushed_frames_wait_for_sound_for_so_long) {
    SessionHandle session;
    StreamHandle stream(session, [](dithead_stream_options &o) {
        o.idle = DITHEAD_IDLE_REST;
        o.patience_us = 30'000;
    });
    const std::vector<Bytes> images = pictures(5);
    stream.show_all(images);
    std::vector<Output> outputs;
    for (int n = 0; n < 5; ++n) outputs.push_back(stream.next());
    EXPECT(same(outputs, expected(images, {{0, {}}}, options_with({}))));
    EXPECT_STATUS(stream.show(picture(0), 700'000'000), DITHEAD_ERROR_INVALID_ARGUMENT);
}

TEST(a_single_thread_keeps_the_pace_while_nobody_speaks) {
    SessionHandle session;
    const Bytes image = picture(1);
    for (const int idle : {DITHEAD_IDLE_PASS, DITHEAD_IDLE_REST}) {
        StreamHandle stream(session, [&](dithead_stream_options &o) {
            portrait_of(image, idle)(o);
            o.patience_us = 400'000;
            o.realtime = 1;
            o.overlap = 0;
        });
        stream.next();
        const auto began = std::chrono::steady_clock::now();
        std::size_t samples = 0;
        for (int n = 0; n < 15; ++n) samples += stream.next().sound.size();
        // Twice the time is allowed: the machine may be busy.
        EXPECT(samples < 2 * 15 * 640);
        EXPECT(std::chrono::steady_clock::now() - began < std::chrono::milliseconds(2000));
    }
}
