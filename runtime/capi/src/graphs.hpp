// All graphs of a model by name, whichever provider runs them.
#pragma once

#include <string>
#include <vector>

#include "config.hpp"
#include "tensor.hpp"

namespace dithead {

class Graphs {
public:
    virtual ~Graphs() = default;

    // Runs a graph: its inputs in the manifest's order -> its outputs in the manifest's order.
    // Thread-safe. Throws Error (error.hpp).
    virtual std::vector<Tensor> run(const std::string &name, const std::vector<Tensor> &inputs) = 0;

    virtual const Config &config() const = 0;

    // Side in pixels of the largest rectangle round a face for which there are graphs.
    virtual int largest_rectangle() const = 0;
};

} // namespace dithead
