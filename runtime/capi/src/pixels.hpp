// The layouts in which callers hand over pictures. Inside, every picture is (H, W, 3) u8 RGB.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor.hpp"

namespace dithead {

constexpr std::int64_t LEAST_SIDE = 2, MOST_SIDE = 16'384;

enum class PixelFormat { rgb24, nv12, i420 };

// Throws Error: unknown, or DITHEAD_ERROR_UNSUPPORTED: not in this build.
PixelFormat checked_format(std::int32_t format);

// Throws Error: a caller's picture is NULL, or its size or stride cannot be.
void check_picture(const std::uint8_t *pixels, std::int64_t width, std::int64_t height,
                   std::size_t stride, PixelFormat format);

// Copies a caller's picture. Throws Error: NULL, or a size or stride that cannot be.
Tensor to_rgb(const std::uint8_t *pixels, std::int64_t width, std::int64_t height,
              std::size_t stride, PixelFormat format);

// Bytes that a picture takes; stride 0: rows follow each other. Throws Error: the stride or the
// size does not fit the format.
std::size_t bytes_of_picture(std::int64_t width, std::int64_t height, std::size_t stride,
                             PixelFormat format);

// A picture in a layout, rows following each other; the same tensor where nothing changes.
Tensor from_rgb(const Tensor &rgb, PixelFormat format);

// Writes that into a caller's rows.
void write_rows(const Tensor &picture, std::int64_t width, std::int64_t height, PixelFormat format,
                std::uint8_t *out, std::size_t stride);

} // namespace dithead
