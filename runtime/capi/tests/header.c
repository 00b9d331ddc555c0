/* The header is C99: this file is compiled as C, and header.cpp as C++17, with warnings as errors. */
#include "dithead.h"

int main(void) {
    dithead_session_options session;
    dithead_stream_options stream;
    dithead_frame frame;
    dithead_output output;
    return dithead_session_options_init(&session, sizeof session) != DITHEAD_OK ||
           dithead_stream_options_init(&stream, sizeof stream) != DITHEAD_OK ||
           dithead_frame_init(&frame, sizeof frame) != DITHEAD_OK ||
           dithead_output_init(&output, sizeof output) != DITHEAD_OK ||
           dithead_abi_version() != DITHEAD_ABI_VERSION;
}
