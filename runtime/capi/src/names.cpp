// Versions, and the numbers of dithead.h in words.
#include "dithead.h"

#ifndef DITHEAD_VERSION
#define DITHEAD_VERSION "0.1.0"
#endif

uint32_t dithead_abi_version(void) { return DITHEAD_ABI_VERSION; }

const char *dithead_version(void) { return DITHEAD_VERSION; }

const char *dithead_status_string(dithead_status status) {
    switch (status) {
    case DITHEAD_OK: return "done";
    case DITHEAD_WOULD_BLOCK: return "not in the time that was allowed";
    case DITHEAD_END_OF_STREAM: return "all have come";
    case DITHEAD_ERROR_INVALID_ARGUMENT: return "an argument is invalid";
    case DITHEAD_ERROR_OUT_OF_MEMORY: return "out of memory";
    case DITHEAD_ERROR_UNSUPPORTED: return "not in this build of the library";
    case DITHEAD_ERROR_BUNDLE: return "the bundle cannot be used";
    case DITHEAD_ERROR_PROVIDER: return "the provider or its device cannot be used";
    case DITHEAD_ERROR_STATE: return "not possible at this point of the stream";
    case DITHEAD_ERROR_BUFFER_TOO_SMALL: return "a buffer is too small";
    case DITHEAD_ERROR_BUSY: return "another thread is in this call or one of its group";
    case DITHEAD_ERROR_STAGE: return "a stage of the stream failed";
    case DITHEAD_ERROR_STOPPED: return "the stream was stopped or reset";
    case DITHEAD_ERROR_INTERNAL: return "a fault of the library";
    default: return "an unknown status";
    }
}

const char *dithead_left_alone_string(int32_t reason) {
    switch (reason) {
    case DITHEAD_REVOICED: return "it was re-voiced";
    case DITHEAD_LEFT_ALONE_NO_FACE: return "no face was seen";
    case DITHEAD_LEFT_ALONE_AWAY: return "the face that is followed was not visible";
    case DITHEAD_LEFT_ALONE_NOBODY: return "nobody was to speak";
    case DITHEAD_LEFT_ALONE_FAINT: return "too little of the face was visible";
    case DITHEAD_LEFT_ALONE_COVERED: return "something was in front of the mouth";
    case DITHEAD_LEFT_ALONE_TOO_LARGE: return "the face was too large for the bundle";
    case DITHEAD_LEFT_ALONE_IDLE: return "there was no speech";
    default: return "an unknown reason";
    }
}
