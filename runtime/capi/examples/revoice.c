/*
 * Re-voices a video between two ffmpegs: raw RGB frames on stdin, raw RGB frames on stdout, and the
 * sound that belongs to them in a WAV file.
 *
 *   ffmpeg -i speech.mp3 -ac 1 -ar 16000 speech.wav
 *   ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 - |
 *     revoice --size 640x480 --rate 25 --sound out.wav tiny-cpu speech.wav |
 *     ffmpeg -f rawvideo -pix_fmt rgb24 -s 640x480 -r 25 -i - -pix_fmt yuv420p out-silent.mp4
 *   ffmpeg -i out-silent.mp4 -i out.wav -c:v copy -shortest out.mp4
 *
 * Each frame that comes in goes out; those after the end of the speech are silent.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

#include "dithead.h"
#include "wav.h"

static const char USAGE[] =
    "usage: revoice [options] BUNDLE SPEECH.wav < FRAMES > FRAMES\n"
    "  --size WxH         size of the frames; required\n"
    "  --rate N[/D]       frames a second (default 25)\n"
    "  --sound OUT.wav    writes the sound of the frames\n"
    "  --in FILE          raw RGB frames (default stdin)\n"
    "  --out FILE         raw RGB frames (default stdout)\n"
    "  --steps N          denoising steps (default: the bundle's)\n"
    "  --seed N           of the noise (default 0)\n"
    "  --provider NAME    cpu, cuda, tensorrt or tensorrt-rtx (default cpu)\n"
    "  --threads N        CPU threads of each graph (default: a quarter of the cores)\n";

typedef struct arguments {
    int width, height, rate, per, steps, threads, seed;
    const char *bundle, *speech, *sound, *in, *out, *provider;
} arguments;

typedef struct job {
    arguments asked;
    dithead_session *session;
    dithead_stream *stream;
    FILE *in, *out;
    wav_file sound;
    uint8_t *frame, *result;
    float *samples;
    size_t frame_size, samples_room;
} job;

/* How many numbers of at least 0 the text is, two at most; 0 if it is anything else. */
static int numbers(const char *text, char between, int *first, int *second) {
    char *end = NULL;
    long value = strtol(text, &end, 10);
    if (end == text || value < 0 || value > INT32_MAX) return 0;
    *first = (int)value;
    if (*end == '\0') return 1;
    if (second == NULL || *end != between) return 0;
    const char *rest = end + 1;
    value = strtol(rest, &end, 10);
    if (end == rest || *end != '\0' || value < 0 || value > INT32_MAX) return 0;
    *second = (int)value;
    return 2;
}

static bool read_arguments(int count, char **words, arguments *asked) {
    *asked = (arguments){.rate = 25, .per = 1, .provider = "cpu"};
    int n = 1;
    for (; n < count && strncmp(words[n], "--", 2) == 0; n += 2) {
        const char *name = words[n] + 2, *value = n + 1 < count ? words[n + 1] : "";
        bool fits = true;
        if (strcmp(name, "size") == 0) {
            fits = numbers(value, 'x', &asked->width, &asked->height) == 2;
        } else if (strcmp(name, "rate") == 0) {
            fits = numbers(value, '/', &asked->rate, &asked->per) > 0;
        } else if (strcmp(name, "steps") == 0) {
            fits = numbers(value, '\0', &asked->steps, NULL) == 1;
        } else if (strcmp(name, "seed") == 0) {
            fits = numbers(value, '\0', &asked->seed, NULL) == 1;
        } else if (strcmp(name, "threads") == 0) {
            fits = numbers(value, '\0', &asked->threads, NULL) == 1;
        } else if (strcmp(name, "sound") == 0) {
            asked->sound = value;
        } else if (strcmp(name, "in") == 0) {
            asked->in = value;
        } else if (strcmp(name, "out") == 0) {
            asked->out = value;
        } else if (strcmp(name, "provider") == 0) {
            asked->provider = value;
        } else {
            fits = false;
        }
        if (!fits) return false;
    }
    if (count - n != 2 || asked->width < 2 || asked->height < 2 || asked->width > 16384 ||
        asked->height > 16384 || asked->rate < 1 || asked->per < 1) {
        return false;
    }
    asked->bundle = words[n];
    asked->speech = words[n + 1];
    return true;
}

/* Says what went wrong, and ends every function with it. */
static bool failed(const char *what) {
    fprintf(stderr, "revoice: %s\n", what);
    return false;
}

static bool failed_on(const char *path) {
    fprintf(stderr, "revoice: %s: %s\n", path, strerror(errno));
    return false;
}

static bool done(dithead_status status) {
    return status >= DITHEAD_OK || failed(dithead_last_error());
}

static void print_log(void *nothing, int32_t level, const char *message) {
    (void)nothing;
    (void)level;
    fprintf(stderr, "%s\n", message);
}

static bool open_files(job *work) {
    const arguments *asked = &work->asked;
#ifdef _WIN32
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    work->in = asked->in == NULL ? stdin : fopen(asked->in, "rb");
    if (work->in == NULL) return failed_on(asked->in);
    work->out = asked->out == NULL ? stdout : fopen(asked->out, "wb");
    if (work->out == NULL) return failed_on(asked->out);
    if (asked->sound != NULL && wav_create(&work->sound, asked->sound) != 0) return false;
    work->frame_size = (size_t)asked->width * (size_t)asked->height * 3;
    work->frame = malloc(work->frame_size);
    work->result = malloc(work->frame_size);
    /* A frame's sound lasts as long as the frame: at most the 2 s of two of them here. */
    work->samples_room = 2 * (size_t)(16000.0 * asked->per / asked->rate + 2);
    work->samples = malloc(work->samples_room * sizeof *work->samples);
    return (work->frame != NULL && work->result != NULL && work->samples != NULL) ||
           failed("out of memory");
}

