// A model's configuration from a manifest's JSON.
#pragma once

#include "config.hpp"
#include "jsonvalue.hpp"

namespace dithead {

// Checks what DitHeadConfig.from_dict checks, as far as the host reads it. Throws JsonError.
Config read_config(const JsonValue &values);

} // namespace dithead
