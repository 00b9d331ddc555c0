// Whether a bundle's file is the one that its manifest names.
#pragma once

#include <filesystem>
#include <string>

#include "manifest.hpp"

namespace dithead {

// Whether a path is a plain name, which cannot lead out of the folder by itself.
bool is_file_name(const std::string &path);

// Throws Error if a path, which exists, leads out of the bundle's folder: through a symbolic link.
void check_inside(const std::filesystem::path &bundle, const std::filesystem::path &path);

// The path of a file, after a check that it is there, inside, and intact. Throws Error.
std::filesystem::path check_file(const std::filesystem::path &bundle, const BundleFile &file);

} // namespace dithead
