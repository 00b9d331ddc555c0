// Frames come in order, with their sound, however they were fed.
#include <algorithm>

#include "streams.hpp"

namespace {

// Feeds from two threads and pulls from a third.
std::vector<Output> collect(StreamHandle &stream, const std::vector<Bytes> &images,
                            const Sound &sound, std::size_t piece) {
    std::thread hearing([&] {
        for (std::size_t at = 0; at < sound.size(); at += piece) {
            const std::size_t count = std::min(piece, sound.size() - at);
            EXPECT_OK(dithead_push_audio(stream.handle, sound.data() + at, count,
                                         static_cast<std::int64_t>(at)));
        }
        EXPECT_OK(dithead_finish_audio(stream.handle));
    });
    std::thread showing([&] {
        stream.show_all(images);
        hearing.join();
        EXPECT_OK(dithead_finish(stream.handle));
    });
    std::vector<Output> outputs = stream.rest();
    showing.join();
    return outputs;
}

} // namespace

TEST(any_way_of_feeding_gives_the_same) {
    SessionHandle session;
    std::vector<Bytes> images = pictures(30);
    images[5] = blank(5);
    const Sound sound = voice(0.9, 1);
    for (const Change &schedule : SCHEDULES) {
        for (const std::size_t piece : {97U, 1600U, 20'000U}) {
            for (const bool previous : {false, true}) {
                const Change change = [&](dithead_stream_options &o) {
                    o.seed = 3;
                    o.reference = previous ? DITHEAD_REFERENCE_PREVIOUS : DITHEAD_REFERENCE_FIXED;
                    schedule(o);
                };
                StreamHandle stream(session, change);
                const std::vector<Output> found = collect(stream, images, sound, piece);
                EXPECT(same(found, expected(images, {{0, sound}}, options_with(change))));
                for (const Output &output : found) {
                    EXPECT(output.pts_us == output.index * FRAME_US);
                    const bool none = output.left_alone == DITHEAD_LEFT_ALONE_NO_FACE;
                    EXPECT(none == (output.index == 5));
                    EXPECT(output.sound.size() == 640);
                    EXPECT(output.first_sample == output.index * 640);
                }
                Sound whole = sound;
                whole.resize(30 * 640); // silence after its end
                EXPECT(sound_of(found) == whole);
                dithead_statistics told;
                told.struct_size = sizeof told;
                EXPECT_OK(dithead_get_statistics(stream.handle, &told));
                EXPECT(told.frames_in == 30 && told.frames_out == 30);
                EXPECT(told.left_alone[DITHEAD_REVOICED] == 29);
                EXPECT(told.left_alone[DITHEAD_LEFT_ALONE_NO_FACE] == 1);
                EXPECT(told.latency_p50_us >= 0 && told.latency_p99_us >= told.latency_p50_us);
            }
        }
    }
}

TEST(the_generated_face_itself_can_be_shown) {
    SessionHandle session;
    const Change change = [](dithead_stream_options &o) { o.detail = 0; };
    StreamHandle stream(session, change);
    const std::vector<Bytes> images = pictures(4);
    const Sound sound = voice(0.3, 1);
    EXPECT(same(collect(stream, images, sound, 1000),
                expected(images, {{0, sound}}, options_with(change))));
}

TEST(reset_equals_fresh) {
    SessionHandle session;
    const std::vector<Bytes> images = pictures(12);
    const Sound sound = voice(0.4, 1);
    for (const Change &change : SCHEDULES) {
        StreamHandle stream(session, change);
        stream.hear(voice(0.3, 2));
        EXPECT_OK(stream.show(picture(50), 7));
        EXPECT_OK(dithead_finish(stream.handle));
        stream.next();
        EXPECT_OK(dithead_stream_reset(stream.handle));
        EXPECT(same(collect(stream, images, sound, 1000),
                    expected(images, {{0, sound}}, options_with(change))));
    }
}

TEST(streams_do_not_mix) {
    SessionHandle session;
    const std::vector<Bytes> images = pictures(40);
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < 2; ++number) {
        threads.emplace_back([&, number] {
            const Change change = [&](dithead_stream_options &o) {
                o.seed = number;
                o.reference = DITHEAD_REFERENCE_PREVIOUS;
                o.overlap = number == 0;
            };
            const Sound sound = voice(1.0, number);
            StreamHandle stream(session, change);
            EXPECT(same(collect(stream, images, sound, 700),
                        expected(images, {{0, sound}}, options_with(change))));
        });
    }
    for (std::thread &thread : threads) thread.join();
}

