// What this version of the library expects of each graph: dithead/bundle/graphspecs.py, with shapes.
// A graph that has them cannot make the host read beyond an output.
#pragma once

#include "manifest.hpp"

namespace dithead {

// A line for each graph that the library runs.
const char *graph_table();

// Throws Error (DITHEAD_ERROR_BUNDLE) if a graph of the table has other inputs or outputs.
void check_ports(const Manifest &manifest);

// Throws Error (DITHEAD_ERROR_BUNDLE) if a graph of the table is missing.
void require_graphs(const Manifest &manifest);

} // namespace dithead