static bool open_stream(job *work) {
    const arguments *asked = &work->asked;
    dithead_session_options session;
    dithead_session_options_init(&session, sizeof session);
    session.bundle_path = asked->bundle;
    session.provider = asked->provider;
    session.threads = asked->threads;
    session.log = print_log;
    if (!done(dithead_session_create(&session, &work->session))) return false;
    dithead_stream_options options;
    dithead_stream_options_init(&options, sizeof options);
    options.steps = asked->steps;
    options.seed = (uint32_t)asked->seed;
    options.rate_numerator = asked->rate;
    options.rate_denominator = asked->per;
    options.waiting = 1; /* all sound is there before the first frame */
    return done(dithead_stream_create(work->session, &options, &work->stream));
}

static bool push_speech(job *work) {
    size_t count = 0;
    float *speech = wav_read(work->asked.speech, &count);
    if (speech == NULL) return false;
    const bool pushed =
        done(dithead_push_audio(work->stream, speech, count, DITHEAD_NEXT_SAMPLE)) &&
        done(dithead_finish_audio(work->stream));
    free(speech);
    return pushed;
}

/* Writes the next finished frame. *ended: there are no more. */
static bool write_frame(job *work, bool *ended) {
    dithead_output out;
    dithead_output_init(&out, sizeof out);
    out.pixels = work->result;
    out.pixels_capacity = work->frame_size;
    out.samples = work->samples;
    out.samples_capacity = work->samples_room;
    const dithead_status status = dithead_pull_frame(work->stream, &out, DITHEAD_WAIT_FOREVER);
    *ended = status == DITHEAD_END_OF_STREAM;
    if (*ended || !done(status)) return *ended;
    if (fwrite(work->result, 1, work->frame_size, work->out) != work->frame_size) {
        return failed("the result cannot be written");
    }
    if (work->sound.file != NULL && wav_write(&work->sound, work->samples, out.sample_count) != 0) {
        return failed("the sound cannot be written");
    }
    return true;
}

/* Pushes frames as long as there is room, and writes one whenever there is none. */
static bool pump(job *work) {
    const arguments *asked = &work->asked;
    dithead_frame frame;
    dithead_frame_init(&frame, sizeof frame);
    frame.pixels = work->frame;
    frame.width = asked->width;
    frame.height = asked->height;
    frame.stride = (size_t)asked->width * 3;
    bool ended = false;
    size_t came = 0;
    for (int64_t n = 0;
         (came = fread(work->frame, 1, work->frame_size, work->in)) == work->frame_size; ++n) {
        frame.pts_us = (n * asked->per * 1000000 + asked->rate / 2) / asked->rate;
        dithead_status status = DITHEAD_WOULD_BLOCK;
        while ((status = dithead_push_frame(work->stream, &frame, 0)) == DITHEAD_WOULD_BLOCK) {
            if (!write_frame(work, &ended)) return false;
        }
        if (!done(status)) return false;
    }
    if (ferror(work->in)) return failed("the frames cannot be read");
    if (came > 0) fprintf(stderr, "revoice: the last frame is not whole, and is left out\n");
    if (!done(dithead_finish(work->stream))) return false;
    while (!ended) {
        if (!write_frame(work, &ended)) return false;
    }
    return fflush(work->out) == 0 || failed("the result cannot be written");
}

static void report(dithead_stream *stream) {
    dithead_statistics told;
    memset(&told, 0, sizeof told);
    told.struct_size = sizeof told;
    if (dithead_get_statistics(stream, &told) != DITHEAD_OK) return;
    fprintf(stderr, "%" PRIu64 " frames, %" PRIu64 " of them re-voiced\n", told.frames_out,
            told.left_alone[DITHEAD_REVOICED]);
    for (int reason = 1; reason < 16; ++reason) {
        if (told.left_alone[reason] == 0) continue;
        fprintf(stderr, "%" PRIu64 " left alone: %s\n", told.left_alone[reason],
                dithead_left_alone_string(reason));
    }
}

int main(int count, char **words) {
    job work = {0};
    if (count == 2 && strcmp(words[1], "--help") == 0) return fputs(USAGE, stdout) < 0;
    if (!read_arguments(count, words, &work.asked)) {
        fputs(USAGE, stderr);
        return 2;
    }
    /* Nothing is written before all that is read is there. */
    bool fine = open_stream(&work) && push_speech(&work) && open_files(&work) && pump(&work);
    if (fine) report(work.stream);
    dithead_stream_destroy(work.stream);
    dithead_session_destroy(work.session);
    if (work.sound.file != NULL && wav_close(&work.sound) != 0) {
        fine = failed("the sound cannot be written");
    }
    if (work.out != NULL && work.out != stdout && fclose(work.out) != 0) {
        fine = failed("the result cannot be written");
    }
    if (work.in != NULL && work.in != stdin) fclose(work.in);
    free(work.frame);
    free(work.result);
    free(work.samples);
    return fine ? 0 : 1;
}
