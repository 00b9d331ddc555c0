// Places in a frame, and how a caller says whom to follow (dithead/face/choice.py).
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <vector>

namespace dithead {

using Point = std::array<double, 2>; // x, y
using Box = std::array<double, 4>;   // left, top, right, bottom in pixels of the frame

double area(const Box &box);
double overlap(const Box &a, const Box &b); // intersection over union
bool inside(const Point &point, const Box &box);

// A face as the detector sees it (dithead/face/search.py).
struct Sighting {
    Box box;
    std::array<Point, 6> keypoints;
    double score = 0.0;
};

enum class FaceChoiceKind { largest, index, point, box };

struct FaceChoice {
    FaceChoiceKind kind = FaceChoiceKind::largest;
    int index = 0; // counted from the left
    Box box{};     // a point: its first two
};

// Which of the faces of a frame a choice means, if any.
std::optional<std::size_t> chosen(const std::vector<Sighting> &seen, const FaceChoice &choice);

} // namespace dithead
