#include "picture.hpp"

#include <algorithm>
#include <cstring>

namespace dithead {
namespace {

// A picture of a portrait whose turn passed longer ago than this is left out.
constexpr double LATE_S = 0.25;
// If it passed longer ago than this, nobody pulled: the stream goes on where it stood.
constexpr double STOOD_STILL_S = 1.0;
// Pictures that are left out in a row, at most.
constexpr int LEFT_OUT = 8;

} // namespace

double now_s() {
    return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

Tensor lay_on(const Tensor &picture, int left, int top, const Tensor &rectangle,
              const Tensor &mask) {
    const std::int64_t height = picture.shape()[0], width = picture.shape()[1];
    const std::int64_t side = rectangle.shape()[0];
    const std::int64_t x0 = std::clamp<std::int64_t>(left, 0, width);
    const std::int64_t x1 = std::clamp<std::int64_t>(left + side, x0, width);
    const std::int64_t y0 = std::clamp<std::int64_t>(top, 0, height);
    const std::int64_t y1 = std::clamp<std::int64_t>(top + side, y0, height);
    if (x0 == x1 || y0 == y1) return picture;
    Tensor image = picture.clone();
    for (std::int64_t y = y0; y < y1; ++y) {
        const std::uint8_t *from = rectangle.u8() + ((y - top) * side + x0 - left) * 3;
        const float *weight = mask.f32() + (y - top) * side + x0 - left;
        std::uint8_t *to = image.u8() + (y * width + x0) * 3;
        for (std::int64_t x = x0; x < x1; ++x, from += 3, to += 3, ++weight) {
            if (*weight > 0.0F) std::copy_n(from, 3, to);
        }
    }
    return image;
}

bool SamePicture::operator()(const Tensor &image) {
    const bool same =
        last_.defined() && last_.shape() == image.shape() &&
        (last_.is(image) || std::memcmp(last_.data(), image.data(), image.bytes()) == 0);
    if (!same) last_ = image;
    return same;
}

std::optional<Picture> PushedPictures::next() {
    try {
        return inbox_.get();
    } catch (const Closed &) {
        return std::nullopt;
    }
}

Portrait::Portrait(Tensor image, FrameRate rate, bool realtime, double delay_s)
    : rate_(rate), realtime_(realtime), latest_s_(LATE_S + delay_s), image_(std::move(image)) {}

void Portrait::change(Tensor image) {
    const std::lock_guard lock(mutex_);
    next_ = std::move(image);
}

std::optional<Picture> Portrait::next() {
    Picture picture = early_ ? *early_ : begin_next();
    if (realtime_) {
        picture = in_time(std::move(picture));
        early_ = picture;
        wait_for(picture.arrived_s);
        early_.reset();
    }
    picture.index = index_++;
    return picture;
}

// The picture, or a later one if its turn has passed: a machine that is too slow must not fall
// behind for ever.
Picture Portrait::in_time(Picture picture) {
    const auto turned_away = [this] {
        const std::lock_guard lock(mutex_);
        return turned_away_;
    };
    for (int left_out = 0; left_out < LEFT_OUT; ++left_out) {
        const double late_s = now_s() - picture.arrived_s;
        if (turned_away() || late_s <= latest_s_ || late_s > latest_s_ + STOOD_STILL_S) break;
        picture = begin_next();
    }
    const double late_s = now_s() - picture.arrived_s;
    if (late_s > latest_s_ && began_s_) {
        *began_s_ += late_s;
        picture.arrived_s += late_s;
    }
    return picture;
}

Picture Portrait::begin_next() {
    {
        const std::lock_guard lock(mutex_);
        if (next_.defined()) image_ = std::move(next_);
        next_ = Tensor();
    }
    Picture picture;
    picture.time = rate_.after(shown_);
    picture.end = rate_.after(++shown_);
    picture.image = image_;
    if (realtime_) {
        const double time_s = picture.time.seconds();
        if (!began_s_) began_s_ = now_s() - time_s;
        picture.arrived_s = *began_s_ + time_s;
    }
    return picture;
}

void Portrait::wait_for(double due_s) {
    std::unique_lock lock(mutex_);
    while (now_s() < due_s) {
        if (turned_away_) throw Stopped();
        changed_.wait_for(lock, std::chrono::duration<double>(due_s - now_s()));
    }
}

void Portrait::pause() {
    const std::lock_guard lock(mutex_);
    turned_away_ = true;
    changed_.notify_all();
}

void Portrait::resume() {
    const std::lock_guard lock(mutex_);
    turned_away_ = false;
}

} // namespace dithead
