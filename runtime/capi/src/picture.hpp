// A picture with its place in time, and where pictures come from (runtime/pictures.py).
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>

#include "channel.hpp"
#include "generator.hpp"
#include "moment.hpp"
#include "tensor.hpp"

namespace dithead {

// Seconds on the clock that never goes back.
double now_s();

struct Picture {
    std::int64_t index = 0;
    Moment time;
    Tensor image; // (H, W, 3) u8, red, green, blue; never changed
    std::optional<Box> face_box;
    double arrived_s = 0.0;    // when it arrived, or was due, on the clock; 0: it does not wait
    std::optional<Moment> end; // when the next one is due, if known

    std::int64_t height() const { return image.shape()[0]; }
    std::int64_t width() const { return image.shape()[1]; }
};

// A copy of a picture (H, W, 3) with a rectangle (S, S, 3) laid on it where its mask (S, S) is
// above 0. The rectangle may reach beyond the picture.
Tensor lay_on(const Tensor &picture, int left, int top, const Tensor &rectangle,
              const Tensor &mask);

// Tells whether a picture shows the same as the one before, to the bit.
class SamePicture {
public:
    bool operator()(const Tensor &image); // pictures must come in order

private:
    Tensor last_;
};

// Where a stream's pictures come from. One thread takes them.
class Source : public Waited {
public:
    // The next picture, waiting for it; nullopt at the end. Throws Stopped.
    virtual std::optional<Picture> next() = 0;
};

class PushedPictures : public Source {
public:
    explicit PushedPictures(std::size_t waiting) : inbox_(waiting) {}

    Channel<Picture> &inbox() { return inbox_; }
    std::optional<Picture> next() override;
    void stop() override { inbox_.stop(); }
    void pause() override { inbox_.pause(); }
    void resume() override { inbox_.resume(); }

private:
    Channel<Picture> inbox_;
};

// A frame rate, in lowest terms.
struct FrameRate {
    std::int64_t numerator = 25;
    std::int64_t denominator = 1;

    Moment after(std::int64_t frames) const { return Moment::of(frames * denominator, numerator); }
};

// A portrait that a stream shows by itself, until another is set; without end.
class Portrait : public Source {
public:
    // realtime: whether a picture waits for its turn on the clock. delay_s: how late each may be
    // asked for because whoever asks waits for the sound of the one before.
    Portrait(Tensor image, FrameRate rate, bool realtime, double delay_s);

    void change(Tensor image); // from the next picture on
    std::optional<Picture> next() override;
    void stop() override { pause(); }
    void pause() override;
    void resume() override;

private:
    Picture begin_next();
    Picture in_time(Picture picture);
    void wait_for(double due_s);

    const FrameRate rate_;
    const bool realtime_;
    const double latest_s_; // after its turn, a picture is left out
    std::mutex mutex_;
    std::condition_variable changed_;
    Tensor image_;
    Tensor next_;
    std::int64_t shown_ = 0; // pictures that were begun, those left out included
    std::int64_t index_ = 0;
    std::optional<double> began_s_;
    std::optional<Picture> early_; // whose turn has not come yet
    bool turned_away_ = false;
};

} // namespace dithead
