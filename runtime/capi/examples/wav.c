#include "wav.h"

#include <stdlib.h>
#include <string.h>

enum { RATE = 16000, HEADER = 44, PCM = 1, FLOATS = 3, EXTENSIBLE = 0xFFFE };

static uint32_t number(const uint8_t *bytes, int size) {
    uint32_t value = 0;
    for (int n = size; n-- > 0;) value = value << 8 | bytes[n];
    return value;
}

static void put(uint8_t *bytes, uint32_t value, int size) {
    for (int n = 0; n < size; ++n) bytes[n] = (uint8_t)(value >> 8 * n);
}

/* Reads up to `most` bytes: a header that came through a pipe may not know the length. */
static uint8_t *read_bytes(FILE *file, uint32_t most, size_t *size) {
    uint8_t *bytes = NULL;
    size_t room = 0, had = 0;
    while (had < most) {
        if (had == room) {
            room = room == 0 ? 1 << 16 : 2 * room;
            uint8_t *larger = realloc(bytes, room);
            if (larger == NULL) break;
            bytes = larger;
        }
        const size_t wanted = most - had < room - had ? most - had : room - had;
        const size_t came = fread(bytes + had, 1, wanted, file);
        had += came;
        if (came < wanted) break;
    }
    *size = had;
    return bytes;
}

static int skip(FILE *file, uint32_t count) {
    for (; count > 0; --count) {
        if (fgetc(file) == EOF) return -1;
    }
    return 0;
}

static float *as_floats(const uint8_t *bytes, size_t size, int format, size_t *count) {
    const size_t width = format == PCM ? 2 : 4;
    *count = size / width;
    float *samples = malloc((*count + 1) * sizeof *samples);
    if (samples == NULL) return NULL;
    for (size_t n = 0; n < *count; ++n) {
        const uint32_t bits = number(bytes + n * width, (int)width);
        if (format == PCM) {
            samples[n] = (float)(int16_t)(uint16_t)bits / 32768.0F;
        } else {
            memcpy(&samples[n], &bits, sizeof bits);
        }
    }
    return samples;
}

float *wav_read(const char *path, size_t *count) {
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return NULL;
    }
    float *samples = NULL;
    const char *wrong = "is no WAV file";
    uint8_t head[12], chunk[8], form[40] = {0};
    int format = 0;
    if (fread(head, 1, sizeof head, file) == sizeof head && memcmp(head, "RIFF", 4) == 0 &&
        memcmp(head + 8, "WAVE", 4) == 0) {
        wrong = "holds no samples";
        while (fread(chunk, 1, sizeof chunk, file) == sizeof chunk) {
            const uint32_t size = number(chunk + 4, 4);
            if (memcmp(chunk, "fmt ", 4) == 0 && size >= 16 && size <= sizeof form) {
                if (fread(form, 1, size, file) != size) break;
                format = (int)number(form, 2);
                if (format == EXTENSIBLE && size == sizeof form) format = (int)number(form + 24, 2);
            } else if (memcmp(chunk, "data", 4) == 0) {
                const uint32_t bits = number(form + 14, 2);
                if (number(form + 2, 2) != 1 || number(form + 4, 4) != RATE ||
                    !((format == PCM && bits == 16) || (format == FLOATS && bits == 32))) {
                    wrong = "must be mono at 16 kHz, 16 bits or floats: convert it with "
                            "ffmpeg -i IN -ac 1 -ar 16000 OUT.wav";
                    break;
                }
                size_t bytes = 0;
                uint8_t *data = read_bytes(file, size, &bytes);
                if (data != NULL) samples = as_floats(data, bytes, format, count);
                free(data);
                break;
            } else if (skip(file, size + size % 2) != 0) {
                break;
            }
        }
    }
    if (samples == NULL) fprintf(stderr, "%s %s\n", path, wrong);
    if (file != stdin) fclose(file);
    return samples;
}

static int write_header(wav_file *wav, uint32_t bytes) {
    uint8_t header[HEADER] = "RIFF....WAVEfmt ....";
    put(header + 4, bytes > UINT32_MAX - 36 ? UINT32_MAX : bytes + 36, 4);
    put(header + 16, 16, 4);
    put(header + 20, FLOATS, 2);
    put(header + 22, 1, 2);
    put(header + 24, RATE, 4);
    put(header + 28, RATE * 4, 4);
    put(header + 32, 4, 2);
    put(header + 34, 32, 2);
    memcpy(header + 36, "data", 4);
    put(header + 40, bytes, 4);
    return fwrite(header, 1, sizeof header, wav->file) == sizeof header ? 0 : -1;
}

int wav_create(wav_file *wav, const char *path) {
    wav->samples = 0;
    wav->file = fopen(path, "wb");
    if (wav->file == NULL) {
        perror(path);
        return -1;
    }
    return write_header(wav, UINT32_MAX);
}

int wav_write(wav_file *wav, const float *samples, size_t count) {
    for (size_t n = 0; n < count; ++n) {
        uint8_t bytes[4];
        uint32_t bits = 0;
        memcpy(&bits, &samples[n], sizeof bits);
        put(bytes, bits, 4);
        if (fwrite(bytes, 1, sizeof bytes, wav->file) != sizeof bytes) return -1;
    }
    wav->samples += count;
    return 0;
}

int wav_close(wav_file *wav) {
    const uint64_t bytes = wav->samples * 4;
    int failed = 0;
    if (bytes < UINT32_MAX && fseek(wav->file, 0, SEEK_SET) == 0) {
        failed = write_header(wav, (uint32_t)bytes);
    }
    return fclose(wav->file) == 0 && failed == 0 ? 0 : -1;
}
