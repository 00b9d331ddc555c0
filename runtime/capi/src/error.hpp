// What is thrown inside the library; the C functions turn it into a status and a message.
#pragma once

#include <stdexcept>
#include <string>

#include "dithead.h"

namespace dithead {

class Error : public std::runtime_error {
public:
    Error(dithead_status status, const std::string &message)
        : std::runtime_error(message), status_(status) {}
    dithead_status status() const { return status_; }

private:
    dithead_status status_;
};

} // namespace dithead
