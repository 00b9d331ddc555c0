// Tensors put together and taken apart; nothing is computed.
#pragma once

#include <vector>

#include "tensor.hpp"

namespace dithead {

// Tensors of one shape as rows of another: (N, ...).
Tensor stacked(const std::vector<Tensor> &rows);

// Tensors joined along their first dimension.
Tensor joined(const std::vector<Tensor> &parts);

// Rows `from` to `to` of a tensor.
Tensor rows_of(const Tensor &tensor, std::int64_t from, std::int64_t to);

// Row `index` of a tensor, without its first dimension.
Tensor row_of(const Tensor &tensor, std::int64_t index);

// The numbers of a float32 tensor.
std::vector<double> numbers(const Tensor &tensor);

} // namespace dithead
