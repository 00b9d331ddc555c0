/*
 * DiT-Head: re-voices faces. A stream takes sound and frames, and gives the frames back speaking.
 *
 *     dithead_session_options setup;
 *     dithead_session_options_init(&setup, sizeof setup);
 *     setup.bundle_path = "tiny-cpu";              // written by dithead-export
 *     dithead_session *session = NULL;
 *     dithead_stream *stream = NULL;
 *     if (dithead_session_create(&setup, &session) != DITHEAD_OK ||
 *         dithead_stream_create(session, NULL, &stream) != DITHEAD_OK) {
 *         fprintf(stderr, "%s\n", dithead_last_error());
 *         return 1;
 *     }
 *     dithead_push_audio(stream, samples, count, DITHEAD_NEXT_SAMPLE);   // mono, 16 kHz
 *     dithead_finish_audio(stream);
 *     dithead_frame frame;
 *     dithead_frame_init(&frame, sizeof frame);
 *     frame.pixels = rgb; frame.width = 640; frame.height = 480; frame.stride = 640 * 3;
 *     frame.pts_us = 0;
 *     dithead_push_frame(stream, &frame, DITHEAD_WAIT_FOREVER);
 *     dithead_output out;
 *     dithead_output_init(&out, sizeof out);
 *     out.pixels = revoiced; out.pixels_capacity = sizeof revoiced; out.stride = 640 * 3;
 *     dithead_pull_frame(stream, &out, DITHEAD_WAIT_FOREVER);          // the same frame, speaking
 *     dithead_stream_destroy(stream);
 *     dithead_session_destroy(session);
 *
 * OWNERSHIP. A handle that a _create function gives belongs to the caller until the matching
 * _destroy; _destroy accepts NULL. A stream keeps the weights alive that it needs, so a session
 * may be destroyed before its streams. Whatever a pointer argument points at is read, copied or
 * written before the call returns, and never kept. Text is UTF-8 and ends with a zero.
 *
 * THREADS. A session may be used by any thread at any time, and streams of one session work
 * beside each other. Each of these groups of calls on one stream may have its own thread, and the
 * threads need no lock between them:
 *
 *     dithead_push_audio, dithead_mark, dithead_mark_end
 *     dithead_push_frame, dithead_set_portrait
 *     dithead_pull_frame
 *
 * The second of two calls of one group at once returns DITHEAD_ERROR_BUSY and does nothing. The
 * other calls on a stream may come from any thread. Nothing may be called on a handle during or
 * after its _destroy: to end a call that waits in another thread, call dithead_stream_stop, wait
 * for that thread, then destroy. Inside the log callback, no function of this library may be
 * called.
 *
 * ERRORS. A function that can fail returns a dithead_status: 0 is success, above 0 is an answer
 * that is no error, below 0 is an error. Where an error is returned, nothing was taken and
 * nothing written, except where a function says otherwise. Results are given by pointer. A failed
 * stage ends a stream for good (DITHEAD_ERROR_STAGE from then on); dithead_stream_reset makes it
 * new.
 *
 * STRUCTS begin with struct_size, so that programs built with an older header go on working with
 * a newer library. Fill them with their _init function, and then change what differs.
 */
#ifndef DITHEAD_H
#define DITHEAD_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(DITHEAD_BUILD)
#define DITHEAD_API __declspec(dllexport)
#else
#define DITHEAD_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define DITHEAD_API __attribute__((visibility("default")))
#else
#define DITHEAD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Versions. The ABI version grows when a program built with an older header would break. */

#define DITHEAD_ABI_VERSION 1

/* The ABI version of the library that is running; compare it with DITHEAD_ABI_VERSION. */
DITHEAD_API uint32_t dithead_abi_version(void);

/* The library's version, such as "0.1.0". */
DITHEAD_API const char *dithead_version(void);

/* Statuses. */

typedef int32_t dithead_status;

