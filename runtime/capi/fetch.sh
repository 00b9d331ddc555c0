#!/usr/bin/env bash
# Unpacks what the library is built from or tried with into a folder, as Debian packages it, where the
# system has none. Needs no root, and installs nothing.
#
# usage: fetch.sh FOLDER onnxruntime|nlohmann|openssl|swscale|clang...
set -euo pipefail
folder=$1
shift
# The oldest suite whose onnxruntime is 1.22 or later. Only its headers are used.
suite=forky

fail() { printf 'fetch.sh: %s\n' "$*" >&2; exit 1; }

apt_options=()
# Lets apt read its own system's archive and the suite above, with lists of its own.
set_up_apt() {
    ((${#apt_options[@]} == 0)) || return 0
    local advice="install the headers of ONNX Runtime (1.22 or later), nlohmann-json and OpenSSL, \
and say where ONNX Runtime is: make capi CAPI_OPTIONS=-DONNXRUNTIME_ROOT=/path"
    command -v apt-get dpkg >/dev/null || fail "there is no apt-get here: $advice"
    local id='' codename='' uri keyring
    # shellcheck source=/dev/null
    . /etc/os-release
    id=${ID:-} codename=${VERSION_CODENAME:-}
    [[ $id == debian && -n $codename ]] || fail "this is not Debian: $advice"
    uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Identifier: Packages' |
        awk -v release="$codename" '$2 == release { print $1; exit }')
    [[ -n $uri ]] || fail "apt has no source for $codename: $advice"
    for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
        if [[ -e $keyring ]]; then break; fi
    done
    mkdir -p "$folder"/apt/{lists,cache}/partial "$folder"/apt/cache/archives/partial
    printf "deb [signed-by=$keyring] $uri %s main\n" "$codename" "$suite" >"$folder/apt/sources.list"
    apt_options=(-o Dir::Etc::SourceList="$folder/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::Lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache"
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
        -o Acquire::Languages=none -o APT::Default-Release="$codename" -o APT::Sandbox::User="$(id -un)")
    apt-get -qq "${apt_options[@]}" update
    system=$codename
}

# Unpacks packages of a suite.
unpack() {
    local from=$1 package
    shift
    mkdir -p "$folder/apt/packages"
    for package in "$@"; do
        (cd "$folder/apt/packages" && apt-get -qq "${apt_options[@]}" download "$package/$from")
        dpkg -x "$folder/apt/packages/${package}"_*.deb "$folder"
    done
}

# Unpacks packages of the system's suite with all that they need and the system lacks.
unpack_whole() {
    local missing
    set_up_apt
    missing=$(apt-get "${apt_options[@]}" --simulate --no-install-recommends install "$@" |
        awk '/^Inst/ { print $2 }')
    # shellcheck disable=SC2086
    unpack "$system" $missing
}

# Whether the compiler finds a header, here or in the system.
has() {
    compgen -G "$folder/usr/include/$1" >/dev/null || compgen -G "$folder/usr/include/*/$1" >/dev/null ||
        echo "#include <$1>" | c++ -E -x c++ - >/dev/null 2>&1
}

for wanted in "$@"; do
    case $wanted in
    onnxruntime) # the system's may be too old: only the folder's counts
        [[ -e $folder/usr/include/onnxruntime/onnxruntime_c_api.h ]] && continue
        set_up_apt
        unpack "$suite" libonnxruntime-dev
        ;;
    nlohmann)
        has nlohmann/json.hpp && continue
        set_up_apt
        unpack "$system" nlohmann-json3-dev
        ;;
    openssl)
        has openssl/evp.h && continue
        set_up_apt
        # The library goes with its headers: the link to it is relative.
        library=$(apt-cache "${apt_options[@]}" depends libssl-dev | awk '/Depends: libssl/ { print $2; exit }')
        unpack "$system" "$library" libssl-dev
        ;;
    swscale)
        has libswscale/swscale.h && continue
        unpack_whole libswscale-dev
        ;;
    clang) # with its sanitizers and libFuzzer
        command -v clang++ >/dev/null || compgen -G "$folder/usr/lib/llvm-*/bin/clang++" >/dev/null && continue
        set_up_apt
        package=$(apt-cache "${apt_options[@]}" depends clang | awk '/Depends: clang-[0-9]/ { print $2; exit }')
        unpack_whole "$package" "libclang-rt-${package#clang-}-dev"
        ;;
    *) fail "nothing is known of $wanted" ;;
    esac
done
