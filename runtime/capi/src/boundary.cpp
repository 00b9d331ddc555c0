#include "boundary.hpp"

#include <algorithm>

namespace dithead {

void ErrorText::set(const char *message) {
    std::size_t length = std::min(std::strlen(message), text_.size() - 1);
    // Not within a letter of several bytes.
    while (length > 0 && (static_cast<unsigned char>(message[length]) & 0xC0U) == 0x80U) --length;
    std::memcpy(text_.data(), message, length);
    text_[length] = '\0';
}

ErrorText &thread_error() {
    thread_local ErrorText text;
    return text;
}

void SharedErrorText::set(const char *message) {
    const std::lock_guard lock(mutex_);
    text_.set(message);
}

std::size_t SharedErrorText::copy(char *buffer, std::size_t capacity) const {
    const std::lock_guard lock(mutex_);
    const std::size_t length = std::strlen(text_.get());
    if (buffer != nullptr && capacity > 0) {
        const std::size_t copied = std::min(length, capacity - 1);
        std::memcpy(buffer, text_.get(), copied);
        buffer[copied] = '\0';
    }
    return length;
}

dithead_status note(SharedErrorText *shared, dithead_status status, const char *message) {
    thread_error().set(message);
    if (shared != nullptr) shared->set(message);
    return status;
}

} // namespace dithead