enum {
    DITHEAD_OK = 0,
    DITHEAD_WOULD_BLOCK = 1,             /* not in the time that the call was allowed to wait */
    DITHEAD_END_OF_STREAM = 2,           /* all frames have come; or there is no such item */
    DITHEAD_ERROR_INVALID_ARGUMENT = -1, /* NULL, out of range, or options that contradict */
    DITHEAD_ERROR_OUT_OF_MEMORY = -2,
    DITHEAD_ERROR_UNSUPPORTED = -3,      /* not in this build of the library */
    DITHEAD_ERROR_BUNDLE = -4,           /* the bundle is missing, damaged or of another version */
    DITHEAD_ERROR_PROVIDER = -5,         /* the provider or its device cannot be used here */
    DITHEAD_ERROR_STATE = -6,            /* not now: after dithead_finish; times do not increase */
    DITHEAD_ERROR_BUFFER_TOO_SMALL = -7, /* the sizes that are needed were written */
    DITHEAD_ERROR_BUSY = -8,             /* another thread is in this call or one of its group */
    DITHEAD_ERROR_STAGE = -9,            /* a stage failed; the message names it and the frame */
    DITHEAD_ERROR_STOPPED = -10,         /* the stream was stopped, or reset while it waited */
    DITHEAD_ERROR_INTERNAL = -11         /* a fault of the library: please report it */
};

/* A status in words; never NULL, for unknown numbers too. */
DITHEAD_API const char *dithead_status_string(dithead_status status);

/* What went wrong in the latest call in this thread that returned an error; "" before the first.
 * Valid until the next call in this thread that returns an error. */
DITHEAD_API const char *dithead_last_error(void);

/* Sessions: the weights of a bundle on a device. */

typedef struct dithead_session dithead_session;

enum {
    DITHEAD_LOG_DEBUG = 0,
    DITHEAD_LOG_INFO = 1,
    DITHEAD_LOG_WARNING = 2,
    DITHEAD_LOG_ERROR = 3
};

/* Takes one message of the library or of ONNX Runtime. Called from any thread, from several at
 * once, until the session and its streams are destroyed. level: DITHEAD_LOG_... */
typedef void (*dithead_log_callback)(void *user_data, int32_t level, const char *message);

typedef struct dithead_session_options {
    size_t struct_size;
    const char *bundle_path;      /* folder written by dithead-export; required */
    const char *provider;         /* "cpu", "cuda", "tensorrt" or "tensorrt-rtx"; NULL: "cpu". Never
                                     replaced by another: what it cannot run is an error */
    int32_t device;               /* number of the GPU, from 0; 0 with "cpu" */
    int32_t threads;              /* CPU threads of each graph, from 1; 0: a quarter of the cores,
                                     as a stream's stages work beside each other */
    const char *provider_library; /* the plug-in provider's library file for "tensorrt-rtx"; NULL:
                                     beside ONNX Runtime */
    dithead_log_callback log;     /* NULL: messages are dropped */
    void *log_user_data;
    int32_t log_level;            /* the lowest level that is passed on; DITHEAD_LOG_WARNING */
    int32_t reserved;             /* 0 */
} dithead_session_options;

/* Fills options with defaults. struct_size: sizeof(dithead_session_options). */
DITHEAD_API dithead_status dithead_session_options_init(dithead_session_options *options,
                                                        size_t struct_size);

/* Opens a bundle: checks all its files, and loads the graphs that every stream runs. Those for a
 * size of frame or face are loaded when it first occurs: the folder must stay as it is while the
 * session is open. *session is NULL after an error. */
DITHEAD_API dithead_status dithead_session_create(const dithead_session_options *options,
                                                  dithead_session **session);

DITHEAD_API void dithead_session_destroy(dithead_session *session);

/* Streams: one speaker. */

typedef struct dithead_stream dithead_stream;

enum {
    DITHEAD_PIXELS_RGB24 = 0, /* 3 bytes a pixel: red, green, blue */
    DITHEAD_PIXELS_NV12 = 1,  /* BT.709, limited range; even width and height. Below the H rows of
                                 Y, H / 2 rows of U and V in turn, with the same stride */
    DITHEAD_PIXELS_I420 = 2   /* the same, but H / 2 rows of U and then H / 2 of V, with half the
                                 stride, which is even. Both need a build with libswscale */
};

enum {
    DITHEAD_REFERENCE_FIXED = 0,   /* the model is shown the first good frame of the face */
    DITHEAD_REFERENCE_PREVIOUS = 1 /* what it generated for the frame before */
};

/* Which face is re-voiced, decided in the frame in which it first appears. */
enum {
    DITHEAD_FACE_LARGEST = 0,
    DITHEAD_FACE_INDEX = 1, /* face_index: counted from the left, from 0 */
    DITHEAD_FACE_POINT = 2, /* face_place: x, y in pixels */
    DITHEAD_FACE_BOX = 3    /* face_place: left, top, right, bottom in pixels */
};

/* What happens while there is no sound. Speech may begin again at any time, until
 * dithead_finish_audio ends it: a portrait then ends, whatever this says. */
