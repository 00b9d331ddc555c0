#include "stages.hpp"

#include <utility>

#include "audio.hpp"

namespace dithead {
namespace {

// A stage that skips frames without a face.
class FaceStage : public Stage {
public:
    explicit FaceStage(FrameGenerator &generator) : generator_(generator) {}

    bool run(const FramePointer &frame) override {
        if (frame->face) work(*frame);
        return true;
    }

protected:
    virtual void work(Frame &frame) = 0;

    FrameGenerator &generator_;
};

// Finds the face and cuts out the rectangle.
class TrackFace : public Stage {
public:
    explicit TrackFace(FrameGenerator &generator) : generator_(generator) {}

    const char *name() const override { return "track"; }
    bool hears() const override { return false; }

    bool run(const FramePointer &frame) override {
        Frame &f = *frame;
        const Box *box = f.source.face_box ? &*f.source.face_box : nullptr;
        std::optional<Face> face = generator_.track(f.source.image, f.time_s(), box, f.same);
        if (face) {
            f.cut = generator_.cut(f.source.image, face->transform);
            face = generator_.fitted(*face, f.cut.rectangle);
        }
        if (!face) {
            f.left_alone = generator_.left_alone();
            return true;
        }
        f.face = std::move(face);
        std::tie(f.mesh, f.region) = FrameGenerator::in_rectangle(*f.face, f.cut.left, f.cut.top);
        return true;
    }

private:
    FrameGenerator &generator_;
};

// Cuts and masks the crop, and encodes the result.
class EncodeFace : public FaceStage {
public:
    using FaceStage::FaceStage;

    const char *name() const override { return "encode face"; }
    bool hears() const override { return false; }

protected:
    void work(Frame &f) override {
        if (!f.face->still || !crop_.defined()) {
            std::tie(crop_, masked_) =
                generator_.encode(f.cut.rectangle, f.cut.transform, f.face->light);
        }
        f.crop = crop_;
        f.masked = masked_;
    }

private:
    Tensor crop_, masked_; // the latest
};

// Gives each frame its audio window, and reads as much sound as that needs.
class AlignAudio : public Stage {
public:
    AlignAudio(Graphs &graphs, Speech &speech, bool trim, bool pass_idle)
        : features_(graphs), speech_(speech), trim_(trim), pass_idle_(pass_idle) {}

    const char *name() const override { return "audio"; }

    bool run(const FramePointer &frame) override {
        Frame &f = *frame;
        while (features_.available_s() < f.time_s()) {
            const double asked_s = now_s();
            const std::vector<float> samples = speech_.read(f.source);
            f.waited_s += now_s() - asked_s;
            if (samples.empty()) {
                features_.finish();
            } else {
                features_.push(samples.data(), samples.size());
            }
        }
        // Also without a face; otherwise the features would pile up.
        f.window = features_.window(f.time_s());
        if (trim_ && features_.finished() && f.source.time >= speech_.length()) return false;
        if (pass_idle_ && f.face && !speech_.speaks_at(f.source.time)) {
            f.idle = std::exchange(f.face, std::nullopt);
            f.left_alone = LeftAlone::idle;
        }
        return true;
    }

    std::function<void()> save() override {
        return [this, known = features_.features(), last_us = features_.last_time_us()] {
            const auto before = [this](std::int64_t end, std::int64_t count) {
                return speech_.before(end, count);
            };
            features_.go_back(speech_.kept(), before, known, last_us);
        };
    }

private:
    AudioFeatureStream features_;
    Speech &speech_;
    const bool trim_;
    const bool pass_idle_;
};

// Generates the frames' latents.
class Denoise : public FaceStage {
public:
    using FaceStage::FaceStage;

    const char *name() const override { return "denoise"; }
    std::function<void()> save() override { return generator_.save_denoising(); }

protected:
    void work(Frame &f) override {
        f.latent = generator_.denoise(f.crop, f.masked, f.window, f.index(), *f.face);
    }
};

// Decodes the latent.
class DecodeFace : public FaceStage {
public:
    using FaceStage::FaceStage;

    const char *name() const override { return "decode face"; }

protected:
    void work(Frame &f) override {
        std::tie(f.generated, f.shape) = generator_.decode(f.latent, f.face->light);
    }
};

// Blends the face into its rectangle.
class Blend : public FaceStage {
public:
    using FaceStage::FaceStage;

    const char *name() const override { return "blend"; }

protected:
    void work(Frame &f) override {
        std::tie(f.blended, f.soft_mask) =
            generator_.blend(f.generated, f.cut, f.crop, f.face->polygon);
        f.detailed = f.blended;
    }
};

// Warps the frame's own pixels to the shape of the blended picture.
class Detail : public FaceStage {
public:
    using FaceStage::FaceStage;

    const char *name() const override { return "detail"; }
    std::function<void()> save() override { return generator_.save_detail(); }

protected:
    void work(Frame &f) override {
        FrameGenerator::Detailed made = generator_.detail(f.blended, f.soft_mask, f.cut, *f.face,
                                                          f.mesh, f.region, f.shape, f.time_s());
        f.detailed = std::move(made.image);
        f.covered = made.covered;
    }
};

// Writes the rectangle into a copy of the frame.
class Composite : public Stage {
public:
    explicit Composite(bool detail) : detail_(detail) {}

    const char *name() const override { return "composite"; }

    bool run(const FramePointer &frame) override {
        Frame &f = *frame;
        f.result = f.source.image;
        if (f.face) {
            f.result = lay_on(f.source.image, f.cut.left, f.cut.top, f.detailed, f.soft_mask);
            if (detail_ && f.covered >= FrameGenerator::COVERED) f.left_alone = LeftAlone::covered;
        }
        return true;
    }

private:
    const bool detail_;
};

// Passes finished frames on.
class Deliver : public Stage {
public:
    explicit Deliver(Take take) : take_(std::move(take)) {}

    const char *name() const override { return "deliver"; }

    bool run(const FramePointer &frame) override {
        take_(frame);
        return true;
    }

private:
    const Take take_;
};

} // namespace

Stages make_stages(FrameGenerator &generator, Graphs &graphs, Speech &speech, bool trim,
                   bool pass_idle, bool detail, Take take) {
    Stages stages;
    stages.push_back(std::make_unique<TrackFace>(generator));
    stages.push_back(std::make_unique<EncodeFace>(generator));
    stages.push_back(std::make_unique<AlignAudio>(graphs, speech, trim, pass_idle));
    stages.push_back(std::make_unique<Denoise>(generator));
    stages.push_back(std::make_unique<DecodeFace>(generator));
    stages.push_back(std::make_unique<Blend>(generator));
    if (detail) stages.push_back(std::make_unique<Detail>(generator));
    stages.push_back(std::make_unique<Composite>(detail));
    stages.push_back(std::make_unique<Deliver>(std::move(take)));
    return stages;
}

} // namespace dithead
