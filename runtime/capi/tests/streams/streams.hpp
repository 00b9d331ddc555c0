// What the tests of streams share: handles, pictures, sound, and what must come of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "dithead.h"
#include "pretend.hpp"

using pretend::Bytes;
using Sound = std::vector<float>;

// Ends the program if it is not true.
void expect(bool what, const char *text, const char *file, int line);
#define EXPECT(what) expect((what), #what, __FILE__, __LINE__)
// Fails with the message of the call, too.
void expect_status(dithead_status found, dithead_status wanted, const char *file, int line);
#define EXPECT_STATUS(call, wanted) expect_status((call), (wanted), __FILE__, __LINE__)
#define EXPECT_OK(call) EXPECT_STATUS(call, DITHEAD_OK)

// A test, run by main under its name.
struct Test {
    Test(const char *name, void (*run)());
};
#define TEST(name)                                                                                 \
    static void name();                                                                            \
    static const Test test_##name(#name, name);                                                    \
    static void name()

constexpr int WIDTH = 16, HEIGHT = 12;
constexpr std::int64_t FRAME_US = 40'000; // 25 frames a second

Bytes picture(int number);
Bytes blank(int number); // that shows no face
std::vector<Bytes> pictures(int count);
Sound voice(double seconds, unsigned seed);

struct SessionHandle {
    SessionHandle();
    ~SessionHandle() { dithead_session_destroy(handle); }
    dithead_session *handle = nullptr;
};

struct Event {
    std::int64_t index;
    int kind;
    std::uint64_t piece;
    std::int64_t sample;
    bool operator==(const Event &other) const;
};

struct Output {
    std::int64_t index, pts_us;
    int left_alone;
    Bytes pixels;
    Sound sound;
    std::int64_t first_sample;
    std::vector<Event> events;
};

using Change = std::function<void(dithead_stream_options &)>;
// Changes that most tests make: all stages in one thread, every stage its own.
extern const std::vector<Change> SCHEDULES;

// A frame as it is pushed, of a picture that outlives it.
dithead_frame frame_of(const Bytes &image);

struct StreamHandle {
    explicit StreamHandle(SessionHandle &session, const Change &change = {});
    ~StreamHandle() { dithead_stream_destroy(handle); }
    StreamHandle(const StreamHandle &) = delete;
    StreamHandle &operator=(const StreamHandle &) = delete;

    void hear(const Sound &sound);
    dithead_status show(const Bytes &image, std::int64_t pts_us,
                        std::int64_t timeout_us = DITHEAD_WAIT_FOREVER);
    void show_all(const std::vector<Bytes> &images);
    dithead_status pull(Output &output, std::int64_t timeout_us = DITHEAD_WAIT_FOREVER);
    Output next();              // the next frame, which must come
    std::vector<Output> rest(); // all frames until the end
    std::string error();

    dithead_stream *handle = nullptr;
};

// A sound and the number of the first frame that hears it.
using Heard = std::vector<std::pair<int, Sound>>;
// What must come of pictures, every 40 ms, and sounds.
std::vector<Bytes> expected(const std::vector<Bytes> &images, const Heard &heard,
                            const dithead_stream_options &options);
dithead_stream_options options_with(const Change &change);

bool same(const std::vector<Output> &found, const std::vector<Bytes> &wanted);
Sound sound_of(const std::vector<Output> &outputs);
Sound joined(const Sound &first, const Sound &second);
Sound part(const Sound &sound, std::size_t count); // its first samples
