#include "search.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "../arrays.hpp"

namespace dithead {
namespace {

constexpr std::int64_t SMALLEST_SHARE = 7, SMALLEST_PX = 48;
constexpr double SMALLER = 1.8, CLOSE = 4.0;
constexpr std::int64_t CLOSE_PX = 128;
constexpr double SHRUNK_LITTLE = 1.5, ROI_SCALE = 1.5;
constexpr int INPUT_SIZE = 192, MOST_SAMPLES = 2;

// Half to even, as Python rounds.
std::int64_t rounded(double value) { return static_cast<std::int64_t>(std::nearbyint(value)); }

// A frame turned counter-clockwise by so many quarter turns.
Tensor quarter_turned(const Tensor &frame, int turns) {
    const std::int64_t height = frame.shape()[0], width = frame.shape()[1];
    const bool lies = turns != 2;
    const std::int64_t rows = lies ? width : height, columns = lies ? height : width;
    Tensor made = Tensor::make(Type::u8, {rows, columns, 3});
    const std::uint8_t *from = frame.u8();
    std::uint8_t *to = made.u8();
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t column = 0; column < columns; ++column, to += 3) {
            std::int64_t y = height - 1 - row, x = width - 1 - column; // two turns
            if (turns == 1) {
                y = column;
                x = width - 1 - row;
            } else if (turns == 3) {
                y = height - 1 - column;
                x = row;
            }
            std::memcpy(to, from + 3 * (y * width + x), 3);
        }
    }
    return made;
}

// A point of a picture that was turned, in the original picture.
Point turned_back(const Point &point, int turns, double height, double width) {
    const auto [x, y] = point;
    if (turns == 1) return {width - y, x};
    if (turns == 2) return {width - x, height - y};
    return {y, height - x};
}

Tensor cut_out(const Tensor &frame, const Tile &tile) {
    const std::int64_t height = std::min(tile.side, frame.shape()[0] - tile.top);
    const std::int64_t width = std::min(tile.side, frame.shape()[1] - tile.left);
    Tensor made = Tensor::make(Type::u8, {height, width, 3});
    const std::uint8_t *from = frame.u8() + 3 * (tile.top * frame.shape()[1] + tile.left);
    for (std::int64_t row = 0; row < height; ++row) {
        std::memcpy(made.u8() + 3 * row * width, from + 3 * row * frame.shape()[1],
                    static_cast<std::size_t>(3 * width));
    }
    return made;
}

// Where tiles of one side length begin so that they cover a length and overlap enough.
std::vector<std::int64_t> starts(std::int64_t length, std::int64_t side, std::int64_t common) {
    if (length <= side) return {0};
    const std::int64_t step = side - common, rest = length - side;
    const std::int64_t gaps = (rest + step - 1) / step;
    std::vector<std::int64_t> found;
    for (std::int64_t n = 0; n <= gaps; ++n) {
        found.push_back(rounded(static_cast<double>(n * rest) / static_cast<double>(gaps)));
    }
    return found;
}

bool is_known(const Box &box, const Sightings &seen) {
    return std::any_of(seen.begin(), seen.end(),
                       [&](const Sighting &other) { return overlap(box, other.box) > 0.2; });
}

Tensor floats_of(const double *values, std::size_t count, std::vector<std::int64_t> shape) {
    Tensor made = Tensor::make(Type::f32, std::move(shape));
    for (std::size_t n = 0; n < count; ++n) made.f32()[n] = static_cast<float>(values[n]);
    return made;
}

} // namespace

int samples_for(double side_px) {
    return side_px <= SHRUNK_LITTLE * INPUT_SIZE ? 1 : MOST_SAMPLES;
}

double region_side(const Box &box) { return ROI_SCALE * std::max(box[2] - box[0], box[3] - box[1]); }

Sightings first_of(const Sightings &seen, std::size_t most) {
    return {seen.begin(), seen.begin() + static_cast<std::ptrdiff_t>(std::min(seen.size(), most))};
}

Tensor FaceSearch::region(const Sighting &seen) const {
    return graphs_.run("face_sighting", {floats_of(seen.box.data(), 4, {4}),
                                         floats_of(seen.keypoints[0].data(), 12, {6, 2})})[0];
}

Sightings FaceSearch::upright(const Tensor &frame) const {
    const std::vector<Tensor> outputs = graphs_.run("face_detector", {frame});
    const float *boxes = outputs[0].f32(), *scores = outputs[1].f32(), *points = outputs[2].f32();
    Sightings seen;
    for (std::size_t n = 0; n < outputs[1].count(); ++n) {
        if (!(scores[n] > 0)) continue;
        Sighting face;
        std::copy_n(boxes + 4 * n, 4, face.box.begin());
        for (std::size_t k = 0; k < face.keypoints.size(); ++k) {
            face.keypoints[k] = {points[12 * n + 2 * k], points[12 * n + 2 * k + 1]};
        }
        face.score = scores[n];
        seen.push_back(face);
    }
    return seen;
}

