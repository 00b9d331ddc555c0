// Speech that is dropped leaves no trace; pieces of speech are told (tests/test_talk.py).
#include "streams.hpp"

namespace {

constexpr std::size_t FRAME = 640; // samples

Change with(const Change &schedule, int waiting, bool previous = false) {
    return [=](dithead_stream_options &o) {
        o.waiting = waiting;
        o.reference = previous ? DITHEAD_REFERENCE_PREVIOUS : DITHEAD_REFERENCE_FIXED;
        schedule(o);
    };
}

} // namespace

TEST(dropped_speech_leaves_no_trace) {
    SessionHandle session;
    const std::vector<Bytes> images = pictures(24);
    const Sound first = voice(2.0, 1), second = voice(2.0, 2);
    for (const Change &schedule : SCHEDULES) {
        for (const bool previous : {false, true}) {
            for (const int cut_after : {0, 1, 7, 20}) {
                const Change change = with(schedule, 24, previous);
                StreamHandle stream(session, change);
                stream.hear(first);
                std::thread showing([&] { stream.show_all(images); });
                std::vector<Output> outputs;
                for (int n = 0; n < cut_after; ++n) outputs.push_back(stream.next());
                EXPECT_OK(dithead_flush_audio(stream.handle));
                stream.hear(second);
                showing.join();
                EXPECT_OK(dithead_finish(stream.handle));
                for (const Output &output : stream.rest()) outputs.push_back(output);
                const Sound sound =
                    joined(part(first, static_cast<std::size_t>(cut_after) * FRAME), second);
                EXPECT(same(outputs, expected(images, {{0, first}, {cut_after, sound}},
                                              options_with(change))));
                EXPECT(sound_of(outputs) == part(sound, images.size() * FRAME));
            }
        }
    }
}

TEST(speech_can_be_dropped_again_and_again) {
    SessionHandle session;
    const std::vector<Bytes> images = pictures(24);
    for (const Change &schedule : SCHEDULES) {
        const Change change = with(schedule, 24, true);
        StreamHandle stream(session, change);
        std::thread showing([&] { stream.show_all(images); });
        Sound kept;
        Heard heard;
        std::vector<Output> outputs;
        for (int turn = 0; turn < 4; ++turn) {
            const Sound piece = voice(1.5, 10 + static_cast<unsigned>(turn));
            stream.hear(piece);
            heard.emplace_back(5 * turn, joined(kept, piece));
            for (int n = 0; n < 5; ++n) outputs.push_back(stream.next());
            kept = joined(kept, part(piece, 5 * FRAME));
            EXPECT_OK(dithead_flush_audio(stream.handle));
            EXPECT_OK(dithead_flush_audio(stream.handle)); // nothing is left to drop
        }
        heard.emplace_back(20, kept);
        showing.join();
        EXPECT_OK(dithead_finish(stream.handle));
        for (const Output &output : stream.rest()) outputs.push_back(output);
        EXPECT(same(outputs, expected(images, heard, options_with(change))));
    }
}

TEST(pieces_of_speech_are_told) {
    SessionHandle session;
    StreamHandle stream(session);
    std::thread showing([&] { stream.show_all(pictures(24)); });
    EXPECT_OK(dithead_mark(stream.handle, 11));
    stream.hear(voice(0.2, 1));
    EXPECT_OK(dithead_mark(stream.handle, 22));
    stream.hear(voice(1.0, 2));
    EXPECT_OK(dithead_mark(stream.handle, 33));
    stream.hear(voice(1.0, 3));
    std::vector<Output> outputs;
    for (int n = 0; n < 8; ++n) outputs.push_back(stream.next());
    EXPECT_OK(dithead_flush_audio(stream.handle));
    EXPECT_OK(dithead_mark(stream.handle, 44));
    stream.hear(voice(0.2, 4));
    showing.join();
    EXPECT_OK(dithead_finish(stream.handle));
    for (const Output &output : stream.rest()) outputs.push_back(output);
    std::vector<Event> events;
    for (const Output &output : outputs) {
        events.insert(events.end(), output.events.begin(), output.events.end());
    }
    const std::vector<Event> wanted = {
        {0, DITHEAD_EVENT_BEGAN, 11, 0},          {4, DITHEAD_EVENT_ENDED, 11, 3200},
        {5, DITHEAD_EVENT_BEGAN, 22, 3200},       {8, DITHEAD_EVENT_INTERRUPTED, 22, 5120},
        {8, DITHEAD_EVENT_INTERRUPTED, 33, 5120}, {8, DITHEAD_EVENT_BEGAN, 44, 5120},
        {12, DITHEAD_EVENT_ENDED, 44, 8320},
    };
    EXPECT(events == wanted);
}

TEST(a_flush_while_a_frame_is_waited_for) {
    SessionHandle session;
    for (const Change &schedule : SCHEDULES) {
        StreamHandle stream(session, with(schedule, 24));
        std::vector<Output> outputs;
        std::thread pulling([&] { outputs = stream.rest(); });
        std::thread showing([&] { stream.show_all(pictures(24)); });
        for (unsigned turn = 0; turn < 6; ++turn) {
            stream.hear(voice(0.5, turn));
            EXPECT_OK(dithead_flush_audio(stream.handle));
        }
        stream.hear(voice(1.0, 99));
        showing.join();
        EXPECT_OK(dithead_finish(stream.handle));
        pulling.join();
        EXPECT(outputs.size() == 24);
        for (std::size_t n = 0; n < outputs.size(); ++n) {
            EXPECT(outputs[n].index == static_cast<std::int64_t>(n));
        }
        EXPECT(sound_of(outputs).size() == 24 * FRAME);
    }
}

TEST(speech_is_dropped_after_all_frames_were_made) {
    SessionHandle session;
    const std::vector<Bytes> images = pictures(4);
    for (const int overlap : {0, 1}) {
        StreamHandle stream(session, [&](dithead_stream_options &o) { o.overlap = overlap; });
        stream.hear(voice(1.0, 1));
        stream.show_all(images);
        EXPECT_OK(dithead_finish(stream.handle));
        dithead_stage_statistics told{};
        told.struct_size = sizeof told;
        while (told.frames < 4) { // composited
            EXPECT_OK(dithead_get_stage_statistics(stream.handle, 7, &told));
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        EXPECT(std::string(told.name) == "composite");
        EXPECT_OK(dithead_flush_audio(stream.handle));
        const std::vector<Output> outputs = stream.rest();
        EXPECT(same(outputs, expected(images, {{0, {}}}, options_with({}))));
        EXPECT(sound_of(outputs) == Sound(4 * FRAME));
    }
}

TEST(speech_that_is_dropped_before_the_first_frame) {
    // The sound begins with the first frame, whose time is not 0.
    SessionHandle session;
    StreamHandle stream(session);
    const std::int64_t start_us = 1'000'000;
    EXPECT_OK(stream.show(picture(0), start_us));
    stream.hear(voice(3.0, 1));
    EXPECT_OK(dithead_flush_audio(stream.handle));
    const Sound sound = voice(1.0, 2);
    stream.hear(sound);
    EXPECT_OK(dithead_finish(stream.handle));
    const Output output = stream.next();
    EXPECT(output.first_sample == 16'000);
    EXPECT(output.sound == part(sound, FRAME));
}
