// Searches a whole frame for faces: upright, on their side, upside down, and small
// (dithead/face/search.py).
#pragma once

#include <functional>
#include <vector>

#include "../graphs.hpp"
#include "box.hpp"

namespace dithead {

using Sightings = std::vector<Sighting>;

struct Tile {
    std::int64_t left, top, side;
};

// Samples along each side of a pixel that a region of a side length needs (dithead/face/mesh.py).
int samples_for(double side_px);
// Side of the region round a face's box.
double region_side(const Box &box);

// The surest of them.
Sightings first_of(const Sightings &seen, std::size_t most);

class FaceSearch {
public:
    explicit FaceSearch(Graphs &graphs) : graphs_(graphs) {}

    // The region (1, 5) in which to fit a mesh to a sighting.
    Tensor region(const Sighting &seen) const;
    // Faces of a frame that are roughly upright, the surest first.
    Sightings upright(const Tensor &frame) const;
    // Faces on their side or upside down; upright faces may be among them.
    Sightings turned(const Tensor &frame) const;
    // Faces that were seen in the whole frame, and those seen close up round a place, if a face of
    // that size is easily missed in the whole frame.
    Sightings closer(const Tensor &frame, const Box &place, Sightings seen) const;
    // Tiles that cover a frame, for each tile size.
    std::vector<std::vector<Tile>> levels(const Tensor &frame) const;
    Sightings in_tiles(const Tensor &frame, const std::vector<Tile> &tiles) const;
    // How much the detector disagrees with a mesh (468, 3) when it looks at that face alone.
    double doubt(const Tensor &frame, const Tensor &mesh) const;

private:
    Graphs &graphs_;
};

} // namespace dithead
