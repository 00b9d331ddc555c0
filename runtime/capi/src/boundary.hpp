// What every C function does at the border: nothing thrown leaves the library, errors are noted,
// and structs of other sizes are read and written.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <string>

#include "channel.hpp"
#include "error.hpp"

namespace dithead {

// A message in memory of its own: to note one must not fail.
class ErrorText {
public:
    void set(const char *message);
    const char *get() const { return text_.data(); }

private:
    std::array<char, 1024> text_{};
};

// Of the calling thread.
ErrorText &thread_error();

// Of a stream, from any thread.
class SharedErrorText {
public:
    void set(const char *message);
    std::size_t copy(char *buffer, std::size_t capacity) const; // see dithead_stream_last_error

private:
    mutable std::mutex mutex_;
    ErrorText text_;
};

// Notes an error of the present call.
dithead_status note(SharedErrorText *shared, dithead_status status, const char *message);

// Runs the body of a C function: whatever it throws becomes a status and a message. shared: the
// stream's, or nullptr.
template <class Body> dithead_status guarded(SharedErrorText *shared, Body body) noexcept {
    try {
        return body();
    } catch (const Error &error) {
        return note(shared, error.status(), error.what());
    } catch (const std::bad_alloc &) {
        return note(shared, DITHEAD_ERROR_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception &error) {
        return note(shared, DITHEAD_ERROR_INTERNAL, error.what());
    } catch (...) {
        return note(shared, DITHEAD_ERROR_INTERNAL, "an unknown error");
    }
}

// One of the groups of calls of which only one may be running.
class Entered {
public:
    explicit Entered(std::atomic_flag &flag) : flag_(flag) {
        if (flag_.test_and_set()) {
            throw Error(DITHEAD_ERROR_BUSY, "another thread is in this call or one of its group");
        }
    }
    ~Entered() { flag_.clear(); }
    Entered(const Entered &) = delete;
    Entered &operator=(const Entered &) = delete;

private:
    std::atomic_flag &flag_;
};

template <class Pointer> void require(Pointer *pointer, const char *name) {
    if (pointer != nullptr) return;
    throw Error(DITHEAD_ERROR_INVALID_ARGUMENT, std::string(name) + " is NULL");
}

// The first version's size of each struct is its size today.
template <class Struct> void check_size(std::size_t size, const char *name) {
    if (size == sizeof(Struct)) return;
    throw Error(DITHEAD_ERROR_INVALID_ARGUMENT,
                std::string(name) + ": struct_size is " + std::to_string(size) + ", expected " +
                    std::to_string(sizeof(Struct)) +
                    ": fill it with its _init function (or set it, where there is none), and compare "
                    "dithead_abi_version() with the header's");
}

// A caller's struct, checked.
template <class Struct> Struct read_struct(const Struct *given, const char *name) {
    require(given, name);
    std::size_t size = 0;
    std::memcpy(&size, given, sizeof size);
    check_size<Struct>(size, name);
    return *given;
}

// The body of an _init function.
template <class Struct>
dithead_status init_struct(Struct *out, std::size_t size, const char *name,
                           const Struct &defaults) {
    require(out, name);
    check_size<Struct>(size, name);
    *out = defaults;
    out->struct_size = size;
    return DITHEAD_OK;
}

} // namespace dithead
