// Numbers on the host, shared and never changed once they are passed on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace dithead {

enum class Type { f32, f64, i64, u8 };

std::size_t bytes_of(Type type);

// A contiguous array. Copies share the memory; whoever made one may write to it until it is shared.
class Tensor {
public:
    Tensor() = default; // undefined: Python's None

    // Zeros. The memory is aligned to 64 bytes, so that kernels cannot round differently.
    static Tensor make(Type type, std::vector<std::int64_t> shape);
    static Tensor floats(std::vector<std::int64_t> shape, const std::vector<float> &values);
    static Tensor scalar(float value);          // shape ()
    static Tensor integer(std::int64_t value);  // shape ()
    // Memory that somebody else owns, kept alive by `owner`.
    static Tensor view(Type type, std::vector<std::int64_t> shape, void *data,
                       std::shared_ptr<void> owner);

    bool defined() const { return data_ != nullptr; }
    Type type() const { return type_; }
    const std::vector<std::int64_t> &shape() const { return shape_; }
    std::size_t count() const;
    std::size_t bytes() const { return count() * bytes_of(type_); }
    bool is(const Tensor &other) const { return data_ == other.data_; } // Python's `is`

    const void *data() const { return data_; }
    void *writable() { return data_; }
    const float *f32() const { return static_cast<const float *>(data_); }
    float *f32() { return static_cast<float *>(data_); }
    const std::int64_t *i64() const { return static_cast<const std::int64_t *>(data_); }
    std::int64_t *i64() { return static_cast<std::int64_t *>(data_); }
    const std::uint8_t *u8() const { return static_cast<const std::uint8_t *>(data_); }
    std::uint8_t *u8() { return static_cast<std::uint8_t *>(data_); }

    Tensor clone() const;
    Tensor reshaped(std::vector<std::int64_t> shape) const; // the same memory

private:
    Type type_ = Type::f32;
    std::vector<std::int64_t> shape_;
    void *data_ = nullptr;
    std::shared_ptr<void> owner_;
};

} // namespace dithead
