// The method, step by step: dithead/generator.py, without torch. Each member function of
// FrameGenerator is called by one stage only, with frames in order; stages may run in parallel.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "face/box.hpp"
#include "graphs.hpp"
#include "tensor.hpp"

namespace dithead {

enum class LeftAlone { no, no_face, away, nobody, too_faint, covered, too_large, idle };

struct Options {
    int steps = 0; // 0: the bundle's own
    std::uint32_t seed = 0;
    bool reference_previous = false;
    bool detail = true;
    FaceChoice face;
};

// A face's position in a frame. Fields as in dithead/generator.py.
struct Face {
    Tensor transform; // (2, 3) crop units to frame pixels
    Tensor polygon;
    bool fresh = false;
    Tensor mesh;   // (468, 3)
    Tensor region; // (1, 5)
    int samples = 1;
    Tensor light; // (2, 3)
    bool refers = false;
    float reference_share = 1.0F;
    bool still = false;
};

struct Cut {
    int left = 0, top = 0;
    Tensor rectangle; // (S, S, 3) u8
    Tensor transform; // (2, 3) crop units to the rectangle's pixels
};

class FrameGenerator {
public:
    FrameGenerator(Graphs &graphs, const Options &options);
    ~FrameGenerator();
    FrameGenerator(const FrameGenerator &) = delete;
    FrameGenerator &operator=(const FrameGenerator &) = delete;

    // Why the latest tracked frame was left alone. For the tracking stage.
    LeftAlone left_alone() const;

    // Tracking stage. frame: (H, W, 3) u8. box: nullptr, or where the face must be. same: whether
    // the picture equals the frame before, to the bit. nullopt: the frame is left alone.
    std::optional<Face> track(const Tensor &frame, double time_s, const Box *box, bool same);
    Cut cut(const Tensor &frame, const Tensor &transform) const;
    std::optional<Face> fitted(const Face &face, const Tensor &rectangle);
    // Mesh (468, 3) and region (1, 5) in the pixels of the rectangle.
    static std::pair<Tensor, Tensor> in_rectangle(const Face &face, int left, int top);

    // Encoding stage: crop, masked latent.
    std::pair<Tensor, Tensor> encode(const Tensor &rectangle, const Tensor &transform,
                                     const Tensor &light) const;

    // Denoising stage: the frame's latent.
    Tensor denoise(const Tensor &crop, const Tensor &masked, const Tensor &window,
                   std::int64_t index, const Face &face);
    // What returns the denoising stage's state to its present value.
    std::function<void()> save_denoising();

    // Decoding stage: the generated crop, its shape (468, 2), or (0, 2) without a shape head.
    std::pair<Tensor, Tensor> decode(const Tensor &latent, const Tensor &light) const;

    // Blending stage: composited rectangle (S, S, 3) u8, soft mask (S, S).
    std::pair<Tensor, Tensor> blend(const Tensor &face, const Cut &cut, const Tensor &crop,
                                    const Tensor &polygon) const;

    struct Detailed {
        Tensor image; // (S, S, 3) u8
        float covered = 0.0F;
    };
    // Detail stage; not called if options.detail is false. Keeps its habit itself.
    Detailed detail(const Tensor &blended, const Tensor &mask, const Cut &cut, const Face &face,
                    const Tensor &mesh, const Tensor &region, const Tensor &shape, double time_s);
    std::function<void()> save_detail();

    static constexpr double COVERED = 0.95; // a mouth that is covered this far is left alone

private:
    struct State;
    std::unique_ptr<State> state_;
};

} // namespace dithead
