// Failed stages, misuse, and calls from several threads.
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>

#include "streams.hpp"

namespace {

constexpr dithead_status WRONG = DITHEAD_ERROR_INVALID_ARGUMENT;

// Until other threads have been waiting in a push and a pull for a while.
void wait_for_both(StreamHandle &stream) {
    for (int waited = 0; waited < 50; ++waited) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        const bool both =
            dithead_push_frame(stream.handle, nullptr, 0) == DITHEAD_ERROR_BUSY &&
            dithead_pull_frame(stream.handle, nullptr, 0) == DITHEAD_ERROR_BUSY;
        if (!both) waited = 0;
    }
}

} // namespace

TEST(a_failing_stage_ends_the_stream_and_not_the_session) {
    SessionHandle session;
    const std::vector<Bytes> images = pictures(9);
    const Sound sound = voice(0.4, 1);
    for (const char *stage :
         {"track", "encode face", "denoise", "decode face", "blend", "detail"}) {
        for (const int overlap : {0, 1}) {
            const Change change = [&](dithead_stream_options &o) { o.overlap = overlap; };
            StreamHandle stream(session, change);
            pretend::fail(stage, 4);
            stream.hear(sound);
            std::thread showing([&] {
                for (std::size_t n = 0; n < images.size(); ++n) {
                    stream.show(images[n], static_cast<std::int64_t>(n) * FRAME_US);
                }
                dithead_finish(stream.handle);
            });
            Output output;
            dithead_status status = DITHEAD_OK;
            while ((status = stream.pull(output)) == DITHEAD_OK) {
            }
            showing.join();
            EXPECT_STATUS(status, DITHEAD_ERROR_STAGE);
            const std::string wanted =
                "stage '" + std::string(stage) + "' failed at frame 4: out of paper";
            EXPECT(dithead_last_error() == wanted);
            EXPECT(stream.error() == wanted);
            EXPECT_STATUS(dithead_flush_audio(stream.handle), DITHEAD_ERROR_STAGE);
            EXPECT_STATUS(dithead_push_audio(stream.handle, sound.data(), 10, DITHEAD_NEXT_SAMPLE),
                          DITHEAD_ERROR_STAGE);
            EXPECT_STATUS(stream.show(images[0], 999 * FRAME_US), DITHEAD_ERROR_STAGE);
            pretend::forget_faults();
            EXPECT_OK(dithead_stream_reset(stream.handle));
            stream.hear(sound);
            EXPECT_OK(dithead_finish_audio(stream.handle));
            std::thread again([&] {
                stream.show_all(images);
                EXPECT_OK(dithead_finish(stream.handle));
            });
            const std::vector<Output> outputs = stream.rest();
            again.join();
            EXPECT(same(outputs, expected(images, {{0, sound}}, options_with(change))));
        }
    }
}

TEST(who_waits_is_told_that_the_stream_was_stopped) {
    SessionHandle session;
    for (const bool reset : {false, true}) {
        for (const int overlap : {0, 1}) {
            StreamHandle stream(session, [&](dithead_stream_options &o) {
                o.overlap = overlap;
                o.in_flight = 1;
                o.waiting = 1;
            });
            std::atomic<int> told{0};
            std::thread pulling([&] {
                Output output;
                dithead_status status = DITHEAD_ERROR_BUSY; // as wait_for_both looks
                while (status == DITHEAD_ERROR_BUSY) status = stream.pull(output);
                EXPECT_STATUS(status, DITHEAD_ERROR_STOPPED);
                ++told;
            });
            std::thread showing([&] {
                dithead_status status = DITHEAD_OK;
                for (int n = 0; status == DITHEAD_OK || status == DITHEAD_ERROR_BUSY; ++n) {
                    status = stream.show(picture(0), n * FRAME_US);
                }
                EXPECT_STATUS(status, DITHEAD_ERROR_STOPPED);
                ++told;
            });
            wait_for_both(stream);
            EXPECT(told == 0);
            EXPECT_OK(reset ? dithead_stream_reset(stream.handle)
                            : dithead_stream_stop(stream.handle));
            pulling.join();
            showing.join();
            Output output;
            EXPECT_STATUS(stream.pull(output, 0),
                          reset ? DITHEAD_WOULD_BLOCK : DITHEAD_ERROR_STOPPED);
            if (!reset) {
                EXPECT_STATUS(dithead_stream_reset(stream.handle), DITHEAD_ERROR_STOPPED);
                EXPECT_STATUS(dithead_flush_audio(stream.handle), DITHEAD_ERROR_STOPPED);
                EXPECT_OK(dithead_stream_stop(stream.handle));
            }
        }
    }
}

