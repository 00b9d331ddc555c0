/*
 * Opens a session and a stream, re-voices a portrait, and destroys both, again and again; prints the
 * resident memory in KiB after each time. Nothing may stay behind, which valgrind and
 * AddressSanitizer can tell:
 *
 *   capi_lifetimes BUNDLE PORTRAIT.rgb WIDTH HEIGHT TIMES
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dithead.h"

enum { SPEECH = DITHEAD_SAMPLE_RATE_HZ / 5 };

static void check(dithead_status status) {
    if (status >= DITHEAD_OK) return;
    fprintf(stderr, "%s\n", dithead_last_error());
    exit(1);
}

static dithead_stream *open_stream(dithead_session *session, const uint8_t *portrait, int width,
                                   int height) {
    dithead_stream_options options;
    check(dithead_stream_options_init(&options, sizeof options));
    options.portrait = portrait;
    options.portrait_width = width;
    options.portrait_height = height;
    options.portrait_stride = (size_t)width * 3;
    dithead_stream *stream = NULL;
    check(dithead_stream_create(session, &options, &stream));
    return stream;
}

/* All frames of the speech; how many of them speak. */
static int speak(dithead_stream *stream, const float *speech, uint8_t *image, size_t size) {
    check(dithead_push_audio(stream, speech, SPEECH, DITHEAD_NEXT_SAMPLE));
    check(dithead_finish(stream));
    dithead_output out;
    check(dithead_output_init(&out, sizeof out));
    out.pixels = image;
    out.pixels_capacity = size;
    int spoken = 0;
    for (;;) {
        dithead_status status = dithead_pull_frame(stream, &out, DITHEAD_WAIT_FOREVER);
        check(status);
        if (status == DITHEAD_END_OF_STREAM) return spoken;
        spoken += out.left_alone == DITHEAD_REVOICED;
    }
}

static long resident_kib(void) {
    char line[128];
    long found = 0;
    FILE *file = fopen("/proc/self/status", "r");
    if (file == NULL) return 0;
    while (found == 0 && fgets(line, sizeof line, file)) sscanf(line, "VmRSS: %ld", &found);
    fclose(file);
    return found;
}

int main(int count, char **words) {
    if (count != 6) {
        fputs("usage: capi_lifetimes BUNDLE PORTRAIT.rgb WIDTH HEIGHT TIMES\n", stderr);
        return 2;
    }
    const int width = atoi(words[3]), height = atoi(words[4]), times = atoi(words[5]);
    const size_t size = (size_t)width * (size_t)height * 3;
    uint8_t *portrait = malloc(size), *image = malloc(size);
    float *speech = malloc(SPEECH * sizeof *speech);
    FILE *file = fopen(words[2], "rb");
    if (!portrait || !image || !speech || !file || fread(portrait, 1, size, file) != size) {
        fprintf(stderr, "%s cannot be read, or is too short\n", words[2]);
        return 1;
    }
    fclose(file);
    for (int i = 0; i < SPEECH; ++i) speech[i] = 0.3F * sinf(0.1F * (float)i);

    for (int i = 0; i < times; ++i) {
        dithead_session_options setup;
        check(dithead_session_options_init(&setup, sizeof setup));
        setup.bundle_path = words[1];
        setup.threads = 1;
        dithead_session *session = NULL;
        check(dithead_session_create(&setup, &session));
        dithead_stream *stream = open_stream(session, portrait, width, height);
        int spoken = speak(stream, speech, image, size);
        /* One that is left in the middle, too. */
        check(dithead_stream_reset(stream));
        check(dithead_push_audio(stream, speech, SPEECH, DITHEAD_NEXT_SAMPLE));
        dithead_stream_destroy(stream);
        dithead_session_destroy(session);
        if (spoken == 0) {
            fputs("no face was re-voiced\n", stderr);
            return 1;
        }
        printf("%ld\n", resident_kib());
        fflush(stdout);
    }
    free(speech);
    free(image);
    free(portrait);
    return 0;
}
