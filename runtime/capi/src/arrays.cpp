#include "arrays.hpp"

#include <cstring>
#include <numeric>

namespace dithead {
namespace {

Tensor in_order(const std::vector<Tensor> &parts, std::vector<std::int64_t> shape) {
    Tensor made = Tensor::make(parts.front().type(), std::move(shape));
    auto *to = static_cast<unsigned char *>(made.writable());
    for (const Tensor &part : parts) {
        std::memcpy(to, part.data(), part.bytes());
        to += part.bytes();
    }
    return made;
}

} // namespace

Tensor stacked(const std::vector<Tensor> &rows) {
    std::vector<std::int64_t> shape = rows.front().shape();
    shape.insert(shape.begin(), static_cast<std::int64_t>(rows.size()));
    return in_order(rows, std::move(shape));
}

Tensor joined(const std::vector<Tensor> &parts) {
    std::vector<std::int64_t> shape = parts.front().shape();
    shape[0] = std::accumulate(
        parts.begin(), parts.end(), std::int64_t{0},
        [](std::int64_t sum, const Tensor &part) { return sum + part.shape()[0]; });
    return in_order(parts, std::move(shape));
}

Tensor rows_of(const Tensor &tensor, std::int64_t from, std::int64_t to) {
    std::vector<std::int64_t> shape = tensor.shape();
    const std::size_t row = tensor.bytes() / static_cast<std::size_t>(shape[0]);
    shape[0] = to - from;
    Tensor made = Tensor::make(tensor.type(), std::move(shape));
    const auto *first = static_cast<const unsigned char *>(tensor.data());
    std::memcpy(made.writable(), first + row * static_cast<std::size_t>(from), made.bytes());
    return made;
}

Tensor row_of(const Tensor &tensor, std::int64_t index) {
    const Tensor row = rows_of(tensor, index, index + 1);
    return row.reshaped({row.shape().begin() + 1, row.shape().end()});
}

std::vector<double> numbers(const Tensor &tensor) {
    return {tensor.f32(), tensor.f32() + tensor.count()};
}

} // namespace dithead