enum {
    DITHEAD_IDLE_WAIT = 0, /* frames wait for it, and a portrait ends with it */
    DITHEAD_IDLE_REST = 1, /* the stream goes on by itself, with the mouth at rest */
    DITHEAD_IDLE_PASS = 2  /* the same, but frames pass through unchanged */
};

#define DITHEAD_PATIENCE_DEFAULT INT64_C(-1)

typedef struct dithead_stream_options {
    size_t struct_size;
    uint32_t seed;            /* of the noise: the same seed gives the same frames; 0 */
    int32_t steps;            /* denoising steps for each frame, 1 to 1000; 0: the bundle's own */
    int32_t detail;           /* 1: show the frame's own pixels, warped; 0: the generated face. 1 */
    int32_t reference;        /* DITHEAD_REFERENCE_...; fixed */
    int32_t face;             /* DITHEAD_FACE_...; largest */
    int32_t face_index;
    float face_place[4];
    int32_t pixel_format;     /* DITHEAD_PIXELS_... of every picture that goes in or out; RGB24 */
    int32_t overlap;          /* 1: each stage has a thread; 0: one thread runs all of them in turn.
                                 The frames are the same. 1 */
    int32_t in_flight;        /* most frames in progress, 1 to 64: fewer cost throughput, more cost
                                 latency; 6 */
    int32_t waiting;          /* most pushed frames that wait before those, 1 to 4096; 24. Live
                                 sound for a frame comes up to 0.38 s after it with `tiny` */
    int32_t idle;             /* DITHEAD_IDLE_...; wait */
    int64_t patience_us;      /* with rest and pass: how long a frame waits for sound before the
                                 next moment counts as silent. DITHEAD_PATIENCE_DEFAULT: what the
                                 model must hear ahead plus 0.1 s; wait allows no other value */
    int32_t realtime;         /* with rest and pass: 1 shows a portrait at the pace of the clock,
                                 and leaves frames out where the machine is too slow; 0: as fast as
                                 they are pulled. 1 */
    int32_t rate_numerator;   /* frames a second: the rate of a portrait, or how long the first */
    int32_t rate_denominator; /* pushed frame lasts. 1 to 1000000 / 1 to 100000, and a frame lasts
                                 600 s at most; 25 / 1 */
    int32_t portrait_width;
    int32_t portrait_height;
    int32_t reserved;         /* 0 */
    const uint8_t *portrait;  /* a still that the stream shows by itself, in pixel_format, instead
                                 of pushed frames; NULL: frames are pushed */
    size_t portrait_stride;   /* bytes from one row to the next */
} dithead_stream_options;

/* Fills options with defaults. struct_size: sizeof(dithead_stream_options). */
DITHEAD_API dithead_status dithead_stream_options_init(dithead_stream_options *options,
                                                       size_t struct_size);

/* Opens a stream and starts its threads. options: NULL takes the defaults. *stream is NULL after an
 * error. */
DITHEAD_API dithead_status dithead_stream_create(dithead_session *session,
                                                 const dithead_stream_options *options,
                                                 dithead_stream **stream);

/* Ends the threads, wherever the frames are, and frees everything. Each thread ends after the step
 * at which it works. */
DITHEAD_API void dithead_stream_destroy(dithead_stream *stream);

/* Forgets everything, frames in progress included: the stream is then like a new one. Calls that
 * wait in other threads return DITHEAD_ERROR_STOPPED. */
DITHEAD_API dithead_status dithead_stream_reset(dithead_stream *stream);

/* Ends every call that waits, with DITHEAD_ERROR_STOPPED, and refuses later ones on frames and
 * sound; what only asks still answers. For good. */
DITHEAD_API dithead_status dithead_stream_stop(dithead_stream *stream);

/* Copies the message of the latest call on this stream, from any thread, that returned an error;
 * cut to fit, and always ended with a zero. Returns the length of all of it, without the zero. */
DITHEAD_API size_t dithead_stream_last_error(dithead_stream *stream, char *buffer,
                                             size_t capacity);

/* Sound in. */

#define DITHEAD_SAMPLE_RATE_HZ 16000
#define DITHEAD_NEXT_SAMPLE INT64_C(-1)

/* Takes in sound. It is copied, and kept until frames reach it; this never waits.
 *
 * samples: mono, 16 kHz, -1 to 1, all of them finite. count: how many; 0 is allowed, and then
 *     samples may be NULL.
 * first_sample: the number of the first one on the stream's clock, whose 0 is the time 0 of
 *     frames. Silence fills the gap to what was pushed before, of at most 600 s.
 *     DITHEAD_NEXT_SAMPLE: right behind that. DITHEAD_ERROR_STATE if sound for that time was
 *     already there. */
