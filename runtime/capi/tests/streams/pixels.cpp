// Pictures in other layouts than RGB24.
#include "pixels.hpp"

#include <cstdlib>

#include "streams.hpp"

namespace {

using dithead::PixelFormat;

constexpr std::int32_t LAYOUTS[] = {DITHEAD_PIXELS_NV12, DITHEAD_PIXELS_I420};

} // namespace

#ifdef DITHEAD_WITH_SWSCALE

namespace {

constexpr std::uint8_t GAP = 77;

struct Colour {
    int y, u, v, red, green, blue;
};
// BT.709, limited range: Rec. ITU-R BT.709-6, rounded.
constexpr Colour COLOURS[] = {
    {16, 128, 128, 0, 0, 0}, {235, 128, 128, 255, 255, 255}, {126, 128, 128, 128, 128, 128},
    {63, 102, 240, 255, 0, 0}, {173, 42, 26, 0, 255, 0}, {32, 240, 118, 0, 0, 255},
};

// A picture of one colour, with a gap behind each row.
Bytes plain(const Colour &colour, std::int32_t layout, int width, int height, int stride) {
    const bool nv12 = layout == DITHEAD_PIXELS_NV12;
    const int rows = nv12 ? height / 2 : height, chroma = nv12 ? stride : stride / 2;
    Bytes bytes;
    const auto row = [&](int length, int count, int first, int second) {
        for (int x = 0; x < length; ++x) {
            const int value = x % 2 == 0 ? first : second;
            bytes.push_back(x < count ? static_cast<std::uint8_t>(value) : GAP);
        }
    };
    for (int y = 0; y < height; ++y) row(stride, width, colour.y, colour.y);
    for (int y = 0; y < rows; ++y) {
        if (nv12) row(chroma, width, colour.u, colour.v);
        if (!nv12 && y < rows / 2) row(chroma, width / 2, colour.u, colour.u);
        if (!nv12 && y >= rows / 2) row(chroma, width / 2, colour.v, colour.v);
    }
    return bytes;
}

bool near(int found, int wanted) { return std::abs(found - wanted) <= 2; }

bool near(const Bytes &found, const Bytes &wanted) {
    if (found.size() != wanted.size()) return false;
    for (std::size_t n = 0; n < found.size(); ++n) {
        if (wanted[n] == GAP ? found[n] != GAP : !near(found[n], wanted[n])) return false;
    }
    return true;
}

} // namespace

TEST(colours_of_other_layouts) {
    for (const std::int32_t layout : LAYOUTS) {
        for (const Colour &colour : COLOURS) {
            for (const int width : {2, 6, 16, 34, 250}) {
                const int height = 6, stride = width + 4;
                const Bytes bytes = plain(colour, layout, width, height, stride);
                const dithead::Tensor image =
                    dithead::to_rgb(bytes.data(), width, height, static_cast<std::size_t>(stride),
                                    dithead::checked_format(layout));
                for (std::size_t n = 0; n < image.count(); n += 3) {
                    EXPECT(near(image.u8()[n], colour.red));
                    EXPECT(near(image.u8()[n + 1], colour.green));
                    EXPECT(near(image.u8()[n + 2], colour.blue));
                }
            }
        }
    }
}

// Frames without a face, which therefore come out as they went in, but for rounding.
TEST(streams_of_other_layouts) {
    SessionHandle session;
    for (const std::int32_t layout : LAYOUTS) {
        StreamHandle stream(session, [&](auto &o) { o.pixel_format = layout; });
        const int stride = WIDTH + 6;
        stream.hear(voice(1.0, 1));
        for (const Colour &colour : {COLOURS[0], COLOURS[4]}) {
            const Bytes bytes = plain(colour, layout, WIDTH, HEIGHT, stride);
            dithead_frame frame = frame_of(bytes);
            frame.stride = static_cast<std::size_t>(stride);
            frame.pts_us = colour.y * FRAME_US;
            EXPECT_OK(dithead_push_frame(stream.handle, &frame, DITHEAD_WAIT_FOREVER));
        }
        EXPECT_OK(dithead_finish(stream.handle));
        for (const Colour &colour : {COLOURS[0], COLOURS[4]}) {
            const Bytes wanted = plain(colour, layout, WIDTH, HEIGHT, stride);
            Bytes found(wanted.size(), GAP);
            dithead_output out;
            EXPECT_OK(dithead_output_init(&out, sizeof out));
            out.stride = static_cast<std::size_t>(stride);
            out.pixels = found.data();
            out.pixels_capacity = 1;
            EXPECT_STATUS(dithead_pull_frame(stream.handle, &out, DITHEAD_WAIT_FOREVER),
                          DITHEAD_ERROR_BUFFER_TOO_SMALL);
            EXPECT(out.pixels_size <= wanted.size());
            out.pixels_capacity = out.pixels_size;
            EXPECT_OK(dithead_pull_frame(stream.handle, &out, DITHEAD_WAIT_FOREVER));
            EXPECT(out.left_alone == DITHEAD_LEFT_ALONE_NO_FACE);
            EXPECT(near(found, wanted));
        }
    }
}

TEST(other_layouts_need_even_sizes) {
    SessionHandle session;
    const Bytes bytes(WIDTH * HEIGHT * 3);
    for (const std::int32_t layout : LAYOUTS) {
        StreamHandle stream(session, [&](auto &o) { o.pixel_format = layout; });
        const auto status = [&](int width, int height, std::size_t stride) {
            dithead_frame frame = frame_of(bytes);
            frame.width = width, frame.height = height, frame.stride = stride;
            return dithead_push_frame(stream.handle, &frame, 0);
        };
        EXPECT_STATUS(status(WIDTH - 1, HEIGHT, WIDTH), DITHEAD_ERROR_INVALID_ARGUMENT);
        EXPECT_STATUS(status(WIDTH, HEIGHT - 1, WIDTH), DITHEAD_ERROR_INVALID_ARGUMENT);
        EXPECT_STATUS(status(WIDTH, HEIGHT, WIDTH - 2), DITHEAD_ERROR_INVALID_ARGUMENT);
        EXPECT_STATUS(status(WIDTH, HEIGHT, WIDTH + 1),
                      layout == DITHEAD_PIXELS_I420 ? DITHEAD_ERROR_INVALID_ARGUMENT : DITHEAD_OK);
    }
}

#else

TEST(other_layouts_need_libswscale) {
    SessionHandle session;
    for (const std::int32_t layout : LAYOUTS) {
        const auto options = options_with([&](auto &o) { o.pixel_format = layout; });
        dithead_stream *stream = nullptr;
        EXPECT_STATUS(dithead_stream_create(session.handle, &options, &stream),
                      DITHEAD_ERROR_UNSUPPORTED);
        EXPECT(stream == nullptr);
    }
}

#endif
