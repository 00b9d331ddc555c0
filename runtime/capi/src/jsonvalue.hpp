// Reading JSON that nobody vouches for: every step checks, and a message names the place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace dithead {

// Not JSON, or not what was expected of it.
class JsonError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Parses a text; one that is nested more deeply than dithead/jsontext.py allows is refused.
nlohmann::json parse_json(const std::string &text);

// A value and the place where it stands. Every member throws JsonError if the value is not of the
// kind that is asked for. Must not outlive the parsed text.
class JsonValue {
public:
    JsonValue(const nlohmann::json &value, std::string place)
        : value_(&value), place_(std::move(place)) {}

    bool is_text() const { return value_->is_string(); }
    bool is_null() const { return value_->is_null(); }
    bool has(const char *name) const { return value_->is_object() && value_->contains(name); }

    JsonValue at(const char *name) const;
    std::vector<JsonValue> items(std::size_t most) const;
    std::string text(std::size_t longest = 4096) const;
    std::int64_t integer(std::int64_t least, std::int64_t most) const;
    double number(double least, double most) const;
    bool flag() const;

    // A member of an object, or what stands for it if it is left out.
    std::int64_t integer(const char *name, std::int64_t otherwise, std::int64_t least,
                         std::int64_t most) const;
    double number(const char *name, double otherwise, double least, double most) const;
    bool flag(const char *name, bool otherwise) const;
    // One of some words.
    std::string word(const char *name, const char *otherwise,
                     std::initializer_list<const char *> words) const;

    // Refuses an object with keys other than these: what they mean is unknown.
    void only(std::initializer_list<const char *> names) const;

    [[noreturn]] void fail(const std::string &expected) const;

private:
    const nlohmann::json *value_;
    std::string place_;
};

} // namespace dithead