DITHEAD_API dithead_status dithead_push_audio(dithead_stream *stream, const float *samples,
                                              size_t count, int64_t first_sample);

/* Declares the sound ended: what follows is silent. Before, a frame waits for the sound after it. A
 * second call does nothing. */
DITHEAD_API dithead_status dithead_finish_audio(dithead_stream *stream);

/* Drops at once the speech that has not gone out with a frame yet (somebody interrupts). Frames in
 * progress are made again without it, and tracking goes on, so nothing jumps. Sound pushed from
 * now on begins with the next frame that is pulled. Waits for each stage's present step. */
DITHEAD_API dithead_status dithead_flush_audio(dithead_stream *stream);

/* Names the piece of speech that is pushed from now on; the piece before it ends. Frames then tell
 * when it begins, ends or is interrupted: dithead_event. piece: any number of the caller's. */
DITHEAD_API dithead_status dithead_mark(dithead_stream *stream, uint64_t piece);

/* The piece of speech ends here. */
DITHEAD_API dithead_status dithead_mark_end(dithead_stream *stream);

/* Where the sound stands. Each pointer may be NULL.
 *
 * next_sample: the number that DITHEAD_NEXT_SAMPLE means now.
 * queued_samples: pushed samples that have not gone out with a frame; silence that the stream
 *     filled in does not count. */
DITHEAD_API dithead_status dithead_get_audio_position(dithead_stream *stream, int64_t *next_sample,
                                                      int64_t *queued_samples);

/* Pictures in. */

#define DITHEAD_WAIT_FOREVER INT64_C(-1)

typedef struct dithead_frame {
    size_t struct_size;
    const uint8_t *pixels; /* the top row's first pixel, in the stream's pixel_format */
    size_t stride;         /* bytes from one row to the next; width * 3 if rows follow each other */
    int32_t width;         /* 2 to 16384 */
    int32_t height;        /* 2 to 16384 */
    int64_t pts_us;        /* presentation time in microseconds, later than the last frame's; 0 is
                              the start of the sound. At most 600 s after all frames and sound that
                              came before */
    int32_t has_face_box;  /* 1: face_box says where the speaker's face is. 0: go on with the face
                              of the frame before. 0 */
    float face_box[4];     /* left, top, right, bottom in pixels; empty, such as all 0: nobody speaks
                              in this frame */
    int32_t reserved;      /* 0 */
} dithead_frame;

/* Fills a frame with defaults. struct_size: sizeof(dithead_frame). */
DITHEAD_API dithead_status dithead_frame_init(dithead_frame *frame, size_t struct_size);

/* Takes in a frame, waiting for room. Room appears when frames are pulled, and when there is sound
 * for those in progress: a single thread should push sound first, and pull before it waits.
 *
 * timeout_us: how long to wait; 0 does not, DITHEAD_WAIT_FOREVER waits without a limit.
 *
 * DITHEAD_WOULD_BLOCK: there was no room in time, and the frame was not taken. */
DITHEAD_API dithead_status dithead_push_frame(dithead_stream *stream, const dithead_frame *frame,
                                              int64_t timeout_us);

/* Shows another portrait from the next frame that is started; only for a stream that was opened
 * with one. stride: bytes from one row to the next. */
DITHEAD_API dithead_status dithead_set_portrait(dithead_stream *stream, const uint8_t *pixels,
                                                int32_t width, int32_t height, size_t stride);

/* Declares sound and frames ended: what is in progress still comes, and then
 * DITHEAD_END_OF_STREAM. A second call does nothing. */
DITHEAD_API dithead_status dithead_finish(dithead_stream *stream);

/* Frames out. */

/* Why a frame was left as it was pushed. */
enum {
    DITHEAD_REVOICED = 0,            /* it was not: it speaks */
    DITHEAD_LEFT_ALONE_NO_FACE = 1,  /* no face was seen */
    DITHEAD_LEFT_ALONE_AWAY = 2,     /* the face that is followed was not visible */
    DITHEAD_LEFT_ALONE_NOBODY = 3,   /* nobody was to speak */
    DITHEAD_LEFT_ALONE_FAINT = 4,    /* too little of the face was visible */
    DITHEAD_LEFT_ALONE_COVERED = 5,  /* something was in front of the mouth */
    DITHEAD_LEFT_ALONE_TOO_LARGE = 6, /* the face was too large for the bundle */
    DITHEAD_LEFT_ALONE_IDLE = 7      /* there was no speech, and the stream's idle is pass */
};