Sightings FaceSearch::turned(const Tensor &frame) const {
    const auto height = static_cast<double>(frame.shape()[0]);
    const auto width = static_cast<double>(frame.shape()[1]);
    Sightings found;
    for (const int turns : {1, 3, 2}) {
        for (Sighting face : upright(quarter_turned(frame, turns))) {
            const Point a = turned_back({face.box[0], face.box[1]}, turns, height, width);
            const Point b = turned_back({face.box[2], face.box[3]}, turns, height, width);
            face.box = {std::min(a[0], b[0]), std::min(a[1], b[1]), std::max(a[0], b[0]),
                        std::max(a[1], b[1])};
            for (Point &point : face.keypoints) point = turned_back(point, turns, height, width);
            found.push_back(face);
        }
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const Sighting &a, const Sighting &b) { return a.score > b.score; });
    return found;
}

Sightings FaceSearch::closer(const Tensor &frame, const Box &place, Sightings seen) const {
    const std::int64_t height = frame.shape()[0], width = frame.shape()[1];
    const double across = std::max(place[2] - place[0], place[3] - place[1]);
    if (across * SMALLEST_SHARE > 2.0 * static_cast<double>(std::max(height, width))) return seen;
    const std::int64_t side = std::max(CLOSE_PX, rounded(CLOSE * across));
    const auto start = [&](double low, double high, std::int64_t length) {
        const double middle = (low + high) / 2 - static_cast<double>(side) / 2;
        return std::max<std::int64_t>(0, std::min(length - side, rounded(middle)));
    };
    const Tile tile{start(place[0], place[2], width), start(place[1], place[3], height), side};
    Sightings added;
    for (const Sighting &face : in_tiles(frame, {tile})) {
        if (!is_known(face.box, seen)) added.push_back(face);
    }
    seen.insert(seen.end(), added.begin(), added.end());
    return seen;
}

std::vector<std::vector<Tile>> FaceSearch::levels(const Tensor &frame) const {
    const std::int64_t height = frame.shape()[0], width = frame.shape()[1];
    constexpr std::int64_t least = SMALLEST_SHARE * SMALLEST_PX;
    std::vector<std::vector<Tile>> found;
    for (std::int64_t before = std::max(height, width); static_cast<double>(before) > 1.2 * least;) {
        const std::int64_t side = std::max(least, rounded(static_cast<double>(before) / SMALLER));
        const std::int64_t common = before / SMALLEST_SHARE; // was found before
        std::vector<Tile> tiles;
        for (const std::int64_t top : starts(height, side, common)) {
            for (const std::int64_t left : starts(width, side, common)) {
                tiles.push_back({left, top, side});
            }
        }
        found.push_back(std::move(tiles));
        before = side;
    }
    return found;
}

Sightings FaceSearch::in_tiles(const Tensor &frame, const std::vector<Tile> &tiles) const {
    Sightings found;
    for (const Tile &tile : tiles) {
        const auto left = static_cast<double>(tile.left), top = static_cast<double>(tile.top);
        for (Sighting face : upright(cut_out(frame, tile))) {
            face.box = {face.box[0] + left, face.box[1] + top, face.box[2] + left,
                        face.box[3] + top};
            if (is_known(face.box, found)) continue;
            for (Point &point : face.keypoints) point = {point[0] + left, point[1] + top};
            found.push_back(face);
        }
    }
    return found;
}

double FaceSearch::doubt(const Tensor &frame, const Tensor &mesh) const {
    const std::vector<Tensor> look = graphs_.run("face_look", {mesh});
    const std::vector<double> places = numbers(look[1]); // four points, width, side
    const std::string cut = "face_region." + std::to_string(samples_for(places[9]));
    const Tensor picture = graphs_.run(cut, {frame, look[0]})[0];
    double least = std::numeric_limits<double>::infinity();
    for (const Sighting &face : upright(graphs_.run("face_picture", {picture})[0])) {
        double total = 0.0;
        for (std::size_t n = 0; n < 4; ++n) {
            const double x = face.keypoints[n][0] - places[2 * n];
            const double y = face.keypoints[n][1] - places[2 * n + 1];
            total += std::sqrt(x * x + y * y);
        }
        least = std::min(least, total / 4 / places[8] + 0.3 * (1.0 - face.score));
    }
    return least;
}

} // namespace dithead
