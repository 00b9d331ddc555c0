#include "jsonvalue.hpp"

#include <algorithm>
#include <cmath>

namespace dithead {
namespace {

constexpr int DEEPEST = 64;
constexpr std::size_t LONGEST_SHOWN = 60;

using nlohmann::json;

// A value as a message shows it.
std::string shown(const json &value) {
    if (value.is_structured()) return value.is_object() ? "an object" : "a list";
    std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    return text.size() <= LONGEST_SHOWN ? text : text.substr(0, LONGEST_SHOWN) + "...";
}

std::string range(const std::string &least, const std::string &most) {
    return least + " to " + most;
}

} // namespace

json parse_json(const std::string &text) {
    const auto watch = [](int depth, json::parse_event_t event, json &) {
        const bool opens =
            event == json::parse_event_t::object_start || event == json::parse_event_t::array_start;
        if (opens && depth >= DEEPEST) {
            throw JsonError("nested more than " + std::to_string(DEEPEST) + " deep");
        }
        return true;
    };
    try {
        return json::parse(text, watch);
    } catch (const json::parse_error &error) {
        // Its own message quotes the text, which may be long, or no UTF-8.
        throw JsonError("no JSON at byte " + std::to_string(error.byte));
    } catch (const json::exception &) {
        throw JsonError("a number is too large");
    }
}

void JsonValue::fail(const std::string &expected) const {
    throw JsonError(place_ + ": expected " + expected + ", found " + shown(*value_));
}

JsonValue JsonValue::at(const char *name) const {
    if (!value_->is_object()) fail("an object");
    const auto found = value_->find(name);
    if (found == value_->end()) throw JsonError(place_ + ": '" + name + "' is missing");
    return {*found, place_ + "." + name};
}

std::vector<JsonValue> JsonValue::items(std::size_t most) const {
    if (!value_->is_array() || value_->size() > most) {
        fail("a list of at most " + std::to_string(most));
    }
    std::vector<JsonValue> items;
    items.reserve(value_->size());
    for (std::size_t i = 0; i < value_->size(); i++) {
        items.emplace_back((*value_)[i], place_ + "[" + std::to_string(i) + "]");
    }
    return items;
}

std::string JsonValue::text(std::size_t longest) const {
    const std::string *text = value_->get_ptr<const std::string *>();
    // A zero would cut the text short wherever it is passed on.
    if (text == nullptr || text->size() > longest || text->find('\0') != std::string::npos) {
        fail("text of at most " + std::to_string(longest) + " bytes");
    }
    return *text;
}

std::int64_t JsonValue::integer(std::int64_t least, std::int64_t most) const {
    const std::string expected =
        "an integer, " + range(std::to_string(least), std::to_string(most));
    if (!value_->is_number_integer()) fail(expected);
    if (value_->is_number_unsigned() &&
        value_->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) {
        fail(expected);
    }
    const auto value = value_->get<std::int64_t>();
    if (value < least || value > most) fail(expected);
    return value;
}

double JsonValue::number(double least, double most) const {
    const double value = value_->is_number() ? value_->get<double>() : NAN;
    if (!(value >= least && value <= most)) {
        fail("a number, " + range(shown(json(least)), shown(json(most))));
    }
    return value;
}

bool JsonValue::flag() const {
    if (!value_->is_boolean()) fail("true or false");
    return value_->get<bool>();
}

std::int64_t JsonValue::integer(const char *name, std::int64_t otherwise, std::int64_t least,
                                std::int64_t most) const {
    return has(name) ? at(name).integer(least, most) : otherwise;
}

double JsonValue::number(const char *name, double otherwise, double least, double most) const {
    return has(name) ? at(name).number(least, most) : otherwise;
}

bool JsonValue::flag(const char *name, bool otherwise) const {
    return has(name) ? at(name).flag() : otherwise;
}

std::string JsonValue::word(const char *name, const char *otherwise,
                            std::initializer_list<const char *> words) const {
    if (!has(name)) return otherwise;
    const std::string word = at(name).text();
    if (std::find(words.begin(), words.end(), word) == words.end()) {
        std::string all;
        for (const char *each : words) all += (all.empty() ? "" : " or ") + std::string(each);
        at(name).fail(all);
    }
    return word;
}

void JsonValue::only(std::initializer_list<const char *> names) const {
    if (!value_->is_object()) fail("an object");
    for (const auto &member : value_->items()) {
        const auto same = [&](const char *name) { return member.key() == name; };
        if (std::none_of(names.begin(), names.end(), same)) {
            throw JsonError(place_ + ": unknown key " + shown(json(member.key())));
        }
    }
}

} // namespace dithead