/* A reason in words; never NULL, for unknown numbers too. */
DITHEAD_API const char *dithead_left_alone_string(int32_t reason);

enum { DITHEAD_EVENT_BEGAN = 0, DITHEAD_EVENT_ENDED = 1, DITHEAD_EVENT_INTERRUPTED = 2 };

/* What happens in a frame to a piece of speech that dithead_mark named. */
typedef struct dithead_event {
    uint64_t piece;
    int64_t sample; /* its number on the stream's clock */
    int32_t kind;   /* DITHEAD_EVENT_... */
    int32_t reserved;
} dithead_event;

typedef struct dithead_output {
    size_t struct_size;

    /* Filled in by the caller. */
    uint8_t *pixels;          /* takes the picture, in the stream's pixel_format */
    size_t pixels_capacity;   /* bytes that may be written there */
    size_t stride;            /* bytes from one row to the next; 0: rows follow each other */
    float *samples;           /* takes the frame's sound; NULL: it is not wanted */
    size_t samples_capacity;  /* how many fit */
    dithead_event *events;    /* takes events; NULL: they are not wanted */
    size_t events_capacity;   /* how many fit */

    /* Filled in by the call. */
    int64_t index;            /* number of the frame, from 0 */
    int64_t pts_us;           /* its presentation time: as pushed; of a portrait, rounded */
    int32_t width;
    int32_t height;
    int32_t left_alone;       /* DITHEAD_REVOICED or DITHEAD_LEFT_ALONE_... */
    int32_t reserved;
    size_t pixels_size;       /* bytes that the picture takes with this stride */
    int64_t first_sample;     /* number of the sound's first sample on the stream's clock */
    size_t sample_count;      /* samples of the sound: from the end of the last frame's to the time
                                 at which the next frame is due, after one interval (the shorter one
                                 of the last two) */
    size_t event_count;
} dithead_output;

/* Fills an output with defaults: no buffers. struct_size: sizeof(dithead_output). */
DITHEAD_API dithead_status dithead_output_init(dithead_output *output, size_t struct_size);

/* Takes the next finished frame, waiting for it. Every frame comes, in order. Bytes between the
 * rows of a picture are not written.
 *
 * timeout_us: how long to wait; 0 does not, DITHEAD_WAIT_FOREVER waits without a limit.
 *
 * DITHEAD_WOULD_BLOCK: none was finished in time. DITHEAD_END_OF_STREAM: all have come.
 * DITHEAD_ERROR_BUFFER_TOO_SMALL: the frame stays, and the output says what it needs (its fields
 * width to event_count); a first pull with no buffers thus asks for the sizes. They may change
 * until the next pull, with sound that comes or is dropped: try again as often as it takes. */
DITHEAD_API dithead_status dithead_pull_frame(dithead_stream *stream, dithead_output *output,
                                              int64_t timeout_us);

/* Statistics. */

typedef struct dithead_statistics {
    size_t struct_size;
    uint64_t frames_in;       /* pushed, or shown of a portrait */
    uint64_t frames_out;      /* pulled */
    uint64_t left_alone[16];  /* pulled, by reason; at DITHEAD_REVOICED those that speak */
    int64_t first_frame_us;   /* from the first frame's push to its being finished; -1: not yet */
    /* From a frame's push to its being finished, over the latest 1024 frames; -1: none yet. Waiting
     * for sound is part of it. */
    int64_t latency_p50_us;
    int64_t latency_p95_us;
    int64_t latency_p99_us;
} dithead_statistics;

/* What a stream has done since it was opened or reset. Set statistics->struct_size first. */
DITHEAD_API dithead_status dithead_get_statistics(dithead_stream *stream,
                                                  dithead_statistics *statistics);

typedef struct dithead_stage_statistics {
    size_t struct_size;
    char name[32];
    uint64_t frames;          /* that the stage worked on; one made again counts again */
    int64_t busy_us;          /* time that it worked, in all */
    int64_t work_p50_us;      /* what a frame takes, over the latest 1024; -1: none yet */
    int64_t work_p95_us;
    int64_t work_p99_us;
} dithead_stage_statistics;

/* What one stage of a stream has done. stage: from 0, in the order of the work.
 * DITHEAD_END_OF_STREAM: there are not so many. Set statistics->struct_size first. */
DITHEAD_API dithead_status dithead_get_stage_statistics(dithead_stream *stream, size_t stage,
                                                        dithead_stage_statistics *statistics);

#ifdef __cplusplus
}
#endif

#endif /* DITHEAD_H */
