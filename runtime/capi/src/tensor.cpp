#include "tensor.hpp"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

namespace dithead {
namespace {

constexpr std::size_t ALIGNMENT = 64;

// Elements of a shape, once it is known that their bytes can be counted.
std::size_t elements(Type type, const std::vector<std::int64_t> &shape) {
    const std::size_t most = std::numeric_limits<std::ptrdiff_t>::max() / bytes_of(type);
    std::size_t count = 1;
    for (const std::int64_t side : shape) {
        if (side < 0) throw std::length_error("a tensor's side is negative");
        const auto size = static_cast<std::size_t>(side);
        if (size != 0 && count > most / size) throw std::length_error("a tensor is too large");
        count *= size;
    }
    return count;
}

} // namespace

std::size_t bytes_of(Type type) {
    switch (type) {
    case Type::f32: return 4;
    case Type::f64: return 8;
    case Type::i64: return 8;
    case Type::u8: return 1;
    }
    return 0;
}

Tensor Tensor::make(Type type, std::vector<std::int64_t> shape) {
    const std::size_t bytes = elements(type, shape) * bytes_of(type);
    // Never nothing: an empty tensor is defined all the same.
    const std::size_t held = (bytes / ALIGNMENT + 1) * ALIGNMENT;
    void *data = std::aligned_alloc(ALIGNMENT, held);
    if (data == nullptr) throw std::bad_alloc();
    std::memset(data, 0, held);
    return view(type, std::move(shape), data, std::shared_ptr<void>(data, std::free));
}

Tensor Tensor::floats(std::vector<std::int64_t> shape, const std::vector<float> &values) {
    if (elements(Type::f32, shape) != values.size()) {
        throw std::length_error("a tensor's shape has another number of values");
    }
    Tensor made = make(Type::f32, std::move(shape));
    if (!values.empty()) std::memcpy(made.data_, values.data(), made.bytes());
    return made;
}

Tensor Tensor::scalar(float value) {
    Tensor made = make(Type::f32, {});
    *made.f32() = value;
    return made;
}

Tensor Tensor::integer(std::int64_t value) {
    Tensor made = make(Type::i64, {});
    *made.i64() = value;
    return made;
}

Tensor Tensor::view(Type type, std::vector<std::int64_t> shape, void *data,
                    std::shared_ptr<void> owner) {
    Tensor made;
    made.type_ = type;
    made.shape_ = std::move(shape);
    made.data_ = data;
    made.owner_ = std::move(owner);
    return made;
}

std::size_t Tensor::count() const {
    std::size_t count = 1;
    for (const std::int64_t side : shape_) count *= static_cast<std::size_t>(side);
    return count;
}

Tensor Tensor::clone() const {
    if (!defined()) return {};
    Tensor made = make(type_, shape_);
    if (bytes() != 0) std::memcpy(made.data_, data_, bytes());
    return made;
}

Tensor Tensor::reshaped(std::vector<std::int64_t> shape) const {
    if (elements(type_, shape) != count()) {
        throw std::length_error("a tensor cannot take a shape of another size");
    }
    Tensor made = *this;
    made.shape_ = std::move(shape);
    return made;
}

} // namespace dithead
