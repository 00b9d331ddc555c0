// When a face is whose: the limits of dithead/face/tracker.py, explained there.
#pragma once

#include <cstddef>

namespace dithead::limits {

constexpr double MIN_MESH_SCORE = 0.5, SAME_PLACE = 0.4, MAX_JUMP = 0.5, MAX_MOTION = 0.15;
constexpr double MAX_UNLIKENESS = 0.12, MAX_LIGHT_STEP = 0.4, RELIT_UNLIKENESS = 0.08;
constexpr double ANOTHER = 0.3, TURNED = 0.5, AGAIN = 0.18, NEW_LOOK = 0.08;
constexpr double CERTAIN = 0.1, LIKELY = 0.2, SAME_TURN = 0.12;
constexpr std::size_t TILES_A_FRAME = 2, LOOKED_AT = 6;
constexpr int REDETECT_EVERY = 10;

} // namespace dithead::limits
