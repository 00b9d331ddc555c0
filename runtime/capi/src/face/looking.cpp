// How FaceTracker looks for a face in the whole frame.
#include <algorithm>
#include <limits>

#include "limits.hpp"
#include "tracker.hpp"

namespace dithead {

using namespace limits;

TrackedFace begun(TrackedFace found) {
    found.changed = true;
    return found;
}

FaceTracker::Found FaceTracker::look(const Tensor &frame, const Found &followed, bool cut,
                                     const FaceChoice &choice) {
    Sightings faces = seen(frame);
    const bool wide = lost_ % REDETECT_EVERY == 0;
    since_detection_ = 0;
    if (cut && !sees_others(frame, faces)) bound_ = false;
    if (bound_) {
        if (last_) faces = search_.closer(frame, last_->place, faces);
        Found found = person_again(frame, followed, faces);
        if (!found && wide) found = person_again(frame, std::nullopt, search_.turned(frame));
        if (found) return found;
        return small(frame, [&](const Sightings &few) {
            return person_again(frame, std::nullopt, few);
        });
    }
    Found found = preferred(frame, faces);
    if (!found) found = by_choice(frame, faces, wide, choice);
    if (!found && followed) { // only the detector does not see it
        const Found again = fit_again(frame, *followed);
        found = again ? again : followed;
    }
    if (!found) return std::nullopt;
    if (found->measures.unlike_person > AGAIN) person_ = Tensor();
    others_ = Others(graphs_);
    note_others(frame, *found, faces);
    return begun(*found);
}

FaceTracker::Found FaceTracker::person_again(const Tensor &frame, const Found &followed,
                                             const Sightings &seen) {
    const Box place = followed ? followed->place : last_->place;
    Found best;
    std::vector<std::optional<Other>> others;
    for (const Sighting &face : first_of(seen, LOOKED_AT)) {
        const Found found = fit_sighting(frame, face);
        if (!found) continue;
        const double shared = overlap(place, face.box);
        const std::optional<Other> other = others_.at(face);
        double limit = shared > MIN_OVERLAP ? ANOTHER : AGAIN;
        if (shared > SAME_PLACE && !others_.near(place)) limit = TURNED;
        if (other) limit = AGAIN;
        // A face that is more like somebody else belongs to them.
        limit = std::min(limit, others_.unlike(found->looks) * (other ? 0.5 : 1.0));
        const double unlike = found->measures.unlike_person;
        if (unlike <= limit && (!best || unlike < best->measures.unlike_person)) {
            best = found;
        } else {
            const std::optional<Other> one = other ? other : others_.like(found->looks, AGAIN);
            others.push_back(seen_at(face.box, one, found->looks));
        }
    }
    others_.replace(others, true);
    if (!best && followed) {
        const double limit = std::min(ANOTHER, others_.unlike(followed->looks));
        if (followed->measures.unlike_person <= limit) {
            const Found again = fit_again(frame, *followed);
            best = again ? again : followed;
        }
    }
    if (!best) return std::nullopt;
    return best->relit() ? begun(*best) : best;
}

FaceTracker::Found FaceTracker::preferred(const Tensor &frame, const Sightings &seen) {
    if (!person_.defined()) return std::nullopt;
    Found best;
    for (const Sighting &face : first_of(seen, LOOKED_AT)) {
        const Found found = fit_sighting(frame, face);
        if (!found || !(found->measures.unlike_person <= AGAIN)) continue;
        if (!best || found->measures.unlike_person < best->measures.unlike_person) best = found;
    }
    return best;
}

FaceTracker::Found FaceTracker::by_choice(const Tensor &frame, const Sightings &seen, bool wide,
                                          const FaceChoice &choice) {
    const std::optional<std::size_t> meant = chosen(seen, choice);
    const auto [upright, doubt] = tried(frame, meant ? &seen[*meant] : nullptr);
    if (upright && doubt <= CERTAIN) return upright;
    if (upright || wide) {
        if (Found found = surest(frame, search_.turned(frame), choice)) return found;
    }
    if (upright && doubt <= LIKELY) return upright;
    return small(frame, [&](const Sightings &few) { return surest(frame, few, choice); });
}

// Small faces: on the first frame, in all tiles; later, in a few tiles per frame, because searching
// all of them takes as long as many frames. Ends with the first that is found.
FaceTracker::Found FaceTracker::small(const Tensor &frame,
                                      const std::function<Found(const Sightings &)> &visit) {
    const std::vector<std::vector<Tile>> levels = search_.levels(frame);
    if (scene_.is_new()) {
        for (const std::vector<Tile> &tiles : levels) {
            if (Found found = visit(search_.in_tiles(frame, tiles))) return found;
        }
        return std::nullopt;
    }
    std::vector<Tile> tiles;
    for (const std::vector<Tile> &level : levels) {
        tiles.insert(tiles.end(), level.begin(), level.end());
    }
    for (std::size_t n = 0; n < std::min(TILES_A_FRAME, tiles.size()); ++n) {
        next_tile_ = (next_tile_ + 1) % tiles.size();
        if (Found found = visit(search_.in_tiles(frame, {tiles[next_tile_]}))) return found;
    }
    return std::nullopt;
}

FaceTracker::Found FaceTracker::surest(const Tensor &frame, const Sightings &seen,
                                       const FaceChoice &choice) {
    Sightings certain;
    std::vector<Face> fits;
    for (const Sighting &face : first_of(seen, 2 * LOOKED_AT)) {
        const bool known = std::any_of(certain.begin(), certain.end(), [&](const Sighting &other) {
            return overlap(face.box, other.box) > MIN_OVERLAP;
        });
        if (known) continue;
        const auto [found, doubt] = tried(frame, &face);
        if (found && doubt <= CERTAIN) {
            certain.push_back(face);
            fits.push_back(*found);
        }
    }
    const std::optional<std::size_t> taken = chosen(certain, choice);
    if (!taken) return std::nullopt;
    return fits[*taken];
}

std::pair<FaceTracker::Found, double> FaceTracker::tried(const Tensor &frame,
                                                         const Sighting *face) {
    const Found found = face == nullptr ? std::nullopt : fit_sighting(frame, *face);
    if (!found) return {std::nullopt, std::numeric_limits<double>::infinity()};
    return {found, search_.doubt(frame, found->mesh)};
}

} // namespace dithead
