// A still portrait that speaks: raw 16 kHz mono floats on stdin, raw RGB frames on stdout.
//   ffmpeg -i speech.mp3 -f f32le -ac 1 -ar 16000 - | minimal tiny-cpu 640 480 in.rgb > out.rgb
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

#include "dithead.h"

static void check(dithead_status status) {
    if (status >= DITHEAD_OK) return;
    std::fprintf(stderr, "%s\n", dithead_last_error());
    std::exit(1);
}

int main(int count, char **words) {
    if (count != 5) return std::fputs("usage: minimal BUNDLE WIDTH HEIGHT PORTRAIT\n", stderr), 2;
    std::ifstream file(words[4], std::ios::binary);
    const std::vector<char> portrait(std::istreambuf_iterator<char>(file), {});
    const int width = std::atoi(words[2]), height = std::atoi(words[3]);
    std::vector<uint8_t> image(static_cast<size_t>(width) * static_cast<size_t>(height) * 3);
    if (portrait.size() != image.size()) return std::fputs("the sizes differ\n", stderr), 1;

    dithead_session_options setup;
    check(dithead_session_options_init(&setup, sizeof setup));
    setup.bundle_path = words[1];
    dithead_session *session = nullptr;
    check(dithead_session_create(&setup, &session));

    dithead_stream_options options;
    check(dithead_stream_options_init(&options, sizeof options));
    options.portrait = reinterpret_cast<const uint8_t *>(portrait.data());
    options.portrait_width = width;
    options.portrait_height = height;
    options.portrait_stride = static_cast<size_t>(width) * 3;
    dithead_stream *opened = nullptr;
    check(dithead_stream_create(session, &options, &opened));
    const std::unique_ptr<dithead_stream, void (*)(dithead_stream *)> stream(
        opened, dithead_stream_destroy);
    dithead_session_destroy(session); // the stream keeps what it needs

    std::vector<float> samples(1600);
    while (const size_t came = std::fread(samples.data(), sizeof(float), samples.size(), stdin)) {
        check(dithead_push_audio(stream.get(), samples.data(), came, DITHEAD_NEXT_SAMPLE));
    }
    check(dithead_finish(stream.get()));

    dithead_output out;
    check(dithead_output_init(&out, sizeof out));
    out.pixels = image.data();
    out.pixels_capacity = image.size();
    dithead_status status;
    while ((status = dithead_pull_frame(stream.get(), &out, DITHEAD_WAIT_FOREVER)) == DITHEAD_OK) {
        std::fwrite(image.data(), 1, image.size(), stdout);
    }
    check(status);
}