TEST(two_threads_in_one_group_are_told) {
    SessionHandle session;
    StreamHandle stream(session);
    std::thread pulling([&] {
        Output output;
        dithead_status status = DITHEAD_ERROR_BUSY;
        while (status == DITHEAD_ERROR_BUSY) status = stream.pull(output);
        EXPECT_STATUS(status, DITHEAD_ERROR_STOPPED);
    });
    Output output;
    dithead_status status = DITHEAD_WOULD_BLOCK;
    while ((status = stream.pull(output, 0)) == DITHEAD_WOULD_BLOCK) std::this_thread::yield();
    EXPECT_STATUS(status, DITHEAD_ERROR_BUSY);
    EXPECT_OK(dithead_stream_stop(stream.handle));
    pulling.join();
}

TEST(a_stream_ends_wherever_its_frames_are) {
    SessionHandle session;
    pretend::step_us = 300;
    for (int turn = 0; turn < 20; ++turn) {
        StreamHandle stream(session, SCHEDULES[static_cast<std::size_t>(turn) % 3]);
        stream.hear(voice(1.0, 1));
        for (int n = 0; n < turn; ++n) stream.show(picture(n), n * FRAME_US, 0);
        if (turn % 2 == 0) {
            EXPECT_OK(dithead_flush_audio(stream.handle));
            stream.hear(voice(1.0, 2));
        }
        Output output;
        stream.pull(output, 2000);
    }
}