TEST(a_stream_outlives_its_session) {
    auto session = std::make_unique<SessionHandle>();
    StreamHandle stream(*session);
    session.reset();
    const std::vector<Bytes> images = pictures(3);
    const Sound sound = voice(0.2, 1);
    EXPECT(same(collect(stream, images, sound, 999),
                expected(images, {{0, sound}}, options_with({}))));
}

TEST(a_source_that_runs_ahead_is_told) {
    SessionHandle session;
    for (const int overlap : {0, 1}) {
        StreamHandle stream(session, [&](dithead_stream_options &o) {
            o.in_flight = 2;
            o.waiting = 1;
            o.overlap = overlap;
        });
        int taken = 0; // without sound, nothing leaves
        while (stream.show(picture(0), taken * FRAME_US, 200'000) == DITHEAD_OK) ++taken;
        EXPECT(taken >= 2 && taken <= 4);
        Output output;
        EXPECT_STATUS(stream.pull(output, 10'000), DITHEAD_WOULD_BLOCK);
        EXPECT_STATUS(stream.pull(output, 0), DITHEAD_WOULD_BLOCK);
        stream.hear(voice(1.0, 1));
        EXPECT_OK(dithead_finish(stream.handle));
        EXPECT(stream.rest().size() == static_cast<std::size_t>(taken));
        EXPECT_STATUS(stream.pull(output, 0), DITHEAD_END_OF_STREAM);
    }
}

TEST(sound_stays_in_step_at_any_rate) {
    SessionHandle session;
    StreamHandle stream(session, [](dithead_stream_options &o) {
        o.rate_numerator = 30'000;
        o.rate_denominator = 1001;
    });
    const Sound sound = voice(2.0, 1);
    stream.hear(sound);
    EXPECT_OK(dithead_finish_audio(stream.handle));
    std::thread showing([&] {
        for (std::int64_t n = 0; n < 30; ++n) {
            EXPECT_OK(stream.show(picture(0), n * 1'001'000 / 30));
        }
        EXPECT_OK(dithead_finish(stream.handle));
    });
    std::vector<Output> outputs = stream.rest();
    showing.join();
    std::int64_t at = 0;
    for (std::size_t n = 0; n < outputs.size(); ++n) {
        EXPECT(outputs[n].first_sample == at);
        at += static_cast<std::int64_t>(outputs[n].sound.size());
        // The end of a frame is as far from it as its start was from the last one's.
        const double end_s = 1e-6 * static_cast<double>(outputs[n].pts_us) + 1001.0 / 30'000;
        EXPECT(std::abs(static_cast<double>(at) - 16'000 * end_s) <= 1.0);
    }
    EXPECT(sound_of(outputs) == part(sound, static_cast<std::size_t>(at)));
}

TEST(a_gap_in_the_sound_is_silent) {
    SessionHandle session;
    StreamHandle stream(session);
    const Sound sound = voice(0.2, 1);
    EXPECT_OK(dithead_push_audio(stream.handle, sound.data(), 1000, 600));
    EXPECT_OK(dithead_push_audio(stream.handle, sound.data(), 1000, 4000));
    EXPECT_STATUS(dithead_push_audio(stream.handle, sound.data(), 1000, 4999), DITHEAD_ERROR_STATE);
    std::int64_t next = 0, queued = 0;
    EXPECT_OK(dithead_get_audio_position(stream.handle, &next, &queued));
    EXPECT(next == 5000 && queued == 2000);
    Sound whole(5000);
    std::copy_n(sound.begin(), 1000, whole.begin() + 600);
    std::copy_n(sound.begin(), 1000, whole.begin() + 4000);
    const std::vector<Bytes> images = pictures(6);
    stream.show_all(images);
    EXPECT_OK(dithead_finish(stream.handle));
    const std::vector<Output> outputs = stream.rest();
    EXPECT(same(outputs, expected(images, {{0, whole}}, options_with({}))));
    EXPECT(sound_of(outputs) == part(whole, 6 * 640));
}

TEST(a_picture_that_stays_is_encoded_once) {
    SessionHandle session;
    StreamHandle stream(session);
    pretend::encoded = 0;
    stream.show_all(std::vector<Bytes>(6, picture(1)));
    EXPECT_OK(dithead_finish(stream.handle));
    EXPECT(stream.rest().size() == 6);
    EXPECT(pretend::encoded == 1);
}

TEST(whose_mouth_is_covered_is_told) {
    SessionHandle session;
    StreamHandle stream(session);
    Bytes image = picture(1);
    image[static_cast<std::size_t>((pretend::TOP * WIDTH + pretend::LEFT) * 3) + 1] = 255;
    EXPECT_OK(stream.show(image, 0));
    EXPECT_OK(dithead_finish(stream.handle));
    EXPECT(stream.next().left_alone == DITHEAD_LEFT_ALONE_COVERED);
}

TEST(a_pause_of_the_camera_does_not_take_the_sound_ahead) {
    SessionHandle session;
    StreamHandle stream(session);
    stream.hear(voice(30.0, 1));
    const std::int64_t times_us[] = {0, 40'000, 10'000'000, 10'040'000};
    for (const std::int64_t time_us : times_us) EXPECT_OK(stream.show(picture(0), time_us));
    for (int n = 0; n < 3; ++n) stream.next();
    EXPECT_OK(dithead_flush_audio(stream.handle));
    EXPECT_OK(dithead_mark(stream.handle, 9));
    stream.hear(voice(1.0, 2));
    EXPECT_OK(dithead_finish(stream.handle));
    const Output last = stream.next();
    EXPECT(last.first_sample == 10'040 * 16);
    EXPECT(last.events.size() == 1 && last.events[0].sample == last.first_sample);
    EXPECT(!last.sound.empty());
}

TEST(frames_far_from_all_that_came_are_refused) {
    SessionHandle session;
    for (const int idle : {DITHEAD_IDLE_WAIT, DITHEAD_IDLE_REST}) {
        StreamHandle stream(session, [&](dithead_stream_options &o) { o.idle = idle; });
        EXPECT_STATUS(stream.show(picture(0), 30'000'000'000), DITHEAD_ERROR_INVALID_ARGUMENT);
        EXPECT(stream.error().find("from the first sample of the sound") != std::string::npos);
        EXPECT_OK(stream.show(picture(0), 599'000'000));
        EXPECT_STATUS(stream.show(picture(0), 1'200'000'000), DITHEAD_ERROR_INVALID_ARGUMENT);
        EXPECT_OK(dithead_flush_audio(stream.handle));
    }
}

TEST(a_frame_without_room_is_not_copied) {
    SessionHandle session;
    StreamHandle stream(session, [](dithead_stream_options &o) { o.waiting = o.in_flight = 1; });
    std::int64_t time_us = 0;
    while (stream.show(picture(0), time_us, 200'000) == DITHEAD_OK) time_us += FRAME_US;
    dithead_frame frame = frame_of(picture(0));
    frame.pixels = reinterpret_cast<const std::uint8_t *>(1); // would be a crash
    frame.pts_us = time_us;
    EXPECT_STATUS(dithead_push_frame(stream.handle, &frame, 0), DITHEAD_WOULD_BLOCK);
}
