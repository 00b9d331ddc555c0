#include "tracker.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "../arrays.hpp"
#include "limits.hpp"

namespace dithead {
namespace {

using namespace limits;

constexpr std::int64_t POINTS = 468;
const std::vector<std::int64_t> LOOKS_SHAPE{3, 18, 24}, MOUTH_SHAPE{3, 61};

Tensor known(const Tensor &value, std::vector<std::int64_t> shape) {
    return value.defined() ? value : Tensor::make(Type::f32, std::move(shape));
}

std::vector<std::int64_t> gallery_of(std::vector<std::int64_t> shape) {
    shape.insert(shape.begin(), static_cast<std::int64_t>(GALLERY));
    return shape;
}

} // namespace

bool TrackedFace::relit() const {
    return measures.light_step > MAX_LIGHT_STEP && measures.unlike_last > RELIT_UNLIKENESS;
}

bool TrackedFace::sudden() const {
    return measures.unlike_last > MAX_UNLIKENESS || measures.moved > MAX_MOTION || relit();
}

FaceTracker::FaceTracker(Graphs &graphs, const FaceChoice &choice)
    : graphs_(graphs), choice_(choice), search_(graphs), others_(graphs), passing_(graphs),
      scene_(graphs) {
    reset();
}

void FaceTracker::reset() {
    last_.reset();
    followed_ = false;
    person_ = Tensor();
    first_.reset();
    first_glance_ = Tensor();
    bound_ = false;
    others_ = Others(graphs_);
    passing_ = Passing(graphs_);
    lost_ = since_detection_ = 0;
    everywhere_ = looked_ = false;
    scene_.forget();
    next_tile_ = 0;
    reference = mouths = Tensor();
}

std::optional<TrackedFace> FaceTracker::operator()(const Tensor &frame, const Box *box) {
    if (box != nullptr && area(*box) <= 0) {
        absence = Absence::nobody;
        followed_ = false;
        return std::nullopt;
    }
    if (box != nullptr && !goes_on_in(*box, last_)) reset();
    scene_.see(frame);
    looked_ = false;
    Found found = follow(frame);
    if (found && !found->sudden()) {
        if (!confirmed(frame, *found)) {
            found.reset();
        } else if (since_detection_ == 0 && is_another_by_now(*found)) {
            found = begun(*found);
            person_ = Tensor();
        }
    }
    const FaceChoice choice =
        box == nullptr ? choice_ : FaceChoice{FaceChoiceKind::box, 0, *box};
    if (!found || found->sudden()) {
        const bool cut = is_cut(found);
        found = look(frame, found, cut, choice);
    }
    if (box != nullptr && found && !goes_on_in(*box, found)) {
        reset();
        scene_.see(frame);
        found = look(frame, std::nullopt, false, choice);
    }
    followed_ = found.has_value();
    if (!found) {
        ++lost_;
        absence = bound_ ? Absence::away : Absence::no_face;
        return std::nullopt;
    }
    if (found->changed && reference.defined()) { // which was taken in another light
        reference = mouths = Tensor();
        const Found again = fit(frame, found->region, found->samples);
        found = begun(again ? *again : *found);
    }
    lost_ = 0;
    last_ = found;
    remember(*found);
    if (is_crossed(frame, *found)) found->crossed = true;
    return found;
}

bool FaceTracker::goes_on_in(const Box &box, const Found &face) const {
    return face ? inside(face->middle, box) : !person_.defined();
}

FaceTracker::Found FaceTracker::follow(const Tensor &frame) {
    if (!last_ || !followed_) return std::nullopt;
    Found found = fit_again(frame, *last_);
    if (found && found->sudden()) { // the region may have been off centre
        if (const Found again = fit_again(frame, *found)) found = again;
    }
    if (found && found->measures.moved > MAX_JUMP) return std::nullopt;
    return found;
}

bool FaceTracker::confirmed(const Tensor &frame, const Face &found) {
    ++since_detection_;
    if (since_detection_ < REDETECT_EVERY) return true;
    since_detection_ = 0;
    everywhere_ = !everywhere_ || others_.any();
    if (everywhere_) {
        const Sightings faces = seen(frame);
        note_others(frame, found, faces);
        const bool there = std::any_of(faces.begin(), faces.end(), [&](const Sighting &face) {
            return overlap(found.place, face.box) > MIN_OVERLAP;
        });
        if (there) return true;
    }
    return search_.doubt(frame, found.mesh) <= LIKELY;
}

bool FaceTracker::is_another_by_now(const Face &found) {
    if (!first_ || !first_glance_.defined()) return false;
    if (std::abs(found.measures.turn - first_->measures.turn) > SAME_TURN) return false;
    const double unlike = compared({first_->looks}, found.looks, graphs_)[0];
    return unlike > TURNED && scene_.has_changed(first_glance_, found.place);
}

bool FaceTracker::is_crossed(const Tensor &frame, const Face &found) {
    if (found.changed) passing_ = Passing(graphs_);
    return passing_(frame, found.mesh, found.looks, others_, [&] {
        if (!looked_) note_others(frame, found, seen(frame));
    });
}

Sightings FaceTracker::seen(const Tensor &frame) {
    looked_ = true;
    return search_.upright(frame);
}

bool FaceTracker::is_cut(const Found &found) const {
    if (!found) return scene_.has_cut(nullptr);
    if (found->measures.unlike_person <= MAX_UNLIKENESS) return false;
    return scene_.has_cut(others_.near(found->place) ? nullptr : &found->place);
}

bool FaceTracker::sees_others(const Tensor &frame, const Sightings &seen) {
    if (!others_.any()) return false;
    for (const Sighting &face : first_of(seen, LOOKED_AT)) {
        const Found found = fit_sighting(frame, face);
        if (found && others_.unlike(found->looks) <= AGAIN) return true;
    }
    return false;
}

void FaceTracker::note_others(const Tensor &frame, const Face &person, const Sightings &seen) {
    std::vector<std::optional<Other>> others;
    for (const Sighting &face : first_of(seen, LOOKED_AT)) {
        if (overlap(person.place, face.box) > MIN_OVERLAP) continue;
        const std::optional<Other> one = others_.at(face);
        const Found found = one ? std::nullopt : fit_sighting(frame, face);
        others.push_back(seen_at(face.box, one, found ? found->looks : Tensor()));
    }
    others_.replace(others, false);
}

FaceTracker::Found FaceTracker::fit_sighting(const Tensor &frame, const Sighting &face) {
    const int samples = samples_for(region_side(face.box));
    const Found found = fit(frame, search_.region(face), samples);
    return found ? fit_again(frame, *found) : std::nullopt;
}

FaceTracker::Found FaceTracker::fit_again(const Tensor &frame, const Face &face) {
    return fit(frame, face.around, face.samples_around());
}

FaceTracker::Found FaceTracker::fit(const Tensor &frame, const Tensor &region, int samples) {
    const Tensor picture =
        graphs_.run("face_region." + std::to_string(samples), {frame, region})[0];
    const std::vector<Tensor> fitted = graphs_.run("face_landmarks", {picture, region});
    const std::vector<Tensor> judged = graphs_.run(
        "face_judge",
        {picture, region, fitted[0], fitted[1],
         last_ ? last_->mesh : Tensor::make(Type::f32, {POINTS, 3}),
         known(last_ ? last_->looks : Tensor(), LOOKS_SHAPE),
         known(person_, gallery_of(LOOKS_SHAPE)), known(reference, LOOKS_SHAPE),
         known(mouths, gallery_of(MOUTH_SHAPE))});
    const std::vector<double> v = numbers(judged[4]);
    Face found;
    found.measures = {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11]};
    const bool placed = std::isfinite(v[12] + v[13] + v[14] + v[15]);
    if (!(found.measures.score >= MIN_MESH_SCORE) || !placed) return std::nullopt;
    if (!last_) {
        found.measures.moved = found.measures.unlike_last = found.measures.light_step = 0.0;
    }
    found.mesh = fitted[0].reshaped({POINTS, 3});
    found.region = region;
    found.samples = samples;
    found.looks = judged[0];
    found.mouth = judged[1];
    found.light = judged[2];
    found.around = judged[3];
    found.place = {v[12], v[13], v[14], v[15]};
    found.middle = {v[16], v[17]};
    return found;
}

void FaceTracker::remember(const Face &found) {
    bound_ = true;
    if (!person_.defined()) {
        person_ = stacked(std::vector<Tensor>(GALLERY, found.looks));
        first_ = found;
        first_glance_ = scene_.now();
    } else if (found.measures.unlike_person > NEW_LOOK && !others_.near(found.place)) {
        // Keep the first look; drop the oldest of the others.
        const auto count = static_cast<std::int64_t>(GALLERY);
        const Tensor newest = stacked({found.looks});
        person_ = joined({rows_of(person_, 0, 1), rows_of(person_, 2, count), newest});
    }
}

} // namespace dithead