TEST(many_threads_at_once) {
    SessionHandle session;
    StreamHandle stream(session);
    std::atomic<bool> over{false};
    std::vector<std::thread> threads;
    threads.emplace_back([&] {
        const Sound sound = voice(0.1, 1);
        while (!over) {
            dithead_push_audio(stream.handle, sound.data(), sound.size(), DITHEAD_NEXT_SAMPLE);
            dithead_mark(stream.handle, 5);
            std::this_thread::sleep_for(std::chrono::microseconds(500));
        }
    });
    threads.emplace_back([&] {
        for (int n = 0; !over; ++n) {
            if (stream.show(picture(n % 3), n * FRAME_US, 1000) == DITHEAD_ERROR_STATE) n += 100;
        }
    });
    threads.emplace_back([&] {
        Output output;
        while (!over) stream.pull(output, 1000);
    });
    threads.emplace_back([&] {
        while (!over) {
            dithead_flush_audio(stream.handle);
            std::this_thread::sleep_for(std::chrono::microseconds(700));
        }
    });
    threads.emplace_back([&] {
        while (!over) {
            dithead_statistics told{};
            told.struct_size = sizeof told;
            dithead_get_statistics(stream.handle, &told);
            std::int64_t next = 0;
            dithead_get_audio_position(stream.handle, &next, nullptr);
            stream.error();
            std::this_thread::sleep_for(std::chrono::microseconds(300));
        }
    });
    threads.emplace_back([&] {
        while (!over) {
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
            dithead_stream_reset(stream.handle);
        }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    over = true;
    EXPECT_OK(dithead_stream_stop(stream.handle));
    for (std::thread &thread : threads) thread.join();
}

TEST(small_buffers_keep_the_frame) {
    SessionHandle session;
    StreamHandle stream(session);
    const Sound sound = voice(0.5, 1);
    EXPECT_OK(dithead_mark(stream.handle, 9));
    stream.hear(sound);
    const std::vector<Bytes> images = pictures(2);
    stream.show_all(images);
    EXPECT_OK(dithead_finish(stream.handle));
    Bytes room(WIDTH * HEIGHT * 3 + 12 * 7);
    Sound samples(640);
    dithead_event event;
    dithead_output out;
    EXPECT_OK(dithead_output_init(&out, sizeof out));
    EXPECT_STATUS(dithead_pull_frame(stream.handle, &out, -1), DITHEAD_ERROR_BUFFER_TOO_SMALL);
    EXPECT(out.width == WIDTH && out.height == HEIGHT && out.sample_count == 640);
    EXPECT(out.pixels_size == WIDTH * HEIGHT * 3 && out.event_count == 1);
    out.pixels = room.data();
    out.pixels_capacity = out.pixels_size - 1;
    EXPECT_STATUS(dithead_pull_frame(stream.handle, &out, -1), DITHEAD_ERROR_BUFFER_TOO_SMALL);
    out.pixels_capacity = room.size();
    out.samples = samples.data();
    out.samples_capacity = 639;
    EXPECT_STATUS(dithead_pull_frame(stream.handle, &out, -1), DITHEAD_ERROR_BUFFER_TOO_SMALL);
    out.samples_capacity = 640;
    out.events = &event;
    EXPECT_STATUS(dithead_pull_frame(stream.handle, &out, -1), DITHEAD_ERROR_BUFFER_TOO_SMALL);
    EXPECT(room == Bytes(room.size()) && samples == Sound(640)); // nothing was written
    out.events_capacity = 1;
    out.stride = WIDTH * 3 - 1;
    EXPECT_STATUS(dithead_pull_frame(stream.handle, &out, -1), DITHEAD_ERROR_INVALID_ARGUMENT);
    out.stride = WIDTH * 3 + 7;
    EXPECT_OK(dithead_pull_frame(stream.handle, &out, -1));
    EXPECT(out.index == 0 && samples == part(sound, 640) && event.piece == 9);
    const std::vector<Bytes> wanted = expected(images, {{0, sound}}, options_with({}));
    for (std::size_t y = 0; y < HEIGHT; ++y) {
        const std::uint8_t *row = room.data() + y * out.stride;
        EXPECT(std::equal(row, row + WIDTH * 3, wanted[0].data() + y * WIDTH * 3));
        if (y + 1 < HEIGHT) EXPECT(row[WIDTH * 3] == 0); // between the rows nothing is written
    }
    EXPECT(stream.next().pixels == wanted[1]);
}

TEST(calls_out_of_order) {
    SessionHandle session;
    StreamHandle stream(session);
    const Sound sound = voice(0.1, 1);
    const Bytes image = picture(0);
    EXPECT_OK(stream.show(image, 5));
    EXPECT_STATUS(stream.show(image, 5), DITHEAD_ERROR_STATE);
    EXPECT(stream.error().find("times must increase") != std::string::npos);
    EXPECT_STATUS(dithead_set_portrait(stream.handle, image.data(), WIDTH, HEIGHT, WIDTH * 3),
                  DITHEAD_ERROR_STATE);
    EXPECT_OK(dithead_finish_audio(stream.handle));
    EXPECT_OK(dithead_finish_audio(stream.handle));
    EXPECT_STATUS(dithead_push_audio(stream.handle, sound.data(), 1, DITHEAD_NEXT_SAMPLE),
                  DITHEAD_ERROR_STATE);
    EXPECT_STATUS(dithead_mark(stream.handle, 1), DITHEAD_ERROR_STATE);
    EXPECT_OK(stream.show(image, 6));
    EXPECT_OK(dithead_finish(stream.handle));
    EXPECT_OK(dithead_finish(stream.handle));
    EXPECT_STATUS(stream.show(image, 7), DITHEAD_ERROR_STATE);
    EXPECT(stream.rest().size() == 2);
    EXPECT_OK(dithead_flush_audio(stream.handle));
    EXPECT(stream.rest().empty());
}

TEST(what_cannot_be_asked_for) {
    SessionHandle session;
    StreamHandle stream(session);
    const Bytes image = picture(0);
    const Sound sound = voice(0.1, 1);
    constexpr std::size_t HUGE_SIZE = std::numeric_limits<std::size_t>::max();

    const auto refused = [&](const Change &change, dithead_status status = WRONG) {
        const dithead_stream_options options = options_with(change);
        auto *made = reinterpret_cast<dithead_stream *>(1);
        EXPECT_STATUS(dithead_stream_create(session.handle, &options, &made), status);
        EXPECT(made == nullptr);
    };
    refused([](auto &o) { o.struct_size = 0; });
    refused([](auto &o) { o.struct_size += 8; });
    refused([](auto &o) { o.steps = -1; });
    refused([](auto &o) { o.steps = 1001; });
    refused([](auto &o) { o.detail = 2; });
    refused([](auto &o) { o.reference = 7; });
    refused([](auto &o) { o.face = 4; });
    refused([](auto &o) { o.face = DITHEAD_FACE_INDEX, o.face_index = -1; });
    refused([](auto &o) { o.face = DITHEAD_FACE_BOX; });
    refused([](auto &o) { o.face = DITHEAD_FACE_POINT, o.face_place[1] = NAN; });
    refused([](auto &o) { o.pixel_format = 3; });
    refused([](auto &o) { o.overlap = -1; });
    refused([](auto &o) { o.in_flight = 0; });
    refused([](auto &o) { o.waiting = 0; });
    refused([](auto &o) { o.idle = 3; });
    refused([](auto &o) { o.patience_us = 5; });
    refused([](auto &o) { o.idle = DITHEAD_IDLE_REST, o.patience_us = -2; });
    refused([](auto &o) { o.rate_denominator = 0; });
    refused([](auto &o) { o.rate_numerator = -25; });
    refused([](auto &o) { o.rate_numerator = 1, o.rate_denominator = 601; });
    refused([](auto &o) { o.reserved = 1; });
    refused([&](auto &o) { o.portrait = image.data(); });

    const auto frame_refused = [&](const std::function<void(dithead_frame &)> &change) {
        dithead_frame frame = frame_of(image);
        change(frame);
        EXPECT_STATUS(dithead_push_frame(stream.handle, &frame, 0), WRONG);
    };
    frame_refused([](auto &f) { f.struct_size = 1; });
    frame_refused([](auto &f) { f.pixels = nullptr; });
    frame_refused([](auto &f) { f.width = 1; });
    frame_refused([](auto &f) { f.width = -WIDTH; });
    frame_refused([](auto &f) { f.height = std::numeric_limits<std::int32_t>::max(); });
    frame_refused([](auto &f) { f.stride = WIDTH * 3 - 1; });
    frame_refused([](auto &f) { f.stride = HUGE_SIZE; });
    frame_refused([](auto &f) { f.stride = 0; });
    frame_refused([](auto &f) { f.pts_us = std::numeric_limits<std::int64_t>::max(); });
    frame_refused([](auto &f) { f.has_face_box = 1, f.face_box[0] = INFINITY; });
    frame_refused([](auto &f) { f.reserved = 1; });

    const auto hear = [&](const float *samples, std::size_t count, std::int64_t first) {
        return dithead_push_audio(stream.handle, samples, count, first);
    };
    EXPECT_STATUS(hear(nullptr, 5, DITHEAD_NEXT_SAMPLE), WRONG);
    EXPECT_STATUS(hear(sound.data(), HUGE_SIZE, DITHEAD_NEXT_SAMPLE), WRONG);
    EXPECT_STATUS(hear(sound.data(), 5, -2), WRONG);
    EXPECT_STATUS(hear(sound.data(), 5, std::numeric_limits<std::int64_t>::max()), WRONG);
    const float nothing = NAN;
    EXPECT_STATUS(hear(&nothing, 1, DITHEAD_NEXT_SAMPLE), WRONG);
    EXPECT_OK(hear(nullptr, 0, DITHEAD_NEXT_SAMPLE));

    EXPECT_STATUS(dithead_push_frame(stream.handle, nullptr, 0), WRONG);
    EXPECT_STATUS(dithead_pull_frame(stream.handle, nullptr, 0), WRONG);
    EXPECT_STATUS(dithead_push_audio(nullptr, nullptr, 0, 0), WRONG);
    EXPECT_STATUS(dithead_finish(nullptr), WRONG);
    EXPECT_STATUS(dithead_stream_reset(nullptr), WRONG);
    EXPECT_STATUS(dithead_get_statistics(stream.handle, nullptr), WRONG);
    EXPECT_STATUS(dithead_stream_create(nullptr, nullptr, nullptr), WRONG);
    EXPECT_STATUS(dithead_stream_options_init(nullptr, 8), WRONG);
    dithead_session *none = nullptr;
    EXPECT_STATUS(dithead_session_create(nullptr, &none), WRONG);
    dithead_session_options setup;
    EXPECT_STATUS(dithead_session_options_init(&setup, 3), WRONG);
    EXPECT_OK(dithead_session_options_init(&setup, sizeof setup));
    EXPECT_STATUS(dithead_session_create(&setup, &none), WRONG);
    setup.bundle_path = "elsewhere";
    EXPECT_STATUS(dithead_session_create(&setup, &none), DITHEAD_ERROR_BUNDLE);
    setup.provider = "gpu";
    EXPECT_STATUS(dithead_session_create(&setup, &none), WRONG);
    char small[4];
    dithead_stream_last_error(stream.handle, small, sizeof small);
    EXPECT(small[3] == '\0' && dithead_stream_last_error(nullptr, small, 4) == 0);
    dithead_stream_destroy(nullptr);
    dithead_session_destroy(nullptr);
    EXPECT(dithead_abi_version() == DITHEAD_ABI_VERSION);
    EXPECT(std::string(dithead_status_string(-99)) == "an unknown status");
    EXPECT(std::string(dithead_left_alone_string(99)) == "an unknown reason");
}
