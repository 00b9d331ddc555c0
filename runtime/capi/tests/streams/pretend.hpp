// A generator and graphs without a model, for tests of what schedules them: each result is a hash
// of everything that it must depend on, so that nothing can be left out or taken twice unnoticed.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "config.hpp"

namespace pretend {

using Bytes = std::vector<std::uint8_t>;

// Where the pretended face is in a picture, and its side.
constexpr int LEFT = 3, TOP = 2, SIDE = 8;

const dithead::Config &config();

// FNV-1a.
std::uint64_t hash(const void *data, std::size_t bytes, std::uint64_t before = 0xcbf29ce484222325U);
std::uint64_t hash(std::uint64_t value, std::uint64_t before);

// What the graphs give.
std::vector<float> encode(const float *chunk);
std::uint64_t window(const std::vector<float> &block, std::int64_t first, std::int64_t time_us);

// What the stages give. A picture whose first byte is 0 shows no face; one whose second is 255 has
// something in front of the mouth.
std::uint64_t crop(const std::uint8_t *rectangle);
std::uint64_t latent(std::uint64_t crop, std::uint64_t window, std::int64_t index,
                     std::uint64_t seed, std::uint64_t reference);
void draw(std::uint64_t value, std::uint8_t *rectangle); // all of SIDE x SIDE x 3 bytes
bool drawn_at(int x, int y); // whether the mask lets it through there

// What goes wrong: a stage's name, and after how many calls. For all streams.
void fail(const std::string &stage, int calls);
void forget_faults();
// How long each step of a stage takes.
extern std::atomic<int> step_us;

// How many frames each part has worked on.
extern std::atomic<int> tracked, encoded, chunks;

} // namespace pretend
