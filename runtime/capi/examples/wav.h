/* Sound from and to WAV files, as far as the example needs it: mono at 16 kHz. */
#ifndef WAV_H
#define WAV_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Reads 16-bit or float samples. The caller frees them. NULL after a message on stderr. */
float *wav_read(const char *path, size_t *count);

/* A file that grows. The header is right once it is closed; in a pipe it says "until the end". */
typedef struct wav_file {
    FILE *file;
    uint64_t samples;
} wav_file;

int wav_create(wav_file *wav, const char *path);                         /* 0: done */
int wav_write(wav_file *wav, const float *samples, size_t count);        /* 0: done */
int wav_close(wav_file *wav);                                            /* 0: done */

#endif
