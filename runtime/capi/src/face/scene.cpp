#include "scene.hpp"

#include <algorithm>
#include <utility>

#include "../arrays.hpp"

namespace dithead {
namespace {

constexpr double SCENE = 0.6, SWAP = 0.11;
constexpr double SCENE_RATIO = 1.5, SWAP_RATIO = 2.5;
constexpr std::size_t GLANCES = 4;
constexpr int ROWS = 18, COLUMNS = 32;
constexpr double ROUND = 0.5; // times the face's size, on each side

// Which of equal parts the range from `low` to `high` of a length touches: the first, and one past
// the last.
std::pair<int, int> span(double low, double high, int count) {
    const double most = count;
    const int first = std::min(count - 1, static_cast<int>(std::clamp(low * most, 0.0, most)));
    const int last = static_cast<int>(std::clamp(high * most + 1, 0.0, most));
    return {first, std::max(first + 1, last)};
}

} // namespace

void Scene::see(const Tensor &frame) {
    height_ = static_cast<double>(frame.shape()[0]);
    width_ = static_cast<double>(frame.shape()[1]);
    glances_.push_back(graphs_.run("frame_glance", {frame})[0]);
    if (glances_.size() > GLANCES) glances_.pop_front();
}

bool Scene::has_cut(const Box *place) const {
    if (glances_.size() < 2) return false;
    std::vector<double> found = changes({glances_.begin(), glances_.end()}, place);
    const double change = found.back();
    found.pop_back();
    const double share = found.back();
    found.pop_back();
    const double usual = found.empty() ? 0.0 : *std::min_element(found.begin(), found.end());
    if (share >= std::max(SCENE, SCENE_RATIO * usual)) return true;
    return place != nullptr && share >= std::max(SWAP, SWAP_RATIO * usual) && change >= SWAP;
}

bool Scene::has_changed(const Tensor &before, const Box &place) const {
    const std::vector<double> found = changes({before, now()}, &place);
    return *std::min_element(found.begin(), found.end()) >= SWAP;
}

std::vector<double> Scene::changes(std::vector<Tensor> glances, const Box *place) const {
    const std::size_t missing = GLANCES - glances.size();
    glances.insert(glances.begin(), missing, Tensor(glances.front()));
    const std::vector<double> found =
        numbers(graphs_.run("scene_change", {stacked(glances), inside(place)})[0]);
    return {found.begin() + static_cast<std::ptrdiff_t>(missing), found.end()};
}

Tensor Scene::inside(const Box *place) const {
    std::pair<int, int> rows{0, ROWS}, columns{0, COLUMNS};
    if (place != nullptr) {
        const Box &p = *place;
        const double x = ROUND * (p[2] - p[0]), y = ROUND * (p[3] - p[1]);
        rows = span((p[1] - y) / height_, (p[3] + y) / height_, ROWS);
        columns = span((p[0] - x) / width_, (p[2] + x) / width_, COLUMNS);
    }
    Tensor part = Tensor::make(Type::f32, {ROWS, COLUMNS});
    for (int row = rows.first; row < rows.second; ++row) {
        std::fill(part.f32() + row * COLUMNS + columns.first,
                  part.f32() + row * COLUMNS + columns.second, 1.0F);
    }
    return part;
}

} // namespace dithead
