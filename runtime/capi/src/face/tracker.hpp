// Follows one person's face through a video, frame by frame (dithead/face/tracker.py).
#pragma once

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "others.hpp"
#include "passing.hpp"
#include "scene.hpp"
#include "search.hpp"

namespace dithead {

constexpr std::size_t GALLERY = 6; // looks of a person that are stored, and of the mouth

// A judgement, in the order of the graph face_judge's output.
struct Measures {
    double score, moved, unlike_last, unlike_person, light_step, level, contrast, sharpness,
        unlike_mouth, unlike_first_mouth, redness, turn;
};

struct TrackedFace {
    Tensor mesh;   // (468, 3) in frame pixels
    Tensor region; // (1, 5), the region in which the mesh was fitted
    int samples = 1;
    Tensor looks, mouth;
    Tensor light;  // (2, 3)
    Tensor around; // (1, 5), the region in which to look for it next
    Box place{};   // round its mesh
    Point middle{};
    Measures measures{};
    bool changed = false; // whether following starts afresh with it
    bool crossed = false; // whether somebody else is in front of the lower face, or soon will be

    int samples_around() const { return samples_for(region_side(place)); }
    bool relit() const;
    bool sudden() const;
};

// The same face, marked as one with which following starts afresh.
TrackedFace begun(TrackedFace found);

enum class Absence { no_face, away, nobody };

class FaceTracker {
public:
    FaceTracker(Graphs &graphs, const FaceChoice &choice);

    void reset();
    // The face in a frame, or none; then `absence` says why. box: where the face must be; nullptr: go
    // on with the face of the frame before.
    std::optional<TrackedFace> operator()(const Tensor &frame, const Box *box);

    Absence absence = Absence::no_face;
    Tensor reference; // looks with which the light is compared; set by the caller
    Tensor mouths;    // (GALLERY, ...), what the mouth is compared with; set by the caller

private:
    using Face = TrackedFace;
    using Found = std::optional<TrackedFace>;

    bool goes_on_in(const Box &box, const Found &face) const;
    Found follow(const Tensor &frame);
    bool confirmed(const Tensor &frame, const Face &found);
    bool is_another_by_now(const Face &found);
    bool is_crossed(const Tensor &frame, const Face &found);
    Sightings seen(const Tensor &frame);
    bool is_cut(const Found &found) const;
    bool sees_others(const Tensor &frame, const Sightings &seen);
    void note_others(const Tensor &frame, const Face &person, const Sightings &seen);
    Found look(const Tensor &frame, const Found &followed, bool cut, const FaceChoice &choice);
    Found person_again(const Tensor &frame, const Found &followed, const Sightings &seen);
    Found preferred(const Tensor &frame, const Sightings &seen);
    Found by_choice(const Tensor &frame, const Sightings &seen, bool wide,
                    const FaceChoice &choice);
    Found small(const Tensor &frame, const std::function<Found(const Sightings &)> &visit);
    Found surest(const Tensor &frame, const Sightings &seen, const FaceChoice &choice);
    std::pair<Found, double> tried(const Tensor &frame, const Sighting *face);
    Found fit_sighting(const Tensor &frame, const Sighting &face);
    Found fit_again(const Tensor &frame, const Face &face);
    Found fit(const Tensor &frame, const Tensor &region, int samples);
    void remember(const Face &found);

    Graphs &graphs_;
    const FaceChoice choice_;
    const FaceSearch search_;
    Found last_;           // from the latest frame that showed the person
    bool followed_;        // whether that frame was the latest one
    Tensor person_;        // (GALLERY, ...) looks
    Found first_;          // the face with the first of these looks
    Tensor first_glance_;  // and the glance at its frame
    bool bound_;           // whether only this person may be followed
    Others others_;
    Passing passing_;
    int lost_;             // frames since the person was seen
    int since_detection_;
    bool everywhere_;      // whether the last check covered the whole frame
    bool looked_;          // whether the detector saw all of the latest frame
    Scene scene_;
    std::size_t next_tile_;
};

} // namespace dithead
