#include "bundlefile.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <memory>
#include <vector>

#include <openssl/evp.h>

#include "error.hpp"

namespace dithead {
namespace {

namespace fs = std::filesystem;

Error unusable(const std::string &message) {
    return {DITHEAD_ERROR_BUNDLE, message + "; export again"};
}

// SHA-256 of a file, in hexadecimal.
std::string hash_file(const fs::path &path) {
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX *)> digest(EVP_MD_CTX_new(),
                                                                     EVP_MD_CTX_free);
    if (!digest || EVP_DigestInit_ex(digest.get(), EVP_sha256(), nullptr) != 1) {
        throw Error(DITHEAD_ERROR_INTERNAL, "OpenSSL has no SHA-256");
    }
    std::ifstream file(path, std::ios::binary);
    std::vector<char> block(std::size_t{1} << 20);
    while (file) {
        file.read(block.data(), static_cast<std::streamsize>(block.size()));
        const auto read = static_cast<std::size_t>(file.gcount());
        if (EVP_DigestUpdate(digest.get(), block.data(), read) != 1) break;
    }
    std::array<unsigned char, EVP_MAX_MD_SIZE> hash{};
    unsigned length = 0;
    if (!file.eof() || EVP_DigestFinal_ex(digest.get(), hash.data(), &length) != 1) {
        throw unusable(path.string() + " cannot be read");
    }
    std::string text;
    for (unsigned i = 0; i < length; i++) {
        text += "0123456789abcdef"[hash[i] >> 4];
        text += "0123456789abcdef"[hash[i] & 15];
    }
    return text;
}

} // namespace

bool is_file_name(const std::string &path) {
    // On Windows a colon names a drive or a stream; no file of ours has one.
    const bool plain = path.find_first_of("/\\:") == std::string::npos;
    return plain && !path.empty() && path != "." && path != "..";
}

void check_inside(const fs::path &bundle, const fs::path &path) {
    std::error_code failed;
    const fs::path folder = fs::canonical(bundle, failed);
    const fs::path target = failed ? fs::path() : fs::canonical(path, failed);
    if (failed) throw unusable(path.string() + " cannot be read (" + failed.message() + ")");
    const auto [end, _] = std::mismatch(folder.begin(), folder.end(), target.begin(), target.end());
    if (end != folder.end()) {
        throw Error(DITHEAD_ERROR_BUNDLE, path.string() + " points out of the bundle, to " +
                                              target.string() +
                                              "; copy the bundle with the files themselves "
                                              "(cp -rL)");
    }
}

fs::path check_file(const fs::path &bundle, const BundleFile &file) {
    const fs::path path = bundle / file.path;
    std::error_code failed;
    if (!fs::is_regular_file(path, failed)) {
        throw unusable(path.string() + " is missing from the bundle");
    }
    check_inside(bundle, path);
    const std::uintmax_t bytes = fs::file_size(path, failed);
    if (failed || bytes != file.bytes) {
        throw unusable(path.string() + " is damaged: " + std::to_string(bytes) +
                       " bytes, and the manifest says " + std::to_string(file.bytes));
    }
    if (hash_file(path) != file.sha256) {
        throw unusable(path.string() + " is damaged: its hash differs from the manifest's");
    }
    return path;
}

fs::path check_onnx(const fs::path &bundle, const OnnxFile &file) {
    fs::path path = check_file(bundle, file.file);
    if (file.weights) check_file(bundle, *file.weights);
    return path;
}

} // namespace dithead
